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
"""Work_items that share the reduction of one vector of columns, where the target allows as many."""


def matvec(
    rows: int, k: int, n: int, target: PlaneTarget, config: MatvecConfig | None = None
) -> tirx.PrimFunc:
    """``(x[rows, k], packed[ceil(n / block), k, block], out[rows, n])`` with ``out = x @ matrix``.

    As :func:`topi_kernels.matvec.matvec`. A work_group computes a block of columns: its work_items
    read neighbouring columns, ``splits`` of them every ``splits``-th row of the matrix, and their
    sums meet in local memory.
    """
    config = config or MatvecConfig()
    block = config.vectors * target.lanes
    vectors, blocks, dtype = block // WIDTH, -(-n // block), target.dtype
    most = target.max_work_items or vectors * SPLITS
    splits = max(1, min(SPLITS, most // vectors))
    shapes = {"x": (rows, k), "matrix": (blocks, k, block), "out": (rows, n)}
    with (
        opened("matvec", dtype, **shapes) as (ib, (x, matrix, out)),
        launch((blocks, rows, 1), (vectors, splits)) as (group, item),
    ):
        (b, row, _), (column, split) = group, item
        total = T.alloc_buffer((1,), f"float32x{WIDTH}", scope="local")
        shared = T.alloc_buffer((splits * block,), "float32", scope="shared")
        T.buffer_store(total, zeros("float32", WIDTH), [0])
        with T.serial(0, -(-k // splits)) as step:
            i = T.Bind(step * splits + split)
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
                place = column * WIDTH + lane
                parts = [shared[number * block + place] for number in range(splits)]
                _store_column(out, parts, row, n, b * block, place)
    return ib.get()


def _store_column(out: Any, parts: list[Any], row: Any, n: int, first: Any, column: Any) -> None:
    """Add the parts of one column."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    with T.If(first + column < n), T.Then():
        value = converted(total, "float32", str(out.dtype), 1)
        T.buffer_store(out, value, [row * n + first + column])
