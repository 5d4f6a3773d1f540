"""A library file and its manifest as a pair: replaced together, read together.

Two files cannot be renamed at once. So the manifest names the digest of its library, the new one is
first put beside the old one as *pending*, then the library is renamed, then the manifest. Whoever
reads takes the manifest whose digest is that of the library file: at every moment there is one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from .atomic import locked_folder, new_file, sync, sync_folder, write_file
from .manifest import ArtifactError, Manifest, manifest_path, pending_path

_BLOCK = 1 << 20
# Times that a library which is replaced while it is read is read again.
_ATTEMPTS = 5


def publish(path: Path, write: Callable[[BinaryIO], Manifest]) -> None:
    """Write a library and its manifest; both appear, or none.

    Parameters
    ----------
    path : pathlib.Path
    write : callable
        Writes the library to the file it is given and returns the manifest, without its digest.

    Raises
    ------
    ArtifactError
        If something cannot be written; what was there is still there.
    """
    # The file that a link points to, so that the link stays.
    destination = Path(os.path.realpath(path))
    try:
        with new_file(destination, 0o777) as (file, temporary):
            manifest = write(file)
            sync(file)
            file.seek(0)
            manifest = replace(manifest, sha256=digest_of(file))
            with locked_folder(destination.parent):
                _settle(destination)
                write_file(pending_path(destination), manifest.to_bytes())
                os.replace(temporary, destination)
                sync_folder(destination.parent)
                _promote(destination)
            # Beside a link lies a manifest too, or a link to the one that was just written.
            if path.is_symlink() and not manifest_path(path).is_symlink():
                write_file(manifest_path(path), manifest.to_bytes())
    except OSError as error:
        was_there = "; the library that was there is unchanged" if destination.exists() else ""
        raise ArtifactError(
            f"cannot write {path}: {error.strerror or error}{was_there}; free space or choose"
            " another folder"
        ) from None


def manifest_of(path: Path) -> Manifest:
    """The manifest that belongs to a library file.

    Raises
    ------
    ArtifactError
        If a file is missing, or no manifest belongs to the library.
    """
    return copy_checked(path, None)


def copy_checked(path: Path, destination: BinaryIO | None) -> Manifest:
    """Copy a library file and return the manifest of exactly the bytes that were copied.

    Raises
    ------
    ArtifactError
        As :func:`manifest_of`.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        if not path.is_file():
            raise ArtifactError(f"no such library: {path}; expected a file written by export()")
        try:
            with path.open("rb") as source:
                before = os.fstat(source.fileno())
                if destination is not None:
                    destination.seek(0)
                    destination.truncate()
                digest = digest_of(source, destination)
        except OSError as error:
            raise ArtifactError(f"cannot read or copy {path}: {error.strerror or error}") from None
        try:
            return _matching(path, digest)
        except ArtifactError:
            # Asked only now: a writer may have put a new pair while the manifest was looked for.
            was_replaced = not path.is_file() or not _is_same(before, path.stat())
            if not was_replaced or attempt == _ATTEMPTS:
                raise
    raise AssertionError("not reached")


def digest_of(source: BinaryIO, copy: BinaryIO | None = None) -> str:
    """SHA-256 of the rest of a file, in hexadecimal; ``copy`` receives what was read."""
    digest = hashlib.sha256()
    while block := source.read(_BLOCK):
        digest.update(block)
        if copy is not None:
            copy.write(block)
    return digest.hexdigest()


def _matching(path: Path, digest: str) -> Manifest:
    """The manifest, else the pending one, whose digest is ``digest``; of a link, its file's too."""
    places = list(dict.fromkeys((path, Path(os.path.realpath(path)))))
    for place in places:
        pending = _pending(place)
        if pending is not None and pending.sha256 == digest:
            return pending
    beside = [place for place in map(manifest_path, places) if place.is_file()]
    said = []
    for place in beside or [manifest_path(path)]:
        manifest = Manifest.read(place)
        if manifest.sha256 == digest:
            return manifest
        said.append(f"{manifest.sha256[:12]}...")
    raise ArtifactError(
        f"{path} is corrupted or belongs to another manifest: its SHA-256 is {digest[:12]}...,"
        f" the manifest says {said[0]}; copy both files again"
    )


def _pending(path: Path) -> Manifest | None:
    """The pending manifest, None if there is none that can be read."""
    if not pending_path(path).is_file():
        return None
    try:
        return Manifest.read(pending_path(path))
    except ArtifactError:
        return None


def _settle(path: Path) -> None:
    """Finish an export that was stopped after the library was renamed."""
    pending = _pending(path)
    if pending is None or not path.is_file():
        return
    with path.open("rb") as file:
        if digest_of(file) == pending.sha256:
            _promote(path)


def _promote(path: Path) -> None:
    os.replace(pending_path(path), manifest_path(path))
    sync_folder(path.parent)


def _is_same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns) == (
        other.st_dev,
        other.st_ino,
        other.st_size,
        other.st_mtime_ns,
    )
