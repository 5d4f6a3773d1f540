"""``make arm-tools`` and ``make opencl-tools`` on machines that have what they install, lack it, or
may not install it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()


def variable(name: str) -> list[str]:
    """Words of a variable of the Makefile."""
    text = re.search(rf"{name} := ((?:.*\\\n)*.*)", MAKEFILE).group(1)
    return text.replace("\\\n", " ").split()


class Machine:
    """A PATH and folders of its own, in which only stubs and the shell's own tools exist.

    Parameters
    ----------
    folder : pathlib.Path
        An empty folder.
    kind : str
        ``arm`` or ``opencl``: the target is ``{kind}-tools``.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.log, self.kind = folder / "bin", folder / "log", kind
        self.files = {
            "OPENCL_HEADER": folder / "CL" / "cl.h",
            "OPENCL_VENDORS": folder / "vendors",
        }
        self.folder.mkdir()
        (self.folder / "env").symlink_to(shutil.which("env"))
        self.log.write_text("")
        self.commands = variable(f"{kind.upper()}_COMMANDS")
        self.packages = variable(f"{kind.upper()}_PACKAGES")

    def command(self, name: str, script: str = "") -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> "{self.log}"\n{script}\n')
        path.chmod(0o755)

    def add_files(self) -> None:
        """The header and the driver that ``opencl-tools`` looks for."""
        self.files["OPENCL_HEADER"].parent.mkdir()
        self.files["OPENCL_HEADER"].write_text("")
        self.files["OPENCL_VENDORS"].mkdir()
        (self.files["OPENCL_VENDORS"] / "pocl.icd").write_text("libpocl.so.2\n")

    def make(self) -> subprocess.CompletedProcess:
        command = [shutil.which("make"), "-C", str(ROOT), "--no-print-directory"]
        command += [f"{self.kind}-tools", *(f"{k}={v}" for k, v in self.files.items())]
        return subprocess.run(
            command, env={"PATH": str(self.folder)}, capture_output=True, text=True, check=False
        )

    @property
    def calls(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if not line.startswith("id ")]


@pytest.fixture(params=["arm", "opencl"])
def machine(tmp_path, request):
    if shutil.which("make") is None:
        pytest.fail("make is needed; on Debian and Ubuntu: apt-get install make")
    made = Machine(tmp_path, request.param)
    made.command("id", "echo 0")
    return made


def test_nothing_is_missing(machine):
    machine.add_files()
    for name in [*machine.commands, "apt-get"]:
        machine.command(name)
    done = machine.make()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.calls == []


def test_what_is_missing_is_installed(machine):
    machine.add_files()
    for name in [*machine.commands[1:], "apt-get"]:
        machine.command(name)
    done = machine.make()
    assert done.returncode == 0
    assert f"(missing: {machine.commands[0]})" in done.stdout
    assert done.stderr == ""
    update, install = machine.calls
    assert update == "apt-get update -qq"
    assert install.split()[-len(machine.packages) :] == machine.packages


def test_a_missing_driver_is_installed(tmp_path):
    """A loader without a driver has no device: the folder of vendors is looked into."""
    machine = Machine(tmp_path, "opencl")
    for name in [*machine.commands, "apt-get", "id"]:
        machine.command(name, "echo 0")
    done = machine.make()
    assert "(missing: CL/cl.h OpenCL-driver)" in done.stdout
    assert machine.calls[-1].split()[-len(machine.packages) :] == machine.packages


def test_ordinary_users_install_by_sudo(machine):
    machine.command("id", "echo 1000")
    machine.command("apt-get")
    machine.command("sudo", 'shift\nexec "$@"')
    machine.command("true")
    done = machine.make()
    assert (done.returncode, done.stderr) == (0, "")
    assert next(c for c in machine.calls if c.startswith("sudo")) == "sudo -n true"
    assert any(c.startswith("sudo -n apt-get update") for c in machine.calls)
    assert any(c.startswith("sudo -n env DEBIAN_FRONTEND=noninteractive") for c in machine.calls)


def without_sudo(machine):
    machine.command("id", "echo 1000")
    machine.command("apt-get")


def with_sudo_that_asks(machine):
    machine.command("id", "echo 1000")
    machine.command("sudo", "exit 1")
    machine.command("apt-get")


def without_apt(machine):
    pass


def without_network(machine):
    machine.command("apt-get", "exit 100")


def without_the_package(machine):
    machine.command("apt-get", '[ "$1" = update ]')


@pytest.mark.parametrize(
    "prepare",
    [without_sudo, with_sudo_that_asks, without_apt, without_network, without_the_package],
)
def test_who_may_not_install_is_told_what_to_do(machine, prepare):
    """The tests that need the tools say so by themselves, with the same advice; the others run."""
    prepare(machine)
    done = machine.make()
    assert done.returncode == 0
    outcome = {"arm": "of ARM code will fail", "opencl": "of OpenCL will be skipped"}[machine.kind]
    assert f"warning: could not install them; the tests {outcome}" in done.stderr
    assert f"sudo apt-get install {' '.join(machine.packages)}" in done.stderr
