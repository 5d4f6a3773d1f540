"""Models and inputs of kinds that cannot be compiled: each refused by name, with the way out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tvm_pattern
from tvm_pattern.frontend import import_model

IMAGE = torch.randn(1, 3, 7, 9, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()


def test_bfloat16():
    with pytest.raises(ValueError, match=r"weights '0\.weight': got bfloat16, expected float32"):
        import_model(network().bfloat16(), IMAGE.bfloat16())
    with pytest.raises(ValueError, match=r"example input 0: got bfloat16.*call \.float\(\)"):
        import_model(network(), IMAGE.bfloat16())
    program = torch.export.export(network().bfloat16(), (IMAGE.bfloat16(),))
    with pytest.raises(ValueError, match=r"weights '0\.weight': got bfloat16"):
        import_model(program)


def test_meta_tensors():
    with pytest.raises(ValueError, match=r"'0\.weight': got a tensor on the meta device.*assign"):
        import_model(network().to("meta"), IMAGE)
    with pytest.raises(ValueError, match="example input 0: got a tensor on the meta device"):
        import_model(network(), IMAGE.to("meta"))


def test_sparse_tensors():
    model = network()
    model.register_buffer("table", torch.eye(3).to_sparse())
    with pytest.raises(ValueError, match=r"'table': got the layout sparse_coo.*to_dense"):
        import_model(model, IMAGE)
    with pytest.raises(ValueError, match="example input 0: got the layout sparse_coo"):
        import_model(network(), IMAGE.to_sparse())


def test_complex_tensors_and_inputs_that_are_no_tensors():
    with pytest.raises(ValueError, match="example input 0: got complex64, expected one of"):
        import_model(network(), IMAGE.to(torch.complex64))
    with pytest.raises(ValueError, match="example input 0: got str, expected a tensor or array"):
        import_model(network(), ("image",))


def test_lazy_modules():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU()).eval()
    with pytest.raises(ValueError, match=r"weights '0\.weight' of a lazy module have no shape yet"):
        import_model(model, IMAGE)


def test_quantised_eager_modules():
    from torch.ao.nn import quantized

    model = nn.Sequential(quantized.Quantize(0.1, 0, torch.quint8), quantized.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match=r"module '0' is a torch\.ao\.nn\.quantized\..*quantised"):
        import_model(model.eval(), IMAGE)


def test_tied_weights_compile_right():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(torch.relu(self.first(x)))

    torch.manual_seed(0)
    model = Tied().eval()
    library = tvm_pattern.compile(model, IMAGE)
    with torch.no_grad():
        expected = model(IMAGE).numpy()
    np.testing.assert_allclose(library(IMAGE.numpy()), expected, atol=1e-5)
    assert {row.layer for row in library.report.rows} == {"first", "second"}
