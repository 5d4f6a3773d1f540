"""From torch to Relax: modules, scripted modules and exported programs."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import tvm

from relay_passes.to_float16 import ToFloat16

from .shared import (
    IMPORTER_ERRORS,
    ImportedModel,
    as_input_tuple,
    check_finite,
    describe,
    finish,
    first_line,
    layer_of,
    quiet,
)
from .torch_arguments import UnsupportedOptionError, note_stored_tensors
from .torch_checks import check_module, check_tensor, check_tensors
from .torch_decompositions import decompositions
from .torch_direct import taken_apart
from .torch_host import host_converters, why_not_left
from .torch_operators import converters
from .torch_refusals import check_operators, check_state, layer_path
from .torch_state import buffers_kept


def from_module(model: Any, example_inputs: Any, *, host_operators: bool = False) -> ImportedModel:
    import torch

    from .torch_memory import WithinMemory

    for name, module in model.named_modules():
        if getattr(module, "training", False):  # a frozen ScriptModule has none
            raise ValueError(
                f"module {name or type(model).__name__!r} is in training mode; call model.eval()"
                " before compiling"
            )
    if example_inputs is None:
        raise ValueError(
            "a torch.nn.Module needs example_inputs: a tuple of tensors with the shapes and dtypes"
            " to compile for"
        )
    check_module(model)
    arguments = tuple(_as_tensor(i, v) for i, v in enumerate(as_input_tuple(example_inputs)))
    check_finite((name, _to_numpy(value)) for name, value in _torch_tensors(model))
    try:
        with torch.no_grad(), WithinMemory(), buffers_kept(model):
            model(*(value.clone() for value in arguments))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        shapes = ", ".join(describe(value) for value in arguments)
        raise ValueError(
            f"{type(model).__name__} cannot run on the example inputs ({shapes}): {error};"
            " give inputs that the model takes"
        ) from error
    program = export_module(model, arguments)
    return from_program(program, checked=True, host_operators=host_operators)


def _as_tensor(position: int, value: Any) -> Any:
    import torch

    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"example input {position}: got {describe(value)}, expected a tensor or array of"
            " numbers; give one per argument of the model"
        ) from error
    check_tensor(f"example input {position}", tensor)
    return tensor


def export_module(model: Any, arguments: tuple[Any, ...]) -> Any:
    """A module or scripted module as an ``ExportedProgram``.

    Raises
    ------
    ValueError
        If it cannot be traced.
    """
    import torch

    try:
        with torch.no_grad(), quiet():
            if isinstance(model, torch.jit.ScriptModule):
                model = _from_script(model, arguments)
            return torch.export.export(model, arguments)
    except (RuntimeError, TypeError, ValueError, torch._dynamo.exc.TorchDynamoException) as error:
        raise ValueError(
            f"torch.export cannot trace {type(model).__name__}: {error}; the forward pass has to"
            " be free of data-dependent control flow"
        ) from error


def _from_script(model: Any, arguments: tuple[Any, ...]) -> Any:
    """A traced or scripted module as an ordinary one, which torch.export accepts."""
    from torch._export.converter import TS2EPConverter

    # The converter makes every dimension symbolic; exporting its module again fixes them.
    return TS2EPConverter(model, arguments).convert().module()


def _torch_tensors(model: Any) -> Iterable[tuple[str, Any]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _to_numpy(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.element_size() == 2:
        tensor = tensor.float()  # numpy has no bfloat16
    return tensor.numpy()


def from_program(
    program: Any, *, checked: bool = False, host_operators: bool = False
) -> ImportedModel:
    from tvm.relax.frontend.torch import from_exported_program
    from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

    if program.range_constraints:
        if any(str(symbol).startswith("u") for symbol in program.range_constraints):
            raise ValueError(
                "a result has a shape that depends on the data (an index with a mask, nonzero,"
                " unique or the like); expected static shapes: use torch.where or multiply by the"
                " mask"
            )
        symbols = ", ".join(f"{s} in {r}" for s, r in program.range_constraints.items())
        raise ValueError(
            f"the ExportedProgram has dynamic shapes ({symbols}); expected static ones: export it"
            " without dynamic_shapes, once per shape"
        )
    if not checked:
        check_tensors("weights", program.state_dict.items())
        check_tensors(
            "example input", ((str(i), t) for i, t in enumerate(_example_tensors(program)))
        )
        check_finite((n, _to_numpy(t)) for n, t in program.state_dict.items())
    is_half = _is_half(program)
    translated = converters()
    with quiet():
        plain = in_float32(program) if is_half else program
        table = decompositions(frozenset(translated))
        plain = taken_apart(plain) or plain.run_decompositions(table)
    check_state(plain)
    note_stored_tensors(plain)
    known = {*ExportedProgramImporter().convert_map, *translated}
    if host_operators and not is_half:
        translated = {**translated, **host_converters(plain, known, translated)}
        check_operators(plain, known, lambda node: why_not_left(node) is None)
    else:
        check_operators(plain, known)
    try:
        with quiet():
            mod = from_exported_program(
                plain,
                keep_params_as_input=False,
                unwrap_unit_return_tuple=True,
                custom_convert_map=translated,
                run_ep_decomposition=False,
            )
    except UnsupportedOptionError as error:
        raise ValueError(f"this model cannot be compiled: {error}") from error
    except IMPORTER_ERRORS as error:
        raise ValueError(
            f"TVM's torch importer does not take this model: {first_line(error)}; replace the"
            " operator, or export the model to ONNX and compile that"
        ) from error
    if is_half:
        mod = tvm.transform.Sequential([ToFloat16()])(mod)
    return finish(
        mod,
        _torch_layer_names(program, _CONVOLUTIONS),
        _torch_layer_names(program, ("linear",)),
        _output_names(program),
    )


def _output_names(program: Any) -> list[str]:
    """Keys of a dict that a program returns, joined by dots where it is nested; else none."""
    from torch.utils import _pytree as pytree

    spec = program.call_spec.out_spec
    if spec is None:
        return []
    whole = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    paths = [path for path, _ in pytree.tree_flatten_with_path(whole)[0]]
    if not any(isinstance(key, pytree.MappingKey | pytree.GetAttrKey) for p in paths for key in p):
        return []
    return [".".join(str(_key_of(key)) for key in path) for path in paths]


def _key_of(entry: Any) -> Any:
    """Key, attribute or position that an entry of a pytree's path stands for."""
    for name in ("key", "name", "idx"):
        if hasattr(entry, name):
            return getattr(entry, name)
    return entry


def _is_half(program: Any) -> bool:
    """Whether a program computes in float16."""
    import torch

    tensors = [*program.state_dict.values(), *_example_arguments(program)]
    return any(getattr(tensor, "dtype", None) == torch.float16 for tensor in tensors)


def _example_arguments(program: Any) -> tuple[Any, ...]:
    return tuple(program.example_inputs[0]) if program.example_inputs is not None else ()


def _example_tensors(program: Any) -> list[Any]:
    import torch

    return [value for value in _example_arguments(program) if isinstance(value, torch.Tensor)]


def in_float32(program: Any) -> Any:
    """The program in float32, where values of 16 bits are exact."""
    import torch

    def widened(value: Any) -> Any:
        is_short = isinstance(value, torch.Tensor) and value.dtype in (
            torch.float16,
            torch.bfloat16,
        )
        return value.float() if is_short else value

    if program.example_inputs is None:
        raise ValueError(
            "an ExportedProgram of 16 bits without example inputs cannot be converted; export the"
            " module again, or pass the module itself"
        )
    arguments = tuple(widened(value) for value in _example_arguments(program))
    with torch.no_grad():
        # float() changes parameters in place, and these are the caller's own.
        return torch.export.export(copy.deepcopy(program.module()).float(), arguments)


_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv", "torchvision::deform_conv2d")


def _torch_layer_names(program: Any, operators: tuple[str, ...]) -> list[str | None]:
    """Module path of each call of these operators in the program, in graph order."""
    signature = program.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    found: list[tuple[Any, str | None]] = []
    for node in program.graph.nodes:
        operator = getattr(node.target, "name", lambda: "")() if node.op == "call_function" else ""
        if operator.removeprefix("aten::").startswith(operators):
            tensors = [node.args[i] if len(node.args) > i else node.kwargs.get(name)
                       for i, name in ((1, "weight"), (2, "bias"))]  # fmt: skip
            names = [stored.get(getattr(_as_stored(tensor), "name", "")) for tensor in tensors]
            # Converted to integers, a weight may be a buffer without the layer's name.
            dotted = next((name for name in names if name and "." in name), names[0])
            found.append((node, dotted))
    weights = [weight for _, weight in found]
    return [
        # The weight says best what a layer is called, unless several share it.
        layer_of(weight) if weights.count(weight) == 1 else layer_path(node) or layer_of(weight)
        for node, weight in found
    ]


def _as_stored(tensor: Any) -> Any:
    """What a quantised weight is stored as: the node before its conversions."""
    while getattr(tensor, "op", "") == "call_function" and "quantize" in str(tensor.target):
        tensor = tensor.args[0]
    return tensor
