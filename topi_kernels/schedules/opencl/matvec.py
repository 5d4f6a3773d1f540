"""Product of a few rows with a constant matrix for OpenCL devices."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from ...matvec import MatvecConfig
from ...plane_ops import PlaneTarget
from .planes import opened
from .vectors import converted, launch, load_aligned, spread, zeros

WIDTH = 4
SPLITS = 8
"""Work_items that share the reduction of one vector of columns."""


def matvec(
    rows: int, k: int, n: int, target: PlaneTarget, config: MatvecConfig | None = None
) -> tirx.PrimFunc:
    """``(x[rows, k], packed[ceil(n / block), k, block], out[rows, n])`` with ``out = x @ matrix``.

    As :func:`topi_kernels.matvec.matvec`. A work_group computes a block of columns: its work_items
    read neighbouring columns, ``SPLITS`` of them every ``SPLITS``-th row of the matrix, and their
    sums meet in local memory.
    """
    config = config or MatvecConfig()
    block = config.vectors * target.lanes
    vectors, blocks, dtype = block // WIDTH, -(-n // block), target.dtype
    shapes = {"x": (rows, k), "matrix": (blocks, k, block), "out": (rows, n)}
    with (
        opened("matvec", dtype, **shapes) as (ib, (x, matrix, out)),
        launch((blocks, rows, 1), (vectors, SPLITS)) as (group, item),
    ):
        (b, row, _), (column, split) = group, item
        total = T.alloc_buffer((1,), f"float32x{WIDTH}", scope="local")
        shared = T.alloc_buffer((SPLITS * block,), "float32", scope="shared")
        T.buffer_store(total, zeros("float32", WIDTH), [0])
        with T.serial(0, -(-k // SPLITS)) as step:
            i = T.Bind(step * SPLITS + split)
            with T.If(i < k), T.Then():
                at = (b * k + i) * block + column * WIDTH
                weights = converted(load_aligned(matrix, at, WIDTH), dtype, "float32", WIDTH)
                value = converted(x[row * k + i], dtype, "float32", 1)
                T.buffer_store(total, total[0] + spread(value, WIDTH) * weights, [0])
        for lane in range(WIDTH):
            part = tirx.Shuffle([total[0]], [tirx.IntImm("int32", lane)])
            T.buffer_store(shared, part, [split * block + column * WIDTH + lane])
        T.evaluate(tirx.call_intrin("int32", "tirx.tvm_storage_sync", "shared"))
        with T.If(split == 0), T.Then():
            for lane in range(WIDTH):
                _store_column(out, shared, row, n, b * block, column * WIDTH + lane, block)
    return ib.get()


def _store_column(
    out: Any, shared: Any, row: Any, n: int, first: Any, column: Any, block: int
) -> None:
    """Add the parts of one column."""
    total = shared[column]
    for split in range(1, SPLITS):
        total = total + shared[split * block + column]
    with T.If(first + column < n), T.Then():
        value = converted(total, "float32", str(out.dtype), 1)
        T.buffer_store(out, value, [row * n + first + column])
