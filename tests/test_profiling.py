"""Steps of a network: what they are called, what they compute, how they are timed."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

import tvm_pattern as tp
from relay_passes.markers import ConvParams, Marker
from relay_passes.name_layers import NameLayers, layer_of
from topi_kernels.geometry import ConvGeometry
from tvm_pattern.profiling import Step, profile_table, with_steps

IMAGE = np.random.default_rng(0).standard_normal((1, 3, 12, 10)).astype(np.float32)


class Network(nn.Module):
    """A residual, so that layers are not computed in the order of the report."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.short = nn.Conv2d(8, 8, 1)
        self.long = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.long(x) + self.short(x))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def library():
    torch.manual_seed(0)
    model = Network().eval()
    tp.pruning.oneshot(model, connectivity=2.0)
    return tp.compile(model, torch.from_numpy(IMAGE), num_threads=1)


def test_steps_are_named_after_their_layers(library):
    steps = [Step.from_dict(step) for step in library.manifest.steps]
    convolutions = [s.layer for s in steps if s.op.startswith("pattern_conv2d")]
    assert sorted(convolutions) == sorted(row.layer for row in library.report)
    assert sorted(convolutions) == ["long.0", "long.2", "short", "stem"]
    stem = steps[[s.layer for s in steps].index("stem")]
    assert [i["dtype"] for i in stem.inputs] == ["float32"]
    # The last of the two that are added reads the planes of the other.
    assert sum(len(s.inputs) for s in steps if s.op.startswith("pattern_conv2d")) == 5


def test_steps_compute_what_the_network_does():
    """A chain: every step on the output of the one before it."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    tp.pruning.oneshot(model, connectivity=2.0)
    library = tp.compile(model, torch.from_numpy(IMAGE), num_threads=1)
    value = tvm.runtime.tensor(IMAGE)
    for step in library.manifest.steps:
        value = library.vm[step["function"]](value)
    np.testing.assert_array_equal(value.numpy(), library(IMAGE))


def test_profile_here(library):
    profile = library.profile(repeat=2, min_repeat_ms=0)
    assert len(profile.steps) == len(library.manifest.steps)
    assert all(step.ms > 0 for step in profile.steps)
    assert sum(step.share for step in profile.steps) == pytest.approx(1)
    assert profile.whole_ms > 0
    assert profile.as_dict()["sum_ms"] == pytest.approx(sum(s.ms for s in profile.steps))
    # Timing leaves the library as it was.
    np.testing.assert_array_equal(library(IMAGE), library(IMAGE))


@pytest.mark.parametrize("options", [{"repeat": 0}, {"min_repeat_ms": -1}, {"cool_down": -0.1}])
def test_numbers_out_of_range(library, options):
    with pytest.raises(ValueError, match="expected >= 1, >= 0 and >= 0"):
        library.profile(**options)


def test_library_without_steps(library):
    bare = type(library)(library._code, replace(library.manifest, steps=[]))
    with pytest.raises(ValueError, match="holds no steps"):
        bare.profile()


def test_profile_is_printed_by_the_models_own_names(library):
    text = str(library.profile(repeat=1, min_repeat_ms=0))
    for name in ("stem", "short", "long.0", "long.2"):
        assert name in text
    assert not re.search(r"\b(lv|gv)\d*\b", text)
    assert profile_table({}).row_count == 0


def test_calls_that_cannot_be_timed_have_no_step():
    """Integers may be indices, which random numbers are not."""

    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2,), "float32"), i: R.Tensor((2,), "int32")) -> R.Tensor(
            (2,), "float32"
        ):
            with R.dataflow():
                y = R.add(x, x)
                z = R.take(y, i, axis=0)
                R.output(z)
            return z

    lowered = relax.transform.LegalizeOps()(Module)
    stepped, steps = with_steps(lowered)
    assert [(s.function, s.op, len(s.inputs)) for s in steps] == [("step_0", "add", 1)]
    vm = relax.VirtualMachine(tvm.compile(stepped, tvm.target.Target("llvm")), tvm.cpu())
    x = np.float32([1, 2])
    np.testing.assert_array_equal(vm["step_0"](tvm.runtime.tensor(x)).numpy(), 2 * x)


def test_name_layers_renames_outputs_of_blocks_too():
    kind = relax.TensorType((1, 4, 6, 7), "float32")
    builder, x = relax.BlockBuilder(), relax.Var("x", kind)
    weight = relax.const(np.ones((4, 4, 1, 1), "float32"))
    params = ConvParams("block.conv", ConvGeometry((1, 1))).to_dict()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.nn.relu(x))
            z = builder.emit_output(Marker("conv2d", (y, weight), params).call(kind))
        builder.emit_func_output(z)
    before = builder.get()
    after = NameLayers()(before)
    relax.analysis.well_formed(after)
    tvm.ir.assert_structural_equal(after, before, map_free_vars=True)
    assert str(after["main"].body.body.name) == "block.conv"
    assert layer_of("block.conv_planes") == layer_of("block.conv") == "block.conv"
    assert layer_of("_0_planes") == layer_of("_0") == "0"  # no argument in C is named 0
