"""The OpenCL device of this computer, or a reason to skip."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tvm

from tvm_pattern import opencl
from tvm_pattern.opencl import facts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def device() -> tvm.runtime.Device:
    """The first OpenCL device."""
    if not opencl.devices():
        pytest.skip(f"{facts.why_none()} (make opencl-tools)")
    return tvm.opencl(0)


@pytest.fixture(scope="session")
def in_process() -> Callable[..., subprocess.CompletedProcess]:
    """Run Python code in a process of its own: ``run(code, NAME="value")``."""

    def run(code: str, **environment: str) -> subprocess.CompletedProcess:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return run
