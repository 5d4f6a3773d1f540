"""PrimFuncs on planes that are not convolutions: pack, unpack, elementwise, pooling.

Every function here returns a ``PrimFunc`` whose plane arguments have shape ``[batch, channels,
layout.size]`` and whose plane output obeys the rule of :mod:`topi_kernels.layout`: all that is
outside the image is written as zero. Work is parallel over ``batch * channels``; rows are walked in
explicit vectors. A row that is no multiple of the vector is finished by one vector that overlaps
its predecessor, so nothing outside the row is read or written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import add
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script import builder as T

from .devices import DEVICES
from .layout import PlaneLayout, round_up
from .primfunc import primfunc_builder
from .vector import shuffle
from .vector_math import activate, broadcast, largest_power_of_two

UNROLLED_VECTORS = 4  # Rows of at most this many vectors are unrolled.
FILL_UNROLLED = 8
SUM_ACCUMULATORS = 4  # Enough to hide the latency of an addition.
SUM_UNROLLED = 16  # Sums of at most this many vectors have no loop.

# An expression or a Python int.
Index = Any


@dataclass(frozen=True)
class PlaneTarget:
    """What the plane operators need to know: schedule family, threads, and the tensors' dtype.

    ``max_work_items`` are those that a GPU's work_groups may have; 0 for as many as are of use.
    Arithmetic is float32 whatever the tensors hold, except that of the pattern-sparse convolution.
    """

    family: str
    num_threads: int = 1
    dtype: str = "float32"
    max_work_items: int = 0

    @property
    def lanes(self) -> int:
        """float32 lanes of one vector register."""
        return DEVICES.facts(self.family).vector_width

    @property
    def nan_maximum(self) -> bool:
        """Whether the processor's maximum gives NaN if either operand is NaN, as torch does."""
        return DEVICES.facts(self.family).nan_maximum


def for_each_plane(
    batch: int, channels: int, target: PlaneTarget, body: Callable[[Index, Index], None]
) -> None:
    """Emit ``body(n, c)`` for all planes, in parallel when there is more than one thread.

    The loop is wrapped in a root block, which Relax's search for reshapes expects.
    """
    loop = T.parallel if target.num_threads > 1 else T.serial
    with T.sblock("root"), loop(0, batch * channels) as nc:
        body(0 if batch == 1 else nc // channels, nc if batch == 1 else nc % channels)


def for_each_vector(width: int, lanes: int, body: Callable[[Index, int], None]) -> None:
    """Emit ``body(x, lanes)`` so that the vectors cover ``[0, width)`` and nothing else.

    The last vector overlaps its predecessor when ``lanes`` does not divide ``width``.
    """
    lanes = min(lanes, largest_power_of_two(width))
    count = -(-width // lanes)
    if count <= UNROLLED_VECTORS:
        for i in range(count):
            body(min(i * lanes, width - lanes), lanes)
        return
    with T.serial(0, count) as i:
        body(i * lanes if width % lanes == 0 else T.Bind(T.min(i * lanes, width - lanes)), lanes)


def fill_zero(
    buffer: tirx.Buffer, index: list[Index], start: Index, count: int, lanes: int
) -> None:
    """Write ``count`` zeros to ``buffer[*index, start:]``."""
    done, vectors = 0, count // lanes
    if vectors > FILL_UNROLLED:
        with T.serial(0, vectors) as i:
            store(buffer, broadcast(0.0, lanes), [*index, start + i * lanes], lanes)
        done = vectors * lanes
    while done < count:
        step = min(lanes, largest_power_of_two(count - done))
        store(buffer, broadcast(0.0, step), [*index, start + done], step)
        done += step


def fill_above(buffer: tirx.Buffer, index: list[Index], layout: PlaneLayout, lanes: int) -> None:
    """Zero everything before pixel (0, 0)."""
    fill_zero(buffer, index, 0, layout.origin, lanes)


def fill_right(
    buffer: tirx.Buffer, index: list[Index], layout: PlaneLayout, y: Index, lanes: int
) -> None:
    """Zero the elements between row ``y`` and the next row."""
    gap = layout.row_stride - layout.width
    gap = min(gap, layout.size - layout.offset(layout.height - 1, layout.width))
    fill_zero(buffer, index, layout.offset(y, layout.width), gap, lanes)


def fill_below(buffer: tirx.Buffer, index: list[Index], layout: PlaneLayout, lanes: int) -> None:
    """Zero everything below the last row."""
    start = layout.offset(layout.height, 0)
    fill_zero(buffer, index, start, max(layout.size - start, 0), lanes)


def for_each_row(
    out: tirx.Buffer,
    index: list[Index],
    layout: PlaneLayout,
    lanes: int,
    row: Callable[[Index], None],
) -> None:
    """Emit ``row(y)`` for all rows of an image in plain rows, and the zeros around it."""
    fill_above(out, index, layout, lanes)
    with T.serial(0, layout.height) as y:
        row(y)
        fill_right(out, index, layout, y, lanes)
    fill_below(out, index, layout, lanes)


def write_image(
    out: tirx.Buffer,
    index: list[Index],
    layout: PlaneLayout,
    lanes: int,
    value: Callable[[Index, Index, int], Expr],
) -> None:
    """Write a plane of plain rows; ``value(y, x, lanes)`` are the vectors of its image."""

    def row(y: Index) -> None:
        def vector(at: Index, count: int) -> None:
            store(out, value(y, at, count), [*index, layout.offset(y, at)], count)

        for_each_vector(layout.width, lanes, vector)

    for_each_row(out, index, layout, lanes, row)


def load(buffer: tirx.Buffer, index: list[Index], lanes: int) -> Expr:
    """Vector of ``lanes`` elements starting at ``index``, as float32."""
    *outer, last = index
    where = T.ramp(last, 1, lanes) if lanes > 1 else last
    return widened(buffer[tuple(outer) + (where,)], buffer, lanes)


def widened(value: Expr, buffer: tirx.Buffer, lanes: int) -> Expr:
    """What was read from ``buffer``, as float32."""
    return value if str(buffer.dtype) == "float32" else T.Cast(_vector("float32", lanes), value)


def _vector(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def store(buffer: tirx.Buffer, value: Expr, index: list[Index], lanes: int) -> None:
    """Store a vector of ``lanes`` float32 from ``index`` on, in the buffer's dtype."""
    *outer, last = index
    if str(buffer.dtype) != "float32":
        value = T.Cast(_vector(str(buffer.dtype), lanes), value)
    T.buffer_store(buffer, value, [*outer, T.ramp(last, 1, lanes) if lanes > 1 else last])


def plane_arg(
    name: str, batch: int, channels: int, layout: PlaneLayout, target: PlaneTarget
) -> tirx.Buffer:
    return T.arg(name, T.Buffer((batch, channels, layout.size), target.dtype))


def pack(batch: int, channels: int, layout: PlaneLayout, target: PlaneTarget) -> tirx.PrimFunc:
    """``(x[batch, channels, height, width], out planes)``: NCHW to planes."""
    with primfunc_builder("pack_planes") as ib:
        x = T.arg("x", T.Buffer((batch, channels, layout.height, layout.width), target.dtype))
        out = plane_arg("out", batch, channels, layout, target)

        def plane(n: Index, c: Index) -> None:

            def value(y: Index, at: Index, lanes: int) -> Expr:
                return load(x, [n, c, y, at], lanes)

            write_image(out, [n, c], layout, target.lanes, value)

        for_each_plane(batch, channels, target, plane)
    return ib.get()


def unpack(batch: int, channels: int, layout: PlaneLayout, target: PlaneTarget) -> tirx.PrimFunc:
    """``(x planes, out[batch, channels, height, width])``: planes to NCHW."""
    with primfunc_builder("unpack_planes") as ib:
        x = plane_arg("x", batch, channels, layout, target)
        out = T.arg("out", T.Buffer((batch, channels, layout.height, layout.width), target.dtype))

        def plane(n: Index, c: Index) -> None:
            with T.serial(0, layout.height) as y:

                def vector(at: Index, lanes: int) -> None:
                    store(out, load(x, [n, c, layout.offset(y, at)], lanes), [n, c, y, at], lanes)

                for_each_vector(layout.width, target.lanes, vector)

        for_each_plane(batch, channels, target, plane)
    return ib.get()


def elementwise(
    batch: int,
    channels: int,
    in_layouts: tuple[PlaneLayout, ...],
    out_layout: PlaneLayout,
    target: PlaneTarget,
    operator: str = "add",
    activation: str = "none",
    bounds: tuple[float, float] = (0.0, 6.0),
) -> tirx.PrimFunc:
    """``(planes, ..., out planes)``: fold the inputs by ``operator``, then apply ``activation``.

    Parameters
    ----------
    in_layouts : tuple of PlaneLayout
        One per input; one input makes this a standalone activation or a change of layout.
    operator : str
        ``add`` or ``multiply``.
    activation : str
        See :func:`topi_kernels.vector_math.activate`; ``bounds`` are those of ``clip``.
    """
    operators = {"add": lambda a, b: a + b, "multiply": lambda a, b: a * b}
    if operator not in operators:
        raise ValueError(
            f"elementwise operator {operator!r} is unknown; expected one of {sorted(operators)}"
        )
    combine = operators[operator]
    name = f"plane_{operator}" if len(in_layouts) > 1 else f"plane_{activation}"
    with primfunc_builder(name) as ib:
        inputs = [
            plane_arg(f"x{i}", batch, channels, lay, target) for i, lay in enumerate(in_layouts)
        ]
        out = plane_arg("out", batch, channels, out_layout, target)

        def plane(n: Index, c: Index) -> None:

            def value(y: Index, at: Index, lanes: int) -> Expr:
                value = load(inputs[0], [n, c, in_layouts[0].offset(y, at)], lanes)
                for buf, lay in zip(inputs[1:], in_layouts[1:], strict=True):
                    value = combine(value, load(buf, [n, c, lay.offset(y, at)], lanes))
                return activate(
                    T.Bind(value), activation, lanes, bounds, nan_maximum=target.nan_maximum
                )

            write_image(out, [n, c], out_layout, target.lanes, value)

        for_each_plane(batch, channels, target, plane)
    return ib.get()


def sum_of_lanes(total: Expr, lanes: int) -> Expr:
    """Sum of a vector's lanes."""
    return joined_lanes(total, lanes, add)


def joined_lanes(values: Expr, lanes: int, join: Callable[[Expr, Expr], Expr]) -> Expr:
    """``join`` of a vector's lanes, half by half in registers."""
    while lanes > 1:
        lanes //= 2
        halves = [shuffle([values], range(at, at + lanes)) for at in (0, lanes)]
        values = T.Bind(join(halves[0], halves[1]))
    return values


def _sum_of(x: tirx.Buffer, index: list[Index], first: int, count: int, lanes: int) -> Expr:
    """Sum of ``count`` elements of ``x[*index, first:]``; few vectors are added without a loop."""
    vectors, step = count // lanes, lanes * SUM_ACCUMULATORS
    done = 0
    sums = []
    if vectors > SUM_UNROLLED:
        accs = [
            T.alloc_buffer((lanes,), "float32", scope="global") for _ in range(SUM_ACCUMULATORS)
        ]
        for acc in accs:
            store(acc, broadcast(0.0, lanes), [0], lanes)
        done = count // step * step
        with T.serial(0, count // step) as k:
            for i, acc in enumerate(accs):
                value = load(x, [*index, first + k * step + i * lanes], lanes)
                store(acc, load(acc, [0], lanes) + value, [0], lanes)
        sums = [T.Bind(load(acc, [0], lanes)) for acc in accs]
    while done + lanes <= count:
        sums.append(T.Bind(load(x, [*index, first + done], lanes)))
        done += lanes
    while len(sums) > 1:
        pairs = [T.Bind(a + b) for a, b in zip(sums[::2], sums[1::2], strict=False)]
        sums = pairs + sums[len(sums) // 2 * 2 :]
    total = sum_of_lanes(sums[0], lanes) if sums else broadcast(0.0, 1)
    while done < count:
        part = largest_power_of_two(count - done)
        total = T.Bind(total + sum_of_lanes(T.Bind(load(x, [*index, first + done], part)), part))
        done += part
    return total


def global_avg_pool(
    batch: int, channels: int, layout: PlaneLayout, target: PlaneTarget, *, keep_dims: bool = True
) -> tirx.PrimFunc:
    """``(x planes, out[batch, channels(, 1, 1)])``: mean over the image.

    A plane is zero outside its image, so whole rows are added, padding included.
    """
    first, lanes = layout.offset(0, 0), target.lanes
    count = layout.offset(layout.height - 1, layout.width) - first
    # Zeros follow the image; adding some of them saves a scalar remainder.
    if first + round_up(count, lanes) <= layout.size:
        count = round_up(count, lanes)
    with primfunc_builder("plane_global_avg_pool") as ib:
        x = plane_arg("x", batch, channels, layout, target)
        shape = (batch, channels, 1, 1) if keep_dims else (batch, channels)
        out = T.arg("out", T.Buffer(shape, target.dtype))

        def plane(n: Index, c: Index) -> None:
            total = _sum_of(x, [n, c], first, count, lanes)
            mean = total * T.float32(1.0 / (layout.height * layout.width))
            store(out, mean, [n, c, 0, 0] if keep_dims else [n, c], 1)

        for_each_plane(batch, channels, target, plane)
    return ib.get()
