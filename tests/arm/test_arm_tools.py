"""``make arm-tools`` on machines that have what ARM code needs, lack it, or may not install it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
COMMANDS = re.search(r"ARM_COMMANDS := (.*)", MAKEFILE).group(1).split()
PACKAGES = re.search(r"ARM_PACKAGES := ((?:.*\\\n)*.*)", MAKEFILE).group(1)
PACKAGES = PACKAGES.replace("\\\n", " ").split()


class Machine:
    """A PATH of its own, in which only stubs and the shell's own tools exist."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        (folder / "env").symlink_to(shutil.which("env"))
        self.log.write_text("")

    def command(self, name: str, script: str = "") -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> "{self.log}"\n{script}\n')
        path.chmod(0o755)

    def make(self) -> subprocess.CompletedProcess:
        command = [shutil.which("make"), "-C", str(ROOT), "--no-print-directory", "arm-tools"]
        return subprocess.run(
            command, env={"PATH": str(self.folder)}, capture_output=True, text=True, check=False
        )

    @property
    def calls(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if not line.startswith("id ")]


@pytest.fixture
def machine(tmp_path):
    if shutil.which("make") is None:
        pytest.fail("make is needed; on Debian and Ubuntu: apt-get install make")
    made = Machine(tmp_path)
    made.command("id", "echo 0")
    return made


def test_nothing_is_missing(machine):
    for name in [*COMMANDS, "apt-get"]:
        machine.command(name)
    done = machine.make()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.calls == []


def test_what_is_missing_is_installed(machine):
    for name in [*COMMANDS[1:], "apt-get"]:
        machine.command(name)
    done = machine.make()
    assert done.returncode == 0
    assert f"(missing: {COMMANDS[0]})" in done.stdout
    assert done.stderr == ""
    update, install = machine.calls
    assert update == "apt-get update -qq"
    assert install.split()[-len(PACKAGES) :] == PACKAGES


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
    """The tests that need the tools fail by themselves, with the same advice; the others run."""
    prepare(machine)
    done = machine.make()
    assert done.returncode == 0
    assert "warning: could not install them; the tests of ARM code will fail" in done.stderr
    assert f"sudo apt-get install {' '.join(PACKAGES)}" in done.stderr
