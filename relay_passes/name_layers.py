"""NameLayers: the value that a convolution ends in is named after its layer.

Preconditions: FuseEpilogue has run, so that a marker's value is that of its whole epilogue. Later
passes keep the names, which is how compiled functions are told by layer.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from .dataflow import relax_functions
from .markers import parse

#: What PlaneLayout appends to the name of a value that lives as planes.
PLANES_SUFFIX = "_planes"
# Before a layer's name that is no name in C, such as the "0" of a Sequential.
_MARK = "_"


def layer_of(name: str) -> str:
    """Layer, or other value, that a variable of a lowered module holds."""
    return name.removesuffix(PLANES_SUFFIX).removeprefix(_MARK)


def variable_of(layer: str) -> str:
    """A name that TVM can give to arguments of kernels: in C none begins with a digit."""
    return _MARK + layer if layer[:1].isdigit() or layer.startswith(_MARK) else layer


@mutator
class _Namer(PyExprMutator):
    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        marker = parse(binding.value)
        if marker is None or "layer" not in marker.params:
            super().visit_var_binding_(binding)
            return
        value = self.visit_expr(binding.value)
        named = type(binding.var)(variable_of(marker.params["layer"]), binding.var.ty)
        self.builder_.emit_normalized(relax.VarBinding(named, value))
        self.set_var_remap(binding.var, named)


@tvm.transform.module_pass(opt_level=0, name="NameLayers")
class NameLayers:
    """Variables of convolution markers take the names of their layers."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        result = mod.clone()
        for gv, func in relax_functions(mod):
            result.update_func(gv, _Namer(mod).visit_expr(func))
        return result
