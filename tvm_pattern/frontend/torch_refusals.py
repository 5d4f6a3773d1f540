"""What an exported program holds that cannot be compiled, by the names that its author knows."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator
from typing import Any

# Operators that also give positions, which only their maxima are computed for.
_WITH_POSITIONS = (
    "max_pool2d_with_indices.default",
    "max_pool3d_with_indices.default",
    "adaptive_max_pool2d.default",
    "adaptive_max_pool3d.default",
)


def check_operators(program: Any, known: Collection[str]) -> None:
    """Refuse a decomposed program for what nobody translates.

    Parameters
    ----------
    program : torch.export.ExportedProgram
    known : collection of str
        Operators with a translation, as ``relu.default``.

    Raises
    ------
    ValueError
        Names every operator, the layer that uses it and the way out.
    """
    problems = list(dict.fromkeys(_problems(program, known)))
    if problems:
        raise ValueError(
            f"this model cannot be compiled: {'; '.join(problems)}. Replace what is named, or leave"
            " it to torch: compile the network up to there"
        )


def _problems(program: Any, known: Collection[str]) -> Iterator[str]:
    import torch

    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        name = node.target.__name__
        where = _layer(node)
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            yield (
                f"{_readable(name)}{where} draws random numbers, and a library answers the same"
                " every time (dropout only stands in evaluation mode)"
            )
        elif name not in known:
            yield f"{_readable(name)}{where} has no translation"
        elif name in _WITH_POSITIONS and _uses_item(node, 1):
            yield (
                f"the indices of {_readable(name)}{where} are not computed, only the maxima"
                " (return_indices=False)"
            )


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


def _uses_item(node: Any, item: int) -> bool:
    return any(
        user.target is operator.getitem and user.args[1] == item and user.users
        for user in node.users
    )
