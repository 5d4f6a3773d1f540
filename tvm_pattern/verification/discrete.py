"""Outputs behind a discrete step (arg-max, top-k, non-maximum suppression) are held before it.

Where two candidates are nearly equal, rounding alone decides, and right libraries differ. And a
fault that scales all candidates changes no index. So the float operand is what is compared: among
the values that the library itself hands from operator to operator, else in the imported graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm.runtime.vm import VMInstrumentReturnKind

from .sketch import Node, Sketch, sketch

_GO_ON = int(VMInstrumentReturnKind.NO_OP)


@dataclass(frozen=True, eq=False)
class Operand:
    """A float operand of a discrete operator, as the oracle computes it."""

    of: Node
    node: Node
    value: Sketch


def operands(nodes: Sequence[Node]) -> list[Operand]:
    """Float operands of the discrete operators that have no other one before them."""
    behind: set[str] = set()
    by_name = {node.name: node for node in nodes}
    found = []
    for node in nodes:
        if behind.intersection(node.inputs):
            behind.add(node.name)
        elif node.discrete:
            behind.add(node.name)
            sources = [by_name[name] for name in node.inputs if name in by_name]
            found += [Operand(node, s, v) for s in sources for v in s.values if v.size > 1]
    return found


def library_values(library: Any, arrays: Sequence[np.ndarray], sizes: set[int]) -> list[Sketch]:
    """Float tensors of the given numbers of elements that a run of a library passes on."""
    seen: list[Sketch] = []

    def instrument(  # TVM calls it by position
        _function: Any,
        _name: str,
        before: bool,  # noqa: FBT001
        _result: Any,
        *arguments: Any,
    ) -> int:
        for value in arguments if before else ():
            if not isinstance(value, tvm.runtime.Tensor) or not value.dtype.startswith("float"):
                continue
            if math.prod(value.shape) in sizes:
                seen.append(sketch(value.numpy()))
        return _GO_ON

    machine = library.vm
    machine.set_instrument(instrument)
    try:
        library(*arrays)
    finally:
        machine.set_instrument(None)
    return seen


def compare_operands(
    wanted: Sequence[Operand],
    tolerance: float,
    library: Callable[[], list[Sketch]] | None,
    imported: Callable[[], list[Sketch]],
) -> tuple[list[str], list[Operand]]:
    """Hold the operands against the library's values, else the imported graph's.

    Returns
    -------
    notes : list of str
        How each was compared.
    wrong : list of Operand
        Those that neither has.
    """
    notes = []
    rest = list(wanted)
    places = [("in the library", library), ("in the imported graph", imported)]
    for place, values_of in places:
        if not rest or values_of is None:
            continue
        values = values_of()
        right = [o for o in rest if _is_among(o.value, values, tolerance)]
        notes += [f"{o.of.op} ({o.of.name}) compared before it, {place}" for o in right]
        rest = [o for o in rest if o not in right]
    return list(dict.fromkeys(notes)), rest


def _is_among(value: Sketch, values: Sequence[Sketch], tolerance: float) -> bool:
    return any(
        value.agrees_with(v, tolerance) or value.has_elements_of(v, tolerance) for v in values
    )
