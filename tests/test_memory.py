"""What networks need of memory and what there is: the plan and the refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import tvm_pattern as tp
from tvm_pattern import cli, compiler, footprint, loading, memory
from tvm_pattern.frontend import import_model
from tvm_pattern.memory import Footprint, NotEnoughMemoryError
from tvm_pattern.sources import examples_of

IMAGE = np.random.default_rng(0).standard_normal((1, 16, 20, 20), "f4")
PIXELS = 20 * 20 * 4


class Branches(nn.Module):
    """The input of the block is there until its end."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.widen = nn.Conv2d(16, 64, 1)
        self.back = nn.Conv2d(64, 16, 1)

    def forward(self, x):
        y = self.first(x)
        return self.back(torch.relu(self.widen(y))) + y


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tp.pruning.oneshot(net := Branches().eval(), connectivity=2.0) and net


@pytest.fixture(scope="module")
def library(model):
    # Winograd's weights would be four times as large where level 0 takes it.
    return tp.compile(model, IMAGE, num_threads=1, winograd=False)


@pytest.fixture(scope="module")
def exported(library, tmp_path_factory):
    return library.export(tmp_path_factory.mktemp("memory") / "net.so")


def of_available(monkeypatch, size):
    monkeypatch.setattr(memory, "available_memory", lambda: size)


def test_plan_holds_what_lives_at_a_time(library):
    # Beside each other: y, what widen makes of it and the sum's result. Planes have borders, and
    # storage that nobody needs any more may be larger than what is put there.
    least = (16 + 64 + 16) * PIXELS
    assert least <= library.manifest.activation_bytes < 1.5 * least


def test_weights_are_the_packed_ones(library, model):
    kept = sum(int(p.count_nonzero()) for p in model.parameters())
    assert 4 * kept <= library.manifest.weight_bytes < 8 * kept


def test_report_and_manifest_say_it(library, exported):
    line = f"memory of a run: {library.manifest.footprint}"
    assert line in library.report.notes
    assert tp.load(exported).manifest.footprint == library.manifest.footprint


def test_sizes_share_weights_and_the_largest_counts(model):
    images = [(IMAGE,), (np.tile(IMAGE, (2, 1, 1, 1)),)]
    library = tp.compile(model, sizes=images, num_threads=1, verify=False)
    small, large = (size.manifest for size in library.sizes)
    assert large.activation_bytes == 2 * small.activation_bytes > 0
    assert small.weight_bytes == large.weight_bytes
    assert library.manifest.footprint == Footprint(small.weight_bytes, large.activation_bytes)


def test_least_is_input_and_output_of_a_convolution(model):
    assert footprint.least_activations(import_model(model, (IMAGE,)).mod) == (16 + 64) * PIXELS


def test_compile_refuses_before_it_allocates(model):
    # Terabytes that nobody has: torch's own run of the module is refused too.
    image = torch.zeros(1).expand(1, 16, 100_000, 100_000)
    with pytest.raises(
        NotEnoughMemoryError,
        match=r"tensor float32\[1, 16, 100000, 100000\] needs at least 640\.0 GB .*smaller inputs",
    ):
        tp.compile(model, image, num_threads=1)


def test_compile_refuses_an_exported_program_before_the_passes(monkeypatch, model):
    program = torch.export.export(model, (torch.from_numpy(IMAGE),))
    of_available(monkeypatch, (16 + 64) * PIXELS - 1)
    monkeypatch.setattr(compiler, "_build", None)
    with pytest.raises(NotEnoughMemoryError, match=r"the network needs at least 128\.0 kB"):
        tp.compile(program, num_threads=1)


def test_compile_refuses_what_the_plan_asks_for(monkeypatch, model):
    of_available(monkeypatch, (16 + 64) * PIXELS)
    with pytest.raises(NotEnoughMemoryError, match="the compiled network needs at least"):
        tp.compile(model, IMAGE, num_threads=1)


def test_another_computers_memory_is_not_ours(monkeypatch, model):
    program = torch.export.export(model, (torch.from_numpy(IMAGE),))
    of_available(monkeypatch, 0)
    tp.compile(program, None, "pattern/cortex-a76", num_threads=1, verify=False)


def test_load_refuses_before_it_opens(monkeypatch, exported):
    of_available(monkeypatch, 1000)
    monkeypatch.setattr(loading, "_open", None)
    with pytest.raises(NotEnoughMemoryError, match=r"net\.so needs at least .* and 1\.0 kB are"):
        tp.load(exported)


def test_command_says_it_in_a_line(monkeypatch, exported):
    of_available(monkeypatch, 1000)
    result = CliRunner().invoke(cli.app, ["run", str(exported)])
    assert result.exit_code == 1
    assert "needs at least" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("files", "left"),
    [
        # Version 2, the outer group the tighter one; pages that can be dropped are free.
        (
            {
                "a/memory.max": "max",
                "a/memory.current": "10",
                "memory.max": "1000",
                "memory.current": "700",
                "memory.stat": "anon 500\ninactive_file 150\n",
            },
            [450],
        ),
        (
            {
                "memory/a/memory.limit_in_bytes": "1000",
                "memory/a/memory.usage_in_bytes": "100",
                "memory/a/memory.stat": "cache 5\ntotal_inactive_file 5\n",
            },
            [905],
        ),
        ({}, []),
    ],
)
def test_control_groups(tmp_path, files, left):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert list(memory._left_in_groups("/a", tmp_path)) == left


def test_available_is_the_least_of_all(monkeypatch):
    everything = memory.available_memory()
    assert everything > 0
    monkeypatch.setattr(memory, "_left_in_groups", lambda group: iter([everything // 4]))
    assert memory.available_memory() == everything // 4


@pytest.mark.skipif(memory.resource is None, reason="no limits of processes on this system")
def test_a_limit_of_the_process_counts(monkeypatch):
    used = memory.psutil.Process().memory_info().vms
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _kind: (used + 10_000_000, -1))
    assert memory.available_memory() <= 10_000_000 + used // 10


@pytest.mark.parametrize(
    ("size", "text"),
    [(12, "12 bytes"), (1500, "1.5 kB"), (2_000_000, "2.0 MB"), (3_210_000_000, "3.2 GB")],
)
def test_sizes_as_text(size, text):
    assert memory.size_text(size) == text


def test_an_input_of_the_command_line_that_fits_no_memory_is_named_before_it_is_drawn():
    with pytest.raises(NotEnoughMemoryError, match=r"--shape 1x3x900000x900000 needs at least"):
        examples_of(["1x3x900000x900000"])
    (example,) = examples_of(["1x3x4x5"])
    assert (example.shape, example.dtype) == ((1, 3, 4, 5), np.float32)
