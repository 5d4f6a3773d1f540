"""One device over RPC: upload a library, run, time and verify it there."""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.target import Target

from topi_kernels.report import RewriteReport

from ..artifact import Manifest
from ..crosscompile import read_elf
from ..description import target_of
from ..devices import device_of, why_not_there
from ..profiling import Profile, Step, check_timing, time_steps
from ..publish import copy_checked
from ..rpc import line
from ..rpc.client import NoDeviceError, TrackerClient, parse_address
from ..rpc.messages import means
from ..tensors import no_such_size
from .errors import (
    DeviceError,
    DeviceLostError,
    WrongDeviceError,
    no_space,
    other_runtime,
    translated,
)

SESSION_TIMEOUT = 120.0
CONNECT_TIMEOUT = 30.0
#: Clusters of big.LITTLE processors, as TVM's thread pool numbers them.
CLUSTERS = {"big": 1, "little": -1}
# More than any file system stores beside a file's name.
_PROBE = bytes(range(256)) * 32
_ARCHITECTURES = {"aarch64": "ARM64", "arm": "32-bit ARM", "x86_64": "x86-64"}


@dataclass(frozen=True)
class Timing:
    """Seconds per run, measured on the device; one entry per repetition."""

    seconds: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        return float(np.median(self.seconds)) * 1e3

    def quantile_ms(self, q: float) -> float:
        return float(np.quantile(self.seconds, q)) * 1e3


@dataclass(frozen=True)
class Verification:
    """Outputs of the device against the expected ones."""

    max_abs_error: float
    max_abs_expected: float
    tolerance: float

    @property
    def passed(self) -> bool:
        # A NaN anywhere makes the comparison false.
        return self.max_abs_error <= self.tolerance * max(1.0, self.max_abs_expected)


class Device:
    """A session on a device.

    Make one by :meth:`from_tracker` or :meth:`connect`.

    Examples
    --------
    >>> with Device.from_tracker("192.168.1.5:9190", "pixel6") as device:
    ...     library = device.load("m.so")
    ...     outputs = library.run(x)
    """

    def __init__(self, session: Any, name: str) -> None:
        self._session = session
        self._libraries: list[RemoteLibrary] = []
        self._loads = 0
        self.name = name

    @classmethod
    def from_tracker(
        cls,
        tracker: str,
        key: str,
        *,
        session_timeout: float = SESSION_TIMEOUT,
        wait: float | None = None,
        skip_silent: bool = True,
    ) -> Device:
        """A free device of ``key``.

        Parameters
        ----------
        tracker : str
            ``HOST:PORT``.
        key : str
        session_timeout : float
            Seconds after which the device ends the session.
        wait : float, optional
            Seconds to wait for a device that is free and answers; default ``session_timeout``.
        skip_silent : bool
            Go on to the next device where one does not answer; otherwise that is an error at once.

        Raises
        ------
        tvm_pattern.rpc.client.RPCError
            If there is no tracker, no such key, or its devices stay busy.
        """
        client, name = TrackerClient(*parse_address(tracker)), f"{key} at {tracker}"
        try:
            return cls(client.request(key, session_timeout, wait, skip_silent=skip_silent), name)
        except NoDeviceError as error:
            if means(str(error), "other_runtime"):
                raise other_runtime(name, str(error)) from error
            raise

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        key: str = "",
        session_timeout: float = SESSION_TIMEOUT,
        wait: float = CONNECT_TIMEOUT,
    ) -> Device:
        """A device whose RPC server is reached directly, without a tracker.

        Parameters
        ----------
        address : str
            ``HOST:PORT`` of the server.
        key : str
            The server's key.
        session_timeout : float
            Seconds after which the device ends the session.
        wait : float
            Seconds to wait for the server.

        Raises
        ------
        DeviceError
            If nothing answers at ``address`` in time, or a TVM of another version.
        """
        host, port = parse_address(address)
        if not session_timeout > 0 or not wait > 0:
            raise ValueError(
                f"got session_timeout={session_timeout} and wait={wait}, expected seconds above 0"
            )
        try:
            line.check_reachable(host, port, wait)
            with translated(address, "connecting"):
                return cls(line.connect(host, port, key, session_timeout, wait), address)
        except line.SilentServerError as error:
            raise DeviceError(f"no RPC server answers at {address}: {error}") from error

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the device back; it becomes free for others."""
        session, self._session = self._session, None
        if session is not None and line.is_over(session):
            line.cut(session)
        for library in self._libraries:
            library.release()
        self._libraries.clear()
        # An error that somebody keeps refers to the session, which would last as long.
        if session is not None:
            line.cut(session)

    @property
    def session(self) -> Any:
        """The TVM session.

        Raises
        ------
        DeviceError
            If the device has been given back.
        """
        if self._session is None:
            raise DeviceError(f"{self.name} has been given back; request a device again")
        return self._session

    def _translated(
        self, doing: str, steps: Sequence[Any] = ()
    ) -> contextlib.AbstractContextManager[None]:
        return translated(self.name, doing, self._session, steps)

    def use_cores(self, cluster: str, num_threads: int) -> None:
        """Bind the device's thread pool to a cluster of cores.

        Parameters
        ----------
        cluster : str
            ``big`` or ``little``.
        num_threads : int
        """
        if cluster not in CLUSTERS or num_threads < 1:
            raise ValueError(
                f"got cluster {cluster!r} and {num_threads} threads, expected one of"
                f" {sorted(CLUSTERS)} and at least 1"
            )
        with self._translated("binding threads"):
            configure = self.session.get_function("runtime.config_threadpool")
            configure(CLUSTERS[cluster], num_threads)

    def load(self, library: str | os.PathLike) -> RemoteLibrary:
        """Upload a library that ``export`` wrote, and load it.

        Raises
        ------
        DeviceError
            If the device has no space, cannot load it, or disappears; the local file and its
            manifest are checked first.
        """
        path = Path(library)
        if path.suffix != ".so" or not path.is_file():
            raise DeviceError(
                f"got {path}, expected an existing .so: a .tar would be linked on the device, which"
                " needs a compiler there"
            )
        content = io.BytesIO()
        manifest = copy_checked(path, content)
        if manifest.host_operators:
            raise DeviceError(
                f"{path} leaves {', '.join(manifest.host_operators)} to torch, which devices do not"
                " have; compile without host_operators, up to what is named"
            )
        target = target_of(manifest, str(path))
        self._check_place(target)
        architecture = read_elf(path).architecture
        self._loads += 1
        # A name of its own: writing over a file that is loaded crashes the session.
        remote = f"{path.stem}-{self._loads}.so"
        self._upload(path.name, content.getvalue(), remote)
        built = f"{_ARCHITECTURES.get(architecture, architecture)} ({manifest.abi or 'gnu'} ABI)"
        try:
            with self._translated(f"loading {path.name}"):
                module = self.session.load_module(remote)
        except (DeviceLostError, WrongDeviceError):
            raise
        except DeviceError as error:
            raise WrongDeviceError(
                f"{self.name} cannot load {path.name}, which is built for {built}; compile for the"
                f" device's own processor and system ({error})"
            ) from error
        try:
            with self._translated("starting the virtual machine"):
                place, cpu = device_of(target, self.session), self.session.cpu(0)
                places = [cpu] if place == cpu else [place, cpu]
                vm = relax.VirtualMachine(module, places)
        except (DeviceLostError, WrongDeviceError):
            raise
        except DeviceError as error:
            raise WrongDeviceError(
                f"{self.name}: the TVM runtime there cannot run a library of TVM"
                f" {manifest.versions.get('tvm', '?')}; install that version there ({error})"
            ) from error
        loaded = RemoteLibrary(self, vm, manifest, place)
        self._libraries.append(loaded)
        return loaded

    def _check_place(self, target: Target) -> None:
        """Refuse a target whose device is not over there, or is another GPU."""
        with self._translated("looking for its device"):
            reason = why_not_there(target, self.session)
        if reason is not None:
            raise WrongDeviceError(f"{self.name} cannot run the library: {reason}")

    def _upload(self, name: str, content: bytes, remote: str) -> None:
        """Send a file, and make sure that it arrived.

        TVM's server does not notice when its disk is full, and a library that was cut off crashes
        it. What is written next would be cut off too, so a small file after it tells.
        """
        doing, probe = f"uploading {name}", f"{remote}.end"
        with self._translated(doing):
            self.session.upload(bytearray(content), target=remote)
            self.session.upload(bytearray(_PROBE), target=probe)
            is_whole = bytes(self.session.download(probe)) == _PROBE
            self.session.remove(probe)
            if not is_whole:
                self.session.remove(remote)
                raise no_space(self.name, doing)

    def read_file(self, path: str) -> str | None:
        """Text of a file on the device, None where it cannot be read."""
        try:
            with self._translated(f"reading {path}"):
                return bytes(self.session.download(path)).decode(errors="replace").strip()
        except DeviceLostError:
            raise
        except DeviceError:
            return None

    def state(self) -> dict[str, float]:
        """Clock in MHz and temperature in degrees Celsius of the first core and zone.

        What the operating system does not show is left out. Only servers in Python read files
        outside their own folder.
        """
        files = {
            "mhz": ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", 1e-3),
            "max_mhz": ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", 1e-3),
            "celsius": ("/sys/class/thermal/thermal_zone0/temp", 1e-3),
        }
        found = {}
        for name, (path, scale) in files.items():
            text = self.read_file(path)
            if text is not None and text.lstrip("-").isdigit():
                found[name] = int(text) * scale
        return found


class RemoteLibrary:
    """A library loaded on a device."""

    def __init__(self, device: Device, vm: Any, manifest: Manifest, place: Any) -> None:
        self.device, self._vm, self.manifest, self._place = device, vm, manifest, place

    @property
    def place(self) -> Any:
        """The ``tvm.runtime.Device`` over there that it runs on."""
        return self._place

    def _translated(
        self, doing: str, size: Manifest | None = None
    ) -> contextlib.AbstractContextManager[None]:
        return self.device._translated(doing, (size or self.manifest).steps)

    def release(self) -> None:
        """Drop what lives on the device; runs are refused from now on."""
        if self._vm is not None:
            # It refers to itself, and shall be gone now: it says farewell to what it has there. A
            # search for such cycles in the whole process takes a quarter of a second.
            vars(self._vm).clear()
        self._vm = self._place = None

    def size_of(self, inputs: Sequence[np.ndarray]) -> int:
        """Number of the library's size that ``inputs`` have.

        Raises
        ------
        ValueError
            If it has none of their shapes and dtypes.
        """
        got = [(tuple(np.shape(x)), str(np.asarray(x).dtype)) for x in inputs]
        sizes = self.manifest.by_size
        wanted = [[(tuple(s["shape"]), s["dtype"]) for s in size.inputs] for size in sizes]
        if got in wanted:
            return wanted.index(got)
        if len(sizes) == 1:
            raise ValueError(f"got inputs {got}, expected {wanted[0]}")
        shapes = [[shape for shape, _ in size] for size in wanted]
        if [shape for shape, _ in got] in shapes:
            raise ValueError(f"got inputs {got}, expected the dtypes of {wanted[0]}")
        raise ValueError(no_such_size([shape for shape, _ in got], shapes))

    def _arguments(self, inputs: Sequence[np.ndarray]) -> list[Any]:
        _ = self.device.session
        with self._translated("copying inputs"):
            return [tvm.runtime.tensor(np.ascontiguousarray(x), self._place) for x in inputs]

    def run(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Outputs for ``inputs``, whose shapes and dtypes are those of a size of the library."""
        size = self.manifest.by_size[self.size_of(inputs)]
        arguments, function = self._arguments(inputs), size.function
        with self._translated("running", size):
            self._vm.set_input(function, *arguments)
            self._vm.invoke_stateful(function)
            result = self._vm.get_outputs(function)
            outputs = result if isinstance(result, list | tuple) else [result]
            return tuple(output.numpy() for output in outputs)

    def verify(
        self, inputs: Sequence[np.ndarray], expected: Sequence[np.ndarray], tolerance: float = 1e-4
    ) -> Verification:
        """Run and compare with an oracle's outputs; errors are relative to the largest value."""
        outputs = self.run(*inputs)
        shapes = [o.shape for o in outputs], [np.shape(e) for e in expected]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the device gives shapes {shapes[0]}, expected holds {shapes[1]}")
        pairs = list(zip(outputs, expected, strict=True))
        error = max(float(np.abs(o - e).max()) for o, e in pairs)
        return Verification(error, max(float(np.abs(e).max()) for e in expected), tolerance)

    def time(
        self,
        *inputs: np.ndarray,
        repeat: int = 10,
        number: int = 1,
        cool_down: float = 0.0,
    ) -> Timing:
        """Time runs on the device, by its own clock, after one run to warm up.

        Parameters
        ----------
        repeat, number : int
            Results, and runs averaged into each.
        cool_down : float
            Seconds of rest before each result, against throttling.
        """
        if repeat < 1 or number < 1 or cool_down < 0:
            raise ValueError(
                f"got repeat={repeat}, number={number}, cool_down={cool_down}; expected >= 1, >= 1"
                " and >= 0"
            )
        size = self.manifest.by_size[self.size_of(inputs)]
        arguments = self._arguments(inputs)
        seconds: list[float] = []
        with self._translated("timing", size):
            self._vm.set_input(size.function, *arguments)
            once = repeat if cool_down == 0 else 1
            timer = self._vm.time_evaluator(
                "invoke_stateful", self._place, number=number, repeat=once
            )
            while len(seconds) < repeat:
                time.sleep(cool_down)
                seconds += timer(size.function).results
        return Timing(tuple(seconds))

    def profile(
        self,
        *,
        repeat: int = 5,
        min_repeat_ms: int = 2,
        cool_down: float = 0.0,
        size: int = 0,
    ) -> Profile:
        """Time every compiled call of the network on the device, by its own clock.

        ``size`` is the number of one of the library's sizes. See
        :func:`tvm_pattern.profiling.time_steps` for the other parameters and what they raise.
        """
        manifest = self.manifest.by_size[size]
        steps = [Step.from_dict(step) for step in manifest.steps]
        check_timing(steps, repeat, min_repeat_ms, cool_down)
        _ = self.device.session
        with self._translated("profiling", manifest):
            return time_steps(
                self._vm,
                self._place,
                steps,
                manifest.inputs,
                repeat=repeat,
                min_repeat_ms=min_repeat_ms,
                cool_down=cool_down,
                report=RewriteReport.from_json(json.dumps(manifest.report)),
                main=manifest.function,
            )
