"""The arguments of one node of an exported program, by the names of the operator's schema."""

from __future__ import annotations

from typing import Any

from tvm import relax


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
