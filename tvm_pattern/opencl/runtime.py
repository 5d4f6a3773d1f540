"""The OpenCL runtime: compiled once, kept in the cache folder, loaded once per process."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi

from ..code_cache import from_environment
from .errors import OpenCLError

DEVICE_API = "device_api.opencl"
_SOURCES = ("opencl_api.h", "device.h", "program.h", "runtime.cc")
_OPTIONS = ("-O1", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden")
#: Part of the key of what is kept; to be raised when the options change.
_FORMAT = 1
_lock = threading.Lock()


def load_runtime() -> None:
    """Give this process's TVM an OpenCL runtime, unless it has one.

    The first call on a computer compiles it (some ten seconds); no driver is touched before the
    first device is asked for.

    Raises
    ------
    OpenCLError
        If there is no C++ compiler, it fails, or TVM's headers are not those that are expected.
    """
    with _lock:
        if is_loaded():
            return
        cache = from_environment()
        key = _key()
        code = None if cache is None else cache.read(key)
        if code is None:
            code = _compile()
            if cache is not None:
                cache.write({key: code})
        _load(code)


def is_loaded() -> bool:
    """Whether TVM has an OpenCL runtime: ours, or its own where it was built with one."""
    return tvm.get_global_func(DEVICE_API, allow_missing=True) is not None


def _key() -> str:
    """Digest of all that decides the compiled code."""
    digest = hashlib.sha256(f"opencl runtime {_FORMAT} {_OPTIONS}".encode())
    digest.update(f"{tvm.__version__} {tvm_ffi.__version__}".encode())
    for name in _SOURCES:
        digest.update(_native().joinpath(name).read_bytes())
    for library in _libraries():
        status = library.stat()
        digest.update(f"{library.name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _native() -> Any:
    return resources.files(__package__).joinpath("native")


def _roots() -> tuple[Path, Path]:
    """The folders of TVM and of its foreign function interface."""
    return Path(tvm.__file__).parent, Path(tvm_ffi.__file__).parent


def _libraries() -> list[Path]:
    """What the runtime is linked against; already loaded in any process that imported TVM."""
    found = [root / "lib" / name for root, name in zip(_roots(), _LINKED, strict=True)]
    missing = [str(path) for path in found if not path.is_file()]
    if missing:
        raise OpenCLError(
            f"TVM is not installed from its wheel: {', '.join(missing)} missing; install"
            " apache-tvm, or build TVM with USE_OPENCL=ON"
        )
    return found


_LINKED = ("libtvm_runtime.so", "libtvm_ffi.so")


def _compiler() -> str:
    command = os.environ.get("CXX", "").strip() or "g++"
    if shutil.which(command) is None:
        raise OpenCLError(
            f"no C++ compiler {command!r} to compile the OpenCL runtime; on Debian and Ubuntu:"
            " apt-get install g++, or name another by the variable CXX"
        )
    return command


def _compile() -> bytes:
    """Compile the sources.

    Raises
    ------
    OpenCLError
        With the compiler's first reason.
    """
    command = _compiler()
    with _folder() as folder, resources.as_file(_native()) as native:
        output = folder / "opencl_runtime.so"
        includes = [f"-I{root / 'include'}" for root in _roots()]
        libraries = list(map(str, _libraries()))
        arguments = [command, *_OPTIONS, str(native / "runtime.cc"), "-o", str(output)]
        done = subprocess.run(
            [*arguments, *includes, *libraries, "-ldl"], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise OpenCLError(
                f"{command} cannot compile the OpenCL runtime: {_first_error(done.stderr)}; see"
                f" that it is a C++17 compiler and that apache-tvm {tvm.__version__} is complete"
            )
        return output.read_bytes()


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it gave no reason"])[0][-300:]


def _load(code: bytes) -> None:
    with _folder() as folder:
        path = folder / "libtvm_pattern_opencl.so"
        path.write_bytes(code)
        try:
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)  # The mapping outlives the file.
        except OSError as error:
            raise OpenCLError(
                f"the OpenCL runtime cannot be loaded: {error}; see that the folder for temporary"
                f" files allows execution (TMPDIR, now {tempfile.gettempdir()})"
            ) from None


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder that nobody else can write to."""
    try:
        with tempfile.TemporaryDirectory(prefix="tvm-pattern-") as name:
            yield Path(name)
    except OSError as error:
        raise OpenCLError(
            f"no room for the OpenCL runtime: {error}; free space or name another folder for"
            f" temporary files by TMPDIR (now {tempfile.gettempdir()})"
        ) from None
