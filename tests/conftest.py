"""Shared test set-up: repeatable runs on machines with few cores."""

from __future__ import annotations

import os

# Read when the libraries load, so set before anything imports them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TVM_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Every test generates its code: what an earlier run left must not hide what this one breaks.
os.environ["TVM_PATTERN_CACHE"] = "0"

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


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers with a fixed seed."""
    return np.random.default_rng(0)
