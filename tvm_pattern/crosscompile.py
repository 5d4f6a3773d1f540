"""Link libraries for other machines: which compiler, with which options, and what came out.

ARM Linux takes Debian's cross compilers. Android takes the NDK's clang, named by the environment
variable ``TVM_NDK_CC``; without it Debian's compiler links a library that needs nothing of the
system (TVM's code calls back through pointers that the runtime sets), aligned to Android's 16 KiB
pages.
"""

from __future__ import annotations

import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

from tvm.target import Target

from .machine import machine_architecture, normalise_architecture, target_architecture

NDK_VARIABLE = "TVM_NDK_CC"
ANDROID_PAGE = 16384
# Commands and the Debian packages they come in.
_CROSS = {
    "aarch64": ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
    "arm": ("arm-linux-gnueabihf-gcc", "gcc-arm-linux-gnueabihf"),
    "x86_64": ("x86_64-linux-gnu-gcc", "gcc-x86-64-linux-gnu"),
}
_PAGE_OPTION = f"-Wl,-z,max-page-size={ANDROID_PAGE}"
_FREESTANDING = ("-nostdlib", _PAGE_OPTION, "-Wl,--hash-style=both")
# A digest of all the weights that nobody reads: the manifest has its own.
_NO_DIGEST = ("-Wl,--build-id=none",)
_ELF_MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64"}
# Bytes of a program header, 64-bit and 32-bit.
_WIDE_HEADER, _NARROW_HEADER = 56, 32
_PT_LOAD = 1
# Bytes in which linkers put all program headers: they are loaded with the first page.
_HEADERS = 1 << 16


class CrossCompileError(ValueError):
    """No compiler for the target, or a file that is no library."""


@dataclass(frozen=True)
class Linker:
    """How to link a library.

    Parameters
    ----------
    command : str
        The compiler driver.
    options : tuple of str
    abi : str
        ``android``, ``gnu`` or ``gnueabihf``: what the library may be loaded by.
    """

    command: str
    options: tuple[str, ...]
    abi: str


def find_linker(triple: str, cc: str | None = None) -> Linker:
    """The linker of a target.

    Parameters
    ----------
    triple : str
        LLVM triple of the target, such as ``aarch64-linux-gnu``.
    cc : str, optional
        A compiler driver to use instead of the one that would be chosen.

    Raises
    ------
    CrossCompileError
        If the compiler is not there; the message names the package or the variable.
    """
    architecture = normalise_architecture(triple.split("-", 1)[0])
    ndk = os.environ.get(NDK_VARIABLE, "")
    android = "android" in triple.split("-")[-1]
    if architecture == "aarch64" and ndk and cc is None:
        return Linker(_existing(ndk, f"${NDK_VARIABLE}"), (_PAGE_OPTION,), "android")
    native = architecture == machine_architecture() and not android
    abi = "android" if android else "gnueabihf" if architecture == "arm" else "gnu"
    options = _FREESTANDING if android else ()
    if cc is not None:
        return Linker(_existing(cc, "cc"), options, abi)
    if native:
        command = _existing("gcc", "the default for this machine")
        return Linker(command, (*options, *_NO_DIGEST), abi)
    if architecture not in _CROSS:
        raise CrossCompileError(
            f"no compiler is known for {triple!r}; expected one of {sorted(_CROSS)}: name one by"
            " cc=, or export a .tar"
        )
    command, package = _CROSS[architecture]
    if shutil.which(command) is None:
        hint = f", or set {NDK_VARIABLE} to an Android NDK's clang" * (architecture == "aarch64")
        raise CrossCompileError(
            f"no compiler {command!r} to link a library for {architecture}; on Debian and Ubuntu:"
            f" apt-get install {package}{hint}, name another by cc=, or export a .tar"
        )
    return Linker(command, options, abi)


def linker_for(target: Target) -> str:
    """Command that links small libraries for a device that runs ``target``, over RPC or here.

    Raises
    ------
    CrossCompileError
        If it is not installed, or none is known; the message names the package.
    """
    architecture = target_architecture(target)
    if architecture == machine_architecture():
        command, package = "gcc", "gcc"
    elif architecture in _CROSS:
        command, package = _CROSS[architecture]
    else:
        raise CrossCompileError(
            f"no compiler is known for {architecture}; expected one of {sorted(_CROSS)}"
        )
    if shutil.which(command) is None:
        raise CrossCompileError(
            f"no compiler {command!r} to link libraries for {architecture}; on Debian and Ubuntu:"
            f" apt-get install {package}"
        )
    return command


def _existing(command: str, origin: str) -> str:
    if shutil.which(command) is None:
        raise CrossCompileError(
            f"no compiler {command!r} (from {origin}) on this machine; install it or name another"
            " by cc=, or export a .tar"
        )
    return command


@dataclass(frozen=True)
class ElfFacts:
    """What a shared library says of itself: machine and largest segment alignment in bytes."""

    architecture: str
    page_size: int


def read_elf(path: str | os.PathLike) -> ElfFacts:
    """Architecture and page size of a shared library, from its ELF and program headers.

    Raises
    ------
    CrossCompileError
        If the file is no ELF file.
    """
    with Path(path).open("rb") as file:
        data = file.read(_HEADERS)
    if len(data) < 64 or data[:4] != b"\x7fELF" or data[5] != 1:
        raise CrossCompileError(
            f"{path} is no little-endian ELF library; expected a .so written by export()"
        )
    wide = data[4] == 2
    machine = struct.unpack_from("<H", data, 18)[0]
    offset = struct.unpack_from("<Q" if wide else "<I", data, 32 if wide else 28)[0]
    size, count = struct.unpack_from("<HH", data, 54 if wide else 42)
    page = 0
    if count and size < (_WIDE_HEADER if wide else _NARROW_HEADER):
        raise CrossCompileError(
            f"{path} has program headers of {size} bytes, which is no ELF; export it again"
        )
    for start in range(offset, offset + size * count, size) if count else ():
        if start + size > len(data):
            raise CrossCompileError(f"{path} is cut off in its program headers; export it again")
        if struct.unpack_from("<I", data, start)[0] == _PT_LOAD:
            field = start + (48 if wide else 28)
            page = max(page, struct.unpack_from("<Q" if wide else "<I", data, field)[0])
    return ElfFacts(_ELF_MACHINES.get(machine, f"ELF machine {machine}"), page)
