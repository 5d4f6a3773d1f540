"""Channels of several images put together: concatenation, slices and shuffles of channels.

Every out_channel is a copy of one in_channel of one image. Planes of one layout are copied as they
lie, padding and all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script import builder as T

from .layout import PlaneLayout
from .layout_ops import copy_plane
from .plane_ops import (
    Index,
    PlaneTarget,
    for_each_vector,
    load,
    plane_arg,
    store,
    write_image,
)
from .primfunc import primfunc_builder

NAME = "plane_select"
#: Channels that shuffles put between each other, at most.
MOST_GROUPS = 8

#: ``(number of the image, its channel)``.
Pick = tuple[int, int]


@dataclass(frozen=True)
class Run:
    """Channels ``first + i * step`` of an image become ``out_first + i * out_step``."""

    source: int
    first: int
    step: int
    out_first: int
    out_step: int
    count: int


def _progressions(picks: Sequence[Pick], out_first: int, out_step: int) -> Iterator[Run]:
    """Runs of picks that are ``out_step`` out_channels apart."""
    start = 0
    while start < len(picks):
        source, first = picks[start]
        end, step = start + 1, 1
        if end < len(picks) and picks[end][0] == source:
            step = picks[end][1] - first
        while end < len(picks) and picks[end] == (source, first + (end - start) * step):
            end += 1
        yield Run(source, first, step, out_first + start * out_step, out_step, end - start)
        start = end


def runs_of(picks: Sequence[Pick]) -> tuple[Run, ...]:
    """What each out_channel is a copy of, as few runs.

    Parameters
    ----------
    picks : sequence of (int, int)
        Image and channel, by out_channel.
    """
    divisors = [g for g in range(1, MOST_GROUPS + 1) if len(picks) % g == 0]
    choices = [
        tuple(run for first in range(g) for run in _progressions(picks[first::g], first, g))
        for g in divisors
    ]
    return min(choices, key=len)


def channel_select(
    batch: int,
    channels: int,
    in_channels: Sequence[int],
    in_layouts: Sequence[PlaneLayout],
    out_layout: PlaneLayout,
    picks: Sequence[Pick],
    target: PlaneTarget,
) -> tirx.PrimFunc:
    """``(planes, ..., out planes)``: ``picks`` says which planes the output consists of.

    Raises
    ------
    ValueError
        If there is not one pick for each of ``channels``.
    """
    if len(picks) != channels:
        raise ValueError(f"{channels} out_channels need as many picks, got {len(picks)}")
    loop = T.parallel if target.num_threads > 1 else T.serial
    with primfunc_builder(NAME) as ib:
        inputs = [
            plane_arg(f"x{i}", batch, count, layout, target)
            for i, (count, layout) in enumerate(zip(in_channels, in_layouts, strict=True))
        ]
        out = plane_arg("out", batch, channels, out_layout, target)
        with T.sblock("root"):
            for run in runs_of(picks):
                layouts = in_layouts[run.source], out_layout
                copy = partial(_copier(*layouts), inputs[run.source], out, layouts, target)
                with loop(0, batch * run.count) as number:
                    n = 0 if batch == 1 else number // run.count
                    i = number if batch == 1 else number % run.count
                    source, result = run.first + i * run.step, run.out_first + i * run.out_step
                    copy((n, T.Bind(source)), (n, T.Bind(result)))
    return ib.get()


def _copier(source: PlaneLayout, out: PlaneLayout) -> Callable[..., None]:
    """What copies a plane between two layouts."""
    if source == out:
        return _copy_whole
    return copy_plane if source.is_interleaved or out.is_interleaved else _copy_rows


def _copy_whole(
    x: Any,
    out: Any,
    layouts: tuple[PlaneLayout, PlaneLayout],
    target: PlaneTarget,
    source: tuple[Index, Index],
    result: tuple[Index, Index],
) -> None:
    """A plane and its padding."""

    def vector(at: Index, lanes: int) -> None:
        store(out, load(x, [*source, at], lanes), [*result, at], lanes)

    for_each_vector(layouts[0].size, target.lanes, vector)


def _copy_rows(
    x: Any,
    out: Any,
    layouts: tuple[PlaneLayout, PlaneLayout],
    target: PlaneTarget,
    source: tuple[Index, Index],
    result: tuple[Index, Index],
) -> None:
    """The image in a plane, between zeros."""
    before, after = layouts

    def value(y: Index, at: Index, lanes: int) -> Expr:
        return load(x, [*source, before.offset(y, at)], lanes)

    write_image(out, [*result], after, target.lanes, value)
