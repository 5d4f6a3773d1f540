"""Checks that find out why a device cannot be measured on, and say what to do."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script import builder as T

from relay_passes.targets import CPU_KINDS

from ..devices import device_of, why_not_there
from ..machine import target_architecture
from . import line
from .client import SESSIONS_PER_PROCESS, KeyStatus, NoDeviceError, RPCError, TrackerClient
from .messages import means

_LANES = 16
_PROBE_SECONDS = 30.0


class TargetMismatchError(RPCError):
    """Code for the target does not run on the device."""


@dataclass(frozen=True)
class Finding:
    """Outcome of one check."""

    check: str
    ok: bool
    detail: str


def probe_function(target: Target) -> Any:
    """``y = 2 x + y`` on one vector: the smallest function that uses the target's vectors.

    On a GPU each element is a work-item.
    """
    if target.kind.name not in CPU_KINDS:
        return _work_items()
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer((_LANES,), "float32"))
        y = T.arg("y", T.buffer((_LANES,), "float32"))
        lane = T.ramp(0, 1, _LANES)
        T.buffer_store(y, x[lane] * T.broadcast(T.float32(2.0), _LANES) + y[lane], [lane])
    return builder.get()


def _work_items() -> Any:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        x = T.arg("x", T.buffer((_LANES,), "float32"))
        y = T.arg("y", T.buffer((_LANES,), "float32"))
        with T.thread_binding(_LANES, thread="threadIdx.x") as item, T.sblock("y"):
            i = T.axis.spatial(_LANES, item)
            T.buffer_store(y, x[i] * T.float32(2.0) + y[i], [i])
    return builder.get()


def probe(session: Any, target: Target, linker: str) -> None:
    """Build a function for ``target``, run it on the device of ``session`` and check its result.

    Raises
    ------
    TargetMismatchError
        If the device cannot load or run it, or does not finish in time.
    """
    reason = why_not_there(target, session)
    if reason is not None:
        raise TargetMismatchError(f"the device does not fit the target: {reason}")
    try:
        session.upload(bytearray(_probe_library(target, linker)), target="probe.so")
        function = session.load_module("probe.so")["main"]
        device = device_of(target, session)
        tensors = [tvm.runtime.tensor(np.ones(_LANES, np.float32), device) for _ in range(2)]
        function(*tensors)
        result = tensors[1].numpy()
    except (RuntimeError, OSError) as error:
        raise TargetMismatchError(_cannot_run(target, str(error))) from error
    if not np.array_equal(result, np.full(_LANES, 3.0, np.float32)):
        raise TargetMismatchError(f"the device computes 2 * 1 + 1 = {result}; its libraries differ")


@lru_cache(maxsize=4)
def _probe_library(target: Target, linker: str) -> bytes:
    """Built once, and before the time of a session runs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "probe.so")
        library = tvm.compile(tvm.IRModule({"main": probe_function(target)}), target)
        library.export_library(str(path), cc=linker)
        return path.read_bytes()


def _cannot_run(target: Target, message: str) -> str:
    architecture = f"{target_architecture(target)}, mcpu {target.attrs.get('mcpu', 'generic')}"
    if means(message, "time_over"):
        return (
            f"whether the device runs code for {architecture} is not known: it did not answer"
            f" within {_PROBE_SECONDS:g} s; try again when it, or this computer, has less to do"
        )
    return (
        f"the device cannot run code for {architecture}: {_reason(message)}; choose the target of"
        " the device's processor"
    )


def _reason(message: str) -> str:
    if means(message, "other_architecture"):
        return "it does not load libraries of that architecture"
    if means(message, "lost"):
        return "the session died, as with an instruction that the processor does not have"
    return message.strip().splitlines()[-1]


def check_target(client: TrackerClient, key: str, target: Target, linker: str) -> None:
    """:func:`probe` on every free device of ``key``, at least one.

    At most as many as one process has room for (``SESSIONS_PER_PROCESS``).

    Raises
    ------
    RPCError
        If there is no device, none becomes free, or one does not fit the target.
    """
    _probe_library(target, linker)
    free = next((s.free for s in client.status() if s.key == key), 0)
    # Held until all are probed: a device given back would be handed out again.
    sessions = [client.request(key, session_timeout=_PROBE_SECONDS)]
    for _ in range(min(free, SESSIONS_PER_PROCESS) - 1):
        try:
            sessions.append(client.request(key, _PROBE_SECONDS, wait=1.0))
        except NoDeviceError:
            break  # someone else took it in the meantime
    for session in sessions:
        probe(session, target, linker)


def _silent_servers(client: TrackerClient, key: str) -> tuple[list[Finding], list[Finding]]:
    """Servers that cannot be reached, and those that take connections and say nothing."""
    gone, held = [], []
    for host, port in client.servers(key):
        try:
            line.check_answers(host, port)
        except line.HeldServerError as error:
            held.append(Finding("server", ok=False, detail=str(error)))
        except line.SilentServerError as error:
            gone.append(Finding("server", ok=False, detail=str(error)))
    return gone, held


def diagnose(
    client: TrackerClient, key: str | None, target: Target | None, linker: str | None
) -> list[Finding]:
    """Every check up to the first that fails.

    Parameters
    ----------
    client : TrackerClient
    key : str, optional
        Device to check beyond the tracker.
    target : tvm.target.Target, optional
        Target to check on the device.
    linker : str, optional
        Program that links for ``target``.
    """
    findings: list[Finding] = []
    held: list[Finding] = []
    try:
        status = client.status()
        known = ", ".join(f"{s.key} ({s.free} of {s.devices} free)" for s in status) or "no devices"
        findings.append(Finding("tracker", ok=True, detail=f"{client.address}: {known}"))
        if key is None:
            return findings
        devices = client.count(key)
        # It may have registered just now.
        mine = next((s for s in status if s.key == key), KeyStatus(key, devices, devices, 0))
        busy = "" if mine.free else f"; all busy, {mine.pending} requests wait"
        findings.append(
            Finding("key", ok=True, detail=f"{mine.devices} registered, {mine.free} free{busy}")
        )
        gone, held = _silent_servers(client, key)
        findings += gone
        start = time.monotonic()
        session = client.request(key, session_timeout=_PROBE_SECONDS, wait=10)
        detail = f"opened in {1e3 * (time.monotonic() - start):.0f} ms"
        findings.append(Finding("session", ok=True, detail=detail))
        if target is not None and linker is not None:
            probe(session, target, linker)
            findings.append(
                Finding("target", ok=True, detail="a vector function ran and was right")
            )
    except TargetMismatchError as error:
        findings.append(Finding("target", ok=False, detail=str(error)))
    except NoDeviceError as error:
        name = "session" if len(findings) > 1 else "key"
        findings.append(Finding(name, ok=False, detail=str(error)))
        # TVM's own servers are silent in a session, too: only now that tells something.
        findings += held
    except RPCError as error:
        findings.append(Finding("tracker", ok=False, detail=str(error)))
    return findings
