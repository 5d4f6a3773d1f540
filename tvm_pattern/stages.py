"""How long each stage of a compilation takes, for those who ask by ``--verbose`` or logging."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Log how long what follows took, at level ``INFO``; CPU seconds are those of all threads."""
    start, cpu = time.perf_counter(), time.process_time()
    yield
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    logger.info("%s: %.2f s (%.2f CPU s)", name, seconds, cpu)
