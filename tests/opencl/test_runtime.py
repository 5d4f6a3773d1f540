"""The runtime: how it is built, what it says of devices, and what goes wrong with them."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
import tvm

from tvm_pattern import code_cache, opencl
from tvm_pattern.opencl import runtime

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "tvm_pattern" / "opencl" / "native"
HEADER = Path("/usr/include/CL/cl.h")


def test_constants_are_the_standards():
    """Ours are written by hand, so that the headers need not be there."""
    if not HEADER.is_file():
        pytest.skip(f"no {HEADER}; make opencl-tools installs it")
    api = (NATIVE / "opencl_api.h").read_text()
    ours = re.findall(r"constexpr \w+ (CL_\w+) = (?:1 << (\d+)|(-?\w+));", api)
    assert len(ours) == api.count("\nconstexpr ")
    text = HEADER.read_text()
    for name, shift, number in ours:
        found = re.search(rf"#define {name}\s+\(?(-?\w+)(?: << (\d+))?\)?", text)
        assert found is not None, name
        theirs = int(found.group(1), 0) << int(found.group(2) or 0)
        assert theirs == (1 << int(shift) if shift else int(number, 0)), name


def test_all_sources_decide_whether_it_is_compiled_anew():
    """That the wheel holds them is tested with the wheel."""
    assert sorted(path.name for path in NATIVE.iterdir()) == sorted(runtime._SOURCES)


def driver_says(query: int, size: int) -> bytes:
    """``clGetDeviceInfo`` of the first device of the first platform that has one."""
    cl = ctypes.CDLL("libOpenCL.so.1")
    count, platforms = ctypes.c_uint(), (ctypes.c_void_p * 16)()
    cl.clGetPlatformIDs(16, platforms, ctypes.byref(count))
    for platform in platforms[: count.value]:
        found = ctypes.c_void_p()
        args = (ctypes.c_void_p(platform), ctypes.c_uint64(0xFFFFFFFF), 1, ctypes.byref(found))
        if cl.clGetDeviceIDs(*args, None) == 0:
            value = ctypes.create_string_buffer(size)
            assert cl.clGetDeviceInfo(found, query, ctypes.c_size_t(size), value, None) == 0
            return value.raw
    raise AssertionError("no device")


def test_facts_are_the_drivers(device):
    if len(opencl.devices()) > 1:
        pytest.skip("several devices; the driver's own order is not ours")
    facts = opencl.devices()[0]
    assert driver_says(0x102B, 256).split(b"\0")[0].decode() == facts.name == device.device_name
    assert int.from_bytes(driver_says(0x1004, 8), "little") == facts.max_work_group
    assert device.max_threads_per_block == facts.max_work_group
    assert int.from_bytes(driver_says(0x101F, 8), "little") == facts.global_memory
    assert device.total_global_memory == facts.global_memory
    assert facts.float16 == (b"cl_khr_fp16" in driver_says(0x1030, 8192))
    assert facts.images == bool(int.from_bytes(driver_says(0x1016, 4), "little"))
    assert not tvm.opencl(len(opencl.devices())).exist


# One process, because importing takes long: children that have different drivers to find.
CHILDREN = """
import os, sys
import numpy as np, tvm
from tvm_pattern import opencl
from tvm_pattern.opencl.facts import why_none

opencl.load_runtime()

def in_child(look):
    sys.stdout.flush()
    if os.fork() == 0:
        look()
        sys.stdout.flush()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 7

def look_for(name, value):
    def look():
        os.environ[name] = value
        print(opencl.devices(), tvm.opencl(0).exist, why_none())
    in_child(look)

def allocate():
    try:
        tvm.runtime.tensor(np.ones(4, "float32"), tvm.opencl(0))
    except RuntimeError as error:
        print(tvm.opencl(0).exist, error)

look_for("TVM_PATTERN_LIBOPENCL", "/nowhere")
look_for("TVM_PATTERN_LIBOPENCL", "libc.so.6")
look_for("OCL_ICD_VENDORS", "/nowhere/")
if tvm.opencl(0).exist:
    kept = tvm.runtime.tensor(np.ones(4, "float32"), tvm.opencl(0))
    def after_use():
        global kept
        del kept
        allocate()
    in_child(after_use)
    print(kept.numpy().sum())
"""


def test_without_a_driver_and_in_forked_children(device, in_process):
    """What is missing is said; a child of who used the driver is not left waiting for threads."""
    done = in_process(CHILDREN)
    assert done.returncode == 0, done.stderr
    none, no_functions, no_device, forked, kept = done.stdout.splitlines()
    assert none.startswith("[] False no OpenCL device: /nowhere cannot be loaded; install")
    assert no_functions.startswith("[] False no OpenCL device: libc.so.6 has no function cl")
    assert no_device.startswith("[] False no OpenCL device: no OpenCL driver has a device")
    assert "apt-get install" in none
    assert forked.startswith("False OpenCL: it was used before this process was forked")
    assert kept == "4.0"


@pytest.fixture
def no_runtime(monkeypatch, tmp_path):
    """As if nothing had been loaded or compiled; what is loaded ends up in the list."""
    loaded = []
    monkeypatch.setattr(runtime, "is_loaded", lambda: False)
    monkeypatch.setattr(runtime, "_load", loaded.append)
    monkeypatch.setenv(code_cache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    return loaded


def stub(folder: Path, text: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_without_a_compiler(no_runtime, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(opencl.OpenCLError, match=r"no C\+\+ compiler 'g\+\+'.*apt-get install g"):
        opencl.load_runtime()
    assert no_runtime == []


def test_a_compiler_that_fails(no_runtime, monkeypatch, tmp_path):
    text = "echo In file >&2; echo 'x.h:1: fatal error: any.h: No such file' >&2; exit 1"
    monkeypatch.setenv("CXX", stub(tmp_path, text))
    with pytest.raises(opencl.OpenCLError, match=r"cannot compile .*fatal error: any\.h.*C\+\+17"):
        opencl.load_runtime()
    assert no_runtime == []


def test_it_is_compiled_once(no_runtime, monkeypatch, tmp_path):
    """A stub that counts: the second process takes what the first one kept."""
    calls = tmp_path / "calls"
    text = f'while [ "$1" != -o ]; do shift; done; printf code > "$2"; echo >> {calls}'
    monkeypatch.setenv("CXX", stub(tmp_path, text))
    for _ in range(2):
        opencl.load_runtime()
    assert no_runtime == [b"code", b"code"]
    assert calls.read_text() == "\n"
    monkeypatch.setattr(tvm, "__version__", "0.0")
    opencl.load_runtime()
    assert calls.read_text() == "\n\n"


def test_without_a_cache_it_is_compiled_each_time(no_runtime, monkeypatch, tmp_path):
    calls = tmp_path / "calls"
    text = f'while [ "$1" != -o ]; do shift; done; printf code > "$2"; echo >> {calls}'
    monkeypatch.setenv("CXX", stub(tmp_path, text))
    monkeypatch.setenv(code_cache.FOLDER_VARIABLE, "0")
    for _ in range(2):
        opencl.load_runtime()
    assert calls.read_text() == "\n\n"


def test_what_cannot_be_loaded_is_said():
    with pytest.raises(opencl.OpenCLError, match=r"cannot be loaded: .*TMPDIR"):
        runtime._load(b"no library")


def test_headers_of_another_tvm(monkeypatch):
    monkeypatch.setattr(runtime, "_LINKED", ("libtvm_missing.so", "libtvm_ffi.so"))
    with pytest.raises(opencl.OpenCLError, match=r"libtvm_missing\.so missing; install apache-tvm"):
        runtime._libraries()


def test_a_tvm_with_its_own_opencl_lists_no_devices(monkeypatch):
    monkeypatch.setattr(tvm, "get_global_func", lambda name, allow_missing=False: None)
    with pytest.raises(opencl.OpenCLError, match=r"of its own.*tvm\.opencl\(0\)"):
        opencl.facts._function("count")
