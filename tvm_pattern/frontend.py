"""From torch or ONNX to Relax: the only module that sees both sides.

:func:`import_model` accepts a ``torch.nn.Module``, a ``torch.export.ExportedProgram``, an ONNX file
or ``ModelProto``, or a Relax ``IRModule``, and returns a module whose ``main`` has static shapes
and its weights as constants. A convolution's result is named after its layer, so that reports speak
of ``features.0`` and not of ``lv``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from relay_passes.dataflow import constant, op_name
from relay_passes.to_float16 import ToFloat16

# TVM's importers say "not supported" in many ways, assertions included.
_IMPORTER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
_CONVOLUTIONS = frozenset(
    f"relax.nn.conv{d}d{kind}" for d in (1, 2, 3) for kind in ("", "_transpose")
)


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of one input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class ImportedModel:
    """A Relax module with static shapes and what goes in and out of its ``main``.

    ``layer_names`` maps the Relax variable of a convolution's result to the layer's own name.
    """

    mod: tvm.IRModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layer_names: dict[str, str] = field(default_factory=dict)


def import_model(model: Any, example_inputs: Any = None) -> ImportedModel:
    """Import ``model`` into Relax.

    Parameters
    ----------
    model : torch.nn.Module | torch.export.ExportedProgram | str | os.PathLike | onnx.ModelProto | \
tvm.IRModule
        A module must be in evaluation mode. A path names an ONNX file.
    example_inputs : tensor, array or sequence of them, optional
        One per input. Their shapes and dtypes are the compiled ones. Needed for a module; for an
        ONNX model with symbolic dimensions they give the shapes; otherwise they are only checked.

    Raises
    ------
    TypeError
        If ``model`` is none of the above.
    ValueError
        If it cannot be read or traced, has dynamic shapes, is in training mode, holds NaN or Inf,
        or does not fit ``example_inputs``.
    """
    if isinstance(model, tvm.IRModule):
        imported = _from_ir_module(model)
    elif isinstance(model, str | os.PathLike):
        imported = _from_onnx(_read_onnx(Path(model)), example_inputs)
    elif _is_instance_of(model, "onnx", "ModelProto"):
        imported = _from_onnx(model, example_inputs)
    elif _is_instance_of(model, "torch.export", "ExportedProgram"):
        imported = _from_exported_program(model)
    elif _is_instance_of(model, "torch.nn", "Module"):
        imported = _from_module(model, example_inputs)
    else:
        raise TypeError(
            f"cannot compile a {type(model).__module__}.{type(model).__name__}; expected a"
            " torch.nn.Module, torch.export.ExportedProgram, path of an ONNX file,"
            " onnx.ModelProto or tvm.IRModule"
        )
    if example_inputs is not None:
        _check_example_inputs(imported.inputs, as_input_tuple(example_inputs))
    return imported


def as_input_tuple(example_inputs: Any) -> tuple[Any, ...]:
    """``example_inputs`` as a tuple: a single tensor or array stands for itself."""
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs)
    return (example_inputs,)


def _is_instance_of(value: Any, module: str, name: str) -> bool:
    """isinstance without importing ``module``: whoever owns an instance has imported it already."""
    owner = sys.modules.get(module)
    return owner is not None and isinstance(value, getattr(owner, name))


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is None:
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')}{list(shape)}"


def _check_example_inputs(inputs: Sequence[TensorSpec], examples: Sequence[Any]) -> None:
    if len(inputs) != len(examples):
        raise ValueError(
            f"got {len(examples)} example inputs, the model has {len(inputs)}:"
            f" {', '.join(map(str, inputs))}; give one per input"
        )
    for spec, value in zip(inputs, examples, strict=True):
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
        if shape is None or tuple(shape) != spec.shape or _dtype_name(dtype) != spec.dtype:
            raise ValueError(
                f"example input {spec.name!r}: got {_describe(value)}, expected"
                f" {spec.dtype}{list(spec.shape)}; give example inputs like the model's own"
            )


def _dtype_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


# ---- torch ----------------------------------------------------------------------------------


def _from_module(model: Any, example_inputs: Any) -> ImportedModel:
    import torch

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
    arguments = tuple(torch.as_tensor(value) for value in as_input_tuple(example_inputs))
    _check_finite((name, _to_numpy(value)) for name, value in _torch_tensors(model))
    try:
        with torch.no_grad():
            model(*arguments)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        shapes = ", ".join(_describe(value) for value in arguments)
        raise ValueError(
            f"{type(model).__name__} cannot run on the example inputs ({shapes}): {error};"
            " give inputs that model(*example_inputs) accepts"
        ) from error
    try:
        with torch.no_grad(), _quiet():
            if isinstance(model, torch.jit.ScriptModule):
                model = _from_script(model, arguments)
            program = torch.export.export(model, arguments)
    except (RuntimeError, TypeError, ValueError, torch._dynamo.exc.TorchDynamoException) as error:
        raise ValueError(
            f"torch.export cannot trace {type(model).__name__}: {error}; the forward pass has to"
            " be free of data-dependent control flow"
        ) from error
    return _from_exported_program(program, checked=True)


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


def _from_exported_program(program: Any, checked: bool = False) -> ImportedModel:
    from tvm.relax.frontend.torch import from_exported_program

    if program.range_constraints:
        symbols = ", ".join(f"{s} in {r}" for s, r in program.range_constraints.items())
        raise ValueError(
            f"the ExportedProgram has dynamic shapes ({symbols}); expected static ones: export it"
            " without dynamic_shapes, once per shape"
        )
    if not checked:
        _check_finite((n, _to_numpy(t)) for n, t in program.state_dict.items())
    is_half = _is_half(program)
    try:
        with _quiet():
            mod = from_exported_program(
                _in_float32(program) if is_half else program,
                keep_params_as_input=False,
                unwrap_unit_return_tuple=True,
            )
    except _IMPORTER_ERRORS as error:
        raise ValueError(
            f"TVM's torch importer does not take this model: {error}; replace the operator, or"
            " export the model to ONNX and compile that"
        ) from error
    if is_half:
        mod = tvm.transform.Sequential([ToFloat16()])(mod)
    return _finish(mod, _torch_layer_names(program))


def _is_half(program: Any) -> bool:
    """Whether a program computes in float16."""
    import torch

    tensors = [*program.state_dict.values(), *_example_arguments(program)]
    return any(getattr(tensor, "dtype", None) == torch.float16 for tensor in tensors)


def _example_arguments(program: Any) -> tuple[Any, ...]:
    return tuple(program.example_inputs[0]) if program.example_inputs is not None else ()


def _in_float32(program: Any) -> Any:
    """The program in float32, which TVM's importer takes; its values are exact there."""
    import torch

    def widened(value: Any) -> Any:
        is_half = isinstance(value, torch.Tensor) and value.dtype == torch.float16
        return value.float() if is_half else value

    if program.example_inputs is None:
        raise ValueError(
            "a float16 ExportedProgram without example inputs cannot be converted; export the"
            " module again, or pass the module itself"
        )
    arguments = tuple(widened(value) for value in _example_arguments(program))
    with torch.no_grad():
        return torch.export.export(program.module().float(), arguments)


def _torch_layer_names(program: Any) -> list[str | None]:
    """Module path of each convolution of the program, in graph order."""
    parameters = program.graph_signature.inputs_to_parameters
    names: list[str | None] = []
    for node in program.graph.nodes:
        operator = getattr(node.target, "name", lambda: "")() if node.op == "call_function" else ""
        if operator.removeprefix("aten::").startswith(("conv1d", "conv2d", "conv3d", "conv")):
            weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
            names.append(_layer_of(parameters.get(getattr(weight, "name", None))))
    return names


def _layer_of(weight: str | None) -> str | None:
    if weight is None:
        return None
    return weight.rpartition(".")[0] or weight


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what importers and exporters say about their own code, not about the model."""
    logger = logging.getLogger("torch._export.non_strict_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", "Manually populate", UserWarning)
            yield
    finally:
        logger.setLevel(level)


# ---- ONNX -----------------------------------------------------------------------------------


def _read_onnx(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise ValueError(f"no such file: {path}; expected the path of an ONNX model")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ValueError(
            f"{path} is not a readable ONNX model: {error}; export it again and check it with"
            " onnx.checker.check_model"
        ) from error
    return model


def _from_onnx(model: Any, example_inputs: Any) -> ImportedModel:
    from tvm.relax.frontend.onnx import from_onnx

    _check_onnx_finite(model)
    inputs = _onnx_inputs(model)
    shapes = {}
    if example_inputs is not None:
        examples = as_input_tuple(example_inputs)
        if len(examples) != len(inputs):
            raise ValueError(
                f"got {len(examples)} example inputs, the ONNX model has {len(inputs)}"
                f" ({', '.join(inputs)}); give one per input"
            )
        for (name, dims), value in zip(inputs.items(), examples, strict=True):
            got = list(np.shape(value))
            if len(got) != len(dims) or any(
                d not in (None, g) for d, g in zip(dims, got, strict=True)
            ):
                raise ValueError(
                    f"example input {name!r}: got shape {got}, the ONNX model expects"
                    f" {[d if d is not None else '?' for d in dims]}; give inputs that fit"
                )
            shapes[name] = got
    else:
        dynamic = [n for n, dims in inputs.items() if None in dims]
        if dynamic:
            raise ValueError(
                f"ONNX inputs {dynamic} have symbolic dimensions; give example_inputs with the"
                " shapes to compile for"
            )
    try:
        with _quiet():
            mod = from_onnx(model, shape_dict=shapes or None)
            if shapes:
                mod = relax.transform.FoldConstant()(mod)
    except _IMPORTER_ERRORS as error:
        raise ValueError(
            f"TVM's ONNX importer does not take this model: {error}; simplify or re-export it"
        ) from error
    mod = relax.transform.BindParams("main", {})(mod)
    return _finish(mod, _onnx_layer_names(model))


def _onnx_inputs(model: Any) -> dict[str, list[int | None]]:
    """Inputs that are no initializers -> dimensions, None where symbolic."""
    stored = {t.name for t in model.graph.initializer}
    return {
        value.name: [
            d.dim_value if d.HasField("dim_value") else None
            for d in value.type.tensor_type.shape.dim
        ]
        for value in model.graph.input
        if value.name not in stored
    }


def _check_onnx_finite(model: Any) -> None:
    from onnx import numpy_helper

    _check_finite((t.name, numpy_helper.to_array(t)) for t in model.graph.initializer)


def _onnx_layer_names(model: Any) -> list[str | None]:
    stored = {t.name for t in model.graph.initializer}
    names: list[str | None] = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            weight = node.input[1]
            layer = _layer_of(weight) if weight in stored and "." in weight else node.name
            names.append(layer or None)
    return names


# ---- Relax ----------------------------------------------------------------------------------


def _from_ir_module(mod: tvm.IRModule) -> ImportedModel:
    if not any(gv.name_hint == "main" for gv in mod.get_global_vars()):
        names = sorted(gv.name_hint for gv in mod.get_global_vars())
        raise ValueError(f"the IRModule has the functions {names}; expected a Relax 'main'")
    if not isinstance(mod["main"], relax.Function):
        raise ValueError(f"'main' is a {type(mod['main']).__name__}; expected a relax.Function")
    _check_finite(_constants(mod["main"]))
    return _finish(mod, [])


def _finish(mod: tvm.IRModule, layer_names: Sequence[str | None]) -> ImportedModel:
    main = mod["main"]
    inputs = tuple(_spec(p.name, p.ty, f"input {p.name!r}") for p in main.params)
    result = main.ret_ty
    fields = list(result.fields) if hasattr(result, "fields") else [result]
    outputs = tuple(_spec(f"output{i}", f, f"output {i}") for i, f in enumerate(fields))
    mod, names = _name_layers(mod, layer_names)
    return ImportedModel(mod, inputs, outputs, names)


def _spec(name: str, ty: Any, what: str) -> TensorSpec:
    shape = getattr(ty, "shape", None)
    if not isinstance(ty, relax.TensorType) or shape is None:
        raise ValueError(f"{what} is {ty}; expected a tensor of known shape")
    if not all(isinstance(d, tvm.tirx.IntImm) for d in shape):
        raise ValueError(
            f"{what} has the dynamic shape {[_dimension(d) for d in shape]}; expected a static one:"
            " import the model once per shape"
        )
    return TensorSpec(name, tuple(int(d) for d in shape), str(ty.dtype))


def _dimension(value: Any) -> str:
    return str(int(value)) if isinstance(value, tvm.tirx.IntImm) else str(value)


def _check_finite(tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    for name, array in tensors:
        if array.dtype.kind != "f":
            continue
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        if bad:
            raise ValueError(
                f"weights {name!r}: {bad} of {array.size} values are NaN or Inf; expected finite"
                " numbers, check the checkpoint"
            )


def _constants(function: relax.Function) -> Iterable[tuple[str, np.ndarray]]:
    """Constants of a function, named after the variable whose value uses them."""
    for block in function.body.blocks:
        for binding in block.bindings:
            found: list[np.ndarray] = []

            def keep(expr: Any, found: list[np.ndarray] = found) -> None:
                value = constant(expr)
                if value is not None:
                    found.append(value)

            relax.analysis.post_order_visit(binding.value, keep)
            for array in found:
                yield f"constant of {binding.var.name}", array


@mutator
class _LayerNamer(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, names: dict[Any, str]) -> None:
        super().__init__(mod)
        self._names = names
        self.given: dict[str, str] = {}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        name = self._names.get(binding.var)
        if name is None:
            super().visit_var_binding_(binding)
            return
        var = self.builder_.emit(self.visit_expr(binding.value), name_hint=name)
        self.given[var.name] = name
        self.set_var_remap(binding.var, var)


def _name_layers(
    mod: tvm.IRModule, layer_names: Sequence[str | None]
) -> tuple[tvm.IRModule, dict[str, str]]:
    """Rename the results of convolutions; without effect if the importer changed their number."""
    variables = [
        binding.var
        for block in mod["main"].body.blocks
        for binding in block.bindings
        if isinstance(binding, relax.VarBinding) and op_name(binding.value) in _CONVOLUTIONS
    ]
    if len(variables) != len(layer_names):
        return mod, {}
    names = {v: n for v, n in zip(variables, layer_names, strict=True) if n}
    namer = _LayerNamer(mod, names)
    gvar = mod.get_global_var("main")
    namer.builder_.update_func(gvar, namer.visit_expr(mod["main"]))
    return namer.builder_.get(), namer.given
