"""How every scheduled PrimFunc of this project begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

OPAQUE = 8  # TVM's OpPatternKind: FuseOps leaves the PrimFunc alone.


@contextmanager
def primfunc_builder(name: str) -> Iterator[IRBuilder]:
    """Open a PrimFunc that no later pass reschedules or fuses; arguments never alias."""
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True, "op_pattern": OPAQUE})
        yield ib
