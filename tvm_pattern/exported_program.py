"""Read a ``.pt2`` file without running code from it, unless the caller trusts the file.

``torch.export.load`` unpickles whatever a file asks for, evaluates its shape expressions as Python
and loads compiled libraries that lie in it. Here a file is looked through first, by the reader and
from the bytes that the program is then loaded from; what needs any of that is refused by name.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch._export.verifier import SpecViolationError
from torch.export.pt2_archive import PT2ArchiveReader
from torch.export.pt2_archive import constants as parts
from torch.export.pt2_archive._package import load_pt2

# What torch raises for a damaged archive, from its zip reader to its own schema checks.
UNREADABLE = (
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    OSError,
    EOFError,
    struct.error,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    SpecViolationError,
)

# torch 2.11 does not know the second kind.
_OBJECTS = (
    parts.CUSTOM_OBJ_FILENAME_PREFIX,
    getattr(parts, "OPAQUE_OBJ_FILENAME_PREFIX", "opaque_obj_"),
)


class UntrustedFileError(ValueError):
    """Reading the file would run code from it, and nobody said that it is trusted."""


def load_exported_program(path: Path, *, trust: bool = False) -> torch.export.ExportedProgram:
    """The program of a file written by ``torch.export.save``.

    Parameters
    ----------
    path : pathlib.Path
    trust : bool
        Whether code from the file may run: pickled objects, shape expressions, compiled parts.

    Raises
    ------
    UntrustedFileError
        If it needs ``trust`` and has none.
    ValueError
        If there is no such file, or it cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"no such file: {path}; expected a program saved by torch.export.save")
    # Files of quantised networks hold operators that torch knows only once this is imported.
    importlib.import_module("torch.ao.quantization.fx._decomposed")
    try:
        if trust:
            return torch.export.load(path)
        data = path.read_bytes()
        _refuse_code(path, PT2ArchiveReader(io.BytesIO(data)))
        return load_pt2(io.BytesIO(data)).exported_programs["model"]
    except UntrustedFileError:
        raise
    except UNREADABLE as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(
            f"{path} is not a readable exported program: {reason}; save it by torch.export.save"
            " of this version of torch"
        ) from error


def extra_file(path: Path, name: str) -> str | None:
    """Text that :func:`torch.export.save` was given as ``extra_files[name]``; None without it."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if member.endswith(f"/{parts.EXTRA_DIR}{name}"):
                return archive.read(member).decode()
    return None


def _refuse_code(path: Path, archive: PT2ArchiveReader) -> None:
    def refuse(what: str) -> None:
        raise UntrustedFileError(
            f"{path} holds {what}, and reading it could run code; expected tensors and a graph of"
            " static shapes only. Where you trust whoever made the file, say --trust (or"
            " trust=True); else have it exported again without them"
        )

    names = archive.get_file_names()
    if any(name.startswith(parts.AOTINDUCTOR_DIR) for name in names):
        refuse("a compiled library (AOTInductor)")
    prefix, suffix = parts.MODELS_FILENAME_FORMAT.split("{}")
    for record in (name for name in names if name.startswith(parts.MODELS_DIR)):
        _refuse_expressions(json.loads(archive.read_bytes(record)), refuse)
        for label, blob in _pickles(archive, names, record[len(prefix) : -len(suffix)], refuse):
            if blob and not _is_plain(blob):
                refuse(f"a pickle of other objects than tensors ({label})")


def _refuse_expressions(program: Any, refuse: Any) -> None:
    """Shape expressions go through ``eval``; named enumerations import modules."""
    for key, value in _items(program):
        if key == "expr_str":
            refuse(f"a symbolic shape ({str(value)[:40]!r})")
        if key.endswith("_spec") and isinstance(value, str) and _names_an_enum(value):
            refuse("an enumeration of another module")


def _names_an_enum(spec: str) -> bool:
    return "__enum__" in spec or "\\u" in spec  # escapes could spell it


def _items(node: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested dictionaries and lists; iterative, files may nest deeply."""
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield from item.items()
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _pickles(
    archive: PT2ArchiveReader, names: list[str], model: str, refuse: Any
) -> Iterator[tuple[str, bytes]]:
    """What torch unpickles for a model: example inputs, old forms, tensors of unusual kinds."""
    sample = parts.SAMPLE_INPUTS_FILENAME_FORMAT.format(model)
    yield sample, archive.read_bytes(sample)
    for folder, form in (
        (parts.WEIGHTS_DIR, parts.WEIGHTS_CONFIG_FILENAME_FORMAT),
        (parts.CONSTANTS_DIR, parts.CONSTANTS_CONFIG_FILENAME_FORMAT),
    ):
        whole = f"{folder}{model}.pt"
        if whole in names:
            yield whole, archive.read_bytes(whole)
            continue
        config = json.loads(archive.read_bytes(form.format(model)))["config"]
        for name, facts in config.items():
            record = str(facts["path_name"])
            if record.startswith(_OBJECTS):
                refuse(f"a pickled object ({name})")
            if facts["use_pickle"]:
                yield name, archive.read_bytes(os.path.join(folder, record))


def _is_plain(blob: bytes) -> bool:
    """Whether torch reads the bytes without running code from them."""
    try:
        torch.load(io.BytesIO(blob), weights_only=True, map_location="cpu")
    except UNREADABLE:
        return False
    return True
