"""The two forms of the suite, and the disk that can be filled."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .disks import SmallDisk, open_small_disk

#: Set by ``make faults``; inherited by pytest-xdist's workers.
LONG = os.environ.get("TVM_PATTERN_FAULTS", "short") == "long"


def amount(short: int, long: int) -> int:
    """How many of something to try in this form of the suite."""
    return long if LONG else short


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only the long form runs."""
    if LONG:
        return
    left_out = [item for item in items if item.get_closest_marker("faults_long")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A file system of its own of a few MB, or where that needs rights, a limit on file sizes."""
    with open_small_disk(tmp_path / "disk") as disk:
        yield disk
