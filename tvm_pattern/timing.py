"""Times of runs as figures to show: percentiles, and whether they can be trusted. No TVM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

#: p90 over p10 beyond which times say more about the machine than about the library.
UNSTEADY = 2.0


def latency(seconds: Sequence[float]) -> dict[str, Any]:
    """Figures of repeated runs.

    Parameters
    ----------
    seconds : sequence of float
        One per run; at least one.

    Returns
    -------
    dict
        ``runs``, and in milliseconds ``min_ms``, ``p10_ms``, ``median_ms``, ``p90_ms``, ``p99_ms``;
        ``unsteady``: whether p90 is more than twice p10.

    Raises
    ------
    ValueError
        If there are no times.
    """
    times = np.asarray(seconds, float) * 1e3
    if not times.size:
        raise ValueError("got no times, expected one per run")
    low, middle, high, highest = (float(q) for q in np.quantile(times, (0.1, 0.5, 0.9, 0.99)))
    return {
        "runs": int(times.size),
        "min_ms": float(times.min()),
        "p10_ms": low,
        "median_ms": middle,
        "p90_ms": high,
        "p99_ms": highest,
        "unsteady": high > UNSTEADY * low,
    }


def latency_line(figures: dict[str, Any]) -> str:
    """The figures of :func:`latency` in a line, and a second one if they are unsteady."""
    line = (
        f"latency: min {figures['min_ms']:.3f}, p50 {figures['median_ms']:.3f}, p90"
        f" {figures['p90_ms']:.3f}, p99 {figures['p99_ms']:.3f} ms over {figures['runs']} runs"
    )
    if not figures["unsteady"]:
        return line
    return (
        f"{line}\nunsteady: p90 is more than twice p10; other work runs on this machine, or its"
        " clock changes: compare by `tvm-pattern compare`, or run again"
    )
