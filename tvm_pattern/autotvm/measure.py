"""How candidates are built and run: AutoTVM's builders and runners as today's options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..deploy import Device
from ..tuning.measure import MeasureOptions
from ..tuning.records import Record


@dataclass(frozen=True)
class MeasureInput:
    """What was measured: the task, the configuration, and the record of it."""

    target: Any
    task: Any
    config: Any
    record: Record


@dataclass(frozen=True)
class MeasureResult:
    """``costs`` in seconds; ``error_no`` is 0 where the candidate ran and was right."""

    costs: tuple[float, ...]
    error_no: int
    error: str
    timestamp: float


@dataclass(frozen=True)
class LocalBuilder:
    """Candidates are built in processes of this machine.

    Parameters
    ----------
    timeout : float
        Seconds for one.
    n_parallel : int
        Built at a time.
    """

    timeout: float = 120.0
    n_parallel: int = 1


@dataclass(frozen=True)
class LocalRunner:
    """Candidates run on this machine.

    Parameters
    ----------
    timeout : float
        Seconds for one.
    number, repeat, min_repeat_ms : int
        Calls per repeat, repeats, and the least duration of a repeat.
    cooldown_interval : float
        Seconds of rest before each.
    """

    timeout: float = 60.0
    number: int = 1
    repeat: int = 8
    min_repeat_ms: int = 10
    cooldown_interval: float = 0.0


@dataclass(frozen=True)
class RPCRunner:
    """Candidates run on all devices of a tracker's key.

    Parameters
    ----------
    key : str
    host : str
    port : int
        Of the tracker.
    timeout, number, repeat, min_repeat_ms, cooldown_interval
        As :class:`LocalRunner`.
    """

    key: str
    host: str = "127.0.0.1"
    port: int = 9190
    timeout: float = 60.0
    number: int = 1
    repeat: int = 8
    min_repeat_ms: int = 10
    cooldown_interval: float = 0.0


def measure_option(
    builder: LocalBuilder | None = None, runner: LocalRunner | RPCRunner | None = None
) -> MeasureOptions:
    """Options of a tuner's measurements.

    Raises
    ------
    TypeError
        If one of them is something else, such as AutoTVM's names as text.
    """
    builder = LocalBuilder() if builder is None else builder
    runner = LocalRunner() if runner is None else runner
    if not isinstance(builder, LocalBuilder) or not isinstance(runner, LocalRunner | RPCRunner):
        raise TypeError(
            f"got builder={builder!r} and runner={runner!r}; expected a LocalBuilder, and a"
            " LocalRunner or RPCRunner of tvm_pattern.autotvm"
        )
    place: dict[str, Any] = {}
    if isinstance(runner, RPCRunner):
        place = {"tracker": f"{runner.host}:{runner.port}", "key": runner.key}
    return MeasureOptions(
        build_timeout=builder.timeout,
        build_workers=builder.n_parallel,
        run_timeout=runner.timeout,
        number=runner.number,
        repeat=runner.repeat,
        min_repeat_ms=runner.min_repeat_ms,
        cooldown=runner.cooldown_interval,
        **place,
    )


def request_remote(
    device_key: str, host: str = "127.0.0.1", port: int = 9190, timeout: float = 60.0
) -> Any:
    """A free device, as old scripts use one: upload, load_module, cpu, cl, device.

    Returns
    -------
    RemoteSession

    Raises
    ------
    tvm_pattern.rpc.client.RPCError
        If there is no tracker or device; within seconds.
    """
    from .remote import RemoteSession

    device = Device.from_tracker(f"{host}:{port}", device_key, session_timeout=timeout)
    return RemoteSession(device)
