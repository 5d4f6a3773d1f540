"""What ``request_remote`` gives: a session as old scripts use it, over this project's devices."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tvm.runtime.module import BenchmarkResult

from ..deploy import Device, DeviceError
from ..relay.graph_executor import ExecutorModule
from ..tensors import spec_of


class RemoteModule:
    """A library on a device: ``module["default"](device)`` is for ``GraphModule``.

    It is called and timed as a :class:`tvm_pattern.Library` is.
    """

    def __init__(self, loaded: Any) -> None:
        self._loaded = loaded
        self.inputs = tuple(spec_of(data) for data in loaded.manifest.inputs)
        self.outputs = tuple(spec_of(data) for data in loaded.manifest.outputs)
        self.device = loaded.place

    def __getitem__(self, name: str) -> Callable[..., ExecutorModule]:
        if name != "default":
            raise KeyError(f"no function {name!r} in this library; expected 'default'")
        return lambda device=None: ExecutorModule(self, device)

    def __call__(self, *inputs: Any) -> tuple[np.ndarray, ...]:
        """Run on the device."""
        return self._loaded.run(*map(_as_numpy, inputs))

    def benchmark(self, *inputs: Any, number: int = 1, repeat: int = 10) -> BenchmarkResult:
        """Time runs by the device's own clock."""
        timing = self._loaded.time(*map(_as_numpy, inputs), number=number, repeat=repeat)
        return BenchmarkResult(list(timing.seconds))


class RemoteSession:
    """A device: ``upload`` a library, ``load_module`` it, and what TVM's own session has.

    Parameters
    ----------
    device : Device
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._files: dict[str, Path] = {}

    def upload(self, data: str | os.PathLike, target: str | None = None) -> None:
        """Name a library that :meth:`load_module` sends, with its manifest.

        Raises
        ------
        DeviceError
            If there is no such file.
        """
        path = Path(data)
        if not path.is_file():
            raise DeviceError(f"no such file: {path}; expected a library that export_library wrote")
        self._files[target or path.name] = path

    def load_module(self, path: str) -> RemoteModule:
        """Send a library and load it on the device.

        Raises
        ------
        DeviceError
            If it was not uploaded, or the device cannot load it.
        """
        if path not in self._files:
            raise DeviceError(
                f"got {path!r}, expected one of the uploaded {sorted(self._files)}; call"
                " upload(file) first"
            )
        return RemoteModule(self._device.load(self._files[path]))

    def close(self) -> None:
        """Give the device back."""
        self._device.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device.session, name)


def _as_numpy(value: Any) -> np.ndarray:
    return value.numpy() if hasattr(value, "numpy") else np.asarray(value)
