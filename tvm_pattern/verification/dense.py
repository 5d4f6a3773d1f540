"""A Relax module run operator by operator, dense: none of this project's passes and schedules.

Every operator becomes a function of its own, by TVM's own kernels, and all of them are built in one
go, equal ones once. Nothing is fused, so that every value can be looked at, and only those still
needed are kept. TVM's kernels are unscheduled here: convolutions and matrix products, where the
time goes, are computed by torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import GenericConst
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.target import Target, codegen

from relay_passes.dataflow import constant, op_name

from .sketch import Node, sketch
from .torch_kernels import as_torch

# Smaller constants stay in the code: some operators read their values while they are legalised.
_INLINE_ELEMENTS = 16
_STEPS = frozenset(
    f"relax.{name}" for name in ("round", "floor", "ceil", "trunc", "sign", "floor_divide", "mod")
)
_PICKS = frozenset({"relax.topk", "relax.sort"})  # values beside indices


@dataclass(frozen=True)
class _Step:
    """One binding: ``var = function(*inputs)``, constants among the inputs.

    ``function`` names a function of the built module, or computes on numpy arrays.
    """

    var: relax.Var
    function: str | Callable[..., np.ndarray]
    inputs: tuple[Any, ...]
    node: Node


class DenseGraph:
    """``main`` of a Relax module with static shapes, ready to run on this computer.

    Parameters
    ----------
    mod : tvm.IRModule
        Parameters bound as constants.
    layer_names : dict, optional
        Relax variable -> layer.
    """

    def __init__(self, mod: tvm.IRModule, layer_names: dict[str, str] | None = None) -> None:
        main = mod["main"]
        self._params = list(main.params)
        self._result = main.body.body
        functions: dict[tvm_ffi.StructuralKey, str] = {}
        context = {gv: f for gv, f in mod.functions.items() if gv.name_hint != "main"}
        built = tvm.IRModule(context)
        self._steps = []
        for block in main.body.blocks:
            for binding in block.bindings:
                node = node_of(binding, layer_names or {})
                by_torch = as_torch(binding.value)
                if by_torch is not None:
                    inputs = tuple(_argument(a) for a in binding.value.args)
                    self._steps.append(_Step(binding.var, by_torch, inputs, node))
                    continue
                function, inputs = _as_function(binding)
                name = functions.setdefault(
                    tvm_ffi.StructuralKey(function), f"verified_operator_{len(functions)}"
                )
                built[name] = function.with_attr("global_symbol", name)
                self._steps.append(_Step(binding.var, name, inputs, node))
        target = Target({"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu()})
        self._vm = relax.VirtualMachine(tvm.compile(built, target), tvm.cpu())

    def run(
        self,
        arrays: Sequence[np.ndarray],
        look: Callable[[relax.Var, Node, list[np.ndarray]], None] | None = None,
    ) -> list[np.ndarray]:
        """The outputs; ``look`` sees every value on the way."""
        values: dict[Any, Any] = {
            p: tvm.runtime.tensor(a) for p, a in zip(self._params, arrays, strict=True)
        }
        last = self._last_uses()
        for index, step in enumerate(self._steps):
            arguments = [values[i] if isinstance(i, relax.Var) else i for i in step.inputs]
            if isinstance(step.function, str):
                values[step.var] = self._vm[step.function](*arguments)
            else:
                array = step.function(*(a.numpy() for a in arguments))
                values[step.var] = tvm.runtime.tensor(array)
            if look is not None:
                look(step.var, step.node, [t.numpy() for t in flatten(values[step.var])])
            for var in last.get(index, ()):
                values.pop(var, None)
        return [t.numpy() for t in flatten(_evaluate(self._result, values))]

    def trace(self, arrays: Sequence[np.ndarray]) -> list[Node]:
        """Every operator with sketches of its results, in order."""
        nodes: list[Node] = []

        def look(_var: relax.Var, node: Node, results: list[np.ndarray]) -> None:
            values = tuple(sketch(a) for a in results if a.dtype.kind == "f" and a.size)
            nodes.append(replace(node, values=values))

        self.run(arrays, look)
        return nodes

    def _last_uses(self) -> dict[int, list[relax.Var]]:
        last: dict[relax.Var, int] = {}
        for index, step in enumerate(self._steps):
            last[step.var] = index
            for value in step.inputs:
                if isinstance(value, relax.Var):
                    last[value] = index
        for var in relax.analysis.free_vars(self._result):
            last.pop(var, None)
        ends: dict[int, list[relax.Var]] = {}
        for var, index in last.items():
            ends.setdefault(index, []).append(var)
        return ends


def flatten(value: Any) -> list[Any]:
    """Tensors of a result, however its tuples are nested."""
    if hasattr(value, "numpy"):
        return [value]
    if isinstance(value, tuple | list | tvm_ffi.Array):
        return [tensor for part in value for tensor in flatten(part)]
    return []  # a shape


def _evaluate(expr: Any, values: dict[Any, Any]) -> Any:
    if isinstance(expr, relax.Tuple):
        return tuple(_evaluate(part, values) for part in expr.fields)
    return values[expr] if isinstance(expr, relax.Var) else expr.value


def _argument(expr: Any) -> Any:
    return expr if isinstance(expr, relax.Var) else expr.value


@mutator
class _ConstantLifter(PyExprMutator):
    """Large constants become parameters: layers that differ by weights are one function."""

    def __init__(self) -> None:
        super().__init__()
        self.lifted: list[tuple[relax.Var, Any]] = []

    def visit_generic_const_(self, op: GenericConst) -> Any:
        array = constant(op)
        if array is None or array.size <= _INLINE_ELEMENTS:
            return op
        var = relax.Var(f"constant{len(self.lifted)}", op.ty)
        self.lifted.append((var, op.value))
        return var


def _as_function(binding: relax.Binding) -> tuple[relax.Function, tuple[Any, ...]]:
    """A function of one binding's value, and the variables and arrays to call it with."""
    lifter = _ConstantLifter()
    value = lifter.visit_expr(binding.value)
    variables = list(relax.analysis.free_vars(binding.value))
    params = [*variables, *(var for var, _ in lifter.lifted)]
    builder = relax.BlockBuilder()
    with builder.function("operator", params):
        builder.emit_func_output(builder.emit(value))
    return builder.get()["operator"], (*variables, *(data for _, data in lifter.lifted))


def node_of(binding: relax.Binding, layer_names: dict[str, str]) -> Node:
    value = binding.value
    inputs = [v for v in relax.analysis.free_vars(value) if isinstance(v.ty, relax.TensorType)]
    name = op_name(value)
    gives_float = _is_float(binding.var.ty)
    takes_float = any(_is_float(v.ty) for v in inputs)
    is_step = isinstance(binding.var.ty, relax.TensorType) and takes_float and not gives_float
    is_step = is_step and name != "relax.quantize"  # a step, of the size that is allowed
    return Node(
        name=binding.var.name,
        op=name or type(value).__name__,
        layer=layer_names.get(binding.var.name, ""),
        inputs=tuple(v.name for v in relax.analysis.free_vars(value)),
        discrete=is_step or name in _STEPS or name in _PICKS,
    )


def _is_float(ty: Any) -> bool:
    return isinstance(ty, relax.TensorType) and str(ty.dtype).startswith("float")
