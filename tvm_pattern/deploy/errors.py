"""What goes wrong on a device over RPC, told as what happened and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import tvm

from ..opencl.errors import explain
from ..rpc import line
from ..rpc.client import RPCError
from ..rpc.messages import means


class DeviceError(RPCError):
    """A device that did not do what was asked."""


class DeviceLostError(DeviceError):
    """The connection to the device ended in the middle of the work."""


class WrongDeviceError(DeviceError):
    """The device cannot load the library: another architecture or another TVM runtime."""


@contextlib.contextmanager
def translated(
    name: str, doing: str, session: Any = None, steps: Sequence[Any] = ()
) -> Iterator[None]:
    """TVM's messages about a device as what happened and what to do.

    A session that is lost is cut, and so is one whose time is over: it may be out of step.
    """
    try:
        with _in_words(name, doing, session, steps):
            yield
        if session is not None and line.is_over(session):
            raise _time_over(name, doing)
    except DeviceLostError:
        if session is not None:
            line.cut(session)
        raise


@contextlib.contextmanager
def _in_words(name: str, doing: str, session: Any, steps: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    except (DeviceError, line.SilentServerError):
        raise
    except (RuntimeError, OSError, ValueError, AttributeError) as error:
        # Not kept in a variable: its traceback leads here, and the circle would keep the session.
        raise _as_device_error(name, doing, session, error, steps) from error


def _as_device_error(
    name: str, doing: str, session: Any, error: Exception, steps: Sequence[Any]
) -> DeviceError:
    text = str(error)
    of_opencl = explain(text, steps)
    if of_opencl is not None:
        return DeviceError(f"{name}: {doing} failed {of_opencl}")
    last = text.strip().splitlines()[-1] if text.strip() else type(error).__name__
    if means(text, "other_runtime"):
        return other_runtime(name, last)
    if session is not None and line.was_cut(session):
        return DeviceLostError(
            f"{name}: the session's time ended while {doing}, and the device did not say so:"
            " check its power and cable, or give a longer session_timeout (--session-timeout)"
        )
    has_said_so = isinstance(error, TimeoutError) or means(text, "time_over")
    if has_said_so or (session is not None and line.is_over(session)):
        return _time_over(name, doing)
    if means(text, "lost"):
        return DeviceLostError(
            f"{name} disappeared while {doing}: its session crashed, or its power or cable"
            " failed; TVM's own RPC server does not survive a crashed session and has to be"
            " restarted"
        )
    if means(text, "no_space"):
        return no_space(name, doing)
    if means(text, "other_key"):
        return DeviceError(
            f"{name} is registered at a tracker, which alone gives the key to it: use"
            " Device.from_tracker, or start the server without --tracker"
        )
    if isinstance(error, RuntimeError) and not means(text, "said_by_device"):
        return DeviceLostError(
            f"{name} gave an answer that cannot be read while {doing} ({last}); the session has"
            " been ended"
        )
    return DeviceError(f"{name}: {doing} failed: {last}")


def _time_over(name: str, doing: str) -> DeviceLostError:
    return DeviceLostError(
        f"{name}: the session's time ended while {doing}; give a longer session_timeout"
        " (--session-timeout)"
    )


def no_space(name: str, doing: str) -> DeviceError:
    return DeviceError(
        f"{name}: no space left on the device while {doing}; free some, or start the server in"
        " another folder"
    )


def other_runtime(name: str, detail: str) -> WrongDeviceError:
    return WrongDeviceError(
        f"{name}: the TVM runtime there is of another version, this one is {tvm.__version__};"
        f" install the same on both sides ({detail})"
    )
