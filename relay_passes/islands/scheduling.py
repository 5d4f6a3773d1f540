"""What the operators of islands need while their markers become PrimFuncs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.ir import GlobalVar

from topi_kernels import compute, plane_operators
from topi_kernels.backend import Backend
from topi_kernels.task import Task

from ..report import ReportBuilder

#: Tuned config of a task (:data:`topi_kernels.task.Task`), or None for the default.
ConfigFor = Callable[[Any], Any]


def no_records(_task: Task) -> None:
    """The lookup that knows no tuned config."""


class Scheduling:
    """One module that is being scheduled.

    Parameters
    ----------
    mod : tvm.IRModule
    backend : Backend
    report : ReportBuilder
    config_for : callable
        ``Task -> config or None``: tuned configs.
    naive : bool
        Every operator as it is specified instead of as it is scheduled.
    """

    def __init__(
        self,
        mod: tvm.IRModule,
        backend: Backend,
        report: ReportBuilder,
        config_for: ConfigFor = no_records,
        *,
        naive: bool = False,
    ) -> None:
        self.builder = relax.BlockBuilder(mod)
        self.backend = backend
        self.report = report
        self.config_for = config_for
        self.naive = naive
        self.functions: dict[Hashable, GlobalVar] = {}

    @property
    def operators(self) -> Any:
        """The module that makes the PrimFuncs of operators on planes."""
        return compute if self.naive else plane_operators

    def function(self, key: Hashable, make: Callable[[], tirx.PrimFunc]) -> GlobalVar:
        """The module's function for ``key``; made and added at its first use."""
        if key not in self.functions:
            primfunc = make()
            name = str(dict(primfunc.attrs)["global_symbol"])
            anonymous = primfunc.without_attr("global_symbol")
            self.functions[key] = self.builder.add_func(anonymous, name)
        return self.functions[key]
