"""Weights outside the virtual machine: the same results, mapped from the file, anywhere."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm import relax
from tvm.ir import IRModule
from tvm.target import Target

import tvm_pattern as tp
from tvm_pattern import linking, mapped_weights
from tvm_pattern.building import build
from tvm_pattern.linking import object_code
from tvm_pattern.manifest import ArtifactError
from tvm_pattern.mapped_weights import FUNCTION, Weights
from tvm_pattern.weight_section import (
    ALIGNMENT,
    MARK,
    SegmentError,
    append,
    slot_object,
    takes_weights,
    write_object,
)

IMAGE = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))

# Asks a library for a weight as a virtual machine does, and prints its elements.
MAIN = r"""
#include <stdint.h>
#include <stdio.h>
typedef struct { int32_t type, zero; union { int64_t i; void* p; } v; } Any;
typedef struct {
  void* data; int32_t device[2]; int32_t ndim; uint8_t code, bits; uint16_t lanes;
  int64_t* shape; int64_t* strides; uint64_t byte_offset;
} Tensor;
extern int32_t __tvm_ffi_tvm_pattern_weight(void*, const Any*, int32_t, Any*);
int32_t TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  for (int32_t i = 0; i < count; ++i) if (parts[i]) printf("%s", parts[i]);
  return 0;
}
int main(void) {
  for (int64_t index = 0; index < 2; ++index) {
    Any argument = {1, 0, {index}}, result = {0, 0, {0}};
    if (__tvm_ffi_tvm_pattern_weight(0, &argument, 1, &result)) return 3;
    Tensor* t = result.v.p;
    printf("%d %d.%d.%d %d %d %d", result.type, t->code, t->bits, t->lanes, t->device[0], t->ndim,
           (int)((uintptr_t)t->data % 64));
    int64_t count = 1;
    for (int i = 0; i < t->ndim; ++i) { count *= t->shape[i]; printf(" %d", (int)t->shape[i]); }
    for (int64_t i = 0; i < count; ++i)
      printf(" %.9g", t->code == 2 ? ((float*)t->data)[i] : ((int8_t*)t->data)[i]);
    printf("\n");
  }
  return 0;
}
"""
MACHINES = {
    "x86_64": ("x86_64-linux-gnu", "gcc", []),
    "aarch64": ("aarch64-linux-gnu", "aarch64-linux-gnu-gcc", ["qemu-aarch64", "-L"]),
    "arm": ("armv7l-linux-gnueabihf", "arm-linux-gnueabihf-gcc", ["qemu-arm", "-L"]),
}
ARRAYS = Weights(
    (
        np.arange(15, dtype=np.float32).reshape(3, 5) / 7,
        np.arange(-3, 4, dtype=np.int8),
    )
)
PRINTED = (
    f"4 2.32.1 1 2 0 3 5 {' '.join(f'{x:.9g}' for x in ARRAYS.arrays[0].ravel())}\n"
    "4 0.8.1 1 1 0 7 -3 -2 -1 0 1 2 3\n"
)


@pytest.fixture
def always(monkeypatch):
    """Weights of every size are taken out."""
    monkeypatch.setattr(mapped_weights, "_LEAST_BYTES", 1)
    monkeypatch.setattr(mapped_weights, "_LEAST_TOTAL", 1)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    ).eval()
    tp.pruning.oneshot(model, connectivity=2.0)
    return model


def compiled(**options) -> tp.Library:
    return tp.compile(network(), (IMAGE,), num_threads=1, **options)


# ---- libraries ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
    """What the network gives with its weights in the virtual machine."""
    return compiled()(IMAGE.numpy())


@pytest.mark.parametrize("suffix", [".so", ".tar"])
def test_the_same_results_from_every_file(tmp_path, always, plain, suffix):
    library = compiled()
    assert np.array_equal(library(IMAGE.numpy()), plain)
    path = library.export(tmp_path / f"net{suffix}")
    assert MARK in path.read_bytes()
    loaded = tp.load(path)
    assert np.array_equal(loaded(IMAGE.numpy()), plain)
    assert loaded.profile(repeat=1, min_repeat_ms=0).whole_ms > 0
    assert loaded.source("0").functions


def test_written_twice_and_by_another_linker_it_is_the_same(tmp_path, always, plain):
    """The arrays are gone after the first file, and are copied from it."""
    library = compiled(verify=False)
    early = library.export(tmp_path / "early.tar").read_bytes()
    first = library.export(tmp_path / "first.so").read_bytes()
    assert library.export(tmp_path / "late.tar").read_bytes() == early
    assert library.export(tmp_path / "again.so").read_bytes() == first
    library.export(tmp_path / "other.so", cc="gcc")
    assert np.array_equal(tp.load(tmp_path / "other.so")(IMAGE.numpy()), plain)


def test_any_virtual_machine_runs_it(tmp_path, always, plain):
    path = compiled(verify=False).export(tmp_path / "net.so")
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
    assert np.array_equal(machine["main"](tvm.runtime.tensor(IMAGE.numpy())).numpy(), plain)


def test_weights_of_several_sizes_are_there_once(always):
    images = [torch.randn(1, 3, n, n) for n in (12, 16)]
    whole = tp.compile(network(), sizes=[(x,) for x in images], num_threads=1, verify=False)
    one = compiled(verify=False)
    counts = [len(each._code._weights._weights.arrays) for each in (whole, one)]
    assert counts[0] == counts[1]
    for image in images:
        with torch.no_grad():
            expected = network()(image).numpy()
        assert np.allclose(whole(image.numpy()), expected, atol=1e-5)


def test_equal_arrays_are_kept_once():
    one, other = np.arange(8, dtype=np.float32), np.arange(8, dtype=np.float32)
    more = {
        "same": one,
        "equal": other,
        "other shape": other.reshape(2, 4),
        "other bytes": np.arange(1, 9, dtype=np.float32),
        "not a number": np.full(8, np.nan, np.float32),
        "not a number again": np.full(8, np.nan, np.float32),
    }
    arrays = {mapped_weights._key(array): array for array in more.values()}
    indices, kept = mapped_weights._once(arrays)
    assert [indices[mapped_weights._key(a)] for a in more.values()] == [0, 0, 1, 2, 3, 3]
    assert len(kept) == 4


def test_small_networks_keep_theirs_in_the_machine(tmp_path):
    assert MARK not in compiled(verify=False).export(tmp_path / "net.so").read_bytes()


def test_values_inside_are_still_found(always):
    """The check looks at what calls are given; an arg-max is compared before it."""
    model = nn.Sequential(network(), _ArgMax()).eval()
    library = tp.compile(model, (IMAGE,), num_threads=1)
    notes = library.manifest.verification["notes"]
    assert any("in the library" in note for note in notes)


class _ArgMax(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.argmax(1)


def test_a_linker_that_leaves_no_room(tmp_path, always, plain, monkeypatch):
    def refuse(*_):
        raise SegmentError("no room")

    monkeypatch.setattr(linking, "append", refuse)
    library = compiled()
    assert np.array_equal(library(IMAGE.numpy()), plain)
    assert np.array_equal(tp.load(library.export(tmp_path / "net.so"))(IMAGE.numpy()), plain)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loaded_weights_are_pages_of_the_file(tmp_path, always):
    """None of them is copied: other processes that map the file have the same pages."""
    path = compiled(verify=False).export(tmp_path / "net.so")
    library = tp.load(path)
    library(IMAGE.numpy())
    weights = path.read_bytes().rindex(MARK)
    with open("/proc/self/smaps", encoding="utf-8") as maps:
        parts = maps.read().split("VmFlags")
    loaded = [part for part in parts if "tvm-pattern-" in part and holds(part, weights)]
    assert loaded
    anonymous = next(x for x in loaded[-1].splitlines() if x.startswith("Anonymous:"))
    assert anonymous.split()[1] == "0", loaded[-1]


def holds(part: str, place: int) -> bool:
    """Whether a mapping, as /proc describes it, can be read only and holds a place of its file."""
    header = next(line for line in part.splitlines() if "tvm-pattern-" in line)
    span, permissions, offset = header.split()[:3]
    start, end = (int(address, 16) for address in span.split("-"))
    first = int(offset, 16)
    return permissions == "r--p" and first <= place < first + end - start


def test_stripped_libraries_keep_their_weights(tmp_path, always, plain):
    path = compiled(verify=False).export(tmp_path / "net.so")
    subprocess.run(["strip", str(path)], check=True)
    with pytest.raises(ArtifactError, match="SHA-256"):
        tp.load(path)
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
    assert np.array_equal(machine["main"](tvm.runtime.tensor(IMAGE.numpy())).numpy(), plain)


# ---- sections ----------------------------------------------------------------------------------


def accessor(triple: str) -> bytes:
    options = {"mfloat-abi": "hard"} if triple.startswith("armv7") else {}
    target = Target({"kind": "llvm", "mtriple": triple, **options})
    function = mapped_weights._place_function(ARRAYS, target)
    return object_code(tvm.tirx.build(IRModule({FUNCTION: function}), target=target))


def run(machine: str, folder, library) -> subprocess.CompletedProcess:
    """What a program prints that asks a library for its weights."""
    triple, compiler, emulator = MACHINES[machine]
    (folder / "main.c").write_text(MAIN)
    command = [compiler, str(folder / "main.c"), str(library), "-o", str(folder / "main")]
    subprocess.run([*command, f"-Wl,-rpath,{folder}", "-rdynamic"], check=True)
    root = f"/usr/{triple.replace('armv7l', 'arm')}"
    emulated = [*emulator, root] if emulator else []
    return subprocess.run(
        [*emulated, str(folder / "main")], capture_output=True, text=True, check=False
    )


def tools(machine: str) -> None:
    _, compiler, emulator = MACHINES[machine]
    for command in [compiler, *emulator[:1]]:
        if shutil.which(command) is None:
            pytest.skip(f"no {command}")


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("way", ["object", "segment"])
def test_weights_of_every_machine(tmp_path, machine, way):
    """Asked by a program in C: the tensors and their elements."""
    tools(machine)
    (tmp_path / "code.o").write_bytes(accessor(MACHINES[machine][0]))
    with (tmp_path / "weights.o").open("wb") as file:
        if way == "object":
            write_object(file, machine, ARRAYS.nbytes, ARRAYS.write_to)
        else:
            file.write(slot_object(machine))
    library = tmp_path / "libnet.so"
    objects = [str(tmp_path / name) for name in ("code.o", "weights.o")]
    link = [MACHINES[machine][1], "-shared", *objects, "-o", str(library)]
    done = subprocess.run(link, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    if way == "segment":
        before = run(machine, tmp_path, library)
        assert before.returncode == 3
        assert "the weights of this library are not in its file" in before.stdout
        with library.open("r+b") as file:
            at = append(file, ARRAYS.nbytes, ARRAYS.write_to)
            assert library.read_bytes()[at:].startswith(MARK)
    assert run(machine, tmp_path, library).stdout == PRINTED


@pytest.mark.parametrize(
    ("triple", "architecture", "takes"),
    [
        ("x86_64-pc-linux-gnu", "x86_64", True),
        ("aarch64-linux-android", "aarch64", True),
        ("armv7l-linux-gnueabihf", "arm", True),
        ("riscv64-linux-gnu", "riscv64", False),
        ("arm64-apple-darwin23", "aarch64", False),
        ("x86_64-pc-windows-msvc", "x86_64", False),
    ],
)
def test_which_targets(triple, architecture, takes):
    assert takes_weights(triple, architecture) is takes


def elf(*, kinds=(1, 4), entry=56, tag=True) -> bytes:
    """The headers of a library with segments of these kinds, and a slot."""
    head = bytearray(64)
    head[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", head, 32, 64)
    struct.pack_into("<HH", head, 54, entry, len(kinds))
    table = b"".join(struct.pack("<IIQQQQQQ", kind, 4, 0, 0, 0, 512, 512, 4096) for kind in kinds)
    slot = slot_object("x86_64")
    start = slot.index(b"tvm-pattern: distance") - 8
    return bytes(head) + table + (slot[start : start + 56] if tag else b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"MZ" * 50, "no little-endian ELF file"),
        (elf(kinds=(1,)), "no segment of notes"),
        (elf(kinds=(4,)), "no segment of notes"),
        (elf(entry=32), "segments of 32 bytes"),
        (elf()[:100], "cut off"),
        (elf(tag=False), "0 slots"),
        (elf() + elf(), "2 slots"),
    ],
)
def test_files_that_take_no_segment(content, reason):
    file = io.BytesIO(content)
    with pytest.raises(SegmentError, match=reason):
        append(file, ALIGNMENT, lambda target: target.write(MARK.ljust(ALIGNMENT)))
    assert file.getvalue() == content


def test_more_weights_than_addresses():
    file = io.BytesIO(elf())
    with pytest.raises(SegmentError, match="too many for 64 bits"):
        append(file, 1 << 63, lambda target: None)


def test_only_what_is_compiled_maps_weights(always):
    """Code for others, such as kits, asks for no weights."""
    target = Target("llvm")
    x = relax.Var("x", relax.TensorType((4,), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(relax.op.add(x, relax.const(np.ones(4, np.float32))))
        builder.emit_func_output(out)
    mod = relax.transform.LegalizeOps()(builder.get())
    assert build(mod, target, None).weights is None
    taken = build(mod, target, None, maps_weights=True)
    assert [array.tolist() for array in taken.weights.arrays] == [[1.0] * 4]
    assert FUNCTION not in taken.primfuncs
