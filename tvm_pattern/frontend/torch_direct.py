"""Programs of common operators, taken apart without being traced again.

``ExportedProgram.run_decompositions`` runs the whole network once more on tensors without values,
which takes as long as the export. What most networks consist of is taken apart here node by node,
into the same operators. A program with anything else among it is left to torch as a whole.

Operators in place become those that give a new tensor, which is the same where nothing else looks
at what they overwrite.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from .torch_arguments import given_arguments

# Operators that torch leaves as they are.
_KEPT = (
    "add.Tensor",
    "avg_pool2d.default",
    "cat.default",
    "gelu.default",
    "hardtanh.default",
    "leaky_relu.default",
    "mean.dim",
    "mul.Tensor",
    "prelu.default",
    "relu.default",
    "sigmoid.default",
    "upsample_nearest2d.vec",
)


class _Other(Exception):
    """Something that torch itself has to take apart."""


def taken_apart(program: Any) -> Any | None:
    """The program in the operators that ``run_decompositions`` would give; None: ask torch.

    Parameters
    ----------
    program : torch.export.ExportedProgram
        As ``torch.export.export`` gives it; it is not changed.
    """
    from torch._export.verifier import SpecViolationError

    try:
        return _with_graph(program, *_Rewriter(program).run())
    except (_Other, SpecViolationError):  # the latter: torch does not know the graph as a program
        return None


class _Rewriter:
    """Writes a new graph, node by node."""

    def __init__(self, program: Any) -> None:
        import torch

        self.aten = torch.ops.aten
        self.nodes = list(program.graph.nodes)
        self.graph = torch.fx.Graph()
        self.new: dict[Any, Any] = {}
        self.float32 = torch.float32

    def run(self) -> tuple[Any, dict[str, str]]:
        """The graph, and the new name of each node."""
        rules = _rules()
        for node in self.nodes:
            if node.op == "placeholder":
                self.new[node] = self.graph.node_copy(node)
                # A new graph avoids Python's own names, such as `input`.
                self.new[node].name = node.name
            elif node.op == "output":
                self.graph.output(self.mapped(node.args[0]))
            elif node.op == "call_function" and node.target in rules:
                self._check(node)
                self.new[node] = rules[node.target](self, node)
            else:
                raise _Other
        return self.graph, {old.name: new.name for old, new in self.new.items()}

    def _check(self, node: Any) -> None:
        """What the rules take for granted."""
        value = node.meta.get("val")
        if getattr(value, "dtype", None) != self.float32 or not value.is_contiguous():
            raise _Other

    def emit(self, node: Any, target: Any, *args: Any, value: Any = None, **kwargs: Any) -> Any:
        """A call in place of ``node``; ``value``: what it gives, if that is something else."""
        new = self.graph.call_function(target, args, kwargs)
        new.meta = dict(node.meta)
        if value is not None:
            new.meta["val"] = value
        return new

    def first(self, node: Any, target: Any, *args: Any) -> Any:
        """The first of several results."""
        value = node.meta["val"]
        call = self.emit(node, target, *args, value=(value, value))
        return self.emit(node, operator.getitem, call, 0)

    def arguments(self, node: Any) -> dict[str, Any]:
        """By the names of the schema, with the new nodes."""
        return {name: self.mapped(value) for name, value in given_arguments(node).items()}

    def mapped(self, value: Any) -> Any:
        """An argument with the new nodes."""
        import torch

        return torch.fx.node.map_arg(value, lambda node: self.new[node])


_Rule = Callable[[_Rewriter, Any], Any]


def _shape(node: Any) -> list[int]:
    """Static shape of what a node gives.

    Raises
    ------
    _Other
        If there is none.
    """
    shape = list(getattr(node.meta.get("val"), "shape", (None,)))
    if not all(isinstance(d, int) for d in shape):
        raise _Other
    return shape


def _same(name: str) -> _Rule:
    """The operator ``name``, packet and overload, with the node's own arguments."""
    packet, overload = name.split(".")

    def rule(rewriter: _Rewriter, node: Any) -> Any:
        if node.kwargs:
            raise _Other
        target = getattr(getattr(rewriter.aten, packet), overload)
        return rewriter.emit(node, target, *rewriter.mapped(node.args))

    return rule


def _in_place(rule: _Rule) -> _Rule:
    """``rule`` for an operator that overwrites its first argument."""

    def checked(rewriter: _Rewriter, node: Any) -> Any:
        overwritten = node.args[0]
        if list(overwritten.users) != [node] or overwritten.target not in _fresh():
            raise _Other
        return rule(rewriter, node)

    return checked


def _silu(rewriter: _Rewriter, node: Any) -> Any:
    x = rewriter.mapped(node.args[0])
    sigmoid = rewriter.emit(node, rewriter.aten.sigmoid.default, x)
    return rewriter.emit(node, rewriter.aten.mul.Tensor, x, sigmoid)


def _clipped(rewriter: _Rewriter, node: Any) -> Any:
    """``min(max(x + 3, 0), 6)``."""
    x = rewriter.emit(node, rewriter.aten.add.Tensor, rewriter.mapped(node.args[0]), 3)
    x = rewriter.emit(node, rewriter.aten.clamp.default, x, 0)
    return rewriter.emit(node, rewriter.aten.clamp.default, x, None, 6)


def _hardsigmoid(rewriter: _Rewriter, node: Any) -> Any:
    return rewriter.emit(node, rewriter.aten.div.Tensor, _clipped(rewriter, node), 6)


def _hardswish(rewriter: _Rewriter, node: Any) -> Any:
    x = rewriter.mapped(node.args[0])
    scaled = rewriter.emit(node, rewriter.aten.mul.Tensor, x, _clipped(rewriter, node))
    return rewriter.emit(node, rewriter.aten.div.Tensor, scaled, 6)


def _relu6(rewriter: _Rewriter, node: Any) -> Any:
    x = rewriter.mapped(node.args[0])
    return rewriter.emit(node, rewriter.aten.hardtanh.default, x, 0, 6)


def _convolution(rewriter: _Rewriter, node: Any) -> Any:
    given = rewriter.arguments(node)
    rank = len(_shape(node)) - 2
    if rank != 2 or len(_shape(node.args[0])) != 4:
        raise _Other
    sizes = [_each(given[name], rank) for name in ("stride", "padding", "dilation")]
    tensors = [given[name] for name in ("input", "weight", "bias")]
    not_transposed = (False, [0] * rank)
    target = rewriter.aten.convolution.default
    return rewriter.emit(node, target, *tensors, *sizes, *not_transposed, given["groups"])


def _each(value: Any, rank: int) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * rank if len(values) == 1 else values


def _batch_norm(rewriter: _Rewriter, node: Any) -> Any:
    given = rewriter.arguments(node)
    tensors = [given[name] for name in ("input", "weight", "bias", "running_mean", "running_var")]
    if given["training"] or None in tensors:
        raise _Other
    target = rewriter.aten._native_batch_norm_legit_no_training.default
    return rewriter.first(node, target, *tensors, given["momentum"], given["eps"])


def _max_pool(rewriter: _Rewriter, node: Any) -> Any:
    given = list(rewriter.arguments(node).values())
    return rewriter.first(node, rewriter.aten.max_pool2d_with_indices.default, *given)


def _adaptive_average_pool(rewriter: _Rewriter, node: Any) -> Any:
    given = rewriter.arguments(node)
    if list(given["output_size"]) == [1, 1]:
        over_image = (given["self"], [-1, -2], True)
        return rewriter.emit(node, rewriter.aten.mean.dim, *over_image)
    target = rewriter.aten._adaptive_avg_pool2d.default
    return rewriter.emit(node, target, given["self"], list(given["output_size"]))


def _flatten(rewriter: _Rewriter, node: Any) -> Any:
    shape = _shape(node)
    if len(shape) == len(_shape(node.args[0])):
        raise _Other  # the tensor itself
    return rewriter.emit(node, rewriter.aten.view.default, rewriter.mapped(node.args[0]), shape)


def _linear(rewriter: _Rewriter, node: Any) -> Any:
    given = rewriter.arguments(node)
    if len(_shape(node.args[0])) != 2 or len(_shape(node.args[1])) != 2 or given["bias"] is None:
        raise _Other
    weight = given["weight"]
    turned = rewriter.emit(
        node, rewriter.aten.permute.default, weight, [1, 0], value=node.args[1].meta["val"].t()
    )
    return rewriter.emit(node, rewriter.aten.addmm.default, given["bias"], given["input"], turned)


def _dropout(rewriter: _Rewriter, node: Any) -> Any:
    given = rewriter.arguments(node)
    if given["train"]:
        raise _Other
    return rewriter.emit(node, rewriter.aten.clone.default, given["input"])


@functools.cache
def _rules() -> Mapping[Any, _Rule]:
    """What is done with each operator."""
    import torch

    aten = torch.ops.aten
    kept = {getattr(getattr(aten, n.split(".")[0]), n.split(".")[1]): _same(n) for n in _KEPT}
    return {
        **kept,
        aten.add_.Tensor: _in_place(_same("add.Tensor")),
        aten.mul_.Tensor: _in_place(_same("mul.Tensor")),
        aten.relu_.default: _in_place(_same("relu.default")),
        aten.hardtanh_.default: _in_place(_same("hardtanh.default")),
        aten.leaky_relu_.default: _in_place(_same("leaky_relu.default")),
        aten.relu6.default: _relu6,
        aten.relu6_.default: _in_place(_relu6),
        aten.silu.default: _silu,
        aten.silu_.default: _in_place(_silu),
        aten.hardsigmoid.default: _hardsigmoid,
        aten.hardsigmoid_.default: _in_place(_hardsigmoid),
        aten.hardswish.default: _hardswish,
        aten.hardswish_.default: _in_place(_hardswish),
        aten.conv2d.default: _convolution,
        aten.batch_norm.default: _batch_norm,
        aten.max_pool2d.default: _max_pool,
        aten.adaptive_avg_pool2d.default: _adaptive_average_pool,
        aten.flatten.using_ints: _flatten,
        aten.linear.default: _linear,
        aten.dropout.default: _dropout,
    }


@functools.cache
def _fresh() -> set[Any]:
    """Operators whose result is no view of another tensor, or overwrites one that is none."""
    import torch

    aten = torch.ops.aten
    return set(_rules()) - {aten.flatten.using_ints, aten.dropout.default}


def _with_graph(program: Any, graph: Any, names: Mapping[str, str]) -> Any:
    """The program with another graph for the same inputs, parameters and outputs.

    Raises
    ------
    _Other
        If it gives something else than tensors, or keeps state.
    """
    from torch.export import ExportedProgram
    from torch.export.graph_signature import ExportGraphSignature, OutputKind, TensorArgument

    signature = program.graph_signature
    outputs = []
    for spec in signature.output_specs:
        if spec.kind != OutputKind.USER_OUTPUT or not isinstance(spec.arg, TensorArgument):
            raise _Other
        outputs.append(replace(spec, arg=TensorArgument(name=names[spec.arg.name])))
    return ExportedProgram(
        root=program.graph_module,
        graph=graph,
        graph_signature=ExportGraphSignature(list(signature.input_specs), outputs),
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
    )
