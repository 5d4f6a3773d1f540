"""What runs the blocks: a folder per page with the commands that a reader has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .blocks import ROOT

FORKS = Path(__file__).with_name("forks.py")
LONG = os.environ.get("TVM_PATTERN_DOCS", "short") == "long"

# Stands for the reader's own network, in what is shortened.
TINY = '''
"""A small network in place of a large one."""
import torch
from torch import nn


def net(num_classes=4):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    ).eval()
'''
_FORK = 'exec "{python}" -I -S "{forks}" "{socket}" '
COMMANDS = {
    "tvm-pattern": _FORK + '"$@"',
    "python": f'[ "$*" = - ] && {_FORK} -\nexec "{{python}}" "$@"',
    # Targets exist; what they do is tested elsewhere.
    "make": 'exec {make} -n -C "{root}" "$@"',
}


LONG_COMMANDS = {
    "tvm-pattern": 'exec "{python}" -m tvm_pattern.cli "$@"',
    "python": 'exec "{python}" "$@"',
}


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a process that has imported what commands import."""
    path = tmp_path_factory.mktemp("forks") / "s"
    if LONG:
        yield path
        return
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, FORKS, str(path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield path
        server.kill()


@pytest.fixture
def run(tmp_path: Path, forks: Path) -> Callable[[list[str], str], None]:
    """``run(command, script)``: a process in the page's folder that has to succeed."""
    (tmp_path / "tiny.py").write_text(TINY)
    commands = tmp_path / ".bin"
    commands.mkdir()
    words = {"python": sys.executable, "root": ROOT, "forks": FORKS, "socket": forks}
    words["make"] = shutil.which("make") or "make"
    for name, line in {**COMMANDS, **(LONG_COMMANDS if LONG else {})}.items():
        path = commands / name
        path.write_text("#!/bin/sh\n" + line.format(**words))
        path.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]),
    }

    def run(command: list[str], script: str) -> None:
        done = subprocess.run(
            command,
            input=script,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"

    return run
