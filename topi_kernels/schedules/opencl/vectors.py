"""Vectors in OpenCL C: aligned loads, lanes picked from several vectors, launch of work_items.

TVM's code generator writes ``vload4`` for a ramp, which promises no alignment, so that a compiler
may take four loads for it; and it has no valid form for a shuffle of several lanes. Both are
spelled here as calls whose name is a cast of OpenCL C.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from ...vector import constant, splat

_SCALARS = {"float32": "float", "float16": "half", "int32": "int"}


def vector_type(dtype: str, width: int) -> str:
    """TVM's name of a vector of ``width`` lanes."""
    return dtype if width == 1 else f"{dtype}x{width}"


def _opencl_type(dtype: str, width: int) -> str:
    return _SCALARS[dtype] if width == 1 else f"{_SCALARS[dtype]}{width}"


def load_aligned(buffer: Any, index: Any, width: int) -> Any:
    """``width`` neighbouring elements from ``index`` on, which is a multiple of ``width``."""
    if width == 1:
        return buffer[index]
    dtype = str(buffer.dtype)
    pointer = f"*(const __global {_opencl_type(dtype, width)}*)"
    return tirx.call_pure_extern(vector_type(dtype, width), pointer, T.address_of(buffer[index]))


def load_any(buffer: Any, index: Any, width: int) -> Any:
    """``width`` neighbouring elements from any ``index`` on.

    TVM takes single loads for a ramp that it cannot prove to be aligned; ``vload`` needs not be.
    """
    if width == 1:
        return buffer[index]
    first = tirx.const(0, "int32")
    vload = (f"vload{width}", first, T.address_of(buffer[index]))
    return tirx.call_pure_extern(vector_type(str(buffer.dtype), width), *vload)


def pick(vector: Any, lane: int, width: int) -> Any:
    """One lane of a vector."""
    return vector if width == 1 else tirx.Shuffle([vector], [tirx.IntImm("int32", lane)])


def gather(vectors: Sequence[Any], places: Sequence[tuple[int, int]], width: int) -> Any:
    """Vector of lanes ``(vector, lane)`` of vectors of ``width`` lanes."""
    first = places[0][0]
    if list(places) == [(first, lane) for lane in range(width)]:
        return vectors[first]
    values = [pick(vectors[v], lane, width) for v, lane in places]
    return together(values)


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
