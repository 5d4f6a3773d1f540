"""The first operator that differs.

The model's graph and the imported one have different operators (an importer decomposes some, fuses
others), so nothing is paired by name: an operator of the model is right if some value of the
imported graph is its result, or the operator that takes its result is right. The first that is not,
and whose inputs are, is the one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from relay_passes.dataflow import op_name

from .sketch import Node, Sketch, sketch

Run = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


def first_wrong_node(
    model: Sequence[Node], imported: Iterable[Sketch], tolerance: float
) -> Node | None:
    """The first operator of ``model`` that no value of the imported graph stands for.

    Parameters
    ----------
    model : sequence of Node
        In order of execution.
    imported : iterable of Sketch
        Every float value of the imported graph.
    tolerance : float

    Returns
    -------
    Node or None
        None if every operator is accounted for.
    """
    by_size: dict[int, list[Sketch]] = {}
    for value in imported:
        by_size.setdefault(value.size, []).append(value)
    right = {
        node.name
        for node in model
        if any(v.agrees_with(w, tolerance) for v in node.values for w in by_size.get(v.size, ()))
    }
    for node in reversed(model):
        if node.name in right and not node.discrete:
            right.update(node.inputs)
    wrong = {node.name for node in model if node.values} - right
    by_name = {node.name: node for node in model}
    for node in model:
        if node.name in wrong and not wrong.intersection(node.inputs):
            return _producer(node, by_name)
    return None


def _producer(node: Node, by_name: dict[str, Node]) -> Node:
    """What computed a part of a tuple, instead of the access to it."""
    while "getitem" in node.op and node.inputs and node.inputs[0] in by_name:
        node = by_name[node.inputs[0]]
    return node


def first_wrong_prefix(
    mod: tvm.IRModule,
    values: dict[int, Sketch],
    run: Callable[[tvm.IRModule], list[np.ndarray]],
    tolerance: float,
) -> int | None:
    """Bisect a compiler's fault: the first binding whose compiled prefix differs.

    Parameters
    ----------
    mod : tvm.IRModule
        The imported module.
    values : dict of int to Sketch
        Number of a binding -> its value, computed densely.
    run : callable
        Compiles a module, runs it on the inputs and returns its outputs.
    tolerance : float

    Returns
    -------
    int or None
        Number of the binding; None if every prefix by itself is right.
    """
    candidates = sorted(values)
    low, high = 0, len(candidates) - 1

    def is_wrong(position: int) -> bool:
        binding = candidates[position]
        got = run(prefix(mod, binding))
        return not sketch(got[0]).agrees_with(values[binding], tolerance)

    if high < 0 or not is_wrong(high):
        return None
    while low < high:
        middle = (low + high) // 2
        if is_wrong(middle):
            high = middle
        else:
            low = middle + 1
    return candidates[low]


def prefix(mod: tvm.IRModule, number: int) -> tvm.IRModule:
    """``main`` up to its binding ``number``, whose value it returns."""
    main = mod["main"]
    bindings = [binding for block in main.body.blocks for binding in block.bindings]
    last = bindings[number].var
    result = relax.Var("result", last.ty)
    block = relax.DataflowBlock([*bindings[: number + 1], relax.VarBinding(result, last)])
    body = relax.SeqExpr([block], result)
    function = relax.Function(list(main.params), body, last.ty, main.is_pure, main.attrs)
    cut = mod.clone()
    cut.update_func(cut.get_global_var("main"), function)
    return relax.transform.DeadCodeElimination(["main"])(cut)


def describe_binding(mod: tvm.IRModule, number: int, layer_names: dict[str, str]) -> Node:
    """The operator of a binding."""
    bindings = [binding for block in mod["main"].body.blocks for binding in block.bindings]
    binding: Any = bindings[number]
    name = binding.var.name
    op = op_name(binding.value) or type(binding.value).__name__
    return Node(name, op, layer_names.get(name, ""))
