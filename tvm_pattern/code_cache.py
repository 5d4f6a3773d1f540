"""Machine code of PrimFuncs that were built before, kept between processes.

An entry is an object file under the digest of all that decides it, and holds a digest of itself.
So a damaged, short or foreign entry is noticed and its code generated anew, and what cannot be
read or written is as if it were not there: the cache never changes a result. It is machine code
that will run: only a folder that nobody else can write to is used.

``TVM_PATTERN_CACHE`` names the folder, or is ``0`` for no cache; ``TVM_PATTERN_CACHE_MB`` bounds
its size, beyond which what was not used for the longest time goes first.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .atomic import new_file

logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "TVM_PATTERN_CACHE"
SIZE_VARIABLE = "TVM_PATTERN_CACHE_MB"
DEFAULT_MB = 1024

_MAGIC = b"tvm-pattern code 1\n"
_SUFFIX = ".code"
#: Seconds after which a file that a writer left behind is removed.
_ABANDONED = 3600.0


@dataclass(frozen=True)
class CodeCache:
    """Object files by key, in a folder of this user's own.

    Parameters
    ----------
    folder : pathlib.Path
        Made, for this user alone, when the first entry is written.
    max_bytes : int
        Size that :meth:`write` leaves at most.
    """

    folder: Path
    max_bytes: int

    def read(self, key: str) -> bytes | None:
        """The object file under ``key``, whole, or None."""
        path = self._path(key)
        try:
            if not self._is_private():
                return None
            content = path.read_bytes()
        except OSError:
            return None
        code = _unpack(key, content)
        if code is None:
            logger.warning("%s is damaged and is built anew", path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # It was used now.
        return code

    def write(self, entries: Mapping[str, bytes]) -> None:
        """Keep object files, and drop old ones beyond the bound; a failure is only logged."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._is_private():
                return
            for key, code in entries.items():
                self._write_one(self._path(key), _pack(key, code))
            self._prune()
        except OSError as error:
            logger.info("the code cache %s cannot be written: %s", self.folder, error)

    def _path(self, key: str) -> Path:
        return self.folder / (key + _SUFFIX)

    def _write_one(self, path: Path, content: bytes) -> None:
        if len(content) > self.max_bytes:
            return
        # Not brought to the disk: an entry that a crash cuts short is noticed when it is read.
        with new_file(path, mode=0o600) as (file, temporary):
            file.write(content)
            file.flush()
            os.replace(temporary, path)

    def _prune(self) -> None:
        """Remove what was not used for longest until the bound holds."""
        found = sorted(self._entries(), reverse=True)
        total = 0
        for _used, size, path in found:
            total += size
            if total > self.max_bytes:
                with contextlib.suppress(OSError):  # Another process may prune at the same time.
                    os.unlink(path)

    def _entries(self) -> Iterator[tuple[int, int, str]]:
        """Time of use in ns, bytes and path of each entry; what writers left behind is removed."""
        with os.scandir(self.folder) as found:
            for entry in found:
                with contextlib.suppress(FileNotFoundError):
                    facts = entry.stat(follow_symlinks=False)
                    if entry.name.endswith(_SUFFIX):
                        yield facts.st_mtime_ns, facts.st_size, entry.path
                    elif f"{_SUFFIX}." in entry.name and time.time() - facts.st_mtime > _ABANDONED:
                        os.unlink(entry.path)

    def _is_private(self) -> bool:
        """Whether nobody but this user can put code here."""
        if os.name != "posix":
            return True
        facts = self.folder.stat()
        if facts.st_uid == os.geteuid() and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return True
        logger.warning(
            "the code cache %s is not used: others can write to it, and what they write would run;"
            " expected a folder of this user with mode 0700 (chmod 700), or another by %s",
            self.folder,
            FOLDER_VARIABLE,
        )
        return False


def from_environment(environment: Mapping[str, str] = os.environ) -> CodeCache | None:
    """The cache that the environment asks for; None if it is switched off.

    Raises
    ------
    ValueError
        If a variable has a value that says neither.
    """
    size = environment.get(SIZE_VARIABLE, "").strip() or str(DEFAULT_MB)
    if not (size.isascii() and size.isdigit()):
        raise ValueError(
            f"{SIZE_VARIABLE} is {size!r}; expected whole megabytes, such as {DEFAULT_MB}"
        )
    place = environment.get(FOLDER_VARIABLE, "").strip()
    if place == "0" or int(size) == 0:
        return None
    if place and not os.path.isabs(place):
        raise ValueError(
            f"{FOLDER_VARIABLE} is {place!r}; expected 0 (no cache) or the absolute path of a"
            " folder"
        )
    folder = Path(place) if place else _default_folder(environment)
    return None if folder is None else CodeCache(folder, int(size) << 20)


def _default_folder(environment: Mapping[str, str]) -> Path | None:
    """The user's folder for caches; None for a user without a home."""
    base = environment.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # The specification ignores relative ones.
        return Path(base) / "tvm-pattern"
    home = os.path.expanduser("~")
    return Path(home) / ".cache" / "tvm-pattern" if os.path.isabs(home) else None


def _pack(key: str, code: bytes) -> bytes:
    return _MAGIC + hashlib.sha256(key.encode() + code).digest() + code


def _unpack(key: str, content: bytes) -> bytes | None:
    """The object file of an entry, or None if the entry is not what was written under ``key``."""
    code = content[len(_MAGIC) + hashlib.sha256().digest_size :]
    return code if content == _pack(key, code) else None
