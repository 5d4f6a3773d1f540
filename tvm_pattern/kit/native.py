"""Compilers and linkers for a kit: object files of networks, and the runner."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from tvm.target import Target

from ..crosscompile import CrossCompileError, find_linker
from ..machine import host_target, machine_architecture, target_architecture
from .errors import KitError

_HEADERS = ("pattern_model.h", "backend.h", "device_info.h")
_SHARED = ("model.c", "device_info.c", "kit_main.c")
_OPTIONS = ("-std=gnu11", "-O2", "-Wall")
_SYMBOL = "__tvm_ffi_"
# Compiled code calls the runtime by pointers of these names, which are weak: what nobody defines is
# null. cpu.c defines some.
_RUNTIME = re.compile(rb"__TVM(?:FFI|Backend)\w+")
_DEFINED = (
    b"__TVMBackendParallelLaunch",
    b"__TVMBackendAllocWorkspace",
    b"__TVMBackendFreeWorkspace",
)


@dataclass(frozen=True)
class Tools:
    """Commands for an architecture.

    Parameters
    ----------
    compiler, objcopy : str
    abi : str
        ``android`` or one of glibc's.
    is_static : bool
        Whether programs hold their C library, so that they run on any Linux kernel.
    """

    compiler: str
    objcopy: str
    abi: str
    is_static: bool


def tools_for(target: Target) -> Tools:
    """The tools for the CPU of a target.

    Raises
    ------
    KitError
        If one is missing; the message names the package.
    """
    triple = str(host_target(target).attrs.get("mtriple", "")) or target_architecture(target)
    try:
        linker = find_linker(triple)
    except CrossCompileError as error:
        raise KitError(str(error)) from None
    compiler = Path(linker.command)
    if linker.abi == "android" and "clang" in compiler.name:
        objcopy = str(compiler.parent / "llvm-objcopy")
    else:
        objcopy = str(compiler.with_name(compiler.name.removesuffix("gcc") + "objcopy"))
    if shutil.which(objcopy) is None:
        raise KitError(
            f"no {objcopy!r} beside the compiler {linker.command!r}; on Debian and Ubuntu it is in"
            " the binutils packages"
        )
    native = target_architecture(target) == machine_architecture()
    is_static = not native and "clang" not in compiler.name
    return Tools(linker.command, objcopy, linker.abi, is_static)


def sources(*, gpu: bool) -> list[str]:
    """Files of ``native/`` that a kit holds."""
    return [*_HEADERS, *_SHARED, "opencl.c" if gpu else "cpu.c"]


def copy_sources(folder: Path, *, gpu: bool) -> None:
    """Copy them."""
    native = resources.files(__package__).joinpath("native")
    folder.mkdir(parents=True, exist_ok=True)
    for name in sources(gpu=gpu):
        (folder / name).write_bytes(native.joinpath(name).read_bytes())


def table_source(build: str, functions: Sequence[str]) -> str:
    """C: the table of a network's functions."""
    lines = ["#include <stddef.h>", '#include "pattern_model.h"']
    for name in functions:
        lines.append(f"extern int {_SYMBOL}{name}(void *, const void *, int32_t, void *);")
    lines.append(f"const pattern_function pattern_functions_{build}[] = {{")
    lines += [f'  {{"{name}", {_SYMBOL}{name}}},' for name in functions]
    return "\n".join([*lines, "  {NULL, NULL},", "};"]) + "\n"


def builds_source(builds: Sequence[str], *, gpu: bool) -> str:
    """C: which builds of a network the runner has."""
    lines = ["#include <stddef.h>", '#include "pattern_model.h"']
    tables = {b: "NULL" if gpu else f"pattern_functions_{b}" for b in builds}
    if not gpu:
        lines += [f"extern const pattern_function {table}[];" for table in tables.values()]
    lines.append("const struct { const char *name; const pattern_function *functions; }")
    lines.append("pattern_builds[] = {")
    lines += [f'  {{"{build}", {table}}},' for build, table in tables.items()]
    return "\n".join([*lines, "  {NULL, NULL},", "};"]) + "\n"


def link_objects(
    tools: Tools,
    build: str,
    objects: Sequence[bytes],
    functions: Sequence[str],
    folder: Path,
    headers: Path,
) -> Path:
    """One object file of a network's functions and their table; only the table has a name outside.

    Raises
    ------
    KitError
        If a tool fails, or a function calls what only TVM's runtime has.
    """
    for code in objects:
        _check_calls(code)
    output = folder / f"{build}.o"
    with tempfile.TemporaryDirectory(prefix="tvm-pattern-") as name:
        scratch = Path(name)
        table = scratch / "table.c"
        table.write_text(table_source(build, functions), encoding="utf-8")
        paths = [scratch / f"code{number}.o" for number in range(len(objects))]
        for path, code in zip(paths, objects, strict=True):
            path.write_bytes(code)
        compiled = scratch / "table.o"
        pic = ("-fPIC", f"-I{headers}")
        _run([tools.compiler, *_OPTIONS, *pic, "-c", str(table), "-o", str(compiled)])
        every = [str(compiled), *map(str, paths)]
        _run([tools.compiler, "-r", "-nostdlib", *every, "-o", str(output)])
    _run([tools.objcopy, "--wildcard", f"--localize-symbol={_SYMBOL}*", str(output)])
    return output


def _check_calls(code: bytes) -> None:
    """Refuse code that calls functions by name, such as TVM's sorting."""
    missing = set(_RUNTIME.findall(code)).difference(_DEFINED)
    if missing:
        found = re.findall(rb"\0__tvm_ffi_([A-Za-z]\w*)", code)
        names = ", ".join(sorted({name.decode() for name in found})) or "a function"
        raise KitError(
            f"{names} needs TVM's runtime ({min(missing).decode()}), as sorting does; use the"
            " library that compile writes"
        )


def link_runner(tools: Tools, folder: Path, objects: Sequence[Path], *, gpu: bool) -> Path:
    """The runner of a kit whose sources lie in ``folder/src``.

    Raises
    ------
    KitError
        If the compiler fails.
    """
    output = folder / "runner"
    files = [folder / "src" / name for name in sources(gpu=gpu) if name.endswith(".c")]
    code = [*map(str, files), str(folder / "src" / "builds.c"), *map(str, objects)]
    how = ["-static"] if tools.is_static and not gpu else []
    libraries = ["-lm", "-ldl"] if gpu or tools.abi != "android" else ["-lm"]
    _run([tools.compiler, *_OPTIONS, *how, "-pthread", *code, "-o", str(output), *libraries])
    output.chmod(0o755)
    return output


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines
        reason = errors[0][-300:] if errors else "it gave no reason"
        raise KitError(f"{Path(command[0]).name} cannot make the kit: {reason}")


def _environment() -> dict[str, str]:
    """The environment with messages in English, since errors are looked for in them."""
    return {**os.environ, "LC_ALL": "C"}
