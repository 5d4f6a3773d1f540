"""What an image is multiplied with and added to, channel by channel: gates, batch norms, PReLU.

A channelwise operator computes ``act(leak(scale[c] * gate[n, c] * x + shift[c]))``, where
``leak(v)`` is ``v`` above zero and ``slope[c] * v`` elsewhere. All parts but ``x`` can be missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script import builder as T

from .layout import PlaneLayout
from .plane_ops import (
    Index,
    PlaneTarget,
    for_each_plane,
    load,
    plane_arg,
    write_image,
)
from .primfunc import primfunc_builder
from .vector_math import activate, broadcast, held

NAME = "plane_channelwise"
#: Constants per channel, in the order of the parameters that hold them.
CONSTANTS = ("scale", "shift", "slope")


@dataclass(frozen=True)
class ChannelTerms:
    """Which parts a channelwise operator has.

    Parameters
    ----------
    gate : PlaneLayout, optional
        Planes of an image of one pixel, a factor of each plane.
    scale, shift, slope : bool
        Whether there is such a constant per channel.
    activation : str
        See :func:`topi_kernels.vector_math.activate`, with its ``bounds``.
    """

    gate: PlaneLayout | None = None
    scale: bool = False
    shift: bool = False
    slope: bool = False
    activation: str = "none"
    bounds: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if self.gate is not None and (self.gate.height, self.gate.width) != (1, 1):
            raise ValueError(
                f"a gate is an image of one pixel, got {self.gate.height}x{self.gate.width};"
                " multiply images of one size by elementwise"
            )

    @property
    def constants(self) -> tuple[str, ...]:
        """Names of the constants that there are."""
        return tuple(name for name in CONSTANTS if getattr(self, name))

    def sizes(self, batch: int, channels: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters between ``x`` and ``out``, by name."""
        gate = {} if self.gate is None else {"gate": (batch, channels, self.gate.size)}
        return {**gate, **dict.fromkeys(self.constants, (channels,))}

    def apply(
        self,
        x: Expr,
        factors: dict[str, Expr],
        activated: Callable[[Expr], Expr],
        lanes: int,
        scope: str = "global",
    ) -> Expr:
        """The value of a vector ``x``, ``factors`` being vectors of the plane's parts.

        ``scope`` is that of :func:`~.vector_math.held`.
        """
        for name in ("gate", "scale"):
            x = x * factors[name] if name in factors else x
        x = x + factors["shift"] if self.shift else x
        if self.slope:
            x = held(x, lanes, scope)
            x = T.Select(x > broadcast(0.0, lanes), x, x * factors["slope"])
        return activated(T.Bind(x))


def parameters(
    terms: ChannelTerms, batch: int, channels: int, target: PlaneTarget
) -> dict[str, tirx.Buffer]:
    """Declare the parameters between ``x`` and ``out``."""
    return {
        name: T.arg(name, T.Buffer(shape, target.dtype))
        for name, shape in terms.sizes(batch, channels).items()
    }


def factors_of(
    terms: ChannelTerms, buffers: dict[str, tirx.Buffer], n: Index, c: Index
) -> dict[str, Expr]:
    """The parts of a plane as float32 scalars."""
    where = {"gate": None if terms.gate is None else [n, c, terms.gate.element(0, 0)]}
    return {
        name: T.Bind(load(buffer, where.get(name) or [c], 1)) for name, buffer in buffers.items()
    }


def value_of(
    terms: ChannelTerms, x: Expr, scalars: dict[str, Expr], lanes: int, target: PlaneTarget
) -> Expr:
    """The value of a vector of ``lanes`` on a processor."""
    return terms.apply(
        x,
        {
            name: T.broadcast(scalar, lanes) if lanes > 1 else scalar
            for name, scalar in scalars.items()
        },
        lambda v: activate(
            v, terms.activation, lanes, terms.bounds, nan_maximum=target.nan_maximum
        ),
        lanes,
    )


def channelwise(
    batch: int,
    channels: int,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    terms: ChannelTerms,
    target: PlaneTarget,
) -> tirx.PrimFunc:
    """``(x planes[, gate planes][, scale[channels]][, shift][, slope], out planes)``."""
    with primfunc_builder(NAME) as ib:
        x = plane_arg("x", batch, channels, in_layout, target)
        buffers = parameters(terms, batch, channels, target)
        out = plane_arg("out", batch, channels, out_layout, target)

        def plane(n: Index, c: Index) -> None:
            scalars = factors_of(terms, buffers, n, c)

            def value(y: Index, at: Index, lanes: int) -> Expr:
                pixels = load(x, [n, c, in_layout.offset(y, at)], lanes)
                return value_of(terms, pixels, scalars, lanes, target)

            write_image(out, [n, c], out_layout, target.lanes, value)

        for_each_plane(batch, channels, target, plane)
    return ib.get()
