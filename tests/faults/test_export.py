"""Export and load when the disk ends or the process is killed."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest
import torch
from torch import nn

import tvm_pattern as tp
from tvm_pattern.manifest import ArtifactError, manifest_path

from . import strace
from .conftest import LONG, amount
from .processes import environment, python, run

X = np.random.default_rng(0).standard_normal((1, 3, 12, 14), "f4")

# Writes the library of argv[1] again, under the name argv[2]: the last half of export, so that a
# child need not compile.
_PUBLISH = """
import shutil, sys
from pathlib import Path
from tvm_pattern.publish import manifest_of, publish

source = Path(sys.argv[1])

def write(file):
    with source.open("rb") as f:
        shutil.copyfileobj(f, file)
    return manifest_of(source)

publish(Path(sys.argv[2]), write)
"""


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return [tp.compile(nn.Conv2d(3, n, 3).eval(), X, num_threads=1) for n in (8, 9)]


@pytest.fixture(scope="module", params=[".so", ".tar"])
def files(request, networks, tmp_path_factory):
    """An old and a new library of one kind."""
    folder = tmp_path_factory.mktemp("export")
    return [lib.export(folder / f"{n}{request.param}") for n, lib in enumerate(networks)]


def put(source, destination):
    shutil.copy(source, destination)
    shutil.copy(manifest_path(source), manifest_path(destination))


def test_killed_at_every_write(files, networks, tmp_path):
    """Whatever was reached: the old network or the new one, never another answer."""
    old, new = files
    answers = [lib(X).tobytes() for lib in networks]
    folder = tmp_path / "out"
    target = folder / old.name
    command = python(_PUBLISH, new, target)

    def fresh():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        put(old, target)

    fresh()
    points = strace.kill_points(command, folder, tmp_path / "trace", env=environment())
    calls = [point.syscall for point in points]
    assert calls.count("rename") >= 3, calls
    assert "fsync" in calls, calls
    if not LONG:  # the renames and syncs are where the state changes
        points = [point for point in points if point.syscall in ("rename", "fsync")]
        points = points[:: max(1, len(points) // 4)]
    seen = set()
    for point in points:
        fresh()
        result = strace.run_killed(command, point, env=environment())
        assert result.code == -9, (point, result)
        answer = tp.load(target)(X).tobytes()
        assert answer in answers, point
        seen.add(answers.index(answer))
        # And the next export is as good as any.
        assert run(command, env=environment()).code == 0
        assert tp.load(target)(X).tobytes() == answers[1]
        assert not list(folder.glob("*.pending"))
    assert 0 in seen


def test_a_full_disk_leaves_the_old_library(files, networks, small_disk):
    old, new = files
    target = small_disk.path / old.name
    put(old, target)
    space = new.stat().st_size // 2
    small_disk.fill(leave=space)
    result = run(
        python(
            f"import sys\nfrom tvm_pattern.manifest import ArtifactError\ntry:\n"
            f" exec({_PUBLISH!r})\nexcept ArtifactError as e:\n print(e); sys.exit(3)",
            new,
            target,
        ),
        preexec_fn=small_disk.limit(space),
    )
    assert result.code == 3, result
    assert "the library that was there is unchanged" in result.out
    assert "No space left" in result.out or "File too large" in result.out
    assert tp.load(target)(X).tobytes() == networks[0](X).tobytes()
    names = {p.name for p in small_disk.path.iterdir()} - {"filler"}
    assert names == {target.name, manifest_path(target).name}


_COMPILE = """
import sys
import numpy as np, torch
import tvm_pattern as tp
torch.manual_seed(0)
x = np.zeros((1, 3, 12, 14), "f4")
lib = tp.compile(torch.nn.Conv2d(3, 64, 3).eval(), x, num_threads=1, verify=False)
print("compiled", flush=True)
for action in (lambda: lib(x), lambda: lib.export(sys.argv[1])):
    try:
        action()
    except ValueError as error:
        print(type(error).__name__, error)
    else:
        print("done")
"""


@pytest.mark.parametrize("leave", [0, 4096, 40960])
def test_a_full_folder_for_temporary_files(small_disk, tmp_path, leave):
    """One clear error each; LLVM would end the process without a word."""
    small_disk.fill(leave=leave)
    result = run(
        python(_COMPILE, tmp_path / "net.so"),
        env=environment(TMPDIR=str(small_disk.path)),
        preexec_fn=small_disk.limit(leave),
    )
    lines = result.out.splitlines()
    assert result.code == 0, result
    assert len(lines) == 3, result
    assert lines[0] == "compiled"
    if leave == 0 and lines[1:] == ["done", "done"]:
        return  # Python takes the next folder where not even a name can be written
    for line in lines[1:]:
        assert line.startswith("ArtifactError"), result
        assert "TMPDIR" in line, result
    assert not (tmp_path / "net.so").exists()


def test_load_with_a_full_folder_for_temporary_files(files, small_disk, monkeypatch):
    if not small_disk.is_tmpfs:
        pytest.skip("needs a tmpfs, which needs root")
    small_disk.fill(leave=4096)
    monkeypatch.setattr("tempfile.tempdir", str(small_disk.path))
    with pytest.raises(ArtifactError, match=r"No space left on device"):
        tp.load(files[0])


@pytest.mark.parametrize("when", range(amount(2, 8)))
def test_ctrl_c_in_compile(tmp_path, when):
    """Exit code 130, no traceback, nothing half written; passes in Python run inside TVM."""
    script = tmp_path / "interrupted.py"
    script.write_text(
        "import os, signal, sys\n"
        # A shell in the background hands on that interrupts are ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import tvm_pattern.compiler\n"
        "from topi_kernels import operator\n"
        "calls, plan = [0], operator.plan_conv\n"
        "def interrupted(*args, **options):\n"
        "    calls[0] += 1\n"
        f"    if calls[0] == {when + 1}:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return plan(*args, **options)\n"
        "for module in list(sys.modules.values()):\n"
        "    if getattr(module, 'plan_conv', None) is plan:\n"
        "        module.plan_conv = interrupted\n"
        "from tvm_pattern.cli import main\n"
        "main()\n"
    )
    output = tmp_path / "net.so"
    arguments = ["compile", "mobilenet_v2", "--shape", "1x3x32x32", "-o", str(output)]
    result = run([sys.executable, str(script), *arguments])
    assert result.code == 130, result
    assert not result.is_raw, result
    assert not output.exists()
