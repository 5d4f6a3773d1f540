"""The arguments of one node of an exported program, by the names of the operator's schema."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from tvm import relax

# Key of a placeholder's meta data.
_STORED = "tvm_pattern.stored"


def note_stored_tensors(program: Any) -> None:
    """Leave the values of parameters, buffers and constants where converters find them."""
    signature = program.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            name = names[node.name]
            stored = program.state_dict if name in program.state_dict else program.constants
            node.meta[_STORED] = stored.get(name)
        elif getattr(node.target, "__name__", "") == "_to_copy.default":
            source = node.args[0].meta.get(_STORED)
            if source is not None and "dtype" in node.kwargs:
                node.meta[_STORED] = source.to(node.kwargs["dtype"])


class UnsupportedOptionError(ValueError):
    """An operator that is translated, with options that are not."""


class Arguments:
    """What a node gives an operator; what it leaves out has the schema's default.

    TVM's converters read arguments by position or by name and overlook the other way; the schema
    knows both.

    Parameters
    ----------
    node : torch.fx.Node
        A call of an ATen operator.
    importer : tvm.relax.frontend.torch.exported_program_translator.ExportedProgramImporter
        The importer at work; it holds the Relax expressions of other nodes.
    """

    def __init__(self, node: Any, importer: Any) -> None:
        self.node, self.importer = node, importer
        self.given = given_arguments(node)

    def __getitem__(self, name: str) -> Any:
        """Argument ``name``: a Relax expression for a tensor, plain Python otherwise."""
        return self._value(self.given[name])

    def _value(self, value: Any) -> Any:
        import torch

        if isinstance(value, torch.fx.Node):
            return self.importer.env[value]
        if isinstance(value, list | tuple):
            return [self._value(v) for v in value]
        return value

    def stored(self, name: str) -> np.ndarray | None:
        """Value of an argument that is a number, parameter, buffer or constant; else None."""
        value = self.given[name]
        if not hasattr(value, "meta"):
            return np.asarray(value)
        tensor = value.meta.get(_STORED)
        return None if tensor is None else tensor.detach().cpu().numpy()

    def emit(self, expression: relax.Expr) -> relax.Var:
        """Bind an expression to a variable of the function that is being built."""
        return self.importer.block_builder.emit(expression)

    def pair(self, name: str, rank: int) -> list[int]:
        """An argument that stands for every spatial axis, or has one value for each."""
        value = self.given[name]
        values = list(value) if isinstance(value, list | tuple) else [value]
        return values * rank if len(values) == 1 else values

    @property
    def output_shape(self) -> list[int]:
        """Shape of the (first) result."""
        value = self.node.meta["val"]
        value = value[0] if isinstance(value, tuple | list) else value
        return [int(d) for d in value.shape]


def given_arguments(node: Any) -> dict[str, Any]:
    """Names of the schema -> arguments of the node, defaults filled in."""
    schema = node.target._schema.arguments
    given = {a.name: a.default_value for a in schema}
    given.update(zip((a.name for a in schema), node.args, strict=False))
    given.update(node.kwargs)
    return given


def shape_of(expression: relax.Expr) -> list[int]:
    """Static shape of a Relax tensor."""
    return [int(d) for d in expression.ty.shape]


def dtype_of(expression: relax.Expr) -> str:
    """Dtype of a Relax tensor, as in numpy."""
    return str(expression.ty.dtype)


def uses_item(node: Any, item: int) -> bool:
    """Whether anything reads this one of a node's results."""
    return any(
        user.target is operator.getitem and user.args[1] == item and user.users
        for user in node.users
    )
