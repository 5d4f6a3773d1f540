"""Operators of torch that nobody translates, left to torch while a library runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from tvm import relax
from tvm.ir import StringImm

from ..host_operators import TORCH
from .shared import IMPORTER_ERRORS
from .torch_arguments import Arguments, UnsupportedOptionError
from .torch_refusals import layer_path, problem_of

Converter = Callable[[Any, Any], relax.Expr]
_KINDS = {"bool", "int8", "int16", "int32", "int64", "uint8", "float32", "float64"}


def host_converters(
    program: Any, known: Collection[str], translated: Mapping[str, Converter]
) -> dict[str, Converter]:
    """Converters of all operators of a decomposed program that may be left to torch.

    An operator with a translation is left to torch only where the translation refuses its options.

    Parameters
    ----------
    program : torch.export.ExportedProgram
    known : collection of str
        Operators with a translation of TVM's or of our own.
    translated : mapping
        Our own ones.
    """
    table: dict[str, Converter] = {}
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        name = node.target.__name__
        if name in known:
            table[name] = _or_on_host(translated.get(name, _by_tvm), known)
        elif why_not_left(node) is None:
            table[name] = leave_to_host
    return table


def _by_tvm(node: Any, importer: Any) -> relax.Expr:
    return importer.create_convert_map()[node.target.__name__](node)


def _or_on_host(convert: Converter, known: Collection[str]) -> Converter:
    def attempt(node: Any, importer: Any) -> relax.Expr:
        if problem_of(node, known) is not None and why_not_left(node) is None:
            return leave_to_host(node, importer)
        try:
            return convert(node, importer)
        except (UnsupportedOptionError, *IMPORTER_ERRORS):
            if why_not_left(node) is not None:
                raise
            return leave_to_host(node, importer)

    return attempt


def why_not_left(node: Any) -> str | None:
    """Why a call cannot be left to torch: random, changing its arguments, no plain tensors."""
    import torch

    if not isinstance(node.target, torch._ops.OpOverload):
        return "it is no operator"
    if torch.Tag.nondeterministic_seeded in node.target.tags:
        return "it draws random numbers"
    if node.target._schema.is_mutable:
        return "it changes its arguments"
    for value in _results(node):
        if not isinstance(value, torch.Tensor):
            return "it gives something else than tensors"
        if any(not isinstance(d, int) for d in value.shape):
            return "the shape of its result depends on the data"
        if _kind(value) not in _KINDS:
            return f"it gives {_kind(value)}"
    return None


def _results(node: Any) -> list[Any]:
    value = node.meta.get("val")
    return list(value) if isinstance(value, tuple | list) else [value]


def _kind(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def leave_to_host(node: Any, importer: Any) -> relax.Expr:
    """The call as it is, by :mod:`tvm_pattern.host_operators`."""
    arguments = Arguments(node, importer)
    tensors: list[relax.Expr] = []
    plain = {name: _plain(arguments[name], tensors) for name in arguments.given}
    plan = {"operator": str(node.target), "layer": layer_path(node), "arguments": plain}
    results = _results(node)
    types = [relax.TensorType([int(d) for d in v.shape], _kind(v)) for v in results]
    operands = relax.Tuple([StringImm(json.dumps(plan)), *tensors])
    result = arguments.emit(relax.call_dps_packed(TORCH, operands, types))
    several = isinstance(node.meta["val"], tuple | list)
    return arguments.emit(relax.Tuple([result])) if several and len(results) == 1 else result


def _plain(value: Any, tensors: list[relax.Expr]) -> Any:
    """An argument as JSON; a tensor by its position among ``tensors``, which it is added to."""
    import torch

    if isinstance(value, relax.Expr):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, list | tuple):
        return [_plain(item, tensors) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    raise UnsupportedOptionError(
        f"an argument of the type {type(value).__name__} cannot be left to torch"
    )
