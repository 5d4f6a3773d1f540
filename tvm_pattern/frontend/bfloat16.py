"""Models in bfloat16, which no target here computes in: compiled in float32, their values exact."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from .shared import as_input_tuple

NOTE = (
    "bfloat16 is compiled as float32, where its values are exact; inputs are float32 (or torch"
    " tensors of bfloat16), outputs are float32"
)


def without_bfloat16(model: Any, examples: Sequence[Any]) -> tuple[Any, list[Any], bool]:
    """A module or program in float32 if it or its inputs are in bfloat16.

    Parameters
    ----------
    model : torch.nn.Module, torch.export.ExportedProgram or anything else
        It is not changed; others than these two are left as they are.
    examples : sequence
        Example inputs of each size, None where there are none.

    Returns
    -------
    model, examples
        In float32, or as they were.
    is_changed : bool
    """
    from . import is_instance_of

    is_module = is_instance_of(model, "torch.nn", "Module")
    if not is_module and not is_instance_of(model, "torch.export", "ExportedProgram"):
        return model, list(examples), False
    tensors: list[Any] = [value for each in examples for value in as_input_tuple(each)]
    if is_module:
        tensors += [*model.parameters(), *model.buffers()]
    else:
        tensors += model.state_dict.values()
    if not _any_bfloat16(tensors):
        return model, list(examples), False
    widened = [_widened(each) for each in examples]
    if is_module:
        return copy.deepcopy(model).float(), widened, True
    from .torch_models import in_float32

    return in_float32(model), widened, True


def _any_bfloat16(tensors: Iterable[Any]) -> bool:
    return any(str(getattr(t, "dtype", "")) == "torch.bfloat16" for t in tensors)


def _widened(examples: Any) -> Any:
    if examples is None:
        return None
    return tuple(v.float() if _any_bfloat16([v]) else v for v in as_input_tuple(examples))
