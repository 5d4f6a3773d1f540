"""ONNX files: read with everything that belongs to them, or refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: What one protobuf message may hold; every tool passes models on as one.
MAX_BYTES = 2**31 - 1

_WEIGHTS = "these are weights: load them into their network and give that"
#: What to do with files that torch writes, by their endings.
_TORCH_FILES = {
    ".pt": "give what torch.load or torch.jit.load reads from it, in evaluation mode",
    ".pth": _WEIGHTS,
    ".pt2": "give what torch.export.load reads from it (only from files that you trust)",
    ".safetensors": _WEIGHTS,
}


def read_onnx(path: Path) -> Any:
    """The model of a file, with the weights that lie beside it.

    Raises
    ------
    ValueError
        If the file, or one that it refers to, is not there, is no valid model, is larger than 2 GB,
        or is of a newer opset than the installed onnx.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise ValueError(f"no such file: {path}; expected the path of an ONNX model")
    if path.suffix in _TORCH_FILES:
        raise ValueError(f"got {path}, expected an ONNX model; {_TORCH_FILES[path.suffix]}")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(
            f"{path} has {size / 1e9:.1f} GB, expected at most 2 GB, the most that one protobuf"
            " message holds; save its weights as external data"
            " (onnx.save_model(..., save_as_external_data=True))"
        )
    try:
        model = onnx.load(path, load_external_data=False)
        check_opset(model)
        _check_external_data(model, path)
        onnx.load_external_data_for_model(model, str(path.parent))
        check_size(model)
        onnx.checker.check_model(_with_shapes(model))
    except UnusableOnnxError:
        raise
    except (
        DecodeError,
        OSError,
        ValueError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        raise ValueError(
            f"{path} is not a readable ONNX model: {error}; export it again and check it with"
            " onnx.checker.check_model"
        ) from error
    return model


class UnusableOnnxError(ValueError):
    """A model that is well formed and of no use here; the message says why."""


def check_opset(model: Any) -> None:
    """Refuse a model of a newer opset than the installed onnx knows."""
    import onnx

    known = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > known:
            raise UnusableOnnxError(
                f"the ONNX model is of opset {entry.version}, expected at most {known}, the newest"
                f" of the installed onnx {onnx.__version__}; upgrade onnx, or export with"
                f" opset_version={known}"
            )


def check_size(model: Any) -> None:
    """Refuse a model whose weights, external ones included, do not fit one protobuf message."""
    total = sum(len(t.raw_data) for t in model.graph.initializer)
    if total > MAX_BYTES:
        raise UnusableOnnxError(
            f"the ONNX model has {total / 1e9:.1f} GB of weights, expected at most 2 GB, the most"
            " that one protobuf message holds; compile it in parts (onnx.utils.extract_model)"
        )


def _check_external_data(model: Any, path: Path) -> None:
    names = {
        entry.value
        for tensor in _tensors(model.graph)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    missing = sorted(name for name in names if not (path.parent / name).is_file())
    if missing:
        raise UnusableOnnxError(
            f"{path} keeps weights in {', '.join(map(repr, missing))}, expected beside it in"
            f" {path.parent}, where it is not; copy all files of the model together"
        )


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor that a graph stores, those of branches and loops too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)


def _with_shapes(model: Any) -> Any:
    """The model as onnx's checker wants it: inputs and outputs may do without, as runtimes take it.

    An output without even a type gets one by inference.
    """
    import onnx

    values = [*model.graph.input, *model.graph.output]
    if all(
        value.type.WhichOneof("value") not in (None, "tensor_type") or _is_typed(value)
        for value in values
    ):
        return model
    inferred = onnx.shape_inference.infer_shapes(model)
    for value in [*inferred.graph.input, *inferred.graph.output]:
        if value.type.WhichOneof("value") in (None, "tensor_type"):
            kind = value.type.tensor_type
            kind.shape.SetInParent()
            kind.elem_type = kind.elem_type or onnx.TensorProto.FLOAT
    return inferred


def _is_typed(value: Any) -> bool:
    return value.type.tensor_type.HasField("shape")
