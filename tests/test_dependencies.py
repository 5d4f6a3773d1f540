"""The rooms import each other in one direction only, and the light ones stay light."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from topi_kernels.devices import DEVICES

ROOT = Path(__file__).resolve().parent.parent

# Imports every module below the named packages while the blocked ones cannot be imported.
IMPORT_ALL = """
import importlib, pkgutil, sys
for name in {blocked!r}:
    sys.modules[name] = None
for name in {packages!r}:
    package = importlib.import_module(name)
    for info in pkgutil.walk_packages(getattr(package, "__path__", []), name + "."):
        if info.name not in {optional!r}:
            importlib.import_module(info.name)
"""


# Callbacks of trainers, which are not installed with the package.
OPTIONAL = ["tvm_pattern.pruning.huggingface", "tvm_pattern.pruning.lightning"]


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
        (["tvm", "torch"], ["tvm_pattern.manifest", "tvm_pattern.tuning.records"]),
    ],
)
def test_imports_without(blocked: list[str], packages: list[str]) -> None:
    """The same rule at run time, whatever path an import takes."""
    program = IMPORT_ALL.format(blocked=blocked, packages=packages, optional=OPTIONAL)
    _run([sys.executable, "-c", program])


def _sources() -> list[Path]:
    """What is to know no device: all but the schedules and the face that they stand behind."""
    rooms = ("topi_kernels", "relay_passes", "tvm_pattern")
    files = [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]
    schedules, face = ROOT / "topi_kernels" / "schedules", ROOT / "topi_kernels" / "backend.py"
    return [path for path in files if schedules not in path.parents and path != face]


def _schedule_classes() -> set[str]:
    trees = (ast.parse(p.read_text()) for p in (ROOT / "topi_kernels/schedules").rglob("*.py"))
    return {n.name for tree in trees for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}


def _devices_known_to(source: str, devices: set[str], classes: set[str]) -> list[str]:
    """Names of devices as text of their own, and ``isinstance`` of a class of the schedules."""
    found, tree = [], ast.parse(source)
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    imported = {a.name for n in imports if "schedules" in (n.module or "") for a in n.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in devices:
            found.append(f"{node.lineno}: the device {node.value!r} by its name")
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
            parts = list(ast.walk(node.args[1]))
            asked = imported & {n.id for n in parts if isinstance(n, ast.Name)}
            asked |= {n.attr for n in parts if isinstance(n, ast.Attribute)}
            found += [f"{node.lineno}: isinstance of {name}" for name in sorted(asked & classes)]
    return found


def test_no_device_is_known_outside_the_schedules() -> None:
    # The fallback's name, "generic", is an ordinary word.
    devices = {device.name for device in DEVICES if not device.fallback}
    classes = _schedule_classes()
    assert {"Family", "ConvConfig"} <= classes
    found = {
        str(path.relative_to(ROOT)): known
        for path in _sources()
        if (known := _devices_known_to(path.read_text(), devices, classes))
    }
    assert not found


def test_what_knows_a_device_is_found() -> None:
    source = """
from topi_kernels.schedules.family import Family
if isinstance(a, config.Family) or isinstance(b, (int, Family)) or isinstance(c, Place):
    x = "mali"
"""
    found = _devices_known_to(source, {"mali"}, {"Family", "Place"})
    assert [line.partition(": ")[2] for line in found] == [
        "isinstance of Family",
        "isinstance of Family",
        "the device 'mali' by its name",
    ]
