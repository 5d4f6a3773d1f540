"""From 32-bit sums to bytes: scale, add, round, limit, and the zero point."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

#: A float32 of this size has no fraction: adding it rounds to whole numbers, ties to even, and the
#: low byte of its bits is that of the whole number.
ROUNDING = 12582912.0  # 1.5 * 2**23

Expression = Any


def fma(a: Expression, b: Expression, c: Expression, lanes: int) -> Expression:
    """``a * b + c`` rounded once."""
    dtype = "float32" if lanes == 1 else f"float32x{lanes}"
    return tirx.call_llvm_pure_intrin(dtype, "llvm.fma", a, b, c)


def rounded_bytes(value: Expression, limits: tuple[Expression, Expression], lanes: int) -> Any:
    """The bytes of whole numbers that were rounded by adding :data:`ROUNDING`, modulo 256.

    Parameters
    ----------
    value : Expr
        float32 vector, :data:`ROUNDING` included.
    limits : tuple of Expr
        Scalars, :data:`ROUNDING` included.
    lanes : int
    """
    low, high = (T.broadcast(limit, lanes) for limit in limits)
    limited = T.min(T.max(value, low), high)
    return T.Cast(f"uint8x{lanes}", T.reinterpret(f"int32x{lanes}", limited))
