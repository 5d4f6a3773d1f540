"""ONNX nodes that TVM's importer gets wrong, rewritten into ones that it gets right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .onnx_resize import ResizeRule, axis_matrix

# Of these, a fractional part is lost or the padding falls on the wrong side.
_POOLS = ("MaxPool", "AveragePool", "LpPool")


class GraphEditor:
    """A copy of a model with static shapes known, whose nodes are replaced one by one.

    Parameters
    ----------
    model : onnx.ModelProto
        With inputs of fixed sizes.
    """

    def __init__(self, model: Any) -> None:
        import onnx

        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        inferred = onnx.shape_inference.infer_shapes(self.model, data_prop=True)
        graph = inferred.graph
        self._shapes = {
            value.name: _static(value) for value in [*graph.input, *graph.value_info, *graph.output]
        }
        self._constants = {t.name: t for t in self.model.graph.initializer}
        for node in self.model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._constants[node.output[0]] = node.attribute[0].t
        self._nodes: list[Any] = []
        self._serial = 0

    @property
    def opset(self) -> int:
        """Version of ONNX's own operators."""
        return max(i.version for i in self.model.opset_import if i.domain in ("", "ai.onnx"))

    def shape(self, name: str) -> list[int] | None:
        """Static shape of a value, None if unknown."""
        if name in self._constants:
            return list(self._constants[name].dims)
        return self._shapes.get(name)

    def constant(self, name: str) -> np.ndarray | None:
        """Value of a constant, None if it is none."""
        from onnx import numpy_helper

        stored = self._constants.get(name)
        return None if stored is None else numpy_helper.to_array(stored)

    def store(self, value: np.ndarray) -> str:
        """A new initializer and its name."""
        from onnx import numpy_helper

        name = self._name()
        self.model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def emit(
        self, operator: str, inputs: Sequence[str], output: str = "", **attributes: Any
    ) -> str:
        """A new node and the name of its result."""
        from onnx import helper

        output = output or self._name()
        self._nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def keep(self, node: Any, attributes: dict[str, Any]) -> None:
        """The node with other attributes."""
        from onnx import helper

        inputs, outputs = list(node.input), list(node.output)
        self._nodes.append(helper.make_node(node.op_type, inputs, outputs, node.name, **attributes))

    def _name(self) -> str:
        self._serial += 1
        return f"tvm_pattern_{self._serial}"

    def rewrite(self) -> Any:
        """The model with every node of :data:`REWRITES` replaced."""
        for node in list(self.model.graph.node):
            change = REWRITES.get(node.op_type)
            if change is None or not change(self, node):
                self._nodes.append(node)
        del self.model.graph.node[:]
        self.model.graph.node.extend(self._nodes)
        return self.model


def _static(value: Any) -> list[int] | None:
    tensor = value.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    return None if not tensor.HasField("shape") or None in dims else dims  # type: ignore[return-value]


def attributes_of(node: Any) -> dict[str, Any]:
    """Attributes of a node as plain Python."""
    from onnx import helper

    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: v.decode() if isinstance(v, bytes) else v for name, v in values.items()}


def refuse(node: Any, problem: str) -> ValueError:
    """The error for a node that is not taken, with the way out."""
    return ValueError(
        f"the ONNX operator {node.op_type} in node {(node.name or node.output[0])!r} has {problem};"
        " change the node or export the model with another option"
    )


def _resize(editor: GraphEditor, node: Any) -> bool:
    given = attributes_of(node)
    rule = ResizeRule(
        given.get("mode", "nearest"),
        given.get("coordinate_transformation_mode", "half_pixel"),
        given.get("nearest_mode", "round_prefer_floor"),
        float(given.get("cubic_coeff_a", -0.75)),
        bool(given.get("exclude_outside", 0)),
    )
    size = editor.shape(node.input[0])
    if size is None:
        raise refuse(node, "an input of unknown shape; expected a static one")
    problem = rule.why_not()
    if given.get("antialias", 0):
        problem = "antialias=1; expected 0"
    if given.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        problem = "a keep_aspect_ratio_policy; expected 'stretch'"
    if problem:
        raise refuse(node, problem)
    output, scales = _resize_target(editor, node, size, given.get("axes"))
    x = node.input[0]
    axes = [axis for axis in range(len(size)) if output[axis] != size[axis] or scales[axis] != 1]
    for axis in axes:
        matrix = axis_matrix(rule, size[axis], output[axis], scales[axis])
        x = _apply(editor, x, matrix, axis, len(size))
    editor.emit("Identity", [x], node.output[0])
    return True


def _resize_target(
    editor: GraphEditor, node: Any, size: list[int], axes: Sequence[int] | None
) -> tuple[list[int], list[float]]:
    """Output pixels and scale of every axis."""
    named = [*node.input, "", "", ""]
    # Up to opset 10 the scales are the second input.
    at = named[1] if len(node.input) == 2 else named[2]
    scales, sizes = (editor.constant(name) if name else None for name in (at, named[3]))
    chosen = scales if scales is not None and scales.size else sizes
    if chosen is None or not chosen.size:
        raise refuse(node, "sizes that are computed; expected constant scales or sizes")
    axes = [a % len(size) for a in axes] if axes else list(range(len(size)))
    output, factors = list(size), [1.0] * len(size)
    for axis, value in zip(axes, chosen.tolist(), strict=True):
        if chosen is scales:
            output[axis] = int(np.floor(np.float32(size[axis]) * np.float32(value)))
            factors[axis] = value
        else:
            output[axis], factors[axis] = value, value / size[axis]
    return output, factors


def _apply(editor: GraphEditor, x: str, matrix: np.ndarray, axis: int, rank: int) -> str:
    if np.array_equal(matrix.max(1), np.ones(len(matrix))) and np.all((matrix != 0).sum(1) == 1):
        return editor.emit("Gather", [x, editor.store(matrix.argmax(1).astype("int64"))], axis=axis)
    order = [a for a in range(rank) if a != axis] + [axis]
    moved = x if axis == rank - 1 else editor.emit("Transpose", [x], perm=order)
    product = editor.emit("MatMul", [moved, editor.store(np.ascontiguousarray(matrix.T))])
    if axis == rank - 1:
        return product
    return editor.emit("Transpose", [product], perm=[order.index(a) for a in range(rank)])


def _pool(editor: GraphEditor, node: Any) -> bool:
    """``auto_pad`` as the pads that it stands for."""
    given = attributes_of(node)
    where = given.pop("auto_pad", "NOTSET")
    if node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1]:
        raise refuse(node, "a second output, the positions; expected the maxima alone")
    if where == "NOTSET":
        return False
    size = editor.shape(node.input[0])
    if size is None:
        raise refuse(node, "an input of unknown shape; expected a static one")
    kernel = given["kernel_shape"]
    strides = given.get("strides", [1] * len(kernel))
    dilations = given.get("dilations", [1] * len(kernel))
    before, after = [], []
    for n, k, s, d in zip(size[2:], kernel, strides, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0) if where != "VALID" else 0
        less, more = total // 2, total - total // 2
        before.append(more if where == "SAME_LOWER" else less)
        after.append(less if where == "SAME_LOWER" else more)
    given["pads"] = before + after
    if where != "VALID":
        given["ceil_mode"] = 0
    editor.keep(node, given)
    return True


def _conv_transpose(editor: GraphEditor, node: Any) -> bool:
    """``output_shape`` as the pads that it stands for."""
    given = attributes_of(node)
    wanted = given.pop("output_shape", None)
    if wanted is None:
        return False
    size, weight = editor.shape(node.input[0]), editor.shape(node.input[1])
    if size is None or weight is None:
        raise refuse(node, "an input of unknown shape; expected a static one")
    rank = len(size) - 2
    wanted, upper = wanted[-rank:], given.pop("auto_pad", "NOTSET") == "SAME_UPPER"
    strides, dilations = (given.get(n, [1] * rank) for n in ("strides", "dilations"))
    extra = list(given.get("output_padding", [0] * rank))
    before, after = [], []
    for i in range(rank):
        full = strides[i] * (size[i + 2] - 1) + (weight[i + 2] - 1) * dilations[i] + 1
        total = full + extra[i] - wanted[i]
        if total < 0:
            raise refuse(node, f"output_shape={wanted}; expected at most what the strides reach")
        less, more = total // 2, total - total // 2
        before.append(less if upper else more)
        after.append(more if upper else less)
    given["pads"] = before + after
    editor.keep(node, given)
    return True


def _one_hot(editor: GraphEditor, node: Any) -> bool:
    """The result has the dtype of the values; TVM's has that of Python's numbers."""
    from onnx import helper

    values = editor.constant(node.input[2])
    if values is None:
        raise refuse(node, "values that are computed; expected a constant")
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    wide = editor.emit("OneHot", list(node.input), **attributes_of(node))
    editor.emit("Cast", [wide], node.output[0], to=kind)
    return True


def _grid_sample(editor: GraphEditor, node: Any) -> bool:
    """One form is refused: positions between two pixels are rounded to the other one by TVM."""
    given = attributes_of(node)
    nearest = given.get("mode", "linear") == "nearest"
    reflected = given.get("padding_mode", "zeros") == "reflection"
    if nearest and reflected and not given.get("align_corners", 0):
        raise refuse(
            node, "mode='nearest' with padding_mode='reflection'; expected align_corners=1"
        )
    return False


def _roi_align(editor: GraphEditor, node: Any) -> bool:
    """Half a pixel is one of the feature map; TVM takes it off before regions are scaled."""
    given = attributes_of(node)
    if given.get("mode", "avg") == "max":
        raise refuse(node, "mode='max', which runtimes compute differently; expected mode='avg'")
    default = "half_pixel" if editor.opset >= 16 else "output_half_pixel"
    if given.get("coordinate_transformation_mode", default) != "half_pixel":
        return False
    scale = given.get("spatial_scale", 1.0)
    x, regions, batches = node.input
    offset = editor.store(np.array(0.5 - 0.5 / scale, np.float32))
    moved = editor.emit("Add", [regions, offset])
    editor.emit("RoiAlign", [x, moved, batches], node.output[0], **given)
    return True


def _celu(editor: GraphEditor, node: Any) -> bool:
    """``alpha * elu(x / alpha)``."""
    alpha = float(attributes_of(node).get("alpha", 1.0))
    if alpha <= 0:
        raise refuse(node, f"alpha={alpha}; expected a number above 0")
    factor = editor.store(np.array(alpha, np.float32))
    scaled = editor.emit("Div", [node.input[0], factor])
    editor.emit("Mul", [editor.emit("Elu", [scaled]), factor], node.output[0])
    return True


def _lp_normalization(editor: GraphEditor, node: Any) -> bool:
    """Divided by its norm, and zero where that is zero."""
    given = attributes_of(node)
    axes, x = [given.get("axis", -1)], node.input[0]
    operator = "ReduceL1" if given.get("p", 2) == 1 else "ReduceL2"
    if editor.opset >= 18:
        norm = editor.emit(operator, [x, editor.store(np.array(axes, np.int64))])
    else:
        norm = editor.emit(operator, [x], axes=axes)
    zero, one = (editor.store(np.array(value, np.float32)) for value in (0, 1))
    divisor = editor.emit("Where", [editor.emit("Equal", [norm, zero]), one, norm])
    editor.emit("Div", [x, divisor], node.output[0])
    return True


REWRITES: dict[str, Callable[[GraphEditor, Any], bool]] = {
    "Resize": _resize,
    "OneHot": _one_hot,
    "GridSample": _grid_sample,
    "RoiAlign": _roi_align,
    "Celu": _celu,
    "LpNormalization": _lp_normalization,
    "ConvTranspose": _conv_transpose,
    **dict.fromkeys(_POOLS, _pool),
}
