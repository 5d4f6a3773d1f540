"""Machine code of a compiled library: generated once, linked once, run and exported from one file.

TVM writes object files by LLVM, which ends the process when a disk is full. So they are written to
memory first and to the disk by us.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import tarfile
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import tvm
import tvm_ffi
from tvm.support import cc as tvm_cc

from .crosscompile import CrossCompileError, Linker, find_linker, read_elf
from .machine import normalise_architecture
from .manifest import ArtifactError
from .mapped_weights import Weights
from .weight_section import SegmentError, append, slot_object, write_object

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20


@dataclass(frozen=True)
class LinkedFile:
    """A shared library on the disk, and where in it weights of their own begin."""

    path: Path
    abi: str
    page_size: int
    weights_at: int | None = None


class CompiledCode:
    """What ``tvm.compile`` made; its files live as long as this object.

    Parameters
    ----------
    executable : tvm.runtime.Executable
    triple : str
        LLVM triple or architecture of the target, for the choice of a linker.
    code : sequence of bytes
        Object files of the PrimFuncs that are not in ``executable``.
    weights : Weights, optional
        What lies in a section of its own.
    """

    def __init__(
        self,
        executable: tvm.runtime.Executable,
        triple: str,
        code: Sequence[bytes] = (),
        weights: Weights | None = None,
    ) -> None:
        self._executable: tvm.runtime.Executable | None = executable
        self._code = tuple(code)
        self._weights = None if weights is None else StoredWeights(weights)
        self._triple = triple
        self._folder: Path | None = None
        self._objects: list[Path] = []
        self._linked: LinkedFile | None = None
        self._module: tvm.runtime.Module | None = None
        self._lock = threading.RLock()
        _codes.add(self)

    def module(self) -> tvm.runtime.Module:
        """The code, loaded into this process.

        Raises
        ------
        ArtifactError
            If it cannot be linked or loaded.
        """
        with self._lock:
            if self._module is None:
                self._module = open_module(self._link().path)
            return self._module

    def write_so(self, file: BinaryIO, cc: str | None = None) -> LinkedFile:
        """Copy the shared library that :meth:`module` runs to ``file``; with ``cc``, link anew."""
        with self._lock:
            self._make_folder()
            linked = self._link() if cc is None else self._link_by(self._find_linker(cc))
            with linked.path.open("rb") as source:
                shutil.copyfileobj(source, file, _BLOCK)
            if cc is not None:
                linked.path.unlink()
            return linked

    def write_tar(self, file: BinaryIO) -> None:
        """Bundle the object files, not compressed: weights do not shrink, and gzip is slow."""
        with self._lock, tarfile.open(fileobj=file, mode="w") as archive:
            self._make_folder()
            for path in self._object_files():
                archive.add(path, arcname=path.name, filter=_without_owner)
            if self._weights is not None:
                path = self._weights.write_object(self._make_folder(), self._architecture)
                archive.add(path, arcname=path.name, filter=_without_owner)
                path.unlink()

    @property
    def _architecture(self) -> str:
        return normalise_architecture(self._triple.split("-", 1)[0])

    def _find_linker(self, cc: str | None) -> Linker:
        try:
            return find_linker(self._triple, cc)
        except CrossCompileError as error:
            raise ArtifactError(str(error)) from None

    def _link(self) -> LinkedFile:
        if self._linked is None:
            linked = self._linked = self._link_by(self._find_linker(None))
            if self._weights is not None and linked.weights_at is not None:
                self._weights.keep_in(linked.path, linked.weights_at)
        return self._linked

    def _link_by(self, linker: Linker) -> LinkedFile:
        objects = self._object_files()
        output = self._make_folder() / f"lib{secrets.token_hex(8)}.so"
        weights_at = None
        try:
            if self._weights is None:
                link(output, objects, linker.command, linker.options)
            else:
                weights_at = self._weights.link(output, objects, linker, self._architecture)
        except ArtifactError:
            output.unlink(missing_ok=True)
            raise
        return LinkedFile(output, linker.abi, read_elf(output).page_size, weights_at)

    def _object_files(self) -> list[Path]:
        if self._executable is not None:
            self._objects = _write_objects(self._executable, self._code, self._make_folder())
            # The weights are on the disk now, and in the library once it is loaded.
            self._executable, self._code = None, ()
        return self._objects

    def _make_folder(self) -> Path:
        if self._folder is None:
            self._folder = private_folder()
            weakref.finalize(self, _remove, self._folder, os.getpid())
        if not self._folder.is_dir():
            raise ArtifactError(
                f"the temporary folder {self._folder} of this library is gone; compile again"
            )
        return self._folder


class StoredWeights:
    """Weights on their way into libraries: arrays, until a library's file holds them."""

    def __init__(self, weights: Weights) -> None:
        self._weights: Weights | None = weights
        self._nbytes = weights.nbytes
        self._place: tuple[Path, int] | None = None

    def keep_in(self, path: Path, offset: int) -> None:
        """From now on they are read from this file, and their memory is free."""
        self._place, self._weights = (path, offset), None

    def write_to(self, file: BinaryIO) -> None:
        """Write them at the end of what a file holds."""
        if self._weights is not None:
            self._weights.write_to(file)
        elif self._place is not None:
            path, offset = self._place
            with path.open("rb") as source:
                source.seek(offset)
                left = self._nbytes
                while left and (block := source.read(min(left, _BLOCK))):
                    file.write(block)
                    left -= len(block)

    def write_object(self, folder: Path, architecture: str) -> Path:
        """A new object file that holds them."""
        path = folder / "weights.o"
        with readable_errors("write the weights"), path.open("wb") as file:
            write_object(file, architecture, self._nbytes, self.write_to)
        return path

    def link(
        self, output: Path, objects: Sequence[Path], linker: Linker, architecture: str
    ) -> int | None:
        """Link a library that holds them; returns where they begin, if they lie behind the code."""
        slot = output.with_suffix(".o")
        with readable_errors("write object files"):
            slot.write_bytes(slot_object(architecture))
        link(output, [*objects, slot], linker.command, linker.options)
        slot.unlink()
        try:
            with readable_errors("write the weights"), output.open("r+b") as file:
                return append(file, self._nbytes, self.write_to)
        except SegmentError as error:
            logger.info("the weights are linked: %s", error)
        weights = self.write_object(output.parent, architecture)
        link(output, [*objects, weights], linker.command, linker.options)
        weights.unlink()
        return None


class LoadedCode:
    """Code that was loaded from a file; the file's bytes are not kept."""

    def __init__(self, module: tvm.runtime.Module) -> None:
        self._module = module

    def module(self) -> tvm.runtime.Module:
        return self._module


def private_folder() -> Path:
    """A new temporary folder that only this user can read.

    Raises
    ------
    ArtifactError
        If there is none to be had.
    """
    with readable_errors("make a temporary folder"):
        return Path(tempfile.mkdtemp(prefix="tvm-pattern-"))


@contextlib.contextmanager
def readable_errors(doing: str) -> Iterator[None]:
    """Turn errors of the system into one line that says what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ArtifactError(
            f"cannot {doing}: {reason}; free space or name another folder for temporary files by"
            f" TMPDIR (now {tempfile.gettempdir()})"
        ) from None


def open_module(path: Path) -> tvm.runtime.Module:
    """Load a shared library that is unmapped again with the last reference to it.

    ``path`` must be a name that this process never loaded before: the dynamic linker answers by
    name, with the old library even if the file has been replaced.

    Raises
    ------
    ArtifactError
        If TVM cannot load it.
    """
    try:
        return tvm_ffi.load_module(str(path), keep_module_alive=False)
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ArtifactError(
            f"TVM cannot load the library: {reason}; export it again, and see that the folder for"
            f" temporary files allows execution (TMPDIR, now {tempfile.gettempdir()})"
        ) from None


def link(output: Path, objects: Sequence[Path], command: str, options: Sequence[str] = ()) -> None:
    """Link object files into a shared library.

    Raises
    ------
    ArtifactError
        With the linker's own reason in one line.
    """
    try:
        tvm_cc.create_shared(str(output), list(map(str, objects)), list(options), cc=command)
    except RuntimeError as error:
        raise ArtifactError(
            f"{command} cannot link the library: {_reason(str(error))}; free space in TMPDIR (now"
            f" {tempfile.gettempdir()}) if that is it, or name another linker by cc="
        ) from None
    except OSError as error:
        raise ArtifactError(f"cannot run {command}: {error.strerror or error}") from None


def _reason(text: str) -> str:
    """The lines of a linker's output that say what is wrong, without paths and command line."""
    lines = [line.strip() for line in text.split("Command line:")[0].splitlines()[1:]]
    named = [line for line in lines if "error" in line.lower() or "failed" in line.lower()]
    telling = (
        [line for line in lines if "No space left" in line] or named or list(filter(None, lines))
    )
    return telling[0][-300:] if telling else "it gave no reason"


def _write_objects(
    executable: tvm.runtime.Executable, code: Sequence[bytes], folder: Path
) -> list[Path]:
    """Generate the machine code: object files in ``folder``."""
    names: list[Path] = []

    def collect(_output: str, files: Sequence[str], **_: Any) -> None:
        names.extend(Path(file) for file in files)

    with readable_errors("write object files"), _in_memory(folder, executable) as memory:
        executable.export_library(
            str(folder / "objects"), fcompile=collect, workspace_dir=str(folder)
        )
        for name in names:
            if name in memory:
                name.unlink()
                with memory[name] as source, name.open("wb") as target:
                    source.seek(0)
                    shutil.copyfileobj(source, target, _BLOCK)
        for number, content in enumerate(code):
            names.append(folder / f"code{number}.o")
            names[-1].write_bytes(content)
    return names


def object_code(module: tvm.runtime.Module) -> bytes:
    """The object file of an LLVM module.

    Raises
    ------
    ArtifactError
        If there is no space for it.
    """
    file: Any
    with readable_errors("write an object file"), contextlib.ExitStack() as stack:
        if hasattr(os, "memfd_create"):
            file = stack.enter_context(os.fdopen(os.memfd_create("code.o", os.MFD_CLOEXEC), "r+b"))
            name = f"/proc/self/fd/{file.fileno()}"
        else:
            file = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".o"))
            name = file.name
        module.write_to_file(name, "o")
        file.seek(0)
        return file.read()


@contextlib.contextmanager
def _in_memory(folder: Path, executable: tvm.runtime.Executable) -> Iterator[dict[Path, BinaryIO]]:
    """Files in memory behind the names that TVM is about to write to, where there is such."""
    files: dict[Path, BinaryIO] = {}
    if not hasattr(os, "memfd_create"):
        yield files
        return
    names = [f"lib{number}.o" for number in range(len(executable.mod._collect_dso_modules()))]
    with contextlib.ExitStack() as stack:
        for name in [*names, "devc.o"]:
            file = os.fdopen(os.memfd_create(name, os.MFD_CLOEXEC), "w+b")
            files[folder / name] = stack.enter_context(file)
            (folder / name).symlink_to(f"/proc/self/fd/{file.fileno()}")
        try:
            yield files
        finally:
            for path in files:
                if path.is_symlink():
                    path.unlink()


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The same objects give the same bytes, whoever bundles them, whenever."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def _remove(folder: Path, process: int) -> None:
    # A forked child has the same object; the folder is its parent's.
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


_codes: weakref.WeakSet[CompiledCode] = weakref.WeakSet()


def _new_locks() -> None:
    """In a forked child, where a thread that is not there may hold one."""
    for code in list(_codes):
        code._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_locks)
