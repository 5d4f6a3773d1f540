"""Reading and rebuilding the bindings of a Relax function; shared by all passes.

The passes keep a binding's variable and replace its value wherever the type allows it, so users
never have to be rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, Expr, GenericConst, GlobalVar, Op, Var

from topi_kernels.aligned import is_aligned
from topi_kernels.eligibility import DTYPES

#: Users that are not bindings: the end of a block or the body of the function.
OUTPUT = "output"
#: Element types of images that the passes rewrite.
FLOATS = DTYPES


def relax_functions(mod: tvm.IRModule) -> Iterator[tuple[GlobalVar, relax.Function]]:
    """Relax functions of a module that are not already lowered composites, in order."""
    for gv, func in list(mod.functions_items()):
        if isinstance(func, relax.Function) and "Primitive" not in dict(func.attrs or {}):
            yield gv, func


def map_functions(
    mod: tvm.IRModule, transform: Callable[[relax.Function], relax.Function]
) -> tvm.IRModule:
    """Module with ``transform`` applied to its Relax functions; the argument is not changed."""
    result = mod.clone()
    for gv, func in relax_functions(mod):
        result.update_func(gv, transform(func))
    return result


def rebuild(func: relax.Function, blocks: list[list[relax.Binding]]) -> relax.Function:
    """``func`` with new bindings per block, normalized; empty blocks are dropped."""
    old = func.body.blocks
    kept = [type(o)(b) for o, b in zip(old, blocks, strict=True) if b]
    body = relax.BlockBuilder().normalize(relax.SeqExpr(kept, func.body.body))
    return relax.Function(func.params, body, func.ret_ty, func.is_pure, func.attrs)


def bindings_of(func: relax.Function) -> list[list[relax.Binding]]:
    """Bindings of a function, block by block."""
    return [list(block.bindings) for block in func.body.blocks]


def with_values(block: Sequence[relax.Binding], values: Mapping[Var, Expr]) -> list[relax.Binding]:
    """A block with new values for some variables.

    Other bindings stay as they are: one may cast to a type that its value does not have.
    """
    return [relax.VarBinding(b.var, values[b.var]) if b.var in values else b for b in block]


class Emitter:
    """The bindings of a dataflow block that a pass makes, in order."""

    def __init__(self) -> None:
        self.bindings: list[relax.Binding] = []

    def emit(self, value: Expr, name: str) -> Var:
        """A new variable of a value."""
        value = relax.BlockBuilder().normalize(value)
        var = relax.DataflowVar(name, value.ty)
        self.bindings.append(relax.VarBinding(var, value))
        return var


def op_name(expr: Any) -> str:
    """Name of the operator that ``expr`` calls; empty if it calls none."""
    return str(expr.op.name) if isinstance(expr, Call) and isinstance(expr.op, Op) else ""


def is_float_image(expr: Expr) -> bool:
    """Whether ``expr`` is a tensor ``[n, c, h, w]`` of static shape and one of :data:`FLOATS`."""
    return static_shape(expr, 4) is not None and str(expr.ty.dtype) in FLOATS


def static_shape(expr: Expr, ndim: int | None = None) -> tuple[int, ...] | None:
    """Shape of a tensor of known, constant shape (and of ``ndim`` axes), else None."""
    ty = expr.ty
    if not isinstance(ty, relax.TensorType) or not isinstance(ty.shape, relax.ShapeExpr):
        return None
    dims = list(ty.shape)
    if ndim is not None and len(dims) != ndim:
        return None
    if not all(isinstance(d, tvm.tirx.IntImm) for d in dims):
        return None
    return tuple(int(d) for d in dims)


def shape_of(expr: Expr) -> tuple[int, ...]:
    """Shape of a tensor whose shape is known to be static.

    Raises
    ------
    ValueError
        If it is not.
    """
    shape = static_shape(expr)
    if shape is None:
        raise ValueError(f"expected a tensor of static shape, got {expr} of type {expr.ty}")
    return shape


def height_width(image: Expr) -> tuple[int, int]:
    """Extent of an image ``[n, c, h, w]`` of static shape."""
    height, width = shape_of(image)[2:]
    return height, width


def array_of(expr: Expr) -> np.ndarray:
    """Value of a tensor that is known to be a constant.

    Raises
    ------
    ValueError
        If it is none.
    """
    value = constant(expr)
    if value is None:
        raise ValueError(f"expected a constant tensor, got {expr}; bind the parameters first")
    return value


def constant(expr: Expr) -> np.ndarray | None:
    """Value of a tensor constant (not copied) or a float literal, else None."""
    if isinstance(expr, tvm.tirx.FloatImm):
        return np.asarray(expr.value, str(expr.ty.dtype))
    if not isinstance(expr, GenericConst) or not isinstance(expr.ty, relax.TensorType):
        return None
    value = expr.value
    if isinstance(value, tvm.runtime.Tensor):
        return np.from_dlpack(value)
    return np.asarray(value, str(expr.ty.dtype))


def constant_in_place(array: np.ndarray) -> GenericConst:
    """A tensor constant of an array that nobody writes to any more.

    Where the array is aligned as TVM's tensors are, the constant lies in its memory: a copy of
    large weights takes longer than to pack them.
    """
    if array.flags.c_contiguous and array.flags.writeable and is_aligned(array):
        return relax.const(tvm.runtime.from_dlpack(array))
    return relax.const(array)


def channel_constant(expr: Expr, out_channels: int) -> np.ndarray | None:
    """A float constant that adds one value per channel to ``[n, c, h, w]``, as ``[c]``.

    Shapes ``[1, c, 1, 1]``, ``[c, 1, 1]`` and one-element tensors qualify.
    """
    value = constant(expr)
    if value is None or str(value.dtype) not in FLOATS or value.ndim > 4:
        return None
    batch, channels, *image = (1,) * (4 - value.ndim) + value.shape
    if batch != 1 or image != [1, 1] or channels not in (1, out_channels):
        return None
    return np.broadcast_to(value.reshape(-1), (out_channels,)).copy()


def is_constant_conv(call: Any) -> bool:
    """A convolution, or transposed one, of which every out_channel has constant weights."""
    layout = {"relax.nn.conv2d": "OIHW", "relax.nn.conv2d_transpose": "IOHW"}.get(op_name(call))
    return (
        layout is not None
        and constant(call.args[1]) is not None
        and str(call.attrs.kernel_layout) == layout
        and str(call.attrs.out_layout) == "NCHW"
        and (layout == "OIHW" or int(call.attrs.groups) == 1)
    )


def is_undilated_conv(call: Any, out: Expr, name: str, kernel_layout: str) -> bool:
    """A convolution ``name`` of a float image of static shape by constant weights, as torch has it.

    Its taps are neighbours; its layouts are ``NCHW`` and ``kernel_layout``.
    """
    if op_name(call) != name:
        return False
    attrs = call.attrs
    layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout))
    dtypes = {str(e.ty.dtype) for e in (*call.args, out)}
    return (
        layouts == ("NCHW", kernel_layout, "NCHW")
        and constant(call.args[1]) is not None
        and is_float_image(call.args[0])
        and all(int(d) == 1 for d in attrs.dilation)
        and len(dtypes) == 1
    )


def filter_axis(call: Call) -> int:
    """Axis of a convolution's weight that counts its out_channels."""
    return 1 if op_name(call) == "relax.nn.conv2d_transpose" else 0


def scalar_constant(expr: Expr) -> float | None:
    """Value of a one-element tensor constant, else None."""
    value = constant(expr)
    return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None


class Uses:
    """Who defines and who uses each variable of a function."""

    def __init__(self, func: relax.Function) -> None:
        self.value: dict[Var, Expr] = {}
        self.users: dict[Var, list[Var | str]] = {}
        self._closed: set[Var] = set()
        before: set[Var] = set()
        for block in func.body.blocks:
            dataflow = isinstance(block, relax.DataflowBlock)
            for binding in block.bindings:
                self.value[binding.var] = binding.value
                used_here = tvm.relax.analysis.free_vars(binding.value)
                self._closed.update(before.intersection(used_here))
                for used in used_here:
                    self.users.setdefault(used, []).append(binding.var)
                if dataflow and not isinstance(binding.var, relax.DataflowVar):
                    self.users.setdefault(binding.var, []).append(OUTPUT)
            if dataflow:
                before.update(binding.var for binding in block.bindings)
        for used in tvm.relax.analysis.free_vars(func.body.body):
            self.users.setdefault(used, []).append(OUTPUT)

    def sole_user(self, var: Var) -> Var | None:
        """The one binding that uses ``var``, or None if there are several or it is an output."""
        users = self.users.get(var, [])
        return users[0] if len(users) == 1 and users[0] is not OUTPUT else None

    def definition(self, expr: Expr) -> Any:
        """Value bound to a variable; None for parameters and non-variables.

        None too for what a dataflow block gives to other blocks: they may not know what it is
        computed from.
        """
        return self.value.get(expr) if isinstance(expr, Var) and expr not in self._closed else None
