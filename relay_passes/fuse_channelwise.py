"""FuseChannelwise: gates, lone batch norms and PReLUs -> ``channelwise`` markers.

Preconditions: FoldAffine and FuseEpilogue have run: what belongs to a convolution is in its
marker. In this order, each at most once (the affine part may consist of several operators), as
long as nothing else uses the value before::

    x -> multiply(gate[n, c, 1, 1]) -> factors and terms per channel -> prelu -> activation

PlaneLayout turns markers that end up outside an island back into Relax operators.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Expr, Var

from .dataflow import (
    bindings_of,
    constant,
    is_float_image,
    map_functions,
    op_name,
    rebuild,
    shape_of,
    static_shape,
    with_values,
)
from .fold_affine import Affine, AffineChains
from .islands.channelwise import marker_of
from .markers import Marker, parse


@dataclass
class _Parts:
    """What a chain consists of so far."""

    source: Var
    gate: Var | None = None
    affine: Affine | None = None
    slope: np.ndarray | None = None
    activation: str = "none"
    bounds: tuple[float, float] = (0.0, 0.0)

    def marker(self, dtype: str) -> Marker:
        """The chain as a marker."""
        arrays: dict[str, np.ndarray] = {}
        if self.affine is not None and np.any(self.affine.scale != 1):
            arrays["scale"] = self.affine.scale
        if self.affine is not None and np.any(self.affine.shift != 0):
            arrays["shift"] = self.affine.shift
        if self.slope is not None:
            arrays["slope"] = self.slope
        parts: dict[str, Expr] = {k: relax.const(v.astype(dtype)) for k, v in arrays.items()}
        if self.gate is not None:
            parts["gate"] = self.gate
        return marker_of(self.source, parts, self.activation, self.bounds)


class _Fuser(AffineChains):
    def gate_of(self, var: Expr) -> tuple[Var, Var] | None:
        """``(x, gate)`` of a product of an image and one of a single pixel."""
        value = self.uses.definition(var)
        if op_name(value) != "relax.multiply" or not is_float_image(var):
            return None
        batch, channels, *size = shape_of(var)
        for x, gate in (tuple(value.args), tuple(value.args)[::-1]):
            if not isinstance(x, Var) or not isinstance(gate, Var) or size == [1, 1]:
                continue
            shapes = static_shape(x), static_shape(gate)
            if shapes == (shape_of(var), (batch, channels, 1, 1)) and is_float_image(gate):
                return x, gate
        return None

    def slope_of(self, var: Expr) -> tuple[Var, np.ndarray] | None:
        """``(x, slope)`` of a PReLU with a constant slope per channel."""
        value = self.uses.definition(var)
        if op_name(value) != "relax.nn.prelu" or not is_float_image(var):
            return None
        x, slope = value.args[0], constant(value.args[1])
        if not isinstance(x, Var) or slope is None or slope.size != shape_of(var)[1]:
            return None
        return (x, slope.reshape(-1)) if int(value.attrs.axis) % 4 == 1 else None

    def start(self, var: Var) -> _Parts | None:
        """A chain that begins with the operator of ``var``."""
        if (gate := self.gate_of(var)) is not None:
            return _Parts(gate[0], gate=gate[1])
        if (affine := self.step(var)) is not None:
            return _Parts(affine.source, affine=affine)
        if (slope := self.slope_of(var)) is not None:
            return _Parts(slope[0], slope=slope[1])
        return None

    def extended(self, parts: _Parts, end: Var, user: Var) -> bool:
        """Take the operator of ``user`` into a chain that ends in ``end``, if it fits."""
        marker = parse(self.uses.definition(user))
        if marker is not None and marker.op == "activation" and marker.tensors[0].same_as(end):
            if parts.activation != "none":
                return False
            low, high = marker.params["bounds"]
            parts.activation, parts.bounds = marker.params["activation"], (low, high)
            return True
        if parts.activation != "none" or parts.slope is not None:
            return False
        affine, slope = self.step(user), self.slope_of(user)
        if affine is not None and affine.source.same_as(end):
            parts.affine = affine if parts.affine is None else affine.after(parts.affine)
            return True
        if slope is not None and slope[0].same_as(end):
            parts.slope = slope[1]
            return True
        return False

    def next_image(self, var: Var) -> Var | None:
        """The only user of a value; past the tuple of a batch norm."""
        user = self.uses.sole_user(var)
        is_norm = user is not None and op_name(self.uses.definition(user)) == "relax.nn.batch_norm"
        return self.uses.sole_user(user) if is_norm and user is not None else user

    def run(self, func: relax.Function) -> relax.Function:
        values: dict[Var, Expr] = {}
        taken: set[Var] = set()
        blocks = bindings_of(func)
        for block in blocks:
            here = {binding.var for binding in block}
            for binding in block:
                parts = None if binding.var in taken else self.start(binding.var)
                if parts is None:
                    continue
                end = binding.var
                while (user := self.next_image(end)) in here and user is not None:
                    if not self.extended(parts, end, user):
                        break
                    end = user
                    taken.add(user)
                values[end] = parts.marker(str(end.ty.dtype)).call(end.ty)
        return rebuild(func, [with_values(block, values) for block in blocks])


@tvm.transform.module_pass(opt_level=0, name="FuseChannelwise")
class FuseChannelwise:
    """Gates, lone batch norms and PReLUs become one marker each."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        fused = map_functions(mod, lambda func: _Fuser(func).run(func))
        return relax.transform.DeadCodeElimination()(fused)
