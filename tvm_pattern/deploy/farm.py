"""The same library on every device of a key, at once."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich.table import Table

from ..profiling import Profile
from ..rpc.client import RPCError, TrackerClient, parse_address
from .device import SESSION_TIMEOUT, Device

#: Seconds to wait for devices that others use.
BUSY_TIMEOUT = 30.0


@dataclass(frozen=True)
class DeviceResult:
    """What one device answered; ``error`` is empty if all went well."""

    device: str
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    max_abs_error: float | None = None
    verified: bool | None = None
    celsius: float | None = None
    error: str = ""
    profile: Profile | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            **asdict(replace(self, profile=None)),
            "profile": None if self.profile is None else self.profile.as_dict(),
        }

    @property
    def failed(self) -> bool:
        """Whether the device did not do its work, or computed something else."""
        return bool(self.error) or self.verified is False


def run_everywhere(
    tracker: str,
    key: str,
    library: str | os.PathLike,
    inputs: Sequence[np.ndarray],
    expected: Sequence[np.ndarray] | None = None,
    *,
    repeat: int = 10,
    cool_down: float = 0.0,
    cluster: str | None = None,
    num_threads: int = 1,
    profile: bool = False,
    session_timeout: float = SESSION_TIMEOUT,
    wait: float = BUSY_TIMEOUT,
) -> list[DeviceResult]:
    """Run, verify and time a library on all devices of ``key`` in parallel.

    Every device is held until all have been requested, so none is used twice. A device that fails
    gets a row that says why; the others go on. One that does not answer fails at once, one that
    others use after ``wait`` seconds. ``profile`` also times every layer by itself.

    Raises
    ------
    tvm_pattern.rpc.client.RPCError
        If there is no tracker or no device of that key.
    """
    count = TrackerClient(*parse_address(tracker)).count(key)
    requested = [threading.Event() for _ in range(count)]

    def work(number: int) -> DeviceResult:
        name = f"{key} {number}"
        try:
            try:
                device = Device.from_tracker(
                    tracker,
                    key,
                    session_timeout=session_timeout,
                    wait=wait,
                    skip_silent=False,
                )
            finally:
                requested[number].set()
            with contextlib.closing(device):
                try:
                    return use(device, name)
                finally:
                    for other in requested:
                        other.wait()
        except RPCError as error:
            return DeviceResult(name, error=str(error))

    def use(device: Device, name: str) -> DeviceResult:
        if cluster is not None:
            device.use_cores(cluster, num_threads)
        loaded = device.load(library)
        check = None if expected is None else loaded.verify(inputs, expected)
        timing = loaded.time(*inputs, repeat=repeat, cool_down=cool_down)
        layers = loaded.profile(cool_down=cool_down) if profile else None
        return DeviceResult(
            name,
            timing.median_ms,
            timing.quantile_ms(0.1),
            timing.quantile_ms(0.9),
            None if check is None else check.max_abs_error,
            None if check is None else check.passed,
            device.state().get("celsius"),
            profile=layers,
        )

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def results_table(results: Sequence[DeviceResult]) -> Table:
    """One row per device."""
    table = Table(title="Devices")
    for name in ("device", "median ms", "p10", "p90", "max error", "verified", "deg C", "error"):
        table.add_column(name)
    for row in results:
        figures = (row.median_ms, row.p10_ms, row.p90_ms)
        table.add_row(
            row.device,
            *(_text(value, ".3f") for value in figures),
            _text(row.max_abs_error, ".1e"),
            {None: "", True: "yes", False: "NO"}[row.verified],
            _text(row.celsius, ".0f"),
            row.error.replace("[", r"\["),
        )
    return table


def _text(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)
