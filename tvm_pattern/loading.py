"""``load``: a library from its files, everything checked before any code runs."""

from __future__ import annotations

import os
import secrets
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import tvm

from .description import target_of
from .devices import prepare
from .host_operators import why_not_on_host
from .layer_source import Sources
from .library import Library
from .linking import LoadedCode, link, open_module, private_folder, readable_errors
from .machine import why_not_runnable
from .manifest import ArtifactError, Manifest
from .memory import check_fits
from .opencl import OpenCLError
from .publish import copy_checked
from .threads import check_num_threads, warn_of_threads


def load(path: str | os.PathLike, num_threads: int | None = None) -> Library:
    """Load a library that :meth:`Library.export` wrote.

    The library runs from a private copy of the file, which is gone with the last reference to the
    library: replacing or removing the file later changes nothing, and loading it again after that
    gives the new one.

    Parameters
    ----------
    path : str or os.PathLike
        The ``.so`` or ``.tar``; its manifest lies beside it.
    num_threads : int, optional
        At most the number it was compiled for, which is the default. Runs use no more than this
        process has CPUs; a higher number is warned of.

    Raises
    ------
    ArtifactError
        If a file is missing or corrupted, the manifest is unknown, this machine lacks a CPU
        feature that the code uses, or there is no space for the copy.
    NotEnoughMemoryError
        If weights and activations fit no memory of this computer.
    """
    path = Path(path)
    folder = private_folder()
    try:
        # A name never used before: the dynamic linker would answer with the old library.
        copy = folder / f"lib{secrets.token_hex(8)}{path.suffix}"
        with readable_errors(f"copy {path} to a folder for temporary files"), copy.open("wb") as f:
            manifest = copy_checked(path, f)
        manifest = _checked(manifest, path, num_threads)
        check_fits(manifest.footprint, str(path))
        sources = Sources.read(copy)
        if path.suffix == ".tar":
            copy = _link_tar(copy, path)
        _prepare(manifest, path)
        # The mapping outlives the name.
        code = LoadedCode(_open(copy, path))
        return Library(code, manifest, str(path), sources)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _checked(manifest: Manifest, path: Path, num_threads: int | None) -> Manifest:
    """The manifest for this many threads, if this machine can run the library."""
    if num_threads is not None:
        threads = check_num_threads(num_threads)
        if threads > manifest.num_threads:
            raise ArtifactError(
                f"{path} is compiled for {manifest.num_threads} threads, got num_threads={threads};"
                " compile it again for more"
            )
        warn_of_threads(threads, stacklevel=4)
        manifest = replace(manifest, num_threads=threads)
    reason = why_not_runnable(manifest.architecture, manifest.cpu_features)
    if reason is not None:
        raise ArtifactError(
            f"{path} cannot run on this machine: {reason}; compile it again for this machine"
        )
    reason = why_not_on_host(manifest.host_operators)
    if reason is not None:
        raise ArtifactError(f"{path} cannot run here: {reason}")
    return manifest


def _prepare(manifest: Manifest, path: Path) -> None:
    """Load the runtime of a GPU that the library needs while it is opened."""
    try:
        prepare(target_of(manifest, str(path)))
    except OpenCLError as error:
        raise ArtifactError(f"cannot load {path}: {error}") from None


def _open(copy: Path, path: Path) -> tvm.runtime.Module:
    try:
        return open_module(copy)
    except ArtifactError as error:
        raise ArtifactError(f"cannot load {path}: {error}") from None


def _link_tar(archive: Path, path: Path) -> Path:
    """Link the objects of a ``.tar`` beside it."""
    if shutil.which("gcc") is None:
        raise ArtifactError(f"no gcc to link {path}; install it, or export a .so instead")
    folder = archive.parent
    try:
        with readable_errors(f"unpack {path}"), tarfile.open(archive) as members:
            members.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError, ValueError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"cannot load {path}: {error}; export it again") from None
    library = folder / f"lib{secrets.token_hex(8)}.so"
    link(library, sorted(folder.glob("*.o")), "gcc")
    return library
