"""``relay.build``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax
from tvm.support import cc as tvm_cc
from tvm.support import ndk
from tvm.target import Target

from relay_passes.targets import resolve

from ..artifact import Library
from ..compiler import compile as compile_library
from ..crosscompile import NDK_VARIABLE
from ..tuning.history import current_log
from .graph_executor import ExecutorModule


class BuiltModule:
    """What ``relay.build`` returns: ``lib["default"](device)`` makes an executor.

    ``library`` is the :class:`tvm_pattern.Library`, with its report.
    """

    def __init__(self, library: Library, name: str = "default") -> None:
        self.library = library
        self._name = name

    def __getitem__(self, name: str) -> Any:
        if name != self._name:
            raise KeyError(f"no function {name!r} in this library; expected {self._name!r}")
        return lambda device=None: ExecutorModule(self.library, device)

    def export_library(
        self,
        file_name: str | os.PathLike,
        fcompile: str | Callable[..., Any] | None = None,
        *,
        cc: str | None = None,
    ) -> None:
        """Write the library and its manifest, see :meth:`tvm_pattern.Library.export`.

        Parameters
        ----------
        file_name : str or os.PathLike
        fcompile : callable or str, optional
            ``tvm.support.ndk.create_shared`` links for Android by the compiler that ``TVM_NDK_CC``
            names; ``tvm.support.cc.create_shared`` is the default. A text is the same as ``cc``.
        cc : str, optional
            Linker driver.

        Raises
        ------
        TypeError
            On another function.
        RuntimeError
            If ``TVM_NDK_CC`` is not set.
        """
        if fcompile is ndk.create_shared and not os.environ.get(NDK_VARIABLE):
            raise RuntimeError(
                f"ndk.create_shared needs the environment variable {NDK_VARIABLE}: the path of an"
                " Android NDK's clang, such as .../bin/aarch64-linux-android24-clang"
            )
        if isinstance(fcompile, str):
            fcompile, cc = None, fcompile
        if fcompile not in (None, ndk.create_shared, tvm_cc.create_shared):
            raise TypeError(
                f"got fcompile={fcompile!r}, expected tvm.support.ndk.create_shared or none; name"
                " another linker by cc="
            )
        self.library.export(file_name, cc=cc)


def build(
    ir_mod: tvm.IRModule,
    target: str | dict | Target = "pattern/native",
    target_host: str | Target | None = None,
    params: dict[str, Any] | None = None,
    mod_name: str = "default",
    tuning_log: str | os.PathLike | None = None,
    num_threads: int | None = None,
    *,
    verify: bool | str = True,
) -> BuiltModule:
    """Compile what ``relay.frontend`` imported.

    Parameters
    ----------
    ir_mod : tvm.IRModule
    target, tuning_log, num_threads, verify
        As :func:`tvm_pattern.compile`; the log is by default that of
        :func:`tvm_pattern.autotvm.apply_history_best` around the call. The library is held against
        ``ir_mod``; the model that it was imported from is not known any more.
    target_host : str or tvm.target.Target, optional
        The CPU beside a GPU target, such as ``cortex-a76`` or ``native``.
    params : dict of str to array, optional
        Inputs of ``main`` to bind as constants.
    mod_name : str
        Key of the executor factory in the result.

    Returns
    -------
    BuiltModule
    """
    ir_mod = bind(ir_mod, params)
    if tuning_log is None:
        tuning_log = current_log()
    if target_host is not None:
        target = resolve(target, target_host)
    library = compile_library(
        ir_mod, target=target, tuning_log=tuning_log, num_threads=num_threads, verify=verify
    )
    return BuiltModule(library, mod_name)


def bind(mod: tvm.IRModule, params: dict[str, Any] | None) -> tvm.IRModule:
    """Inputs of ``main`` as constants."""
    if not params:
        return mod
    return relax.transform.BindParams("main", _as_tensors(mod, params))(mod)


def _as_tensors(mod: tvm.IRModule, params: dict[str, Any]) -> dict[str, Any]:
    names = [p.name for p in mod["main"].params]
    unknown = sorted(set(params) - set(names))
    if unknown:
        raise ValueError(f"params {unknown} are no inputs of the module; expected some of {names}")
    return {
        name: value if isinstance(value, tvm.runtime.Tensor) else tvm.runtime.tensor(value)
        for name, value in params.items()
    }
