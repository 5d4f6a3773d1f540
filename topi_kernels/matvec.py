"""Product of a few rows with a constant matrix: the classifier of a network.

TVM's default walks such a product column by column, with a cache miss per element. Here the matrix
is packed in blocks of columns, so that it is read once, in order, at the speed of the memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from .aligned import aligned_zeros
from .plane_ops import PlaneTarget, load, store
from .primfunc import primfunc_builder
from .vector_math import broadcast

MAX_ACCUMULATORS = 16


@dataclass(frozen=True)
class MatvecConfig:
    """Register tile: ``rows`` rows times ``vectors`` vectors of columns."""

    rows: int = 4
    vectors: int = 4

    def __post_init__(self) -> None:
        if self.rows < 1 or self.vectors < 1 or self.rows * self.vectors > MAX_ACCUMULATORS:
            raise ValueError(
                f"rows * vectors must be in 1..{MAX_ACCUMULATORS} to stay in registers, got {self}"
            )

    @classmethod
    def fitting(cls, rows: int, registers: int) -> MatvecConfig:
        """The tile for ``rows`` rows: with few registers several rows share fewer vectors."""
        return cls() if rows <= 2 or registers > MAX_ACCUMULATORS else cls(vectors=2)


def pack_columns(matrix: np.ndarray, block: int) -> np.ndarray:
    """``[k, n]`` -> ``[ceil(n / block), k, block]``, zeros beyond column ``n``; aligned."""
    k, n = matrix.shape
    blocks = -(-n // block)
    packed = aligned_zeros((blocks, k, block), matrix.dtype)
    for b in range(blocks):
        columns = matrix[:, b * block : (b + 1) * block]
        packed[b, :, : columns.shape[1]] = columns
    return packed


def matvec(
    rows: int, k: int, n: int, target: PlaneTarget, config: MatvecConfig | None = None
) -> tirx.PrimFunc:
    """``(x[rows, k], packed[ceil(n / block), k, block], out[rows, n])`` with ``out = x @ matrix``.

    ``block`` is ``config.vectors * target.lanes``; see :func:`pack_columns`. Parallel over blocks.
    """
    config = config or MatvecConfig()
    lanes, tile = target.lanes, min(config.rows, rows)
    block = config.vectors * lanes
    blocks = -(-n // block)
    with primfunc_builder("matvec") as ib:
        x = T.arg("x", T.Buffer((rows, k), target.dtype))
        matrix = T.arg("matrix", T.Buffer((blocks, k, block), target.dtype))
        out = T.arg("out", T.Buffer((rows, n), target.dtype))
        loop = T.parallel if target.num_threads > 1 else T.serial
        with loop(0, blocks) as b, T.serial(0, -(-rows // tile)) as t:
            first = T.Bind(T.min(t * tile, rows - tile))
            acc = [T.alloc_buffer((block,), "float32", scope="global") for _ in range(tile)]
            for a in acc:
                for v in range(config.vectors):
                    store(a, broadcast(0.0, lanes), [v * lanes], lanes)
            with T.serial(0, k) as i:
                scalars = [
                    T.Bind(broadcast(load(x, [first + r, i], 1), lanes)) for r in range(tile)
                ]
                for v in range(config.vectors):
                    column = T.Bind(load(matrix, [b, i, v * lanes], lanes))
                    for a, scalar in zip(acc, scalars, strict=True):
                        total = load(a, [v * lanes], lanes) + scalar * column
                        store(a, total, [v * lanes], lanes)
            with T.serial(0, T.min(block, n - b * block)) as j:
                for r, a in enumerate(acc):
                    store(out, a[j], [first + r, b * block + j], 1)
    return ib.get()
