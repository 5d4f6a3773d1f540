"""Modules in float16, and half-precision torch models, which TVM's importer does not take."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from relax_oracle import execute, import_torch
from torch import nn
from tvm import relax

from relay_passes.to_float16 import ToFloat16
from tvm_pattern.frontend import import_model

IMAGE = torch.randn(1, 3, 8, 9, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Attributes that name a dtype, several outputs, constants, a tuple inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = nn.functional.hardswish(self.conv(x))
        y = nn.functional.max_pool2d(y, 2) + 0.5
        return self.head(y.mean((2, 3))), y


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Network().eval()


def test_everything_is_float16(model):
    before = import_torch(model, IMAGE)
    after = ToFloat16()(before)
    relax.analysis.well_formed(after)
    assert "float32" not in after.script(show_meta=False).replace("T.float32", "")
    # The argument is not changed.
    tvm.ir.assert_structural_equal(before, import_torch(model, IMAGE))
    image = IMAGE.half()
    mod = relax.transform.LegalizeOps()(after)
    got = execute(tvm.compile(mod, tvm.target.Target("llvm")), image.numpy())
    with torch.no_grad():
        expected = model(image.float())
    for g, e in zip(got, expected, strict=True):
        assert g.dtype == np.float16
        # 27 and then 4 roundings of values around 1.
        np.testing.assert_allclose(g, e.numpy(), rtol=0, atol=2.0**-11 * 8)


def test_half_models_of_torch(model):
    half = Network().eval()
    half.load_state_dict(model.state_dict())
    half = half.half()
    image = IMAGE.half()
    program = torch.export.export(half, (image,))
    of_module, of_program = import_model(half, (image,)), import_model(program)
    tvm.ir.assert_structural_equal(of_module.mod, of_program.mod)
    assert [spec.dtype for spec in (*of_module.inputs, *of_module.outputs)] == ["float16"] * 3
    assert list(of_module.layer_names.values()) == ["conv", "head"]


def test_float16_program_without_example_inputs(model):
    program = torch.export.export(Network().eval().half(), (IMAGE.half(),))
    program.example_inputs = None
    with pytest.raises(ValueError, match="without example inputs cannot be converted"):
        import_model(program)


def test_constants_beyond_float16():
    x = relax.Var("x", relax.TensorType((2,), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(relax.op.add(x, relax.const(np.float32([1, 1e5])))))
    with pytest.raises(ValueError, match=r"100000 exceeds float16's largest value 65504"):
        ToFloat16()(builder.get())


def test_operators_that_are_lowered(model):
    lowered = relax.transform.LegalizeOps()(import_torch(model, IMAGE))
    with pytest.raises(ValueError, match="before operators are lowered"):
        ToFloat16()(lowered)
