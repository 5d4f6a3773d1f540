"""IntoDataflow: operators that stand outside of dataflow blocks -> blocks of their own.

Preconditions: none; run before the passes that add bindings, which are those of dataflow blocks.
"""

from __future__ import annotations

import tvm
from tvm import relax

from .dataflow import relax_functions


def _is_outside(func: relax.Function) -> bool:
    return not all(isinstance(block, relax.DataflowBlock) for block in func.body.blocks)


@tvm.transform.module_pass(opt_level=0, name="IntoDataflow")
class IntoDataflow:
    """What has no effects stands in dataflow blocks; variables keep their names."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        if not any(_is_outside(func) for _, func in relax_functions(mod)):
            return mod
        return relax.transform.ConvertToDataflow(1)(mod)
