"""What an exported program holds that cannot be compiled, by the names that its author knows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

from .torch_arguments import uses_item

# Operators that also give positions, which only their maxima are computed for.
_WITH_POSITIONS = (
    "adaptive_max_pool2d.default",
    "adaptive_max_pool3d.default",
)


def check_operators(
    program: Any, known: Collection[str], left: Callable[[Any], bool] = lambda node: False
) -> None:
    """Refuse a decomposed program for what nobody translates.

    Parameters
    ----------
    program : torch.export.ExportedProgram
    known : collection of str
        Operators with a translation, as ``relu.default``.
    left : callable
        Whether a node is left to torch where nobody translates it.

    Raises
    ------
    ValueError
        Names every operator, the layer that uses it and the way out.
    """
    problems = list(dict.fromkeys(_problems(program, known, left)))
    if problems:
        raise ValueError(
            f"this model cannot be compiled: {'; '.join(problems)}. Replace what is named, or leave"
            " it to torch: host_operators=True (--host-operators) where the library runs beside"
            " torch, or compile the network up to there"
        )


def _problems(program: Any, known: Collection[str], left: Callable[[Any], bool]) -> Iterator[str]:
    for node in program.graph.nodes:
        problem = problem_of(node, known) if node.op == "call_function" else None
        if problem is not None and not left(node):
            yield problem


def problem_of(node: Any, known: Collection[str]) -> str | None:
    """Why nobody translates a call of an operator; None if somebody does."""
    import torch

    name, where = node.target.__name__, _layer(node)
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        return (
            f"{_readable(name)}{where} draws random numbers, and a library answers the same"
            " every time (dropout only stands in evaluation mode)"
        )
    if name not in known:
        return f"{_readable(name)}{where} has no translation"
    if name in _WITH_POSITIONS and uses_item(node, 1):
        return (
            f"the indices of {_readable(name)}{where} are not computed, only the maxima"
            " (return_indices=False)"
        )
    return None


def check_state(program: Any) -> None:
    """Refuse a decomposed program whose answers depend on what its earlier calls left behind.

    A buffer that each call writes before it reads it, such as a grid kept for the next picture of
    that size, changes no answer and is let through.

    Parameters
    ----------
    program : torch.export.ExportedProgram

    Raises
    ------
    ValueError
        Names the buffers and the way out.
    """
    signature = program.graph_signature
    changed = set(signature.buffers_to_mutate.values())
    changed |= set(signature.parameters_to_mutate.values())
    if not changed:
        return
    names = {**signature.inputs_to_buffers, **signature.inputs_to_parameters}
    nodes = {node.name: node for node in program.graph.nodes}
    reached = [nodes[name] for name in signature.user_outputs if name in nodes]
    seen = set(reached)
    while reached:
        new = set(reached.pop().all_input_nodes) - seen
        seen |= new
        reached += new
    read = sorted(changed & {names[node.name] for node in seen if node.name in names})
    if read:
        raise ValueError(
            f"this model cannot be compiled: it changes {', '.join(map(repr, read))} in each call"
            " and answers by what earlier calls left there, and a library keeps nothing between"
            " calls. Give it as an input and an output, or keep it from changing in evaluation mode"
        )


def _readable(name: str) -> str:
    return f"the operator {name.removesuffix('.default')!r}"


def layer_path(node: Any) -> str:
    """Path of the module that a node belongs to, empty where torch.export recorded none."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack else ""


def _layer(node: Any) -> str:
    path = layer_path(node)
    return f" in layer {path!r}" if path else ""
