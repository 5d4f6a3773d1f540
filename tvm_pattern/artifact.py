"""A compiled library and its manifest: run it, save it, load it again.

``lib.export("m.so")`` writes the shared library and beside it ``m.so.json``, the manifest: what the
library takes and gives, which machine it needs, which versions built it, the report of the
compilation and the SHA-256 of the library file. ``load`` checks all of it before any code runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.target import Target

from relay_passes.report import RewriteReport

from . import __version__
from .crosscompile import CrossCompileError, Linker, find_linker, read_elf
from .frontend import TensorSpec
from .machine import (
    host_target,
    required_features,
    target_architecture,
    why_not_runnable,
)
from .profiling import Profile, Step, time_steps
from .threads import check_num_threads, use_threads

MANIFEST_SCHEMA = 3
SUFFIXES = (".so", ".tar")


class ArtifactError(ValueError):
    """A library file that cannot be written, read or run here."""


@dataclass(frozen=True)
class Manifest:
    """What has to be known about a library to use it.

    Parameters
    ----------
    target : dict
        The TVM target, as ``Target`` takes it.
    architecture : str
        ``x86_64``, ``aarch64`` or ``arm``.
    cpu_features : list of str
        LLVM names of the CPU features that the code may use.
    inputs, outputs : list of dict
        Name, shape and dtype of each.
    num_threads : int
        Threads of a run, the caller included.
    versions : dict
        Of this package, TVM and Python at compile time.
    report : list of dict
        One row per convolution.
    steps : list of dict
        The functions that :mod:`tvm_pattern.profiling` times.
    abi : str
        ``gnu``, ``gnueabihf`` or ``android``; empty for a ``.tar`` and before export.
    page_size : int
        Alignment in bytes of the library's segments; the device's pages may not be larger.
    sha256 : str
        Of the library file; empty before export.
    verification : dict
        What the check against the model itself found, see
        :class:`tvm_pattern.verification.Verification`; empty if nobody has checked.
    """

    target: dict[str, Any]
    architecture: str
    cpu_features: list[str]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    num_threads: int
    versions: dict[str, str]
    report: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    abi: str = ""
    page_size: int = 0
    sha256: str = ""
    verification: dict[str, Any] = field(default_factory=dict)
    schema: int = MANIFEST_SCHEMA

    @classmethod
    def create(
        cls,
        target: Target,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        num_threads: int,
        report: RewriteReport,
        steps: Sequence[Step] = (),
    ) -> Manifest:
        """The manifest of a library that was compiled just now."""
        return cls(
            target=_plain(target.export()),
            architecture=target_architecture(target),
            cpu_features=required_features(target),
            inputs=[asdict(spec) for spec in inputs],
            outputs=[asdict(spec) for spec in outputs],
            num_threads=num_threads,
            versions={
                "tvm_pattern": __version__,
                "tvm": tvm.__version__,
                "python": platform.python_version(),
            },
            report=json.loads(report.to_json()),
            steps=[_plain(asdict(step)) for step in steps],
        )

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Parse a manifest file.

        Raises
        ------
        ArtifactError
            If it is missing, no JSON, of an unknown schema, or lacks fields.
        """
        if not path.is_file():
            raise ArtifactError(
                f"no manifest {path}; expected the file that export() wrote beside the library:"
                " copy both"
            )
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ArtifactError(f"{path} is not JSON ({error}); export the library again") from None
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != MANIFEST_SCHEMA:
            raise ArtifactError(
                f"{path} has the schema {schema!r}, expected {MANIFEST_SCHEMA}; export the library"
                " again with this version"
            )
        names = {field.name for field in fields(cls)}
        if set(data) != names:
            raise ArtifactError(
                f"{path}: missing fields {sorted(names - set(data))}, unknown fields"
                f" {sorted(set(data) - names)}; export the library again"
            )
        return cls(**data)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def manifest_path(library: str | os.PathLike) -> Path:
    """Where the manifest of a library file lies: beside it, ``.json`` appended."""
    library = Path(library)
    return library.with_name(library.name + ".json")


class Library:
    """A compiled model. Call it with numpy arrays or torch tensors; it returns numpy arrays.

    Made by :func:`tvm_pattern.compile` or :func:`tvm_pattern.load`.
    """

    def __init__(self, executable: Any, manifest: Manifest) -> None:
        self._executable = executable
        self.manifest = manifest
        self.inputs = tuple(_spec_of(data) for data in manifest.inputs)
        self.outputs = tuple(_spec_of(data) for data in manifest.outputs)
        self.num_threads = manifest.num_threads
        self.target = Target(manifest.target)
        self.report = _report_of(manifest)
        self._vm: relax.VirtualMachine | None = None

    def record_verification(self, verification: dict[str, Any]) -> None:
        """Keep what a check found: in the manifest, and as a line of the report."""
        self.manifest = replace(self.manifest, verification=verification)
        self.report = _report_of(self.manifest)

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.inputs))
        outputs = ", ".join(map(str, self.outputs))
        return f"Library({inputs} -> {outputs}; {self.manifest.architecture})"

    @property
    def device(self) -> tvm.runtime.Device:
        """Where it runs.

        Raises
        ------
        ArtifactError
            If the device is not there.
        """
        kind = self.target.kind.name
        if kind in ("llvm", "c"):
            return tvm.cpu()
        device = tvm.device(kind, 0)
        if not device.exist:
            raise ArtifactError(
                f"the library needs a {kind} device and this TVM runtime finds none; run it on the"
                " target device"
            )
        return device

    @property
    def vm(self) -> relax.VirtualMachine:
        """The Relax virtual machine; made at the first use.

        Raises
        ------
        ArtifactError
            If this machine cannot run the library.
        """
        if self._vm is None:
            reason = why_not_runnable(self.manifest.architecture, self.manifest.cpu_features)
            if reason is not None:
                raise ArtifactError(
                    f"this library cannot run here: {reason}; export it and run it on its own"
                    " machine, or compile for pattern/native"
                )
            device = self.device
            with _without_scope_warnings():
                self._vm = relax.VirtualMachine(self._executable, device)
        return self._vm

    def __call__(self, *inputs: Any) -> np.ndarray | tuple[np.ndarray, ...]:
        """Run the model.

        Parameters
        ----------
        *inputs : numpy.ndarray or torch.Tensor
            One per input, of exactly its shape and dtype.

        Returns
        -------
        numpy.ndarray or tuple of numpy.ndarray
            A tuple if the model has several outputs.

        Raises
        ------
        ValueError
            On a wrong number of inputs, or a wrong shape or dtype.
        """
        arguments = self.to_device(*inputs)
        use_threads(self.num_threads)
        result = self.vm["main"](*arguments)
        if len(self.outputs) == 1 and hasattr(result, "numpy"):
            return result.numpy()
        return tuple(value.numpy() for value in result)

    def to_device(self, *inputs: Any) -> list[tvm.runtime.Tensor]:
        """Check ``inputs`` as a call does and copy them to the device."""
        if len(inputs) != len(self.inputs):
            raise ValueError(
                f"got {len(inputs)} inputs, expected {len(self.inputs)}:"
                f" {', '.join(map(str, self.inputs))}"
            )
        arrays = [_as_array(v, spec) for v, spec in zip(inputs, self.inputs, strict=True)]
        device = self.device
        return [tvm.runtime.tensor(array, device) for array in arrays]

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
        """
        arguments = self.to_device(*inputs)
        use_threads(self.num_threads)
        self.vm.save_function("main", "timed_main", *arguments, include_return=False)
        timer = self.vm.time_evaluator("timed_main", self.device, number=number, repeat=repeat)
        return timer()

    def profile(
        self, *, repeat: int = 5, min_repeat_ms: int = 2, cool_down: float = 0.0
    ) -> Profile:
        """Time every compiled call by itself, and the whole network.

        See :func:`tvm_pattern.profiling.time_steps` for the parameters and what they raise.
        """
        use_threads(self.num_threads)
        return time_steps(
            self.vm,
            self.device,
            [Step.from_dict(step) for step in self.manifest.steps],
            self.manifest.inputs,
            repeat=repeat,
            min_repeat_ms=min_repeat_ms,
            cool_down=cool_down,
        )

    def export(self, path: str | os.PathLike, cc: str | None = None) -> Path:
        """Write the library and its manifest.

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
            On another suffix, a missing folder or a missing compiler.
        """
        path = Path(path)
        if path.suffix not in SUFFIXES:
            raise ArtifactError(f"got {path.name!r}, expected a name ending in .so or .tar")
        if not path.parent.is_dir():
            raise ArtifactError(f"no such folder: {path.parent}; create it first")
        if not isinstance(self._executable, tvm.runtime.Executable):
            raise ArtifactError("a loaded library cannot be exported again; copy its two files")
        options: dict[str, Any] = {"fcompile": _plain_tar}
        facts: dict[str, Any] = {}
        if path.suffix == ".so":
            linker = self._linker(cc)
            options = {"cc": linker.command, "options": list(linker.options)}
        with _without_scope_warnings():
            self._executable.export_library(str(path), **options)
        if path.suffix == ".so":
            facts = {"abi": linker.abi, "page_size": read_elf(path).page_size}
        facts["sha256"] = _sha256(path)
        manifest = Manifest(**{**asdict(self.manifest), **facts})
        manifest.write(manifest_path(path))
        return path

    def _linker(self, cc: str | None) -> Linker:
        triple = str(host_target(self.target).attrs.get("mtriple", ""))
        try:
            return find_linker(triple or self.manifest.architecture, cc)
        except CrossCompileError as error:
            raise ArtifactError(str(error)) from None


def load(path: str | os.PathLike, num_threads: int | None = None) -> Library:
    """Load a library that :meth:`Library.export` wrote.

    Parameters
    ----------
    path : str or os.PathLike
        The ``.so`` or ``.tar``; its manifest lies beside it.
    num_threads : int, optional
        At most the number it was compiled for, which is the default.

    Raises
    ------
    ArtifactError
        If a file is missing or corrupted, the manifest is unknown, or this machine lacks a CPU
        feature that the code uses.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"no such library: {path}; expected a file written by export()")
    manifest = Manifest.read(manifest_path(path))
    if num_threads is not None:
        threads = check_num_threads(num_threads)
        if threads > manifest.num_threads:
            raise ArtifactError(
                f"{path} is compiled for {manifest.num_threads} threads, got num_threads={threads};"
                " compile it again for more"
            )
        manifest = Manifest(**{**asdict(manifest), "num_threads": threads})
    digest = _sha256(path)
    if digest != manifest.sha256:
        raise ArtifactError(
            f"{path} is corrupted or belongs to another manifest: its SHA-256 is {digest[:12]}...,"
            f" the manifest says {manifest.sha256[:12]}...; copy both files again"
        )
    reason = why_not_runnable(manifest.architecture, manifest.cpu_features)
    if reason is not None:
        raise ArtifactError(
            f"{path} cannot run on this machine: {reason}; compile it again for this machine"
        )
    with _without_scope_warnings():
        module = _link_tar(path) if path.suffix == ".tar" else _load_module(path)
    return Library(module, manifest)


def _load_module(path: Path) -> tvm.runtime.Module:
    try:
        return tvm.runtime.load_module(str(path.resolve()))
    except (RuntimeError, OSError, ValueError) as error:
        raise ArtifactError(f"TVM cannot load {path}: {error}; export the library again") from error


def _link_tar(path: Path) -> tvm.runtime.Module:
    """Link the objects of a ``.tar`` in a temporary folder and load the result."""
    from tvm.support import cc

    if shutil.which("gcc") is None:
        raise ArtifactError(f"no gcc to link {path}; install it, or export a .so instead")
    with tempfile.TemporaryDirectory() as folder:
        try:
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
        except tarfile.TarError as error:
            raise ArtifactError(f"cannot load {path}: {error}; export it again") from error
        library = Path(folder, "library.so")
        cc.create_shared(str(library), sorted(map(str, Path(folder).glob("*.o"))), cc="gcc")
        return _load_module(library)


def _report_of(manifest: Manifest) -> RewriteReport:
    report = RewriteReport.from_json(json.dumps(manifest.report))
    summary = manifest.verification.get("summary")
    return replace(report, notes=(summary,)) if summary else report


def _spec_of(data: dict[str, Any]) -> TensorSpec:
    return TensorSpec(data["name"], tuple(data["shape"]), data["dtype"])


def _as_array(value: Any, spec: TensorSpec) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    elif isinstance(value, tvm.runtime.Tensor):
        value = value.numpy()
    if not isinstance(value, np.ndarray):
        raise ValueError(
            f"input {spec.name!r}: got a {type(value).__name__}, expected a numpy array or torch"
            f" tensor {spec.dtype}{list(spec.shape)}"
        )
    if value.shape != spec.shape:
        raise ValueError(
            f"input {spec.name!r}: got shape {list(value.shape)}, expected {list(spec.shape)};"
            " the library is compiled for that shape, compile again for another"
        )
    if str(value.dtype) != spec.dtype:
        raise ValueError(
            f"input {spec.name!r}: got dtype {value.dtype}, expected {spec.dtype}; pass"
            f" x.astype({spec.dtype!r})"
        )
    return value


def _plain(value: Any) -> Any:
    """TVM containers and integers as plain Python data."""
    if isinstance(value, str | bool | int | float) or value is None:
        return str(value) if isinstance(value, str) else value
    if hasattr(value, "items"):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tvm.tirx.IntImm):
        return int(value)
    return [_plain(v) for v in value]


def _plain_tar(output: str, files: Sequence[str], **_: Any) -> None:
    """Bundle object files without compressing them: weights do not shrink, and gzip is slow."""
    with tarfile.open(output, "w") as archive:
        for name in sorted(files):
            archive.add(name, arcname=os.path.basename(name))


_plain_tar.output_format = "tar"  # type: ignore[attr-defined]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


_SCOPE_WARNING = re.compile(
    rb"^\[.*executable\.cc:\d+: Warning: Scope (?:Saving|Loaded):.*\n", re.M
)


@contextlib.contextmanager
def _without_scope_warnings() -> Iterator[None]:
    """Drop the line that TVM's C++ writes to stderr for every constant it saves or loads."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            captured.seek(0)
            rest = _SCOPE_WARNING.sub(b"", captured.read())
            if rest:
                os.write(2, rest)
