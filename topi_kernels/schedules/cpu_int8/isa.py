"""The instructions that multiply four bytes by four bytes and add the products to 32 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

Expression = Any


@dataclass(frozen=True)
class DotIsa:
    """One way to compute ``acc[i] += sum over q of bytes[4 i + q] * weights[q]``.

    Parameters
    ----------
    name : str
    pixels : int
        32-bit lanes of a vector: the pixels that one instruction serves.
    table_bytes : tuple of int
        Sizes of the tables that one shuffle of bytes picks from, ascending.
    dot : callable
        ``(acc, bytes, weights)`` -> the sum; ``weights`` hold the same word in every lane.
    pick : callable
        ``(tables, picks)`` -> bytes of one or two vectors, by the position of each.
    flip : int
        What the bytes are exclusive-ored with before they are multiplied: 128 where the
        instruction takes them as signed.
    registers : int
        Vector registers.
    by_lane : bool
        Whether a shuffle picks within each 16 bytes of a vector alone; ``table_bytes`` are then
        those of one such lane.
    pack : callable, optional
        Four vectors of int32 -> their bytes, limited to 0..255: of every 16 bytes of the result
        four are those of one vector.
    """

    name: str
    pixels: int
    table_bytes: tuple[int, ...]
    dot: Callable[[Expression, Expression, Expression], Expression]
    pick: Callable[[list[Expression], Expression], Expression]
    flip: int = 0
    registers: int = 32
    by_lane: bool = False
    pack: Callable[[list[Expression]], Expression] | None = None

    @property
    def vector_bytes(self) -> int:
        """Bytes of a vector."""
        return 4 * self.pixels

    @property
    def bytes_type(self) -> str:
        """Type of a vector of bytes."""
        return f"uint8x{self.vector_bytes}"

    @property
    def sums_type(self) -> str:
        """Type of a vector of sums."""
        return f"int32x{self.pixels}"

    def word(self, weights: Expression) -> Expression:
        """A 32-bit word of four weights in every lane."""
        return T.reinterpret(self.bytes_type, T.broadcast(weights, self.pixels))


def _dpbusd(bits: int) -> Callable[[Expression, Expression, Expression], Expression]:
    def dot(acc: Expression, values: Expression, weights: Expression) -> Expression:
        name = f"llvm.x86.avx512.vpdpbusd.{bits}"
        return tirx.call_llvm_pure_intrin(f"int32x{bits // 32}", name, acc, values, weights)

    return dot


def _vpermb(tables: list[Expression], picks: Expression) -> Expression:
    if len(tables) == 1:
        name = "llvm.x86.avx512.permvar.qi.512"
        return tirx.call_llvm_pure_intrin("uint8x64", name, tables[0], picks)
    first, second = tables
    name = "llvm.x86.avx512.vpermi2var.qi.512"
    return tirx.call_llvm_pure_intrin("uint8x64", name, first, picks, second)


def _pshufb(tables: list[Expression], picks: Expression) -> Expression:
    """Within lanes of 16 bytes; a position with its highest bit set gives zero."""

    def shuffled(table: Expression, positions: Expression) -> Expression:
        return tirx.call_llvm_pure_intrin("uint8x32", "llvm.x86.avx2.pshuf.b", table, positions)

    if len(tables) == 1:
        return shuffled(tables[0], picks)
    # Of positions 0..31 the first table answers those below 16, the second the others.
    first = shuffled(tables[0], picks + T.broadcast(T.uint8(0x70), 32))
    second = shuffled(tables[1], picks - T.broadcast(T.uint8(16), 32))
    return T.bitwise_or(first, second)


def _maddubs(values: Expression, weights: Expression, factor: int) -> Expression:
    """``factor`` times the sums of four products; exact where no pair leaves 16 bits."""
    pairs = tirx.call_llvm_pure_intrin("int16x16", "llvm.x86.avx2.pmadd.ub.sw", values, weights)
    factors = T.broadcast(T.int16(factor), 16)
    return tirx.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", pairs, factors)


def _dot_of_halves(acc: Expression, values: Expression, weights: Expression) -> Expression:
    """Bytes as ``2 * (byte >> 1) + (byte & 1)``: no pair of products of either leaves 16 bits."""
    words = T.reinterpret("uint16x16", values)
    shifted = T.reinterpret("uint8x32", T.shift_right(words, T.broadcast(T.uint16(1), 16)))
    high = T.bitwise_and(shifted, T.broadcast(T.uint8(127), 32))
    low = T.bitwise_and(values, T.broadcast(T.uint8(1), 32))
    return acc + _maddubs(high, weights, 2) + _maddubs(low, weights, 1)


def _dot_of_narrow(acc: Expression, values: Expression, weights: Expression) -> Expression:
    """For weights whose pairs reach no further than :data:`NARROW_PAIR`."""
    return acc + _maddubs(values, weights, 1)


def _pack(words: str, halves: str, lanes: int) -> Callable[[list[Expression]], Expression]:
    """Two steps of saturation: 32 to 16 bits, signed, and 16 bits to unsigned bytes."""

    def pack(vectors: list[Expression]) -> Expression:
        first, second = (
            T.Bind(tirx.call_llvm_pure_intrin(f"int16x{2 * lanes}", words, *vectors[i : i + 2]))
            for i in (0, 2)
        )
        return T.Bind(tirx.call_llvm_pure_intrin(f"uint8x{4 * lanes}", halves, first, second))

    return pack


_pack_512 = _pack("llvm.x86.avx512.packssdw.512", "llvm.x86.avx512.packuswb.512", 16)
_pack_256 = _pack("llvm.x86.avx2.packssdw", "llvm.x86.avx2.packuswb", 8)


def _sdot(acc: Expression, values: Expression, weights: Expression) -> Expression:
    name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
    return tirx.call_llvm_pure_intrin("int32x4", name, acc, values, weights)


def _tbl(tables: list[Expression], picks: Expression) -> Expression:
    name = f"llvm.aarch64.neon.tbl{len(tables)}.v16i8"
    return tirx.call_llvm_pure_intrin("uint8x16", name, *tables, picks)


#: Largest sum of the positive, and of the negative, weights of a pair whose products with bytes
#: stay in 16 bits: 255 * 128 = 32640.
NARROW_PAIR = 128

#: AVX-512 with VNNI and VBMI: a shuffle reaches all 64 bytes of a register, or 128 of two.
VBMI = DotIsa("avx512-vnni", 16, (64, 128), _dpbusd(512), _vpermb, pack=_pack_512)

_LANES_OF_256: dict[str, Any] = {"registers": 16, "by_lane": True, "pack": _pack_256}
#: The 256-bit form of VNNI; shuffles stay within 128 bits.
AVX_VNNI = DotIsa("avx-vnni", 8, (16, 32), _dpbusd(256), _pshufb, **_LANES_OF_256)
#: VPMADDUBSW adds pairs of products in 16 bits, with saturation that is never met.
AVX2 = DotIsa("avx2", 8, (16, 32), _dot_of_halves, _pshufb, **_LANES_OF_256)
AVX2_NARROW = DotIsa("avx2-narrow", 8, (16, 32), _dot_of_narrow, _pshufb, **_LANES_OF_256)
#: SDOT multiplies signed bytes: 128 is taken off the activations and given back by the bias.
DOTPROD = DotIsa("neon-dotprod", 4, (16, 32), _sdot, _tbl, flip=128, by_lane=True)

#: Which of these serves is for the weights to say.
BY_WEIGHTS = (AVX2, AVX2_NARROW)

ISAS = {isa.name: isa for isa in (VBMI, AVX_VNNI, AVX2, AVX2_NARROW, DOTPROD)}


def for_weights(isa: DotIsa, words: np.ndarray) -> DotIsa:
    """The instructions to use for these weights: fewer where their products stay in 16 bits.

    Parameters
    ----------
    isa : DotIsa
    words : numpy.ndarray
        int32: four weights each.
    """
    if isa not in BY_WEIGHTS:
        return isa
    weights = np.ascontiguousarray(words.reshape(-1)).astype("<i4").view(np.int8)
    pairs = weights.reshape(-1, 2).astype(np.int64)
    positive, negative = pairs.clip(min=0).sum(axis=1), (-pairs).clip(min=0).sum(axis=1)
    reach = max(positive.max(initial=0), negative.max(initial=0))
    return AVX2_NARROW if reach <= NARROW_PAIR else AVX2


def isa_named(name: str) -> DotIsa:
    """The instructions of that name.

    Raises
    ------
    ValueError
        If there are none.
    """
    if name not in ISAS:
        raise ValueError(f"unknown 8-bit instructions {name!r}; expected one of {sorted(ISAS)}")
    return ISAS[name]
