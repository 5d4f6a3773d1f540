"""The rooms import each other in one direction only, and the light ones stay light."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Imports every module below the named packages while the blocked ones cannot be imported.
IMPORT_ALL = """
import importlib, pkgutil, sys
for name in {blocked!r}:
    sys.modules[name] = None
for name in {packages!r}:
    package = importlib.import_module(name)
    for info in pkgutil.walk_packages(getattr(package, "__path__", []), name + "."):
        importlib.import_module(info.name)
"""


def _run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("contract", ["one-way", "no-torch-below", "no-tvm-in-pruning"])
def test_import_contract(contract: str) -> None:
    beside = Path(sys.executable).with_name("lint-imports")
    command = str(beside) if beside.exists() else shutil.which("lint-imports")
    assert command, "import-linter is not installed; `make test` installs it"
    _run([command, "--contract", contract, "--no-cache"])


@pytest.mark.parametrize(
    ("blocked", "packages"),
    [
        (["torch"], ["topi_kernels", "relay_passes"]),
        (["torch", "tvm"], ["topi_kernels.pattern", "topi_kernels.layout"]),
        (["tvm"], ["tvm_pattern.pruning", "tvm_pattern.posttrain"]),
        (["tvm", "torch", "rich"], ["topi_kernels.report"]),
    ],
)
def test_imports_without(blocked: list[str], packages: list[str]) -> None:
    """The same rule at run time, whatever path an import takes."""
    _run([sys.executable, "-c", IMPORT_ALL.format(blocked=blocked, packages=packages)])
