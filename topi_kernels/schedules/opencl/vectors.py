"""Vectors in OpenCL C: aligned loads, lanes picked from several vectors, launch of work_items.

TVM's code generator writes ``vload4`` for a ramp, which promises no alignment, so that a compiler
may take four loads for it; and it has no valid form for a shuffle of several lanes. Both are
spelled here as calls whose name is a cast of OpenCL C.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ...vector import constant, splat

_SCALARS = {"float32": "float", "float16": "half", "int32": "int"}


def vector_type(dtype: str, width: int) -> str:
    """TVM's name of a vector of ``width`` lanes."""
    return dtype if width == 1 else f"{dtype}x{width}"


def _opencl_type(dtype: str, width: int) -> str:
    return _SCALARS[dtype] if width == 1 else f"{_SCALARS[dtype]}{width}"


def widest_load(dtype: str) -> int:
    """Elements of a load of 128 bits, the widest that a work_item does at once."""
    return 16 // np.dtype(dtype).itemsize


def load_aligned(buffer: Any, index: Any, width: int, offset: int = 0) -> Any:
    """``width`` neighbouring elements from ``index + offset`` on, a multiple of ``width``."""
    pointer = f"*(const __global {_opencl_type(str(buffer.dtype), width)}*)"
    return _loaded(buffer, index, width, offset, pointer)


def load_any(buffer: Any, index: Any, width: int, offset: int = 0) -> Any:
    """``width`` neighbouring elements from any ``index + offset`` on.

    TVM takes single loads for a ramp that it cannot prove to be aligned; ``vload`` needs not be.
    """
    first = tirx.const(0, "int32")
    return _loaded(buffer, index, width, offset, f"vload{width}", first)


def _loaded(buffer: Any, index: Any, width: int, offset: int, name: str, *before: Any) -> Any:
    """A call that takes an address; its constant part stands beside the pointer.

    Compilers then find it in the load's own offset, where an index of their width would have to be
    added and widened for each load.
    """
    if width == 1:
        return buffer[index + offset]
    address = T.address_of(buffer[index])
    if offset:
        # Declared an integer, for which TVM writes no cast, and not pure, so that it is nowhere
        # kept in a variable: what is written is a pointer.
        address = tirx.call_extern("int64", f"{offset} + ", address)
    return tirx.call_pure_extern(vector_type(str(buffer.dtype), width), name, *before, address)


def pick(vector: Any, lane: int, width: int) -> Any:
    """One lane of a vector."""
    return vector if width == 1 else tirx.Shuffle([vector], [tirx.IntImm("int32", lane)])


def gather(
    vectors: Sequence[Any], places: Sequence[tuple[int, int]], width: int, lanes: int | None = None
) -> Any:
    """Vector of ``width`` lanes: ``(vector, lane)`` of vectors of ``lanes``, by default as many."""
    lanes = width if lanes is None else lanes
    first = places[0][0]
    if list(places) == [(first, lane) for lane in range(lanes)]:
        return vectors[first]
    return together([pick(vectors[v], lane, lanes) for v, lane in places])


def together(values: Sequence[Any]) -> Any:
    """Scalars as a vector."""
    if len(values) == 1:
        return values[0]
    dtype = str(values[0].ty.dtype) if hasattr(values[0], "ty") else str(values[0].dtype)
    cast = f"({_opencl_type(dtype, len(values))})"
    return tirx.call_pure_extern(vector_type(dtype, len(values)), cast, *values)


def converted(value: Any, dtype: str, wanted: str, width: int) -> Any:
    """A vector in another type."""
    return value if dtype == wanted else T.Cast(vector_type(wanted, width), value)


def zeros(dtype: str, width: int) -> Any:
    return constant(0.0, width, dtype)


def spread(value: Any, width: int) -> Any:
    """A scalar in every lane."""
    return splat(value, width)


@contextmanager
def launch(
    groups: tuple[int, int, int], items: tuple[int, int]
) -> Iterator[tuple[tuple[Any, Any, Any], tuple[Any, Any]]]:
    """Launch work_groups; gives the numbers of the work_group and of the work_item in it.

    Dimensions of one work_group or work_item are not launched, their number is 0.
    """
    names = [f"blockIdx.{axis}" for axis in "xyz"] + [f"threadIdx.{axis}" for axis in "xy"]
    extents = [*groups, *items]
    numbers: list[Any] = []
    frames = []
    for name, extent in zip(names, extents, strict=True):
        if extent == 1 and name not in ("blockIdx.x", "threadIdx.x"):
            numbers.append(tirx.const(0, "int32"))
            continue
        frame = T.launch_thread(name, extent)
        numbers.append(frame.__enter__())
        frames.append(frame)
    yield (numbers[0], numbers[1], numbers[2]), (numbers[3], numbers[4])
    for frame in reversed(frames):
        frame.__exit__(None, None, None)
