"""The plan of a network: its compiled calls in order, and where every tensor lies.

A lowered Relax module of static shapes is a straight list of calls. Written out, it needs no
virtual machine: ``native/model.c`` reads the text and runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GlobalVar
from tvm.target import Target

from relay_passes.dataflow import bindings_of, constant, op_name, shape_of

from .errors import KitError

FORMAT = 1
#: Alignment of a tensor in the file of weights, in bytes: what vector loads want.
ALIGNMENT = 64
MAX_ARGUMENTS = 64
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
_FREED = ("relax.memory.kill_tensor", "relax.memory.kill_storage")


@dataclass(frozen=True)
class PlanTensor:
    """A tensor: ``place`` is ``storage``, ``weights`` or ``input``.

    ``base`` is the number of the storage or input, or the offset in the weights, in bytes.
    """

    place: str
    base: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class PlanCall:
    """A call of a compiled function with these tensors."""

    function: str
    arguments: tuple[int, ...]


@dataclass
class Plan:
    """What a network computes, call by call."""

    storages: list[int] = field(default_factory=list)
    tensors: list[PlanTensor] = field(default_factory=list)
    calls: list[PlanCall] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    weights: bytearray = field(default_factory=bytearray, repr=False)

    @property
    def functions(self) -> list[str]:
        """The compiled functions that it calls, each once."""
        return list(dict.fromkeys(call.function for call in self.calls))

    def add(self, place: str, base: int, shape: Sequence[int], dtype: str) -> int:
        """A further tensor; its number."""
        self.tensors.append(PlanTensor(place, base, tuple(map(int, shape)), dtype))
        return len(self.tensors) - 1

    def add_storage(self, size: int) -> int:
        """Memory for tensors that do not live at the same time; its number."""
        self.storages.append(int(size))
        return len(self.storages) - 1

    def add_weights(self, value: np.ndarray) -> int:
        """A constant tensor; its number."""
        self.weights.extend(bytes(-len(self.weights) % ALIGNMENT))
        offset = len(self.weights)
        self.weights.extend(np.ascontiguousarray(value).tobytes())
        return self.add("weights", offset, value.shape, str(value.dtype))


def plan_of(lowered: tvm.IRModule, target: Target) -> Plan:
    """The plan of a lowered module.

    Parameters
    ----------
    lowered : tvm.IRModule
        Of :func:`relay_passes.pipeline.lower`.
    target : tvm.target.Target

    Raises
    ------
    KitError
        If it calls anything but compiled functions of tensors: control flow, sorting, random
        numbers.
    """
    with target:
        mod = tvm.transform.Sequential(
            [
                relax.transform.RewriteDataflowReshape(),
                relax.transform.ToNonDataflow(),
                relax.transform.RemovePurityChecking(),
                relax.transform.CallTIRRewrite(),
                relax.transform.StaticPlanBlockMemory(),
            ]
        )(lowered)
    return _Reader(mod["main"]).plan


class _Reader:
    """Walks through ``main``."""

    def __init__(self, main: relax.Function) -> None:
        self.plan = Plan()
        # A variable's tensor, storage (as ("storage", n)) or tuple of these.
        self._values: dict[Any, Any] = {}
        self._weights: dict[tuple[Any, ...], int] = {}
        for number, param in enumerate(main.params):
            self._values[param] = self.plan.add("input", number, *_type_of(param))
        for block in bindings_of(main):
            for binding in block:
                self._values[binding.var] = self._value(binding.value, binding.var)
        self.plan.outputs = self._flat(self._value(main.body.body, None))

    def _flat(self, value: Any) -> list[int]:
        if isinstance(value, list):
            return [number for part in value for number in self._flat(part)]
        return [value]

    def _value(self, expr: Any, var: Any) -> Any:
        if isinstance(expr, relax.Var):
            return self._values[expr]
        if isinstance(expr, relax.Tuple):
            return [self._value(part, None) for part in expr.fields]
        if isinstance(expr, relax.TupleGetItem):
            return self._value(expr.tuple_value, None)[int(expr.index)]
        if (array := constant(expr)) is not None:
            return self._constant(np.asarray(array))
        if isinstance(expr, tvm.ir.Call) and isinstance(expr.op, GlobalVar):
            return self._call(expr)
        return self._operator(expr, var)

    def _operator(self, expr: Any, var: Any) -> Any:
        name = op_name(expr)
        if name == "relax.memory.alloc_storage":
            return ("storage", self.plan.add_storage(_sizes(expr.args[0])[0]))
        if name == "relax.memory.alloc_tensor":
            if int(expr.args[1].value) != 0:
                raise KitError(f"a tensor at an offset in its storage: {expr}")
            _, storage = self._values[expr.args[0]]
            return self.plan.add("storage", storage, *_type_of(var))
        if name == "relax.builtin.alloc_tensor":
            shape, dtype = _type_of(var)
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            return self.plan.add("storage", self.plan.add_storage(size), shape, dtype)
        if name == "relax.reshape":
            source = self.plan.tensors[self._value(expr.args[0], None)]
            return self.plan.add(source.place, source.base, *_type_of(var))
        if name in _FREED:
            return None
        raise KitError(
            f"the network calls {name or type(expr).__name__}, which needs TVM's runtime; a kit"
            " holds networks of tensors of fixed shapes: use the library that compile writes"
        )

    def _call(self, expr: Any) -> None:
        values = [self._value(argument, None) for argument in expr.args]
        name = str(expr.op.name_hint)
        if not all(isinstance(value, int) for value in values) or len(values) > MAX_ARGUMENTS:
            raise KitError(
                f"{name} takes {len(values)} arguments, not all of them tensors; expected at most"
                f" {MAX_ARGUMENTS} tensors: use the library that compile writes"
            )
        self.plan.calls.append(PlanCall(name, tuple(values)))

    def _constant(self, value: np.ndarray) -> int:
        key = (value.shape, str(value.dtype), value.tobytes())
        if key not in self._weights:
            self._weights[key] = self.plan.add_weights(value)
        return self._weights[key]


def _type_of(expr: Any) -> tuple[tuple[int, ...], str]:
    dtype = str(expr.ty.dtype)
    _dlpack(dtype)
    return shape_of(expr), dtype


def _sizes(shape: Any) -> list[int]:
    return [int(value) for value in shape.values]


def _dlpack(dtype: str) -> tuple[int, int]:
    """DLPack's code and bits of a type."""
    try:
        kind = np.dtype(dtype)
        return _CODES[kind.kind], 8 * kind.itemsize
    except (TypeError, KeyError):
        raise KitError(
            f"a tensor of type {dtype}; a kit holds integers, float16, float32 and float64"
        ) from None


@dataclass(frozen=True)
class Launch:
    """A kernel of a GPU: its program's number, function, launch and buffers.

    ``textures`` are the numbers of those arguments that it can read as images.
    """

    program: int
    function: str
    work_groups: tuple[int, int, int]
    work_items: tuple[int, int, int]
    arguments: tuple[int, ...]
    textures: tuple[int, ...] = ()


@dataclass
class Gpu:
    """What a GPU runs instead of the calls: programs by file name, and launches in order."""

    device: str
    programs: dict[str, str] = field(default_factory=dict)
    launches: list[Launch] = field(default_factory=list)

    @property
    def needs_half(self) -> bool:
        """Whether its kernels compute in float16."""
        return any("cl_khr_fp16" in source for source in self.programs.values())


def plan_text(plan: Plan, gpu: Gpu | None = None) -> str:
    """A plan as ``native/model.c`` reads it; with ``gpu``, of kernels."""
    lines = [f"plan {FORMAT}", f"device {gpu.device if gpu else 'cpu'}"]
    lines.append(f"half {int(gpu is not None and gpu.needs_half)}")
    lines.append(f"weights {len(plan.weights)}")
    lines += [f"storage {size}" for size in plan.storages]
    for tensor in plan.tensors:
        numbers = [*_dlpack(tensor.dtype), len(tensor.shape), *tensor.shape]
        lines.append(f"tensor {tensor.place} {tensor.base} {_words(numbers)}")
    lines += [f"output {number}" for number in plan.outputs]
    if gpu is None:
        for call in plan.calls:
            lines.append(f"call {call.function} {len(call.arguments)} {_words(call.arguments)}")
    else:
        lines += [f"program {name}" for name in gpu.programs]
        for launch in gpu.launches:
            lines += [_launch_line(launch), *(f"texture {i}" for i in launch.textures)]
    return "\n".join([*lines, "end"]) + "\n"


def _launch_line(launch: Launch) -> str:
    sizes = _words((*launch.work_groups, *launch.work_items))
    arguments = f"{len(launch.arguments)} {_words(launch.arguments)}"
    return f"kernel {launch.function} {launch.program} {sizes} {arguments}"


def _words(values: Sequence[int]) -> str:
    return " ".join(map(str, values))
