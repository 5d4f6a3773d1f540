"""compile: networks and small models against torch, calls, reports, threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import tvm
from torch import nn

import tvm_pattern as tp
from tvm_pattern import threads

# The outputs' scale times this: float32, some 10^4 products a sum and 50 layers deep.
TOLERANCE = 1e-4


def in_new_thread(function, *args):
    """TVM's pool belongs to the calling thread: one that nobody has used yet can have any size."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


def small_net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1),
        nn.ReLU6(),
        nn.Conv2d(24, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()
    tp.pruning.oneshot(model, connectivity=2.0, group=2)
    return model


IMAGE = torch.randn(1, 3, 13, 17, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model():
    return small_net()


@pytest.fixture(scope="module")
def library(model):
    return tp.compile(model, IMAGE, num_threads=1)


@pytest.fixture(scope="module")
def expected(model):
    with torch.no_grad():
        return model(IMAGE).numpy()


def assert_close(got, want):
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max()


@pytest.mark.parametrize(
    ("name", "group", "connectivity_1x1"),
    [
        ("mobilenet_v2", 1, 1.5),
        ("resnet50", 4, 1.0),
        ("vgg16_bn", 1, 1.0),
    ],
)
def test_pruned_networks_match_torch_at_an_odd_size(name, group, connectivity_1x1):
    model = getattr(tp.models, name)(num_classes=10)
    if name.startswith("vgg"):  # its 120 million weights of dense layers take a minute
        model.classifier = nn.Sequential(nn.Linear(25088, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    tp.pruning.oneshot(model, connectivity=3.6, group=group, connectivity_1x1=connectivity_1x1)
    image = torch.randn(1, 3, 97, 131, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        want = model(image).numpy()

    def run():
        library = tp.compile(model, image, num_threads=2)
        two = library(image)
        library.num_threads = 1
        one = library(image)
        return library, one, two

    library, one, two = in_new_thread(run)
    assert_close(two, want)
    np.testing.assert_array_equal(one, two)
    convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert sorted(row.layer for row in library.report.rows) == sorted(convolutions)
    assert all(row.taken for row in library.report.rows), library.report.skipped


def test_any_source_gives_the_same_answer(model, library, expected):
    assert_close(library(IMAGE), expected)
    program = torch.export.export(model, (IMAGE,))
    for source in (program, torch.jit.trace(model, IMAGE)):
        again = tp.compile(source, IMAGE, num_threads=1)
        np.testing.assert_array_equal(again(IMAGE), library(IMAGE))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (IMAGE.to("meta"), "'input': got a tensor on the meta device"),
        (IMAGE.to_sparse(), r"'input': got the layout sparse_coo.*x\.to_dense\(\)"),
        (torch.quantize_per_tensor(IMAGE, 0.1, 0, torch.qint8), "got a quantised tensor.*qint8"),
    ],
)
def test_tensors_without_plain_values_are_refused(library, value, message):
    for call in (library, library.as_module()):
        with pytest.raises(ValueError, match=message):
            call(value)


def test_inputs_lie_anywhere_in_memory(model, library, expected):
    """At any address, in any order, and no call writes into what an earlier one gave."""
    shifted = np.frombuffer(b"abcd" + IMAGE.numpy().tobytes(), np.float32, offset=4)
    batch = torch.cat([IMAGE + 1, IMAGE])  # its second image begins at no multiple of 64 bytes
    earlier = library(IMAGE)
    for value in (
        shifted.reshape(IMAGE.shape),
        batch[1:],
        IMAGE.to(memory_format=torch.channels_last),
        IMAGE.flip(-1).numpy()[..., ::-1],
    ):
        assert_close(np.asarray(library(value)), expected)
    library(batch[:1])
    assert_close(earlier.numpy(), expected)


def test_an_input_without_elements_is_refused(model):
    with pytest.raises(ValueError, match=r"got the shape \[0, 3, 13, 17\].*at least one element"):
        tp.compile(model, IMAGE[:0])


def test_numpy_torch_and_tvm_inputs(library, expected):
    for value in (IMAGE.numpy(), tvm.runtime.tensor(IMAGE.numpy())):
        assert isinstance(library(value), np.ndarray)
        assert_close(library(value), expected)
    output = library(IMAGE)
    assert isinstance(output, torch.Tensor)
    assert_close(output.numpy(), expected)
    transposed = np.ascontiguousarray(IMAGE.detach().numpy().transpose(0, 2, 3, 1))
    assert_close(library(transposed.transpose(0, 3, 1, 2)), expected)


def test_tensors_that_autograd_follows(library, expected):
    image = IMAGE.clone().requires_grad_()
    with pytest.raises(RuntimeError, match=r"no gradients; call it under torch\.no_grad\(\)"):
        library(image)
    with torch.no_grad():
        output = library(image)
    assert not output.requires_grad
    assert_close(output.numpy(), expected)


def test_outputs_are_not_overwritten_by_the_next_call(library):
    first = library(IMAGE)
    kept = first.clone()
    library(IMAGE + 1)
    assert torch.equal(first, kept)


def test_a_batch_and_several_outputs():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, image, offset):
            y = self.conv(image)
            return torch.relu(y), y.mean((2, 3)) + offset

    model = Heads().eval()
    inputs = (torch.randn(3, 3, 8, 6), torch.randn(3, 8))
    outputs = tp.compile(model, inputs, num_threads=1)(*inputs)
    assert isinstance(outputs, tuple)
    with torch.no_grad():
        for got, want in zip(outputs, model(*inputs), strict=True):
            assert isinstance(got, torch.Tensor)
            assert_close(got.numpy(), want.numpy())


def test_calls_say_what_is_wrong_with_their_inputs(library):
    image = IMAGE.detach().numpy()
    with pytest.raises(ValueError, match=r"got 0 inputs, expected 1: input: float32\[1, 3"):
        library()
    with pytest.raises(ValueError, match=r"got shape \[1, 3, 13, 16\], expected \[1, 3, 13, 17\]"):
        library(image[..., :16])
    with pytest.raises(ValueError, match=r"got dtype float64, expected float32; pass x\.astype"):
        library(image.astype("float64"))
    with pytest.raises(ValueError, match="got a list, expected a numpy array or torch tensor"):
        library(image.tolist())


def test_report(library):
    rows = {row.layer: row for row in library.report.rows}
    assert list(rows) == ["0", "3", "5"]
    assert all(row.taken for row in rows.values())
    # 4 of 9 taps of every second kernel; 1x1 kernels are left whole.
    assert rows["3"].sparsity == pytest.approx(1 - 4 / 9 / 2)
    assert rows["3"].group == 2
    assert rows["5"].sparsity == 0
    assert rows["3"].config
    pixels = 7 * 9
    dense = 2 * 24 * 16 * 9 * pixels / 1e9
    assert rows["3"].dense_equivalent_gflop == pytest.approx(dense)
    assert rows["3"].effective_gflop == pytest.approx(dense * 4 / 9 / 2)


def test_what_cannot_be_taken_is_dense_with_its_reason():
    model = nn.Sequential(
        nn.ConvTranspose2d(3, 4, 2, stride=2, dilation=2), nn.Conv2d(4, 8, 3, padding=1)
    ).eval()
    library = tp.compile(model, IMAGE.detach(), num_threads=1)
    with torch.no_grad():
        assert_close(library(IMAGE), model(IMAGE).numpy())
    assert all(row.reason for row in library.report.skipped)
    assert {row.layer for row in library.report.skipped} >= {"0"}


def test_compiled_thread_counts_agree_bit_for_bit(model, library):
    def run(count):
        return tp.compile(model, IMAGE, num_threads=count)(IMAGE)

    np.testing.assert_array_equal(in_new_thread(run, 2), library(IMAGE))


def test_benchmark(library):
    result = library.benchmark(IMAGE, number=2, repeat=3)
    assert len(result.results) == 3
    assert all(seconds > 0 for seconds in result.results)


def test_the_callers_pass_context_stays_in_force(model):
    seen = []

    @tvm.ir.instrument.pass_instrument
    class Watch:
        def run_before_pass(self, _mod, info):
            seen.append(str(info.name))

    with tvm.transform.PassContext(instruments=[Watch()], disabled_pass=["tirx.CommonSubexprElim"]):
        library = tp.compile(model, IMAGE, num_threads=1)
    assert "tirx.MakePackedAPI" in seen
    assert "tirx.CommonSubexprElim" not in seen
    with torch.no_grad():
        assert_close(library(IMAGE), model(IMAGE).numpy())


def test_targets(model):
    assert "pattern/native" in tp.targets()
    assert "pattern/cortex-a76" in tp.targets()
    for target in ("pattern/x86-avx2", tvm.target.Target("pattern/x86-avx2")):
        assert tp.compile(model, IMAGE, target, num_threads=1).manifest.architecture == "x86_64"
    with pytest.raises(ValueError, match="unknown target 'pattern/none'"):
        tp.compile(model, IMAGE, "pattern/none")
    with pytest.raises(ValueError, match="no device matches the target"):
        tp.compile(model, IMAGE, "cuda")


def test_tuning_log_must_exist(model, tmp_path):
    with pytest.raises(ValueError, match="tuning log"):
        tp.compile(model, IMAGE, tuning_log=tmp_path / "none.jsonl")


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2"])
def test_number_of_threads(model, count):
    with pytest.raises(ValueError, match=r"num_threads=.*: expected an integer from 1"):
        tp.compile(model, IMAGE, num_threads=count)


def test_default_number_of_threads(monkeypatch):
    monkeypatch.setenv("TVM_NUM_THREADS", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads.default_num_threads() == 3
    monkeypatch.delenv("TVM_NUM_THREADS")
    assert threads.default_num_threads() == 5
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert 1 <= threads.default_num_threads() <= len(threads.available_cpus())
    monkeypatch.setenv("TVM_NUM_THREADS", "1000000")
    with pytest.raises(ValueError, match="from 1 to 4096"):
        threads.default_num_threads()
    monkeypatch.setenv("TVM_NUM_THREADS", "many")
    with pytest.raises(ValueError, match="TVM_NUM_THREADS='many': expected a number of threads"):
        threads.default_num_threads()


def test_running_binds_no_thread_to_a_core(library):
    if not hasattr(threads.os, "sched_getaffinity"):
        pytest.skip("this system has no affinity masks")
    seen = []

    def run():
        library(IMAGE)
        seen.append(threads.os.sched_getaffinity(threading.get_native_id()))

    in_new_thread(run)
    assert seen == [set(threads.available_cpus())]


def test_module_of_another_level_is_not_imported_for_pruning():
    import subprocess
    import sys

    code = "import sys, tvm_pattern.pruning; sys.exit('tvm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names():
    assert {"compile", "load", "models", "pruning", "relay", "targets", "tune"} <= set(dir(tp))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tp.nothing
