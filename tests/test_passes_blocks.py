"""Blocks and bindings that passes leave as they are.

Of several dataflow blocks, values that only one knows stay there; casts stay casts.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from relax_oracle import execute, import_torch
from torch import nn
from tvm import relax

from relay_passes import pipeline
from relay_passes.select_channels import SelectChannels
from relay_passes.targets import resolve
from tvm_pattern.frontend import import_model


class Small(nn.Module):
    """What passes look through: an activation, a norm, a gate, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.last, self.slopes = nn.Conv2d(6, 4, 1), nn.PReLU(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.hardswish(self.norm(self.first(x)))
        y = y * y.mean((2, 3), keepdim=True) * 2 + 1
        return self.slopes(self.last(torch.cat([y[:, 1:], x[:, :3]], 1)))


def in_two_blocks(mod: tvm.IRModule, first: int) -> tvm.IRModule:
    """The bindings of ``main`` behind the ``first`` ones stand in a block of their own."""
    plain = relax.transform.ToNonDataflow()(mod)
    func = plain["main"]
    bindings = [binding for block in func.body.blocks for binding in block.bindings]
    between = relax.VarBinding(relax.Var("none", relax.TupleType([])), relax.op.print(format=""))
    block = relax.BindingBlock([*bindings[:first], between, *bindings[first:]])
    body = relax.SeqExpr([block], func.body.body)
    parted = relax.Function(func.params, body, func.ret_ty, False, func.attrs)
    plain.update_func(plain.get_global_var("main"), relax.BlockBuilder().normalize(parted))
    return relax.transform.ConvertToDataflow(1)(plain)


@pytest.fixture(scope="module")
def network() -> tuple[tvm.IRModule, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model, x = Small().eval(), torch.randn(1, 4, 5, 6)
    with torch.no_grad():
        return import_torch(model, x), x, model(x)


def test_networks_are_lowered_wherever_they_are_parted(
    network: tuple[tvm.IRModule, torch.Tensor, torch.Tensor],
) -> None:
    mod, x, want = network
    count = len(mod["main"].body.blocks[0].bindings)
    for first in range(1, count - 1):
        parted = in_two_blocks(mod, first)
        assert len(parted["main"].body.blocks) == 3
        lowered, _ = pipeline.lower(parted, "pattern/native", num_threads=1)
        relax.analysis.well_formed(lowered)
        if first == count // 2:
            (got,) = execute(tvm.compile(lowered, resolve("pattern/native")), x.numpy())
            np.testing.assert_allclose(got, want.numpy(), atol=1e-5)


class Emitted(nn.Module):
    """Layers for which passes bind further values."""

    def __init__(self) -> None:
        super().__init__()
        self.sequence, self.phases = nn.Conv1d(3, 4, 3), nn.ConvTranspose2d(4, 2, 3, stride=2)
        self.patches = nn.Conv2d(2, 3, 8, stride=8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.phases(self.sequence(x).reshape(1, 4, 8, 8)).relu()
        return self.patches(y).square().mean((2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_operators_outside_of_dataflow_blocks(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = Emitted().eval().to(dtype), torch.randn(1, 3, 66).to(dtype)
    plain = relax.transform.ToNonDataflow()(import_model(model, x).mod)
    assert not isinstance(plain["main"].body.blocks[0], relax.DataflowBlock)
    lowered, report = pipeline.lower(plain, "pattern/native", num_threads=1)
    relax.analysis.well_formed(lowered)
    # x86 has no float16 convolutions; TVM's compute in float32 between rounded tensors.
    assert [row.taken for row in report.rows] == [dtype == torch.float32] * 3
    (got,) = execute(tvm.compile(lowered, resolve("pattern/native")), x.numpy())
    with torch.no_grad():
        want = model.double()(x.double()).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-5 if dtype == torch.float32 else 1e-2)


def selected_in_two(shuffled: bool) -> tvm.IRModule:
    """Channels of a value that only the first dataflow block knows, selected in the second too."""
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 4, 3, 3), "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            inner = bb.emit(relax.op.nn.relu(x))
            value = relax.op.concat([inner, x], 1)
            if shuffled:
                value = relax.op.reshape(inner, (1, 2, 2, 3, 3))
            shared = bb.emit_output(value)
        between = bb.emit(relax.op.exp(x))
        with bb.dataflow():
            if shuffled:
                turned = bb.emit(relax.op.permute_dims(shared, [0, 2, 1, 3, 4]))
                part = bb.emit(relax.op.reshape(turned, (1, 4, 3, 3)))
            else:
                part = bb.emit(relax.op.strided_slice(shared, [1], [1], [6]))
            out = bb.emit_output(relax.op.concat([part, between], 1))
        bb.emit_func_output(out)
    return bb.get()


@pytest.mark.parametrize("shuffled", [False, True])
def test_channels_are_selected_of_what_a_block_knows(shuffled: bool) -> None:
    mod = selected_in_two(shuffled)
    relax.analysis.well_formed(SelectChannels()(mod))
    x = np.random.default_rng(0).standard_normal((1, 4, 3, 3)).astype("float32")
    inner = np.maximum(x, 0)
    part = inner[:, [0, 2, 1, 3]] if shuffled else np.concatenate([inner, x], 1)[:, 1:6]
    lowered, _ = pipeline.lower(mod, "pattern/native", num_threads=1)
    (got,) = execute(tvm.compile(lowered, resolve("pattern/native")), x)
    np.testing.assert_allclose(got, np.concatenate([part, np.exp(x)], 1), rtol=1e-5)


def test_a_cast_gives_its_value_the_type() -> None:
    rows = tvm.tirx.Var("rows", "int64")
    weight = np.random.default_rng(0).standard_normal((4, 3, 1, 1)).astype("float32")
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(dtype="float32", ndim=2))
    image = relax.Var("image", relax.TensorType(dtype="float32", ndim=4))
    with bb.function("main", [x, image]):
        with bb.dataflow():
            known = bb.match_cast(x, relax.TensorType((rows, 8), "float32"))
            ones = relax.op.ones(relax.ShapeExpr([rows, 8]), "float32")
            first = bb.emit_output(relax.op.add(relax.op.exp(known), ones))
            sized = bb.match_cast(image, relax.TensorType((1, 3, 5, 6), "float32"))
            conv = bb.emit(relax.op.nn.conv2d(sized, relax.const(weight)))
            last = bb.emit_output(relax.op.nn.relu(conv))
        bb.emit_func_output(relax.Tuple([first, last]))
    lowered, report = pipeline.lower(bb.get(), "pattern/native", num_threads=1)
    assert [row.taken for row in report.rows] == [True]
    executable = tvm.compile(lowered, resolve("pattern/native"))
    values, pixels = np.ones((3, 8), "float32"), np.ones((1, 3, 5, 6), "float32")
    got, summed = execute(executable, values, pixels)
    np.testing.assert_allclose(got, np.exp(values) + 1, rtol=1e-6)
    want = np.maximum(weight.sum((1, 2, 3)), 0)[None, :, None, None] * np.ones((1, 1, 5, 6))
    np.testing.assert_allclose(summed, want, atol=1e-5)
    for wrong in [(values[:, :7], pixels), (values, pixels[..., :5])]:
        with pytest.raises(Exception, match=r"shape|match"):
            execute(executable, *wrong)
