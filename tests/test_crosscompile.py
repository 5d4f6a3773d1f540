"""Linkers are found, or the message says what to install; libraries say what they are."""

from __future__ import annotations

import struct

import pytest
from tvm.target import Target

from tvm_pattern import crosscompile
from tvm_pattern.crosscompile import CrossCompileError, Linker, find_linker, linker_for, read_elf


@pytest.fixture
def commands(monkeypatch):
    """Commands that exist; the tests fill the set. This machine is an x86-64."""
    present: set[str] = set()
    monkeypatch.setattr(crosscompile.shutil, "which", lambda c: c if c in present else None)
    monkeypatch.setattr(crosscompile, "machine_architecture", lambda: "x86_64")
    monkeypatch.delenv("TVM_NDK_CC", raising=False)
    return present


@pytest.mark.parametrize(
    ("triple", "command", "abi"),
    [
        ("x86_64-linux-gnu", "gcc", "gnu"),
        ("aarch64-linux-gnu", "aarch64-linux-gnu-gcc", "gnu"),
        ("arm64-linux-gnu", "aarch64-linux-gnu-gcc", "gnu"),
        ("armv7l-linux-gnueabihf", "arm-linux-gnueabihf-gcc", "gnueabihf"),
    ],
)
def test_default_linkers(commands, triple, command, abi):
    commands.add(command)
    # The digest of all weights is left out where the linker is known.
    options = ("-Wl,--build-id=none",) if command == "gcc" else ()
    assert find_linker(triple) == Linker(command, options, abi)


def test_ndk(commands, monkeypatch):
    commands |= {"/ndk/clang", "aarch64-linux-gnu-gcc"}
    monkeypatch.setenv("TVM_NDK_CC", "/ndk/clang")
    linker = find_linker("aarch64-linux-gnu")
    assert (linker.command, linker.abi) == ("/ndk/clang", "android")
    assert "-Wl,-z,max-page-size=16384" in linker.options
    # A compiler that was named wins.
    assert find_linker("aarch64-linux-gnu", "aarch64-linux-gnu-gcc").abi == "gnu"


def test_android_without_an_ndk(commands):
    commands.add("aarch64-linux-gnu-gcc")
    linker = find_linker("aarch64-linux-android")
    assert linker.abi == "android"
    assert "-nostdlib" in linker.options


@pytest.mark.parametrize(
    ("triple", "message"),
    [
        ("aarch64-linux-gnu", "apt-get install gcc-aarch64-linux-gnu, or set TVM_NDK_CC"),
        ("armv7l-linux-gnueabihf", "apt-get install gcc-arm-linux-gnueabihf, name"),
        ("riscv64-linux-gnu", "no compiler is known for 'riscv64-linux-gnu'"),
        ("x86_64-linux-gnu", "no compiler 'gcc'"),
    ],
)
def test_missing_compilers(commands, triple, message):
    with pytest.raises(CrossCompileError, match=message):
        find_linker(triple)


def test_missing_named_compilers(commands, monkeypatch):
    with pytest.raises(CrossCompileError, match=r"no compiler 'mine' .from cc."):
        find_linker("aarch64-linux-gnu", "mine")
    monkeypatch.setenv("TVM_NDK_CC", "/ndk/clang")
    with pytest.raises(CrossCompileError, match=r"no compiler '/ndk/clang' .from .TVM_NDK_CC."):
        find_linker("aarch64-linux-gnu")


@pytest.mark.parametrize(
    ("target", "command", "package"),
    [
        ({"kind": "llvm", "mtriple": "x86_64-linux-gnu"}, "gcc", "gcc"),
        (
            {"kind": "llvm", "mtriple": "aarch64-linux-gnu"},
            "aarch64-linux-gnu-gcc",
            "gcc-aarch64-linux-gnu",
        ),
        (
            {"kind": "llvm", "mtriple": "armv7l-linux-gnueabihf"},
            "arm-linux-gnueabihf-gcc",
            "gcc-arm-linux-gnueabihf",
        ),
    ],
)
def test_linkers_of_devices(commands, target, command, package):
    with pytest.raises(CrossCompileError, match=f"no compiler '{command}'.*install {package}$"):
        linker_for(Target(target))
    commands.add(command)
    assert linker_for(Target(target)) == command


def test_devices_without_a_known_linker(commands):
    with pytest.raises(CrossCompileError, match=r"no compiler is known for riscv64; expected one"):
        linker_for(Target({"kind": "llvm", "mtriple": "riscv64-linux-gnu"}))


def elf(wide: bool, machine: int, pages: list[int]) -> bytes:
    """A library of nothing but its headers."""
    size, offset = (56, 64) if wide else (32, 52)
    head = bytearray(max(64, offset))
    head[:6] = b"\x7fELF" + bytes([2 if wide else 1, 1])
    struct.pack_into("<H", head, 18, machine)
    struct.pack_into("<Q" if wide else "<I", head, 32 if wide else 28, len(head))
    struct.pack_into("<HH", head, 54 if wide else 42, size, len(pages) + 1)
    programs = bytearray(size)  # one that is not loaded
    for page in pages:
        entry = bytearray(size)
        struct.pack_into("<I", entry, 0, 1)
        struct.pack_into("<Q" if wide else "<I", entry, 48 if wide else 28, page)
        programs += entry
    return bytes(head) + bytes(programs)


@pytest.mark.parametrize(
    ("wide", "machine", "name"),
    [(True, 183, "aarch64"), (True, 62, "x86_64"), (False, 40, "arm"), (True, 9, "ELF machine 9")],
)
def test_read_elf(tmp_path, wide, machine, name):
    path = tmp_path / "lib.so"
    path.write_bytes(elf(wide, machine, [4096, 16384]))
    facts = read_elf(path)
    assert (facts.architecture, facts.page_size) == (name, 16384)


@pytest.mark.parametrize("data", [b"", b"MZ" * 64, b"\x7fELF\x02\x02" + bytes(90)])
def test_no_elf(tmp_path, data):
    path = tmp_path / "lib.so"
    path.write_bytes(data)
    with pytest.raises(CrossCompileError, match="no little-endian ELF library"):
        read_elf(path)


def test_cut_off_elf(tmp_path):
    path = tmp_path / "lib.so"
    path.write_bytes(elf(True, 183, [4096])[:-8])
    with pytest.raises(CrossCompileError, match="cut off"):
        read_elf(path)
