"""Shared test set-up: repeatable runs on machines with few cores."""

from __future__ import annotations

import os

# Read when the libraries load, so set before anything imports them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TVM_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# The same examples in every run, and no verdict that depends on the clock.
settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


_CODE_CACHE = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Let the workers of a run share generated code, and no run another's.

    What an earlier run left must not hide what this one breaks.
    """
    if hasattr(config, "workerinput"):
        return
    folder = Path(tempfile.mkdtemp(prefix="tvm-pattern-tests-"))
    config.stash[_CODE_CACHE] = folder
    os.environ["TVM_PATTERN_CACHE"] = str(folder)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the code of this run."""
    if _CODE_CACHE in config.stash:
        shutil.rmtree(config.stash[_CODE_CACHE], ignore_errors=True)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers with a fixed seed."""
    return np.random.default_rng(0)
