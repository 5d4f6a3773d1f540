"""Files are pruned as the module that they came from would be."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import tvm_pattern as tp
from tvm_pattern.imported_weights import prune_at_once

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    """One module used twice, a depthwise layer, a 1x1 layer."""
    torch.manual_seed(0)
    twice = nn.Conv2d(8, 8, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        twice,
        twice,
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 4, 1),
    ).eval()


def weights_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {n: p.detach().numpy() for n, p in model.named_parameters() if n.endswith("weight")}


@pytest.fixture(scope="module")
def pruned() -> nn.Module:
    model = network()
    tp.pruning.oneshot(model, connectivity=2.0, connectivity_1x1=2.0, group=2)
    return model


@pytest.fixture
def onnx_file(tmp_path):
    model = network()
    torch.onnx.export(model, (IMAGE,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    return tmp_path / "net.onnx"


def test_an_onnx_file(onnx_file, pruned):
    before = onnx_file.read_bytes()
    model, report = prune_at_once(onnx_file, 2.0, 2.0, 2)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for name, weight in weights_of(pruned).items():
        stored_as = {"2.weight": "3.weight"}.get(name, name)  # one tensor, by its last name
        np.testing.assert_array_equal(stored[stored_as], weight)
    assert report.compression_rate > 1.5
    onnx.checker.check_model(model)
    assert onnx_file.read_bytes() == before
    library = tp.compile(model, num_threads=1)
    want = pruned(IMAGE).detach().numpy()
    np.testing.assert_allclose(library(IMAGE), want, atol=1e-5)
    assert all(row.sparsity > 0.4 for row in library.report)


def test_an_exported_program(pruned):
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(network(), (IMAGE,)), buffer)
    buffer.seek(0)
    program, _ = prune_at_once(torch.export.load(buffer), 2.0, 2.0, 2)
    got = {name: program.state_dict[name].detach().numpy() for name in weights_of(pruned)}
    for name, weight in weights_of(pruned).items():
        np.testing.assert_array_equal(got[name], weight)
    np.testing.assert_allclose(
        program.module()(IMAGE).detach().numpy(), pruned(IMAGE).detach().numpy(), atol=1e-5
    )


def test_a_module_is_pruned_in_place(pruned):
    model = network()
    assert prune_at_once(model, 2.0, 2.0, 2)[0] is model
    for name, weight in weights_of(pruned).items():
        np.testing.assert_array_equal(weights_of(model)[name], weight)


def test_nothing_to_prune():
    program = torch.export.export(nn.ReLU(), (IMAGE,))
    with pytest.raises(ValueError, match="no 2-D convolution whose weight is stored in it"):
        prune_at_once(program, 2.0)
