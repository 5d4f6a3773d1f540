"""``graph_executor.GraphModule``: set inputs, run, get outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm

from ..artifact import Library


class ExecutorModule:
    """What ``lib["default"](device)`` returns; hand it to :class:`GraphModule`."""

    def __init__(self, library: Library | Any, device: Any = None) -> None:
        own = library.device
        if device is not None and device.dlpack_device_type() != own.dlpack_device_type():
            raise ValueError(f"the library is compiled for {own}, got the device {device}")
        self.library = library
        self._inputs: list[Any] = [None] * len(library.inputs)
        self._outputs: tuple[Any, ...] | None = None

    def set_input(self, key: str | int, value: Any) -> None:
        """Store an input by name or index."""
        self._inputs[self.index_of(key)] = value

    def get_input(self, key: str | int) -> Any:
        """The value stored by :meth:`set_input`; None before."""
        return self._inputs[self.index_of(key)]

    def index_of(self, key: str | int) -> int:
        """Position of an input."""
        names = [spec.name for spec in self.library.inputs]
        if isinstance(key, int) and 0 <= key < len(names):
            return key
        if key not in names:
            raise KeyError(f"no input {key!r}; expected one of {names} or an index")
        return names.index(key)

    def stored_inputs(self) -> list[Any]:
        """All inputs.

        Raises
        ------
        ValueError
            If one is missing.
        """
        missing = [
            spec.name
            for spec, value in zip(self.library.inputs, self._inputs, strict=True)
            if value is None
        ]
        if missing:
            raise ValueError(f"inputs {missing} are not set; call set_input(name, value) first")
        return self._inputs

    def run(self) -> None:
        """Run on the stored inputs."""
        result = self.library(*self.stored_inputs())
        self._outputs = result if isinstance(result, tuple) else (result,)

    def get_output(self, index: int) -> tvm.runtime.Tensor:
        """Output ``index`` of the last run."""
        if self._outputs is None:
            raise RuntimeError("no run yet; call run() before get_output()")
        if not 0 <= index < len(self._outputs):
            raise IndexError(f"no output {index}; the model has {len(self._outputs)}")
        return tvm.runtime.tensor(np.asarray(self._outputs[index]))

    def time_evaluator(
        self, func_name: str, dev: Any = None, number: int = 10, repeat: int = 1
    ) -> Callable[[], Any]:
        """Timer of ``run``: call it for a ``BenchmarkResult`` in seconds."""
        if func_name != "run":
            raise ValueError(f"cannot time {func_name!r}; expected 'run'")
        return lambda: self.library.benchmark(*self.stored_inputs(), number=number, repeat=repeat)


class GraphModule:
    """Relay's graph executor on top of a compiled library.

    Parameters
    ----------
    module : ExecutorModule
        ``lib["default"](device)``.
    """

    def __init__(self, module: ExecutorModule) -> None:
        if not isinstance(module, ExecutorModule):
            raise TypeError(
                f"got a {type(module).__name__}, expected lib['default'](device) of relay.build"
            )
        self.module = module

    def set_input(self, key: str | int | None = None, value: Any = None, **params: Any) -> None:
        """Set one input by name or index, or several by keyword."""
        if key is not None:
            self.module.set_input(key, value)
        for name, item in params.items():
            self.module.set_input(name, item)

    def run(self, **input_dict: Any) -> None:
        """Run, after setting the inputs given by keyword."""
        self.set_input(**input_dict)
        self.module.run()

    def get_num_inputs(self) -> int:
        return len(self.module.library.inputs)

    def get_num_outputs(self) -> int:
        return len(self.module.library.outputs)

    def get_input(self, index: str | int) -> Any:
        return self.module.get_input(index)

    def get_output(self, index: int) -> tvm.runtime.Tensor:
        """Output ``index`` of the last run; ``.numpy()`` gives the array."""
        return self.module.get_output(index)

    def benchmark(
        self, device: Any = None, func_name: str = "run", repeat: int = 5, number: int = 5
    ) -> Any:
        """Time ``run`` on the inputs that are set; a ``BenchmarkResult`` in seconds."""
        return self.module.time_evaluator(func_name, device, number=number, repeat=repeat)()
