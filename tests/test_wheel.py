"""The wheel: what it holds, and that it works away from this repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("topi_kernels", "relay_passes", "tvm_pattern", "tuning_logs")

# Paths of this repository are taken away, so that only the wheel's own files are there.
SCRIPT = """
import pathlib, sys
home, repository = map(pathlib.Path, sys.argv[1:])
sys.path[:] = [str(home)] + [p for p in sys.path if pathlib.Path(p or ".").resolve() != repository]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in str(f).lower()]
import numpy as np, torch
import tvm_pattern as tp
assert pathlib.Path(tp.__file__).is_relative_to(home), tp.__file__
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU()).eval()
pruned = tp.pruning.oneshot(net, connectivity=2.0)
x = torch.randn(1, 3, 8, 8)
lib = tp.compile(net, x, num_threads=1)
with torch.no_grad():
    torch.testing.assert_close(lib(x), net(x), atol=1e-5, rtol=1e-5)
from tvm_pattern.html_report import write_html
write_html(home / "page.html", pruned=pruned, library=lib)
from tvm_pattern.tuning.lookup import shipped_logs
assert shipped_logs("x86-avx2") and all(log.is_file() for log in shipped_logs("x86-avx2"))
import tvm_pattern.opencl
native = pathlib.Path(tvm_pattern.opencl.__file__).parent / "native"
assert any(native.glob("*.cc")), list(native.iterdir())
print("works")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    # A copy: setuptools writes into the folder that it builds.
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_holds_the_packages_and_their_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    data = {Path(name).suffix for name in names}
    assert {".j2", ".jsonl", ".cc"} <= data
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert str(path.relative_to(ROOT)) in names


def test_works_by_itself(wheel, tmp_path):
    home = tmp_path / "home"
    zipfile.ZipFile(wheel).extractall(home)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(home), str(ROOT)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.stdout.strip() == "works", done.stderr
