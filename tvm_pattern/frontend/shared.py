"""What every importer needs: the result, the checks, and names for layers."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from relay_passes.dataflow import constant, op_name
from relay_passes.fold_batch_norm import check_variances
from relay_passes.name_layers import variable_of
from topi_kernels.structure import ASSIGNMENT, Structure

from .quantized_weights import covering_structures

# TVM's importers say "not supported" in many ways, assertions included.
IMPORTER_ERRORS = (
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

    ``layer_names`` maps the Relax variable of a convolution's or linear layer's result to the
    layer's own name, ``assigned`` the layers that the pruner assigned patterns to, to their
    structure, ``covered`` the Relax variables of convolutions with integer weights to what those
    say.
    """

    mod: tvm.IRModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layer_names: dict[str, str] = field(default_factory=dict)
    assigned: dict[str, Structure] = field(default_factory=dict)
    covered: dict[str, Structure] = field(default_factory=dict)

    @property
    def structures(self) -> dict[str, Structure]:
        """The assigned structures by Relax variable, as the passes take them; else the covered."""
        assigned = {
            variable: self.assigned[layer]
            for variable, layer in self.layer_names.items()
            if layer in self.assigned
        }
        return {**self.covered, **assigned}


def with_structures(imported: ImportedModel, structures: dict[str, Structure]) -> ImportedModel:
    """With what is known of the layers' structures from before their weights were rounded."""
    assigned = {n: s for n, s in structures.items() if s.source == ASSIGNMENT}
    known = {var: structures[n] for var, n in imported.layer_names.items() if n in structures}
    return replace(imported, assigned=assigned, covered={**imported.covered, **known})


def as_input_tuple(example_inputs: Any) -> tuple[Any, ...]:
    """``example_inputs`` as a tuple: a single tensor or array stands for itself."""
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs)
    return (example_inputs,)


def first_line(error: BaseException) -> str:
    """What an importer said, without the code and stack that some of them print after it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is None:
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')}{list(shape)}"


def check_example_inputs(inputs: Sequence[TensorSpec], examples: Sequence[Any]) -> None:
    if len(inputs) != len(examples):
        raise ValueError(
            f"got {len(examples)} example inputs, the model has {len(inputs)}:"
            f" {', '.join(map(str, inputs))}; give one per input"
        )
    for spec, value in zip(inputs, examples, strict=True):
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
        if shape is None or tuple(shape) != spec.shape or _dtype_name(dtype) != spec.dtype:
            raise ValueError(
                f"example input {spec.name!r}: got {describe(value)}, expected"
                f" {spec.dtype}{list(spec.shape)}; give example inputs like the model's own"
            )


def _dtype_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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


def finish(
    mod: tvm.IRModule,
    layer_names: Sequence[str | None],
    linear_names: Sequence[str | None] = (),
    output_names: Sequence[str] = (),
) -> ImportedModel:
    """The imported model, with its layers under their own names.

    Parameters
    ----------
    mod : tvm.IRModule
    layer_names : sequence of str or None
        Of the convolutions, in order.
    linear_names : sequence of str or None
        Of the products with a constant matrix, in order.
    output_names : sequence of str
        Of the outputs, where the model names them.
    """
    main = mod["main"]
    check_variances(main)
    inputs = tuple(_spec(p.name, p.ty, f"input {p.name!r}") for p in main.params)
    outputs = output_specs(mod, output_names)
    mod, names = _name_layers(mod, layer_names, linear_names)
    return ImportedModel(mod, inputs, outputs, names, covered=covering_structures(mod))


def output_specs(mod: tvm.IRModule, names: Sequence[str] = ()) -> tuple[TensorSpec, ...]:
    """What ``main`` gives, under ``names`` if there is one for each."""
    result = mod["main"].ret_ty
    fields = list(result.fields) if hasattr(result, "fields") else [result]
    if len(names) != len(fields) or len(set(names)) != len(names) or not all(names):
        names = [f"output{i}" for i in range(len(fields))]
    return tuple(_spec(names[i], f, f"output {i}") for i, f in enumerate(fields))


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


def check_finite(tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    for name, array in tensors:
        if array.dtype.kind != "f":
            continue
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        if bad:
            raise ValueError(
                f"weights {name!r}: {bad} of {array.size} values are NaN or Inf; expected finite"
                " numbers, check the checkpoint"
            )


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
        # A product's result may be an argument of what TVM compiles: a convolution's never is.
        hint = name if op_name(binding.value) in _CONVOLUTIONS else variable_of(name)
        var = self.builder_.emit(self.visit_expr(binding.value), name_hint=hint)
        self.given[var.name] = name
        self.set_var_remap(binding.var, var)


def _name_layers(
    mod: tvm.IRModule, layer_names: Sequence[str | None], linear_names: Sequence[str | None]
) -> tuple[tvm.IRModule, dict[str, str]]:
    """Rename the results of convolutions and linear layers; not if their number changed."""
    bindings = [
        binding
        for block in mod["main"].body.blocks
        for binding in block.bindings
        if isinstance(binding, relax.VarBinding)
    ]
    convolutions = [b.var for b in bindings if op_name(b.value) in _CONVOLUTIONS]
    if len(convolutions) != len(layer_names):
        return mod, {}
    named = list(zip(convolutions, layer_names, strict=True))
    defined = {b.var: b.value for b in bindings}
    products = [
        b.var
        for b in bindings
        if op_name(b.value) == "relax.matmul" and _is_matrix(b.value.args[1], defined)
    ]
    if len(products) == len(linear_names):
        named += zip(products, linear_names, strict=True)
    names = {v: n for v, n in named if n}
    namer = _LayerNamer(mod, names)
    gvar = mod.get_global_var("main")
    namer.builder_.update_func(gvar, namer.visit_expr(mod["main"]))
    return namer.builder_.get(), namer.given


def _is_matrix(expr: Any, defined: Mapping[Any, Any]) -> bool:
    """Whether an operand is a constant, or the transpose of one."""
    value = defined.get(expr, expr)
    if op_name(value) == "relax.permute_dims":
        value = value.args[0]
    return constant(value) is not None


def layer_of(weight: str | None) -> str | None:
    if weight is None:
        return None
    return weight.rpartition(".")[0] or weight
