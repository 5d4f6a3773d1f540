"""What a Relax module needs of memory: before it is compiled, and as it was planned."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Expr, GenericConst

from relay_passes.dataflow import bindings_of, op_name, relax_functions, static_shape

# Operators that cannot write where they read: input and output are there together.
_APART = ("relax.nn.conv", "relax.nn.max_pool", "relax.nn.avg_pool", "relax.matmul")
_ALLOCATE = "relax.vm.alloc_storage"


def least_activations(mod: tvm.IRModule) -> int:
    """Bytes of activations that an imported network needs however it is compiled.

    Parameters
    ----------
    mod : tvm.IRModule
        Relax, with static shapes.

    Returns
    -------
    int
        Of the operator with the largest input and output.
    """
    largest = 0
    for _, function in relax_functions(mod):
        for block in bindings_of(function):
            for binding in block:
                size = _size(binding.var)
                if op_name(binding.value).startswith(_APART):
                    size += sum(map(_size, binding.value.args))
                largest = max(largest, size)
    return largest


def weights_of(mod: tvm.IRModule) -> int:
    """Bytes of the constants of a module; one that several functions use counts once."""
    sizes: dict[int, int] = {}

    def visit(expr: Expr) -> None:
        if isinstance(expr, GenericConst) and isinstance(expr.value, tvm.runtime.Tensor):
            array = np.from_dlpack(expr.value)
            sizes[array.ctypes.data] = array.nbytes

    for _, function in relax_functions(mod):
        relax.analysis.post_order_visit(function, visit)
    return sum(sizes.values())


def planned_activations(mod: tvm.IRModule) -> dict[str, int]:
    """Bytes that each function of a module has planned for its values.

    Parameters
    ----------
    mod : tvm.IRModule
        As TVM's ``default`` Relax pipeline leaves it.
    """
    return {
        str(name.name_hint): sum(map(_planned, _values(function)))
        for name, function in mod.functions_items()
        if isinstance(function, relax.Function)
    }


def _values(function: relax.Function) -> Iterator[Expr]:
    for block in bindings_of(function):
        for binding in block:
            yield binding.value


def _planned(value: Any) -> int:
    return prod(int(n) for n in value.args[0].values) if op_name(value) == _ALLOCATE else 0


def _size(expr: Any) -> int:
    """Bytes of a tensor of static shape that is no constant, else 0."""
    if isinstance(expr, GenericConst) or not isinstance(expr, Expr):
        return 0
    shape = static_shape(expr)
    if shape is None:
        return 0
    return prod(shape) * -(-int(tvm.DataType(str(expr.ty.dtype)).bits) // 8)
