"""The example of an app without Python is built and computes what torch computes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

APP = Path(__file__).resolve().parents[2] / "examples" / "app"


def shell(*command: object) -> subprocess.CompletedProcess:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)


def by_cmake(kit: Path, build: Path) -> Path:
    if shutil.which("cmake") is None:
        pytest.skip("no cmake; the same program is built by gcc and g++ beside this")
    done = shell("cmake", "-S", APP, "-B", build, f"-DKIT={kit}")
    assert done.returncode == 0, done.stderr
    done = shell("cmake", "--build", build)
    assert done.returncode == 0, done.stderr
    return build / "classify"


def by_hand(kit: Path, build: Path) -> Path:
    """What docs/apps.md says of the files, without CMake."""
    build.mkdir()
    objects = []
    for name in ("model", "cpu"):
        objects.append(build / f"{name}.o")
        done = shell("gcc", "-std=gnu11", "-O2", "-c", kit / "src" / f"{name}.c", "-o", objects[-1])
        assert done.returncode == 0, done.stderr
    link = ("g++", "-std=c++17", "-O2", "-pthread", f"-I{kit / 'src'}", APP / "classify.cpp")
    done = shell(*link, *objects, kit / "sparse" / "sparse.o", "-lm", "-o", build / "classify")
    assert done.returncode == 0, done.stderr
    return build / "classify"


@pytest.mark.parametrize("build", [by_cmake, by_hand])
def test_classifies_as_torch(kits, model, image, tmp_path, build):
    kit = kits("native")
    program = build(kit, tmp_path / "build")
    done = shell(program, kit / "sparse", kit / "input0.bin", 2)
    assert done.returncode == 0, done.stderr
    scores = model(image)[0][0]
    found = [(int(c), float(s)) for c, s in re.findall(r"class (\d+): (\S+)", done.stdout)]
    assert [c for c, _ in found] == scores.topk(3).indices.tolist()
    assert [s for _, s in found] == pytest.approx(scores.topk(3).values.tolist(), rel=1e-3)


def test_errors_are_said(kits, tmp_path):
    kit = kits("native")
    program = by_hand(kit, tmp_path / "build")
    short = tmp_path / "short.bin"
    short.write_bytes(b"1234")
    for arguments, code, told in (
        ((), 2, "usage: classify"),
        ((tmp_path, short), 1, "plan.txt; copy the whole folder"),
        ((kit / "sparse", tmp_path / "none"), 1, "cannot read"),
        ((kit / "sparse", short), 1, "input 0 has 1728 bytes, got 4"),
        ((kit / "sparse", kit / "input0.bin", 0), 1, "got 0 threads, expected 1 to 1024"),
    ):
        done = shell(program, *arguments)
        assert (done.returncode, told in done.stderr) == (code, True), done.stderr


def test_cmake_wants_a_kit(tmp_path):
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")
    done = shell("cmake", "-S", APP, "-B", tmp_path / "build", "-DKIT=/nowhere")
    assert done.returncode != 0
    assert "expected the folder of a kit" in done.stderr
