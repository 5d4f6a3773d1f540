"""Two gloo processes choose identical masks and end with identical weights."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launch(arguments: list[str], world: int) -> list[subprocess.CompletedProcess[str]]:
    """Run ``python arguments`` as ``world`` processes with torchrun's environment."""
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "WORLD_SIZE": str(world),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    running = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    done = []
    for process in running:
        out, err = process.communicate(timeout=300)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return done


def test_two_processes_agree(tmp_path):
    for process in launch(["-m", "tests.pruning.ddp_worker", str(tmp_path)], 2):
        assert process.returncode == 0, process.stderr
    for method in ("gradual", "admm"):
        a, b = (torch.load(tmp_path / f"{method}{r}.pt", weights_only=True) for r in (0, 1))
        assert torch.equal(a["pattern_id"], b["pattern_id"])
        assert a["library"] == b["library"]
        assert torch.equal(a["weight"], b["weight"])
        assert torch.equal(a["running_mean"], b["running_mean"])
        assert int((a["pattern_id"] != 255).sum()) == 64
