"""The instructions that multiply four bytes by four bytes and add the products to 32 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    """

    name: str
    pixels: int
    table_bytes: tuple[int, ...]
    dot: Callable[[Expression, Expression, Expression], Expression]
    pick: Callable[[list[Expression], Expression], Expression]
    flip: int = 0
    registers: int = 32

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


#: AVX-512 with VNNI and VBMI: a shuffle reaches all 64 bytes of a register, or 128 of two.
VBMI = DotIsa("avx512-vnni", 16, (64, 128), _dpbusd(512), _vpermb)

ISAS = {isa.name: isa for isa in (VBMI,)}


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
