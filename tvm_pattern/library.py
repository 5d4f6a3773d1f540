"""A compiled library: run it, time it, write it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import tvm
from tvm import relax
from tvm.target import Target

from .description import report_of, target_of
from .devices import device_of, why_no_device
from .layer_source import LayerSource, Sources
from .linking import CompiledCode
from .machine import why_not_runnable
from .manifest import ArtifactError, Manifest, bad_field
from .opencl.errors import explain, message_of
from .profiling import MAIN, Profile, Step, check_timing, time_steps
from .publish import publish
from .tensors import as_array, no_such_size, spec_of
from .threads import calls_at_once, check_num_threads, run_on, threads_here, warn_of_threads
from .vm_pool import VMPool

SUFFIXES = (".so", ".tar")


class Code(Protocol):
    """Where a library's functions come from."""

    def module(self) -> tvm.runtime.Module: ...


class Library:
    """A compiled model. Call it with numpy arrays, or with torch tensors for torch tensors.

    Made by :func:`tvm_pattern.compile` or :func:`tvm_pattern.load`. One that was compiled for
    several sizes chooses by the shapes that it is called with; what it says of itself (``inputs``,
    ``report``, ``profile``) is the first size's, and ``sizes`` has them all.

    Any number of threads may call it at the same time: as many calls run at once as fit the cores,
    the others wait. A forked child may call it too. Its memory is freed with the last reference to
    it.
    """

    def __init__(
        self,
        code: Code,
        manifest: Manifest,
        origin: str = "this library",
        sources: Sources | None = None,
        machines: VMPool | None = None,
    ) -> None:
        self._code = code
        self._sources = sources or Sources({})
        self._origin = origin
        self.manifest = manifest
        self.inputs = tuple(spec_of(data) for data in manifest.inputs)
        self.outputs = tuple(spec_of(data) for data in manifest.outputs)
        self._num_threads = threads_here(manifest.num_threads)
        self.target = target_of(manifest, origin)
        self.report = report_of(manifest, origin)
        self._device: tvm.runtime.Device | None = None
        # No reference back to the library: it is freed as soon as nobody has it any more.
        start = functools.partial(_start, code, manifest, self.target, origin)
        self._vms = machines or VMPool(start)
        self._is_checked = False
        # The single sizes run on the same machines; none of them refers back to the whole.
        self._sizes = tuple(
            Library(code, size, origin, self._sources, self._vms)
            for size in (manifest.by_size if manifest.sizes else ())
        )

    @property
    def sizes(self) -> tuple[Library, ...]:
        """A library for each size that this one was compiled for, the first first.

        They share code and weights with it; each has its own ``inputs``, ``report``, ``profile``
        and ``manifest``, and takes that size alone. Only the whole can be exported.
        """
        return self._sizes or (self,)

    def add_note(self, note: str) -> None:
        """Add a line to the report, which the manifest keeps."""
        for size in self._sizes:
            size.add_note(note)
        self.manifest = replace(self.manifest, notes=[*self.manifest.notes, note])
        self.report = report_of(self.manifest, self._origin)

    def record_verification(self, verification: dict[str, Any], number: int = 0) -> None:
        """Keep what a check of a size found: in the manifest, and as a line of the report."""
        if self._sizes:
            self._sizes[number].record_verification(verification)
        self.manifest = self.manifest.with_verification(number, verification)
        self.report = report_of(self.manifest, self._origin)

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.inputs))
        outputs = ", ".join(map(str, self.outputs))
        more = f" and {len(self._sizes) - 1} further sizes" if self._sizes else ""
        return f"Library({inputs} -> {outputs}{more}; {self.manifest.architecture})"

    def at(self, *inputs: Any) -> Library:
        """The library of the size that ``inputs`` have; this one where it has one size.

        Raises
        ------
        ValueError
            If it is none of the compiled sizes; the message names the nearest.
        """
        if not self._sizes:
            return self
        shapes = [tuple(getattr(value, "shape", ())) for value in inputs]
        for size in self._sizes:
            if [spec.shape for spec in size.inputs] == shapes:
                return size
        known = [[spec.shape for spec in size.inputs] for size in self._sizes]
        raise ValueError(no_such_size(shapes, known))

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "a Library holds machine code and cannot be pickled or copied; write it by"
            " lib.export('name.so') and read it by tvm_pattern.load('name.so'), in each process"
        )

    def __deepcopy__(self, memo: Any) -> NoReturn:
        self.__reduce_ex__(memo)

    @property
    def num_threads(self) -> int:
        """Threads of a run, the caller included; it may be set, up to the compiled number.

        No more than the CPUs that this process may use: a higher number is lowered, with a
        :class:`tvm_pattern.threads.MoreThreadsThanCPUs` warning where it was asked for.

        Raises
        ------
        ValueError
            When set to something else.
        """
        return self._num_threads

    @num_threads.setter
    def num_threads(self, num_threads: int) -> None:
        threads = check_num_threads(num_threads)
        if threads > self.manifest.num_threads:
            raise ArtifactError(
                f"{self._origin} is compiled for {self.manifest.num_threads} threads, got"
                f" num_threads={threads}; compile it again for more"
            )
        warn_of_threads(threads)
        for library in (self, *self._sizes):
            library._num_threads = threads_here(threads)

    @property
    def device(self) -> tvm.runtime.Device:
        """Where it runs.

        Raises
        ------
        ArtifactError
            If the device is not there.
        """
        if self._device is None:
            self._device = _device_of(self.target)
        return self._device

    @property
    def vm(self) -> relax.VirtualMachine:
        """A Relax virtual machine of the library; made at the first use.

        It is the one that calls use while only one thread calls. It must not be used while another
        thread calls the library.

        Raises
        ------
        ArtifactError
            If this machine cannot run the library.
        """
        return self._vms.first

    def __call__(self, *inputs: Any) -> Any:
        """Run the model.

        Parameters
        ----------
        *inputs : numpy.ndarray or torch.Tensor
            One per input, of exactly its shape and dtype.

        Returns
        -------
        numpy.ndarray or torch.Tensor, or tuple of them
            Tensors, on the CPU, if any input is one; they share the memory that the library wrote.
            A tuple if the model has several outputs.

        Raises
        ------
        ValueError
            On a wrong number of inputs, or a wrong shape or dtype.
        RuntimeError
            If autograd would follow a tensor: there are no gradients.
        OpenCLError
            If the device cannot run it; the layer is named.
        """
        if self._sizes:
            return self.at(*inputs)(*inputs)
        give = _as_numpy
        for value in inputs:
            if hasattr(value, "requires_grad"):
                refuse_gradients, give = _for_tensors()
                refuse_gradients(inputs)
                break
        arguments = self.to_device(*inputs)
        run = self._run if self._is_checked else self._run_first
        try:
            result = run_on(self._num_threads, run, arguments)
            if len(self.outputs) == 1 and hasattr(result, "numpy"):
                return give(result)
            return tuple(map(give, result))
        except RuntimeError as error:
            raise self._told(error) from error.__cause__

    def _run(self, arguments: list[tvm.runtime.Tensor]) -> Any:
        vm = self._vms.borrow(calls_at_once(self._num_threads))
        try:
            return vm.function(self.manifest.function)(*arguments)
        finally:
            self._vms.give_back(vm)

    def _told(self, error: RuntimeError) -> RuntimeError:
        """An error of a run, by the layer that it is about where it is OpenCL's."""
        return explain(str(error), self.manifest.steps) or error

    def _run_first(self, arguments: list[tvm.runtime.Tensor]) -> Any:
        """Run, and hold the result against the manifest, which may have been edited."""
        _ = self.vm
        try:
            result = self._run(arguments)
        except AttributeError:
            name = self.manifest.function
            raise bad_field(self._origin, "function", f"it has no function {name!r}") from None
        except (RuntimeError, ValueError, TypeError) as error:
            if message_of(str(error)) is not None:
                raise
            reason = str(error).strip().splitlines()[-1]
            raise bad_field(
                self._origin, "inputs", f"the code does not take them ({reason})"
            ) from error
        values = (result,) if hasattr(result, "numpy") else tuple(result)
        got = [(list(value.shape), str(value.dtype)) for value in values]
        expected = [(list(spec.shape), spec.dtype) for spec in self.outputs]
        if got != expected:
            raise bad_field(self._origin, "outputs", f"the code gives {got}, not {expected}")
        self._is_checked = True
        return result

    def to_device(self, *inputs: Any) -> list[tvm.runtime.Tensor]:
        """Check ``inputs`` as a call does and copy them to the device."""
        if self._sizes:
            return self.at(*inputs).to_device(*inputs)
        if len(inputs) != len(self.inputs):
            raise ValueError(
                f"got {len(inputs)} inputs, expected {len(self.inputs)}:"
                f" {', '.join(map(str, self.inputs))}"
            )
        arrays = [as_array(v, spec) for v, spec in zip(inputs, self.inputs, strict=True)]
        device = self.device
        try:
            return [tvm.runtime.tensor(array, device) for array in arrays]
        except RuntimeError as error:
            raise self._told(error) from error.__cause__

    def source(self, layer: str) -> LayerSource:
        """What computes a layer: its PrimFuncs and their assembly, or OpenCL C.

        Parameters
        ----------
        layer : str
            As reports and profiles name it; or the name of a compiled function.

        Returns
        -------
        LayerSource
            ``print`` shows all of it; its ``functions`` have ``tir`` and ``code``.

        Raises
        ------
        ValueError
            If there is no such layer, or the library was written without its sources.
        """
        return self._sources.of_layer(layer, self.manifest.steps, self.target)

    def as_module(self) -> Any:
        """The library as a :class:`torch.nn.Module`: tensors in, tensors out, no gradients."""
        from .torch_module import LibraryModule

        return LibraryModule(self)

    def benchmark(self, *inputs: Any, number: int = 1, repeat: int = 10) -> Any:
        """Time runs on the device.

        Parameters
        ----------
        *inputs : numpy.ndarray or torch.Tensor
        number : int
            Runs averaged into one result.
        repeat : int
            Results; one more run warms up.

        Returns
        -------
        tvm.runtime.module.BenchmarkResult
            ``results``, ``median``, ``mean``, ``min``, ``max``, ``std`` in seconds.

        Raises
        ------
        ValueError
            If ``number`` or ``repeat`` is no integer >= 1, or as a call does.
        """
        for name, value in (("number", number), ("repeat", repeat)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: expected an integer >= 1")
        arguments = self.to_device(*inputs)
        function = self.at(*inputs).manifest.function

        def measure(vm: relax.VirtualMachine) -> Any:
            vm.save_function(function, "timed_main", *arguments, include_return=False)
            return vm.time_evaluator("timed_main", self.device, number=number, repeat=repeat)()

        return self._with_vm(measure)

    def profile(
        self, *, repeat: int = 5, min_repeat_ms: int = 2, cool_down: float = 0.0
    ) -> Profile:
        """Time every compiled call by itself, and the whole network; of the first size.

        See :func:`tvm_pattern.profiling.time_steps` for the parameters and what they raise.
        """
        steps = [Step.from_dict(step) for step in self.manifest.steps]
        check_timing(steps, repeat, min_repeat_ms, cool_down)

        def measure(vm: relax.VirtualMachine) -> Profile:
            return time_steps(
                vm,
                self.device,
                steps,
                self.manifest.inputs,
                repeat=repeat,
                min_repeat_ms=min_repeat_ms,
                cool_down=cool_down,
                report=self.report,
                main=self.manifest.function,
            )

        return self._with_vm(measure)

    def _with_vm(self, function: Any) -> Any:
        """``function(vm)`` on this library's threads, with a machine of its own."""

        def run() -> Any:
            vm = self._vms.borrow(calls_at_once(self._num_threads))
            try:
                return function(vm)
            finally:
                self._vms.give_back(vm)

        try:
            return run_on(self._num_threads, run)
        except RuntimeError as error:
            raise self._told(error) from error.__cause__

    def export(self, path: str | os.PathLike, cc: str | None = None) -> Path:
        """Write the library and its manifest.

        A good library of that name is there until the new one and its manifest are on the disk:
        whatever stops the export, :func:`tvm_pattern.load` finds the old pair or the new one.

        Parameters
        ----------
        path : str or os.PathLike
            Ends in ``.so``, or in ``.tar`` for object files that are linked at loading.
        cc : str, optional
            Linker driver; by default ``gcc`` or Debian's cross compiler of the architecture.

        Returns
        -------
        pathlib.Path
            The library file; :func:`manifest_path` gives the manifest's.

        Raises
        ------
        ArtifactError
            On another suffix, a missing folder or a missing compiler, and when the disk is full.
        """
        path = Path(path)
        check_export_path(path)
        code = self._code
        if not isinstance(code, CompiledCode):
            raise ArtifactError("a loaded library cannot be exported again; copy its two files")
        if self.manifest.function != MAIN:
            raise ArtifactError("this is one size of a library; export the whole library")

        def write(file: Any) -> Manifest:
            if path.suffix == ".tar":
                code.write_tar(file)
                self._sources.append_to(file)
                return self.manifest
            linked = code.write_so(file, cc)
            self._sources.append_to(file)
            return replace(self.manifest, abi=linked.abi, page_size=linked.page_size)

        publish(path, write)
        return path


def check_export_path(path: Path) -> None:
    """Refuse what no library can be written to, before anything is compiled for it.

    Raises
    ------
    ArtifactError
        On another suffix, a missing folder, or a name that is no file's.
    """
    if path.suffix not in SUFFIXES:
        raise ArtifactError(f"got {path.name!r}, expected a name ending in .so or .tar")
    if not path.parent.is_dir():
        raise ArtifactError(f"no such folder: {path.parent}; create it first")
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path} is no file; choose another name")


class _Machine(relax.VirtualMachine):
    """A virtual machine and its functions, which take a while to look up."""

    def __init__(self, module: tvm.runtime.Module, device: tvm.runtime.Device) -> None:
        super().__init__(module, device)
        self._found: dict[str, Any] = {}

    def function(self, name: str) -> Any:
        """A function of the library, by name."""
        found = self._found.get(name)
        if found is None:
            found = self._found[name] = self[name]
        return found


def _start(code: Code, manifest: Manifest, target: Target, origin: str) -> _Machine:
    reason = why_not_runnable(manifest.architecture, manifest.cpu_features)
    if reason is not None:
        raise ArtifactError(
            f"{origin} cannot run here: {reason}; export it and run it on its own machine, or"
            " compile for pattern/native"
        )
    device = _device_of(target)
    return _Machine(code.module(), device)


def _device_of(target: Target) -> tvm.runtime.Device:
    reason = why_no_device(target)
    if reason is not None:
        raise ArtifactError(f"the library cannot run here: {reason}")
    return device_of(target)


@functools.cache
def _for_tensors() -> tuple[Callable[..., None], Callable[..., Any]]:
    """What calls with tensors need of torch, which calls with arrays do not import."""
    from .torch_module import as_tensor, refuse_gradients

    return refuse_gradients, as_tensor


def _as_numpy(value: tvm.runtime.Tensor) -> np.ndarray:
    return value.numpy()
