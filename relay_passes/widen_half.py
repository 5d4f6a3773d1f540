"""WidenHalf: float16 arithmetic that TVM compiles -> float32, rounded for all other operators.

Preconditions: Schedule has run, so that what is left are Relax operators; run before LegalizeOps.

torch computes an operator on float16 in float32 and rounds its result. TVM computes in the type of
the tensors: the sum of 64x64 pixels of 100 is infinite, the 2048th term of a sum is lost, and
``x / sqrt(sum(x * x))`` of 300 is 0. What torch computes as one operator is several here, so one
that follows another takes its result before it is rounded. The operators on planes compute in
float32 already.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.ir import Call, Expr, Var

from .dataflow import Emitter, bindings_of, constant, map_functions, op_name, rebuild

HALF, SINGLE = "float16", "float32"

#: Operators that multiply and add by themselves: they are asked for a float32 result.
_PRODUCTS = frozenset(
    f"relax.{name}"
    for name in (
        "matmul",
        "nn.conv1d",
        "nn.conv1d_transpose",
        "nn.conv2d",
        "nn.conv2d_transpose",
        "nn.conv3d",
        "nn.conv3d_transpose",
    )
)
#: Operators on float32 copies of their tensors, which are fused with them.
_ARITHMETIC = frozenset(
    f"relax.{name}"
    for name in (
        *("add", "subtract", "multiply", "divide", "power", "square", "sqrt", "rsqrt"),
        *(
            "exp",
            "log",
            "erf",
            "sigmoid",
            "tanh",
            "sin",
            "cos",
            "tan",
            "sinh",
            "cosh",
            "log_add_exp",
        ),
        *("sum", "mean", "variance", "std", "prod", "einsum"),
        *("nn.softmax", "nn.log_softmax", "nn.layer_norm", "nn.rms_norm"),
        *("nn.group_norm", "nn.instance_norm"),
        *("nn.avg_pool1d", "nn.avg_pool2d", "nn.avg_pool3d"),
        *("nn.adaptive_avg_pool1d", "nn.adaptive_avg_pool2d", "nn.adaptive_avg_pool3d"),
        *("nn.gelu", "nn.gelu_tanh", "nn.silu", "nn.softplus", "nn.selu", "nn.attention"),
    )
)


def _is_half(expr: Expr) -> bool:
    return isinstance(expr.ty, relax.TensorType) and str(expr.ty.dtype) == HALF


def _wide_attrs(attrs: Any, *, asked: bool) -> Any:
    """Attributes that ask for float16 ask for float32; if ``asked``, those that say nothing too."""
    if attrs is None:
        return None
    info = type(attrs).__tvm_ffi_type_info__
    values = {field.name: getattr(attrs, field.name) for field in info.fields}
    typed = {
        name
        for name, value in values.items()
        if name in ("dtype", "out_dtype") and (asked or str(value) == HALF)
    }
    if not typed:
        return attrs
    return tvm.ir.make_node(info.type_key, **{**values, **dict.fromkeys(typed, SINGLE)})


class _Block(Emitter):
    """The bindings of one block; ``wide`` has the float32 copies that exist already."""

    def __init__(self) -> None:
        super().__init__()
        self.wide: dict[Expr, Expr] = {}

    def widened(self, arg: Expr) -> Expr:
        """A tensor in float32; other arguments as they are."""
        if isinstance(arg, relax.Tuple):
            return relax.Tuple([self.widened(field) for field in arg.fields])
        if not _is_half(arg):
            return arg
        value = constant(arg)
        if value is not None:
            return relax.const(value.astype(SINGLE))
        if arg not in self.wide:
            name = arg.name if isinstance(arg, Var) else "half"
            self.wide[arg] = self.emit(relax.op.astype(arg, SINGLE), f"{name}_wide")
        return self.wide[arg]

    def add(self, binding: relax.Binding) -> None:
        call, var = binding.value, binding.var
        name = op_name(call)
        product = name in _PRODUCTS
        if not _is_half(var) or not (product or name in _ARITHMETIC):
            self.bindings.append(binding)
            return
        args = list(call.args) if product else [self.widened(arg) for arg in call.args]
        attrs = _wide_attrs(call.attrs, asked=product)
        wide = self.emit(Call(call.op, args, attrs, call.ty_args), f"{var.name}_wide")
        self.wide[var] = wide
        half = relax.BlockBuilder().normalize(relax.op.astype(wide, HALF))
        self.bindings.append(relax.VarBinding(var, half))


def _transform(func: relax.Function) -> relax.Function:
    blocks = []
    for bindings in bindings_of(func):
        rewritten = _Block()
        for binding in bindings:
            rewritten.add(binding)
        blocks.append(rewritten.bindings)
    return rebuild(func, blocks)


@tvm.transform.module_pass(opt_level=0, name="WidenHalf")
class WidenHalf:
    """Relax's arithmetic on float16 computes in float32."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return relax.transform.DeadCodeElimination()(map_functions(mod, _transform))
