"""torch.compile and modules: tensors in, tensors out, the model's own names in the report."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import tvm_pattern as tp
from tvm_pattern import torch_backend
from tvm_pattern.torch_backend import CompiledGraph, EagerFallbackWarning
from tvm_pattern.torch_backend import tvm_pattern as backend

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
OPTIONS = {"num_threads": 1}


class Network(nn.Module):
    """Two layers, the second in a child, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.stem(x))


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = Network().eval()
    tp.pruning.oneshot(network, connectivity=2.0)
    return network


@pytest.fixture
def graphs(monkeypatch):
    """Every graph that the backend gets, and the backend."""
    torch._dynamo.reset()
    found: list[CompiledGraph] = []

    def record(graph, example_inputs):
        found.append(backend(graph, example_inputs, options=OPTIONS))
        return found[-1]

    return found, record


def test_pruned_weights_are_recognised_and_named(model, graphs):
    found, record = graphs
    compiled = torch.compile(model, backend=record)
    with torch.no_grad():
        torch.testing.assert_close(compiled(IMAGE), model(IMAGE), atol=1e-5, rtol=0)
        compiled(IMAGE)
    (graph,) = found
    (library,) = graph.libraries
    assert [row.layer for row in library.report] == ["stem", "block.2"]
    assert all(row.taken and row.sparsity > 0.5 for row in library.report)


def test_several_shapes(model, graphs):
    found, record = graphs
    compiled = torch.compile(model, backend=record)
    with torch.no_grad():
        for size in (8, 10, 12, 10):
            image = torch.randn(1, 3, size, size)
            torch.testing.assert_close(compiled(image), model(image), atol=1e-5, rtol=0)
    shapes = [lib.inputs[0].shape for graph in found for lib in graph.libraries]
    assert sorted(shapes) == [(1, 3, size, size) for size in (8, 10, 12)]


def test_changed_weights_are_seen(model, graphs):
    """Also where torch counts no new version of the parameter, as in what goes through ``data``."""
    found, record = graphs
    model.block[2].to(memory_format=torch.channels_last)
    compiled = torch.compile(model, backend=record)

    def replace_data():
        model.stem.weight.data = model.stem.weight.data * 3

    changes = [
        lambda: model.stem.weight.mul_(2),
        lambda: model.stem.weight.data.mul_(2),
        lambda: model.block[2].weight.data.mul_(2),
        replace_data,
        lambda: None,
    ]
    with torch.no_grad():
        for change in (lambda: None, *changes):
            change()
            torch.testing.assert_close(compiled(IMAGE), model(IMAGE), atol=1e-4, rtol=0)
    # What weights no longer are is not kept.
    assert len(found) == len(found[0].libraries) == 1


def test_options_reach_the_compiler(model, monkeypatch):
    """As torch hands them on."""
    torch._dynamo.reset()
    given = []

    def compile_library(*arguments, **options):
        given.append(options)
        return tp.compile(*arguments, **options)

    monkeypatch.setattr(torch_backend, "compile_library", compile_library)
    compiled = torch.compile(model, backend=backend, options={"num_threads": 1, "verify": False})
    with torch.no_grad():
        torch.testing.assert_close(compiled(IMAGE), model(IMAGE), atol=1e-5, rtol=0)
    assert given == [{"num_threads": 1, "verify": False}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"options": {"threads": 1}}, r"got the options \['threads'\]; expected some of target"),
        ({"options": {"target": "pattern/none"}}, "unknown target 'pattern/none'"),
        ({"mode": "max-autotune"}, "has no modes: leave it out"),
    ],
)
def test_options_that_there_are_not_are_refused(model, settings, message):
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, **settings)
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=message):
        compiled(IMAGE)


def test_gradients_are_refused(model, graphs):
    compiled = torch.compile(model, backend=graphs[1])
    with pytest.raises(RuntimeError, match=r"computes no gradients; call it under torch\.no_grad"):
        compiled(IMAGE)


def test_what_cannot_be_compiled_runs_in_torch(graphs):
    found, record = graphs
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()).eval()

    def sorted_output(x):
        return torch.linalg.svd(model(x))

    compiled = torch.compile(sorted_output, backend=record)
    with torch.no_grad(), pytest.warns(EagerFallbackWarning, match="runs in torch: "):
        got = compiled(IMAGE)
    assert found[0].libraries == []
    with torch.no_grad():
        torch.testing.assert_close(got[1], sorted_output(IMAGE)[1])


class Writing(nn.Module):
    """Changes its input, or what it holds, and answers by that."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("calls", torch.zeros(1))
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "input":
            x.add_(1)
        elif self.kind == "relu":
            nn.functional.relu(x, inplace=True)
        elif self.kind == "buffer":
            self.calls += 1
        elif self.kind == "parameter":
            self.layer.weight.mul_(0.5)
        elif self.kind == "uncounted":
            norm = self.norm
            x = nn.functional.batch_norm(
                self.layer(x), norm.running_mean, norm.running_var, training=True
            )
            return x + self.calls
        return self.norm(self.layer(x)) + self.calls


@torch.no_grad()
def _hold_against(compiled, plain):
    for _ in range(3):
        x, y = IMAGE.clone(), IMAGE.clone()
        torch.testing.assert_close(compiled(x), plain(y))
        assert torch.equal(x, y)


@pytest.mark.parametrize(
    "kind", ["input", "relu", "buffer", "batch norm", "parameter", "uncounted"]
)
def test_what_changes_its_inputs_or_its_state_runs_in_torch(kind, graphs):
    found, record = graphs
    plain, given = (Writing(kind).train(kind == "batch norm") for _ in range(2))
    for network in (plain, given):
        network.requires_grad_(requires_grad=False)
    compiled = torch.compile(given, backend=record)
    with pytest.warns(EagerFallbackWarning, match="changes its inputs") as warned:
        _hold_against(compiled, plain)
    assert len(warned) == 1
    torch.testing.assert_close(given.state_dict(), plain.state_dict())
    assert found[0].libraries == []


def test_random_numbers_are_those_of_torch(graphs):
    """A network is looked at and fails to compile without a draw of the caller's."""
    _, record = graphs
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout())
    compiled = torch.compile(network, backend=record)
    with torch.no_grad():
        torch.manual_seed(1)
        with pytest.warns(EagerFallbackWarning, match="dropout"):
            got = compiled(IMAGE)
        torch.manual_seed(1)
        torch.testing.assert_close(got, network(IMAGE))


def test_a_network_made_in_inference_mode(graphs):
    found, record = graphs
    with torch.inference_mode():
        network = Network().eval()
        compiled = torch.compile(network, backend=record)
        torch.testing.assert_close(compiled(IMAGE), network(IMAGE), atol=1e-5, rtol=0)
    assert len(found[0].libraries) == 1


def test_a_library_as_a_module(model):
    library = tp.compile(model, IMAGE, num_threads=1)
    module = nn.Sequential(library.as_module(), nn.Flatten()).eval()
    with torch.no_grad():
        torch.testing.assert_close(module(IMAGE), model(IMAGE).flatten(1), atol=1e-5, rtol=0)
    assert module[0](IMAGE).dtype is torch.float32
    assert list(module.parameters()) == []
    with pytest.raises(RuntimeError, match="computes no gradients"):
        module(IMAGE.clone().requires_grad_())
    with pytest.raises(ValueError, match="got shape"):
        module(IMAGE[:, :2])
    assert "Library(" in repr(module)


def test_the_backend_has_a_name():
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    (place,) = project["entry-points"]["torch_dynamo_backends"].values()
    module, _, name = place.partition(":")
    assert getattr(sys.modules[module], name) is backend
