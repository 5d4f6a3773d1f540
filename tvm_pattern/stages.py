"""How long each stage of a compilation takes, for those who ask by ``--verbose`` or logging."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Log how long what follows took, at level ``INFO``."""
    start = time.perf_counter()
    yield
    logger.info("%s: %.2f s", name, time.perf_counter() - start)
