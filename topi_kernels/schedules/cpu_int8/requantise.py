"""From 32-bit sums to bytes: scale, add, round, limit, and the zero point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ...vector import shuffle
from .isa import DotIsa

#: A float32 of this size has no fraction: adding it rounds to whole numbers, ties to even, and the
#: low byte of its bits is that of the whole number.
ROUNDING = 12582912.0  # 1.5 * 2**23

#: The bits of :data:`ROUNDING`; those of a number of up to :data:`FAR` added to it differ by it.
ROUNDING_BITS = int(np.float32(ROUNDING).view(np.int32))
#: Below ``-ROUNDING`` a sum with it would be negative, and its bits no longer in order.
FAR = 2.0**23
#: Vectors of sums whose bytes fill one register.
TOGETHER = 4

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


@dataclass(frozen=True)
class Bytes:
    """The bytes of some vectors of sums.

    Parameters
    ----------
    parts : list of Expr
        Registers of bytes.
    pixels : int
        Of a vector.
    packed : bool
        Whether a part holds :data:`TOGETHER` vectors, as saturating packs leave them: within each
        16 bytes four pixels of every vector. Else one.
    """

    parts: list[Expression]
    pixels: int
    packed: bool

    @property
    def together(self) -> int:
        """Vectors of a part."""
        return TOGETHER if self.packed else 1

    def _place(self, vector: int, lane: int) -> tuple[int, int]:
        """Part and position of a pixel."""
        if not self.packed:
            return vector, lane
        block, inside = divmod(lane, 4)
        return vector // TOGETHER, (block * TOGETHER + vector % TOGETHER) * 4 + inside

    def of(self, pixels: Sequence[tuple[int, int]]) -> Expression:
        """The bytes of these pixels: ``(vector, lane)`` of each."""
        places = [self._place(*pixel) for pixel in pixels]
        used = sorted({part for part, _ in places})
        width = self.together * self.pixels
        lanes = [used.index(part) * width + position for part, position in places]
        if lanes == list(range(width)):
            return self.parts[used[0]]
        return shuffle([self.parts[part] for part in used], lanes)


def to_bytes(
    isa: DotIsa,
    acc: list[Any],
    scale: Any,
    constants: tuple[Any, Any],
    added: list[Any] | None = None,
    *,
    far: bool = False,
) -> Bytes:
    """The bytes of one filter's sums.

    Parameters
    ----------
    isa : DotIsa
    acc : list of Buffer
        Vectors of int32 sums.
    scale : Expr
        What they are multiplied by.
    constants : tuple of Buffer
        Limits and zero points as :func:`~topi_kernels.schedules.cpu_int8.conv.declare` says.
    added : list of Expr, optional
        float32 vectors that are added to the scaled sums.
    far : bool
        Whether scaled sums may be below ``-FAR``.
    """
    values = _rounded(isa, acc, scale, added)
    if isa.pack is not None:
        return Bytes(_packed(isa, values, constants, far=far), isa.pixels, packed=True)
    lanes, (limits, zero_points) = isa.pixels, constants
    bounds = (T.Bind(limits[0]), T.Bind(limits[1]))
    zero_point = T.Bind(T.broadcast(T.Cast("uint8", zero_points[0]), lanes))
    parts = [T.Bind(rounded_bytes(value, bounds, lanes) + zero_point) for value in values]
    return Bytes(parts, lanes, packed=False)


def _rounded(isa: DotIsa, acc: list[Any], scale: Any, added: list[Any] | None) -> list[Expression]:
    """Scaled sums, rounded by adding :data:`ROUNDING`, which they include."""
    lanes = isa.pixels
    rounding = T.broadcast(T.float32(ROUNDING), lanes)
    factor = T.Bind(T.broadcast(scale, lanes))
    values = []
    for vector, cell in enumerate(acc):
        sums = T.Cast(f"float32x{lanes}", cell[T.ramp(0, 1, lanes)])
        if added is None:
            value = fma(sums, factor, rounding, lanes)
        else:
            value = fma(sums, factor, added[vector], lanes) + rounding
        values.append(T.Bind(value))
    return values


def _packed(
    isa: DotIsa, values: list[Expression], constants: tuple[Any, Any], *, far: bool
) -> list[Expression]:
    """Bytes of several vectors in one register; packing saturates, then the limits follow."""
    if isa.pack is None:
        raise ValueError(f"{isa.name} has no instructions that pack")
    lanes, (limits, zero_points) = isa.pixels, constants
    zero_point = T.Bind(zero_points[0])
    shift = T.Bind(T.broadcast(zero_point - T.int32(ROUNDING_BITS), lanes))
    bounds = []
    for limit in (limits[0], limits[1]):
        whole = T.reinterpret("int32", limit) - T.int32(ROUNDING_BITS) + zero_point
        bounds.append(T.Bind(T.broadcast(T.Cast("uint8", whole), isa.vector_bytes)))
    if far:
        least = T.broadcast(T.float32(ROUNDING - FAR), lanes)
        values = [T.Bind(T.max(value, least)) for value in values]
    whole = [T.Bind(T.reinterpret(isa.sums_type, value) + shift) for value in values]
    parts = []
    for first in range(0, len(whole), TOGETHER):
        four = whole[first : first + TOGETHER]
        four += four[-1:] * (TOGETHER - len(four))
        parts.append(T.Bind(T.min(T.max(isa.pack(four), bounds[0]), bounds[1])))
    return parts
