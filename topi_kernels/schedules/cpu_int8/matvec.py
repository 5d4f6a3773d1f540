"""Product of a few rows of bytes with a constant matrix of bytes: the dense layers of a network.

The matrix is read once, in order: columns in blocks of some vectors, and of every column the
weights of four rows as one word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ...plane_ops import for_each_vector
from ...primfunc import primfunc_builder
from .isa import for_weights, isa_named
from .packing import WORD, check_sums
from .planes import LANES, quantised_vector
from .quantisation import Quantisation

MAX_ROWS = 4
VECTORS = 4


@dataclass(frozen=True, eq=False)
class Int8Matvec:
    """A product ready to be built.

    Parameters
    ----------
    rows, k, n : int
    source : Quantisation
        Of the left side, whose reals are bytes in disguise.
    isa : str
    arrays : list of numpy.ndarray
        Words int32 ``[blocks, quads, block]``; where the sums begin, int32; factors, float32.
    num_threads : int
    """

    rows: int
    k: int
    n: int
    source: Quantisation
    isa: str
    arrays: list[np.ndarray]
    num_threads: int

    @property
    def block(self) -> int:
        """Columns that are computed together."""
        return VECTORS * isa_named(self.isa).pixels

    def primfunc(self) -> tirx.PrimFunc:
        """``(x float32 [rows, k], words, start, factors, out float32 [rows, n])``."""
        block = self.block
        blocks, quads = -(-self.n // block), -(-self.k // WORD)
        tile = min(self.rows, MAX_ROWS)
        loop = T.parallel if self.num_threads > 1 else T.serial
        with primfunc_builder("int8_matvec") as builder:
            x = T.arg("x", T.Buffer((self.rows, self.k), "float32"))
            words = T.arg("words", T.Buffer((blocks, quads, block), "int32"))
            start = T.arg("start", T.Buffer((blocks, block), "int32"))
            factors = T.arg("factors", T.Buffer((blocks, block), "float32"))
            out = T.arg("out", T.Buffer((self.rows, self.n), "float32"))
            left = T.alloc_buffer((self.rows, quads * WORD), "uint8", scope="global")
            padded = T.alloc_buffer((self.rows, blocks * block), "float32", scope="global")
            with T.sblock("root"):
                self._quantise(x, left)
                with loop(0, blocks) as b, T.serial(0, -(-self.rows // tile)) as t:
                    first = T.Bind(T.min(t * tile, self.rows - tile))
                    self._columns(
                        (words, start, factors), left, padded, [first + r for r in range(tile)], b
                    )
                with T.serial(0, self.rows) as row:

                    def copy(at: Any, lanes: int) -> None:
                        index = at if lanes == 1 else T.ramp(at, 1, lanes)
                        T.buffer_store(out, padded[row, index], [row, index])

                    for_each_vector(self.n, LANES, copy)
        return builder.get()

    def _quantise(self, x: Any, left: Any) -> None:
        """The left side as bytes, those beyond its end 0."""
        with T.serial(0, self.rows) as row:
            for extra in range(self.k, -(-self.k // WORD) * WORD):
                T.buffer_store(left, T.uint8(0), [row, extra])

            def convert(at: Any, lanes: int) -> None:
                index = at if lanes == 1 else T.ramp(at, 1, lanes)
                T.buffer_store(
                    left, quantised_vector(x[row, index], self.source, lanes), [row, index]
                )

            for_each_vector(self.k, LANES, convert)

    def _columns(
        self, arrays: tuple[Any, Any, Any], left: Any, out: Any, rows: list[Any], block: Any
    ) -> None:
        """The sums of one block of columns for some rows."""
        isa, (words, start, factors) = isa_named(self.isa), arrays
        lanes = T.ramp(0, 1, isa.pixels)
        acc = []
        for _ in rows:
            cells = [T.alloc_buffer((isa.pixels,), "int32", scope="global") for _ in range(VECTORS)]
            for v, cell in enumerate(cells):
                at = T.ramp(v * isa.pixels, 1, isa.pixels)
                T.buffer_store(cell, start[block, at], [lanes])
            acc.append(cells)
        flip = T.broadcast(T.uint8(isa.flip), WORD)
        with T.serial(0, -(-self.k // WORD)) as quad:
            values = []
            for row in rows:
                four = left[row, T.ramp(quad * WORD, 1, WORD)]
                four = T.bitwise_xor(four, flip) if isa.flip else four
                values.append(T.Bind(isa.word(T.reinterpret("int32", four))))
            for v in range(VECTORS):
                column = words[block, quad, T.ramp(v * isa.pixels, 1, isa.pixels)]
                column = T.Bind(T.reinterpret(isa.bytes_type, column))
                for r in range(len(rows)):
                    cell = acc[r][v]
                    T.buffer_store(cell, isa.dot(cell[lanes], values[r], column), [lanes])
        for row, cells in zip(rows, acc, strict=True):
            for v, cell in enumerate(cells):
                real = T.Cast(f"float32x{isa.pixels}", cell[lanes])
                factor = factors[block, T.ramp(v * isa.pixels, 1, isa.pixels)]
                at = T.ramp(block * self.block + v * isa.pixels, 1, isa.pixels)
                T.buffer_store(out, real * factor, [row, at])


def plan_int8_matvec(
    weight: np.ndarray,
    weight_scale: np.ndarray,
    source: Quantisation,
    rows: int,
    isa: str,
    num_threads: int = 1,
) -> Int8Matvec:
    """Pack a matrix.

    Parameters
    ----------
    weight : numpy.ndarray
        int8 ``[n, k]``.
    weight_scale : numpy.ndarray
        float32 ``[n]``.
    source : Quantisation
        Of the left side.
    rows : int
        Of the left side.
    isa : str
    num_threads : int

    Raises
    ------
    OverflowsInt32Error
        If a sum may leave 32 bits.
    """
    n, k = weight.shape
    instructions = isa_named(isa)
    start = -(source.zero_point - instructions.flip) * weight.astype(np.int64).sum(axis=1)
    check_sums(weight, start)
    quads = -(-k // WORD)
    block = VECTORS * instructions.pixels
    blocks = -(-n // block)
    padded = np.zeros((blocks * block, quads * WORD), np.int8)
    padded[:n, :k] = weight
    words = padded.view("<i4").reshape(blocks, block, quads).transpose(0, 2, 1)
    words = np.ascontiguousarray(words).astype(np.int32)
    starts, factors = np.zeros(blocks * block, np.int32), np.zeros(blocks * block, np.float32)
    starts[:n] = start
    factors[:n] = weight_scale.astype(np.float64) * source.scale
    arrays = [words, starts.reshape(blocks, block), factors.reshape(blocks, block)]
    name = for_weights(instructions, words).name
    return Int8Matvec(rows, k, n, source, name, arrays, num_threads)
