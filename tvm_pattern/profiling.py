"""Time of each layer: a network's compiled calls, one by one, here or on a device over RPC.

TVM's virtual machine has no profiler that works over RPC. So a library holds, besides ``main``, one
function per compiled call of ``main`` (a *step*) with the step's own weights; they are shared, and
a step costs less than a kilobyte. Each step is timed by the device's own clock on inputs of its
real shape. Repeated by itself it finds its data in nearer caches than in a whole run; the time of
the whole network stands beside the sum of its steps.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import tvm
from rich.table import Table
from tvm import relax
from tvm.ir import Call, Var

from relay_passes.dataflow import bindings_of, op_name, static_shape
from relay_passes.name_layers import layer_of
from topi_kernels.report import STR_WIDTH, RewriteReport
from topi_kernels.report_table import layer_table

MAIN = "main"
PREFIX = "step_"
_DTYPES = ("float32", "float16", "uint8")
# Names that TVM gives to values.
_UNNAMED = re.compile(r"(lv|gv)\d*")


@dataclass(frozen=True)
class Step:
    """One compiled call of a network.

    Parameters
    ----------
    function : str
        Its function in the library.
    layer : str
        The convolution, by its name in the report; else the value that the call makes, and where
        that has no name of the model's, the layer that it comes after.
    op : str
        The compiled function that it calls, such as ``pattern_conv2d``.
    inputs : tuple of dict
        Shape and dtype of each activation.
    """

    function: str
    layer: str
    op: str
    inputs: tuple[dict[str, Any], ...]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Step:
        """Inverse of :func:`dataclasses.asdict`, JSON's lists included."""
        return cls(data["function"], data["layer"], data["op"], tuple(data["inputs"]))


@dataclass(frozen=True)
class StepTime:
    """Median time of a step, and its share of all steps."""

    layer: str
    op: str
    ms: float
    share: float


@dataclass(frozen=True)
class Profile:
    """Steps in the order of the network, and the median time of the whole network."""

    steps: tuple[StepTime, ...]
    whole_ms: float
    #: What the report says of the convolutions among the steps.
    report: RewriteReport | None = field(default=None, repr=False, compare=False)

    @property
    def sum_ms(self) -> float:
        return sum(step.ms for step in self.steps)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        steps = [asdict(step) for step in self.steps]
        return {"steps": steps, "whole_ms": self.whole_ms, "sum_ms": self.sum_ms}

    def __str__(self) -> str:
        return profile_text({"here": self})


def with_steps(
    mod: tvm.IRModule, layer_names: Mapping[str, str] | None = None, prefix: str = PREFIX
) -> tuple[tvm.IRModule, tuple[Step, ...]]:
    """Add one function per compiled call of ``main``.

    Parameters
    ----------
    mod : tvm.IRModule
        Lowered by :func:`relay_passes.pipeline.lower`; it is not changed.
    layer_names : mapping, optional
        Relax variable of a convolution -> the layer's own name.
    prefix : str
        What the names of the functions begin with.

    Returns
    -------
    tuple of (tvm.IRModule, tuple of Step)
        Calls whose inputs or outputs are no tensors of static shape have no step.
    """
    layer_of_value = LayerNamer(layer_names or {})
    result = mod.clone()
    steps: list[Step] = []
    for block in bindings_of(mod[MAIN]):
        for binding in block:
            if op_name(binding.value) != "relax.call_tir" or not _is_tensor(binding.var):
                continue
            call = binding.value
            images = list(dict.fromkeys(a for a in call.args[1] if isinstance(a, Var)))
            if len(call.args) > 2 or not all(map(_is_tensor, images)):
                continue
            function = f"{prefix}{len(steps)}"
            result[function] = _step_function(function, call, images, binding.var)
            layer = layer_of_value(binding.var)
            inputs = tuple({"shape": static_shape(i), "dtype": str(i.ty.dtype)} for i in images)
            steps.append(Step(function, layer, str(call.args[0].name_hint), inputs))
    return result, tuple(steps)


class LayerNamer:
    """Tells, value by value in the order of the network, which layer makes it.

    Parameters
    ----------
    layer_names : mapping
        Relax variable of a convolution -> the layer's own name.
    """

    def __init__(self, layer_names: Mapping[str, str]) -> None:
        self._names = layer_names
        self._last = ""

    def __call__(self, var: Var) -> str:
        """A value without a name of the model's is told by the layer that it comes after."""
        variable = layer_of(str(var.name))
        layer = self._names.get(variable, variable)
        if _UNNAMED.fullmatch(layer):
            return f"after {self._last}" if self._last else "input"
        self._last = layer
        return layer


def _is_tensor(var: Var) -> bool:
    return static_shape(var) is not None and str(var.ty.dtype) in _DTYPES


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An activation: normal floats, or bytes."""
    if dtype == "uint8":
        return rng.integers(0, 256, shape, np.uint8)
    return rng.standard_normal(shape).astype(dtype)


def _step_function(name: str, call: Call, images: Sequence[Var], out: Var) -> relax.Function:
    """A function of the call's activations alone; its constants stay where they are."""
    params = {image: relax.Var(f"x{n}", image.ty) for n, image in enumerate(images)}
    arguments = [params[a] if isinstance(a, Var) else a for a in call.args[1]]
    builder = relax.BlockBuilder()
    with builder.function(name, list(params.values())):
        with builder.dataflow():
            value = builder.emit_output(relax.call_tir(call.args[0], arguments, out_ty=out.ty))
        builder.emit_func_output(value)
    return builder.get()[name]


def check_timing(steps: Sequence[Step], repeat: int, min_repeat_ms: int, cool_down: float) -> None:
    """Refuse what :func:`time_steps` cannot time."""
    if not steps:
        raise ValueError("this library holds no steps to time; compile it for a CPU target")
    if repeat < 1 or min_repeat_ms < 0 or cool_down < 0:
        raise ValueError(
            f"got repeat={repeat}, min_repeat_ms={min_repeat_ms}, cool_down={cool_down}; expected"
            " >= 1, >= 0 and >= 0"
        )


def time_steps(
    vm: relax.VirtualMachine,
    device: Any,
    steps: Sequence[Step],
    main_inputs: Sequence[Mapping[str, Any]],
    *,
    repeat: int = 5,
    min_repeat_ms: int = 2,
    cool_down: float = 0.0,
    report: RewriteReport | None = None,
    main: str = MAIN,
) -> Profile:
    """Time all steps and the whole network, each after one run to warm up.

    Parameters
    ----------
    vm : tvm.relax.VirtualMachine
        Of a library with steps, here or remote.
    device : tvm.runtime.Device
        Where its tensors live.
    steps : sequence of Step
    main_inputs : sequence of mapping
        Shape and dtype of the network's inputs.
    repeat, min_repeat_ms : int
        Results of which the median is taken, and the least duration of each.
    cool_down : float
        Seconds of rest before each step.
    report : RewriteReport, optional
        What the profile says of the convolutions.
    main : str
        Function of the whole network.

    Raises
    ------
    ValueError
        If there are no steps, or a number is out of range.
    """
    check_timing(steps, repeat, min_repeat_ms, cool_down)
    tensors: dict[Any, Any] = {}
    rng = np.random.default_rng(0)

    def tensor(spec: Mapping[str, Any], number: int) -> Any:
        # No two inputs of a call are one tensor: compiled code assumes that they do not overlap.
        key = (tuple(spec["shape"]), spec["dtype"], number)
        if key not in tensors:
            array = _random(rng, *key[:2])
            tensors[key] = tvm.runtime.tensor(array, device)
        return tensors[key]

    def median_ms(function: str, inputs: Sequence[Mapping[str, Any]]) -> float:
        time.sleep(cool_down)
        vm.set_input(function, *(tensor(spec, number) for number, spec in enumerate(inputs)))
        timer = vm.time_evaluator(
            "invoke_stateful", device, number=1, repeat=repeat, min_repeat_ms=min_repeat_ms
        )
        return float(np.median(timer(function).results)) * 1e3

    measured = [median_ms(step.function, step.inputs) for step in steps]
    whole = median_ms(main, main_inputs)
    total = sum(measured)
    rows = (StepTime(s.layer, s.op, ms, ms / total) for s, ms in zip(steps, measured, strict=True))
    return Profile(tuple(rows), whole, report)


def profile_table(
    profiles: Mapping[str, Profile], width: int = STR_WIDTH, *, by_time: bool = False
) -> Table:
    """One row per step with its measured time on each device; the sums at the end."""
    report = _report_of(profiles)
    times = {
        name: [(step.layer, step.op, step.ms, step.share) for step in profile.steps]
        for name, profile in profiles.items()
    }
    footers = {
        name: f"{profile.sum_ms:.3f} / {profile.whole_ms:.3f}" for name, profile in profiles.items()
    }
    rows = report.rows if report is not None and profiles else ()
    return layer_table(rows, times, width=width, by_cost=by_time, footers=footers)


def profile_text(profiles: Mapping[str, Profile], width: int = 80, *, by_time: bool = False) -> str:
    """The table and the reasons that its notes stand for."""
    from rich.console import Console

    report = _report_of(profiles)
    console = Console(width=STR_WIDTH, force_terminal=False)
    with console.capture() as capture:
        console.print(profile_table(profiles, width, by_time=by_time))
        for line in report.lines() if report is not None else ():
            console.print(line, markup=False, highlight=False)
    return capture.get().rstrip()


def _report_of(profiles: Mapping[str, Profile]) -> RewriteReport | None:
    return next((p.report for p in profiles.values() if p.report is not None), None)
