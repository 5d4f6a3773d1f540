"""Libraries on disk: what is written, what is checked before anything is loaded."""

from __future__ import annotations

import copy as copying
import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tvm_pattern as tp
from tvm_pattern import artifact, linking, loading, machine, threads
from tvm_pattern.artifact import ArtifactError, Manifest, manifest_path

IMAGE = torch.randn(1, 3, 9, 11, generator=torch.Generator().manual_seed(1)).numpy()


@pytest.fixture(scope="module")
def library():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    tp.pruning.oneshot(model, connectivity=2.0)
    return tp.compile(model, IMAGE, num_threads=1)


@pytest.fixture(scope="module")
def exported(library, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return library.export(folder / "net.so")


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of the exported library that a test may damage."""
    for path in (exported, manifest_path(exported)):
        shutil.copy(path, tmp_path)
    return tmp_path / exported.name


@pytest.fixture(scope="module")
def others():
    """Two networks with the same input, the second with more outputs."""
    found = []
    for channels in (4, 5):
        torch.manual_seed(channels)
        found.append(tp.compile(nn.Conv2d(3, channels, 3).eval(), IMAGE, num_threads=1))
    return found


def mappings(part: str) -> int:
    """Mappings of files whose name holds ``part``."""
    return sum(part in line for line in Path("/proc/self/maps").read_text().splitlines())


def edit(path, **changes):
    manifest = manifest_path(path)
    data = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**data, **changes}))


@pytest.mark.parametrize("suffix", [".so", ".tar"])
def test_round_trip(library, tmp_path, suffix, capfd):
    path = library.export(tmp_path / f"net{suffix}")
    loaded = tp.load(path)
    np.testing.assert_array_equal(loaded(IMAGE), library(IMAGE))
    assert loaded.report == library.report
    assert loaded.inputs == library.inputs
    assert loaded.outputs == library.outputs
    assert dict(loaded.target.export()) == dict(library.target.export())
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"net{suffix}", f"net{suffix}.json"]
    # TVM's C++ says a line per constant; users should not have to read them.
    assert capfd.readouterr().err == ""


def test_another_process_loads_it(library, exported, tmp_path):
    np.save(tmp_path / "x.npy", IMAGE)
    code = (
        "import sys, numpy as np, tvm_pattern as tp\n"
        "lib = tp.load(sys.argv[1])\n"
        "np.save(sys.argv[3], lib(np.load(sys.argv[2])))\n"
    )
    arguments = [str(exported), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), library(IMAGE))


def test_manifest(library, exported):
    manifest = Manifest.read(manifest_path(exported))
    written = json.loads(json.dumps(dataclasses.asdict(library.manifest)))
    known = {name: getattr(manifest, name) for name in ("abi", "page_size", "sha256")}
    assert dataclasses.asdict(manifest) == {**written, **known}
    assert manifest.abi == "gnu"
    assert manifest.page_size >= 4096
    assert manifest.schema == artifact.MANIFEST_SCHEMA
    assert manifest.inputs == [{"name": "input", "shape": [1, 3, 9, 11], "dtype": "float32"}]
    assert manifest.outputs[0]["shape"] == [1, 4, 7, 9]
    assert manifest.versions["tvm_pattern"] == tp.__version__
    assert [row["layer"] for row in manifest.report] == ["0", "2"]
    assert manifest.architecture == machine.machine_architecture()
    assert set(manifest.cpu_features) <= machine.machine_features()


def test_missing_files(copy, tmp_path):
    with pytest.raises(ArtifactError, match=r"no such library: .*none\.so"):
        tp.load(tmp_path / "none.so")
    manifest_path(copy).unlink()
    with pytest.raises(ArtifactError, match=r"no manifest .*net\.so\.json.*copy both"):
        tp.load(copy)


@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe\x00", b"[1]", b"{}", b'{"schema": 2}', b'{"schema": 99}']
)
def test_unreadable_or_unknown_manifest(copy, content):
    manifest_path(copy).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"is not JSON|has the schema (None|2|99), expected 5"):
        tp.load(copy)


def test_manifest_with_wrong_fields(copy):
    edit(copy, extra=1)
    with pytest.raises(ArtifactError, match=r"unknown fields \['extra'\]"):
        tp.load(copy)
    data = json.loads(manifest_path(copy).read_text())
    del data["extra"], data["inputs"]
    manifest_path(copy).write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=r"missing fields \['inputs'\]"):
        tp.load(copy)


def test_corrupted_library(copy):
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    with pytest.raises(ArtifactError, match="corrupted or belongs to another manifest"):
        tp.load(copy)
    copy.write_bytes(b"")
    with pytest.raises(ArtifactError, match="corrupted"):
        tp.load(copy)


@pytest.mark.parametrize("suffix", [".so", ".tar"])
def test_a_file_that_is_no_library(copy, suffix):
    path = copy.with_suffix(suffix)
    content = b"not a library, but the manifest says so"
    manifest = Manifest.read(manifest_path(copy))
    path.write_bytes(content)
    dataclasses.replace(manifest, sha256=hashlib.sha256(content).hexdigest()).write(
        manifest_path(path)
    )
    with pytest.raises(ArtifactError, match="cannot load"):
        tp.load(path)


def test_library_of_another_machine(copy):
    edit(copy, architecture="riscv64")
    with pytest.raises(ArtifactError, match=r"built for riscv64, this machine is"):
        tp.load(copy)
    edit(copy, architecture=machine.machine_architecture(), cpu_features=["avx2", "quantum512"])
    with pytest.raises(ArtifactError, match=r"CPU features .*quantum512, which this machine lacks"):
        tp.load(copy)


def test_a_runtime_that_cannot_tell_its_features_checks_the_architecture(monkeypatch):
    monkeypatch.setattr("tvm.get_global_func", lambda name, allow_missing: None)
    here = machine.machine_architecture()
    assert machine.why_not_runnable(here, ["quantum512"]) is None
    assert "built for" in machine.why_not_runnable("riscv64", [])


def test_cross_compiled_library_is_written_but_does_not_run(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3)).eval()
    other = "pattern/cortex-a76"
    if machine.machine_architecture() == "aarch64":
        other = "pattern/x86-avx2"
    library = tp.compile(model, IMAGE, other, num_threads=1)
    with pytest.raises(ArtifactError, match="cannot run here: it is built for"):
        library(IMAGE)
    path = library.export(tmp_path / "net.tar")
    with pytest.raises(ArtifactError, match="cannot run on this machine: it is built for"):
        tp.load(path)


def test_export_says_what_is_wrong(library, exported, tmp_path):
    with pytest.raises(ArtifactError, match=r"expected a name ending in \.so or \.tar"):
        library.export(tmp_path / "net.dll")
    with pytest.raises(ArtifactError, match="no such folder"):
        library.export(tmp_path / "none" / "net.so")
    with pytest.raises(ArtifactError, match="no compiler 'no-such-gcc'"):
        library.export(tmp_path / "net.so", cc="no-such-gcc")
    with pytest.raises(ArtifactError, match="cannot be exported again"):
        tp.load(exported).export(tmp_path / "again.so")


def test_tar_without_a_compiler(library, tmp_path, monkeypatch):
    path = library.export(tmp_path / "net.tar")
    monkeypatch.setattr(loading.shutil, "which", lambda name: None)
    with pytest.raises(ArtifactError, match="no gcc to link"):
        tp.load(path)


def test_threads_of_a_loaded_library(exported, copy):
    assert tp.load(exported).num_threads == 1
    with pytest.raises(ArtifactError, match=r"compiled for 1 threads, got num_threads=2"):
        tp.load(exported, num_threads=2)
    edit(copy, num_threads=2)
    assert tp.load(copy, num_threads=1).num_threads == 1
    with pytest.raises(ValueError, match="num_threads=0"):
        tp.load(exported, num_threads=0)


def test_missing_device(library):
    target = {"kind": "vulkan", "keys": ["pattern", "vulkan", "gpu"]}
    manifest = dataclasses.replace(library.manifest, target=target)
    with pytest.raises(ArtifactError, match=r"cannot run here: .*no vulkan device"):
        _ = artifact.Library(None, manifest).device


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [("AMD64", "x86_64"), ("arm64", "aarch64"), ("armv7l", "arm"), ("thumbv7", "arm")],
)
def test_architecture_names(spelling, expected):
    assert machine.normalise_architecture(spelling) == expected


@pytest.mark.parametrize("suffix", [".so", ".tar"])
@pytest.mark.parametrize("how", ["renamed", "written over"])
def test_a_replaced_file_is_the_new_network(others, tmp_path, suffix, how):
    """The dynamic linker goes by name: it would answer with the first library."""
    first, second = others
    path = first.export(tmp_path / f"net{suffix}")
    old = tp.load(path)
    np.testing.assert_array_equal(old(IMAGE), first(IMAGE))
    if how == "renamed":
        second.export(path)
    else:
        there = second.export(tmp_path / f"there{suffix}")
        shutil.copy(manifest_path(there), manifest_path(path))
        with path.open("r+b") as file:
            file.write(there.read_bytes())
            file.truncate()
    new = tp.load(path)
    np.testing.assert_array_equal(new(IMAGE), second(IMAGE))
    np.testing.assert_array_equal(old(IMAGE), first(IMAGE))
    path.unlink()
    np.testing.assert_array_equal(new(IMAGE), second(IMAGE))


def test_what_is_exported_is_what_runs(tmp_path, monkeypatch):
    """Machine code is generated and linked once, however often it is run and written."""
    generated, linked = [], []
    write_objects, link = linking._write_objects, linking.link
    monkeypatch.setattr(
        linking, "_write_objects", lambda *a: generated.append(1) or write_objects(*a)
    )
    monkeypatch.setattr(linking, "link", lambda *a: linked.append(1) or link(*a))
    library = tp.compile(nn.Conv2d(3, 4, 3).eval(), IMAGE, num_threads=1, verify=False)
    assert not generated
    library(IMAGE)
    one, two = (library.export(tmp_path / name) for name in ("one.so", "two.so"))
    assert one.read_bytes() == two.read_bytes()
    # The sources stand behind the machine code.
    assert one.read_bytes().startswith(library._code._linked.path.read_bytes())
    assert (len(generated), len(linked)) == (1, 1)
    tars = [library.export(tmp_path / name).read_bytes() for name in ("one.tar", "two.tar")]
    assert tars[0] == tars[1]
    assert (len(generated), len(linked)) == (1, 1)


def test_the_last_reference_unmaps_a_library(library, tmp_path):
    path = library.export(tmp_path / "net.so")
    before = mappings("tvm-pattern-")
    loaded = [tp.load(path) for _ in range(3)]
    assert all(lib(IMAGE) is not None for lib in loaded)
    assert mappings("tvm-pattern-") > before
    del loaded
    assert mappings("tvm-pattern-") == before


def test_nothing_stays_in_the_folder_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(linking.tempfile, "tempdir", str(tmp_path))
    library = tp.compile(nn.Conv2d(3, 4, 3).eval(), IMAGE, num_threads=1)
    library(IMAGE)
    (tmp_path / "out").mkdir()
    for suffix in (".so", ".tar"):
        path = library.export(tmp_path / "out" / f"net{suffix}")
        _loaded = tp.load(path)
    del library
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_stderr_is_left_alone(library, exported, capfd):
    """No descriptor is swapped, so loads at the same time cannot lose each other's messages."""
    before = os.fstat(2).st_ino
    seen = set()

    def work():
        for _ in range(3):
            tp.load(exported)(IMAGE)
            seen.add(os.fstat(2).st_ino)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    os.write(2, b"still here\n")
    assert seen == {before}
    assert capfd.readouterr().err == "still here\n"


def test_a_library_cannot_be_pickled_or_copied(library):
    for function in (pickle.dumps, copying.copy, copying.deepcopy):
        with pytest.raises(TypeError, match=r"lib\.export.*tvm_pattern\.load"):
            function(library)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
@pytest.mark.parametrize("name", ["number", "repeat"])
def test_benchmark_says_what_it_takes(library, name, value):
    with pytest.raises(ValueError, match=rf"{name}=.*: expected an integer >= 1"):
        library.benchmark(IMAGE, **{name: value})


def test_number_of_threads_is_chosen_at_the_call(exported, copy, monkeypatch):
    monkeypatch.setattr(threads, "_CPUS", threads.available_cpus()[:1] * 3)
    edit(copy, num_threads=3)
    library = tp.load(copy)
    for count in (3, 1, 2):
        library.num_threads = count
        assert library.num_threads == count
        np.testing.assert_array_equal(library(IMAGE), tp.load(exported)(IMAGE))
    with pytest.raises(ArtifactError, match=r"compiled for 3 threads, got num_threads=4"):
        library.num_threads = 4
    for wrong in (0, 10**6, 1.5):
        with pytest.raises(ValueError, match=f"num_threads={wrong!r}: expected an integer from 1"):
            library.num_threads = wrong


def test_more_threads_than_cpus_are_lowered_with_a_line(exported, copy, monkeypatch):
    edit(copy, num_threads=64)
    expected = tp.load(exported)(IMAGE)
    monkeypatch.setattr(threads, "_CPUS", threads.available_cpus()[:2])
    here = len(threads.available_cpus())
    line = rf"num_threads=9: this process may use {here} CPUs.*Pass num_threads={here}"
    library = tp.load(copy)
    assert library.num_threads == here
    assert library.manifest.num_threads == 64
    np.testing.assert_array_equal(library(IMAGE), expected)
    with pytest.warns(threads.MoreThreadsThanCPUs, match=line):
        library.num_threads = 9
    assert library.num_threads == here
    with pytest.warns(threads.MoreThreadsThanCPUs, match=line) as caught:
        assert tp.load(copy, num_threads=9).num_threads == here
    assert caught[0].filename == __file__
    with pytest.warns(threads.MoreThreadsThanCPUs, match=line):
        compiled = tp.compile(nn.Conv2d(3, 4, 3).eval(), IMAGE, num_threads=9)
    assert compiled.num_threads == here
    assert compiled.manifest.num_threads == 9


def test_threads_of_another_machine_are_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error", threads.MoreThreadsThanCPUs)
        tp.compile(
            nn.Conv2d(3, 4, 3).eval(), IMAGE, "pattern/cortex-a76", num_threads=64, verify=False
        )


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("target", {"kind": "none"}, "'target': TVM knows no such target"),
        ("target", {}, "'target' is {}"),
        ("inputs", [{"name": "x", "shape": ["9"], "dtype": "float32"}], r"'inputs\.0\.shape\.0'"),
        ("num_threads", 0, "'num_threads' is 0"),
        ("report", [{"layer": "x"}], r"'report\.0\.op': field required"),
        ("steps", [{"function": "f"}], r"'steps\.0\.layer'"),
        ("verification", {"summary": 1}, "'verification': its summary is 1"),
        ("sha256", "12", "'sha256' is '12'"),
        ("schema", True, "has the schema True, expected"),
    ],
)
def test_an_edited_manifest_names_the_field(copy, field, value, match):
    edit(copy, **{field: value})
    with pytest.raises(ArtifactError, match=match):
        tp.load(copy)


def test_shapes_that_the_code_does_not_have(copy):
    inputs = [{"name": "input", "shape": [1, 3, 9, 12], "dtype": "float32"}]
    edit(copy, inputs=inputs)
    with pytest.raises(ArtifactError, match="the field 'inputs': the code does not take them"):
        tp.load(copy)(np.zeros((1, 3, 9, 12), "float32"))
    inputs[0]["shape"] = [1, 3, 9, 11]
    edit(copy, inputs=inputs, outputs=[{"name": "y", "shape": [1, 4, 7, 8], "dtype": "float32"}])
    with pytest.raises(ArtifactError, match="the field 'outputs': the code gives"):
        tp.load(copy)(IMAGE)


def test_linker_errors_are_one_line(library, tmp_path):
    linker = tmp_path / "bad-linker"
    linker.write_text("#!/bin/sh\necho 'ld: warning: x'\necho 'ld: error: no such thing'\nexit 1\n")
    linker.chmod(0o755)
    with pytest.raises(
        ArtifactError, match="cannot link the library: ld: error: no such thing"
    ) as e:
        library.export(tmp_path / "net.so", cc=str(linker))
    assert "\n" not in str(e.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad-linker"]
    linker.write_text("no program")
    with pytest.raises(ArtifactError, match=r"cannot run .*bad-linker"):
        library.export(tmp_path / "net.so", cc=str(linker))


def test_another_linker_is_used(library, tmp_path):
    path = library.export(tmp_path / "net.so", cc="gcc")
    np.testing.assert_array_equal(tp.load(path)(IMAGE), library(IMAGE))


def test_a_folder_for_temporary_files_that_is_gone(tmp_path):
    library = tp.compile(nn.Conv2d(3, 4, 3).eval(), IMAGE, num_threads=1)
    library(IMAGE)
    shutil.rmtree(library._code._folder)
    with pytest.raises(ArtifactError, match=r"temporary folder .* is gone; compile again"):
        library.export(tmp_path / "net.so")
    library(IMAGE)


def test_export_needs_a_file_to_write(library, tmp_path):
    (tmp_path / "net.so").mkdir()
    with pytest.raises(ArtifactError, match=r"net\.so is no file"):
        library.export(tmp_path / "net.so")
