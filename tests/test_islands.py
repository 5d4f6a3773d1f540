"""Operators on planes: a toy one from outside, errors, and every one against its specification."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import tvm
from relax_oracle import check_against_torch, execute, import_torch
from torch import nn
from tvm import relax, tirx
from tvm.ir import Expr
from tvm.tirx.script import builder as T

from relay_passes import pipeline, targets
from relay_passes.dataflow import is_float_image, op_name
from relay_passes.islands import ISLANDS
from relay_passes.islands.operator import (
    IslandOperator,
    Islands,
    Order,
    PlaneCall,
    PlaneOp,
    on_planes,
    placed,
)
from relay_passes.keep_nan import KeepNaN
from relay_passes.markers import parse
from relay_passes.report import ReportBuilder
from relay_passes.schedule import Schedule
from topi_kernels import layout_choice
from topi_kernels.backend import Backend
from topi_kernels.plane_ops import for_each_plane, plane_arg
from topi_kernels.primfunc import primfunc_builder

# --- An operator that this file alone knows: how it is recognised, its PrimFunc, registration. ---

TOY = "plane_abs"


def recognize(value: Expr, _out: Expr) -> PlaneOp | None:
    """``abs`` of an image; what is zero outside the image stays so, in any order of pixels."""
    if op_name(value) != "relax.abs" or not is_float_image(value.args[0]):
        return None
    return PlaneOp(tuple(value.args), placed(TOY), order=Order.SAME)


def plane_abs(call: PlaneCall) -> tirx.PrimFunc:
    """``(x planes, out planes)``, both of one layout if the pads are equal."""
    (source,), result = call.in_layouts, call.out_layout
    with primfunc_builder(TOY) as builder:
        x = plane_arg("x", *call.dims, source, call.target)
        out = plane_arg("out", *call.dims, result, call.target)

        def plane(n: Expr, c: Expr) -> None:
            with T.serial(0, result.size) as i:
                T.buffer_store(out, T.float32(0), [n, c, i])
            with T.serial(0, result.height) as y, T.serial(0, result.width) as column:
                value = x[n, c, source.element(y, column)]
                T.buffer_store(
                    out, T.Select(value < 0, -value, value), [n, c, result.element(y, column)]
                )

        for_each_plane(*call.dims, call.target, plane)
    return builder.get()


def register(islands: Islands) -> None:
    """What an operator's file ends with."""
    islands.add(on_planes(TOY, plane_abs, recognize=recognize))


# --------------------------------------------------------------------------------------------------


@pytest.fixture
def toy() -> Iterator[str]:
    register(ISLANDS)
    yield TOY
    ISLANDS.remove(TOY)


class Abs(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs()


def marker_names(mod: tvm.IRModule) -> list[str]:
    found = (
        parse(binding.value) for block in mod["main"].body.blocks for binding in block.bindings
    )
    return [marker.op for marker in found if marker is not None]


def laid_out(mod: tvm.IRModule, backend: Backend, report: ReportBuilder) -> tvm.IRModule:
    return tvm.transform.Sequential(pipeline.marker_passes(backend, report))(mod)


def test_a_toy_operator_joins_islands(toy: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Abs(), nn.Conv2d(8, 4, 3, padding=1))
    x = torch.randn(1, 3, 9, 11)
    planes = laid_out(import_torch(model, x), Backend.named("generic"), ReportBuilder())
    assert marker_names(planes) == [
        "plane_pack",
        "plane_conv2d",
        "plane_abs",
        "plane_conv2d",
        "plane_unpack",
    ]
    check_against_torch(model, x)


def test_a_toy_operator_is_gone_after_its_test() -> None:
    with pytest.raises(ValueError, match=r"the marker 'plane_abs' cannot be scheduled; expected"):
        ISLANDS.named(TOY)


def test_two_operators_of_one_name_are_an_error(toy: str) -> None:
    with pytest.raises(ValueError, match="'plane_abs' is registered already; choose another name"):
        register(ISLANDS)


def test_two_operators_that_take_one_value_are_an_error(toy: str) -> None:
    islands = Islands()
    for name in ("one", "other"):
        islands.add(IslandOperator(name, ISLANDS.named(toy).lower, recognize))
    x = relax.Var("x", relax.TensorType((1, 3, 4, 4), "float32"))
    value = relax.BlockBuilder().normalize(relax.op.abs(x))
    with pytest.raises(ValueError, match=r"island operators \['one', 'other'\] all take R\.abs"):
        islands.recognize(value, x)


def random_norm(channels: int) -> nn.BatchNorm2d:
    """A batch norm as after training."""
    norm = nn.BatchNorm2d(channels)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return norm


class Everything(nn.Module):
    """Every operator that lives on planes, on an image whose rows are no multiple of a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.squeeze = nn.Conv2d(8, 8, 1)
        self.norm = random_norm(8)
        self.leak = nn.PReLU(8)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.last = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 4, 4, 2, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = nn.functional.relu6(self.first(x))
        x = self.second(x).clamp(-0.5, 0.75) * x
        x = x * torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))
        x = self.leak(self.norm(x))
        x = torch.cat([x[:, 4:], x[:, :4]], 1)
        y = nn.functional.hardswish(self.depthwise(x))
        y = nn.functional.max_pool2d(self.last(y) + y, 3, 2, 1)
        z = nn.functional.avg_pool2d(self.up(y), 3, 1, 1, count_include_pad=False)
        return z, torch.sigmoid(z).mean((2, 3))


@pytest.fixture(scope="module")
def everything() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Everything().eval(), torch.randn(2, 3, 13, 19)


@pytest.mark.parametrize("interleaved", [False, True], ids=["plain rows", "interleaved lanes"])
def test_every_operator_is_what_it_is_specified_to_be(
    everything: tuple[nn.Module, torch.Tensor],
    interleaved: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scheduled, naive and torch's results of a network with all of them."""
    monkeypatch.setattr(layout_choice, "CHANGE_COST", 0.0)
    monkeypatch.setattr(layout_choice, "LEAST_GAIN", 10.0)  # so small a network gains nothing
    model, x = everything
    target = targets.resolve("pattern/x86-avx2")
    backend, report = Backend.of(target, 1, interleaved_lanes=interleaved), ReportBuilder()
    planes = laid_out(import_torch(model, x), backend, report)
    # Those on bytes have an integer oracle: test_quantised_networks.
    of_reals = {name for name in ISLANDS.names() if not name.startswith("int8_")}
    assert set(marker_names(planes)) == of_reals
    with torch.no_grad():
        expected = [y.numpy() for y in model(x)]
    for naive in (False, True):
        with target:
            lowered = tvm.transform.Sequential(
                [
                    Schedule(backend, report, naive=naive),
                    *relax.pipeline.legalize_passes(target),
                    KeepNaN(),
                ]
            )(planes)
        names = [str(gv.name_hint) for gv in lowered.get_global_vars()]
        assert any("naive" in name for name in names) == naive
        for got, want in zip(
            execute(tvm.compile(lowered, target), x.numpy()), expected, strict=True
        ):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
