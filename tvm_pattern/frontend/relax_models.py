"""A Relax module that is taken as it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import tvm
from tvm import relax

from relay_passes.dataflow import constant, op_name

from .shared import ImportedModel, check_finite, finish

_LIMITS = ("relax.clip", "relax.maximum", "relax.minimum")


def from_ir_module(mod: tvm.IRModule) -> ImportedModel:
    if not any(gv.name_hint == "main" for gv in mod.get_global_vars()):
        names = sorted(gv.name_hint for gv in mod.get_global_vars())
        raise ValueError(f"the IRModule has the functions {names}; expected a Relax 'main'")
    if not isinstance(mod["main"], relax.Function):
        raise ValueError(f"'main' is a {type(mod['main']).__name__}; expected a relax.Function")
    check_finite(_constants(mod["main"]))
    return finish(mod, [])


def _constants(function: relax.Function) -> Iterable[tuple[str, np.ndarray]]:
    """Constants of a function, named after the variable whose value uses them.

    Infinite bounds of a clip, maximum or minimum are no weights and left out.
    """
    for block in function.body.blocks:
        for binding in block.bindings:
            found: list[np.ndarray] = []

            def keep(expr: Any, found: list[np.ndarray] = found) -> None:
                value = constant(expr)
                if value is not None:
                    found.append(value)

            relax.analysis.post_order_visit(binding.value, keep)
            is_limit = op_name(binding.value) in _LIMITS
            for array in found:
                if is_limit and array.size == 1 and np.isinf(array).all():
                    continue
                yield f"constant of {binding.var.name}", array
