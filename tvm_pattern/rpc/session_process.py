"""A process that holds sessions: TVM has room for few in one, and these need little memory.

They need neither torch nor, where the service says so, TVM's compiler: half and a quarter of what
``import tvm`` takes. Calls and answers are pickled through its pipes; the calls of one process run
as its service runs them, at once or one by one.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, BinaryIO, Protocol

_LENGTH = struct.Struct("<Q")


class Service(Protocol):
    """What such a process does."""

    def submit(self, argument: Any, /) -> Future:
        """Begin one call."""


class ProcessEndedError(RuntimeError):
    """The process ended before it answered."""


class SessionProcess:
    """A process that makes a service and runs its calls.

    Parameters
    ----------
    service : callable
        Makes the :class:`Service`, there; pickled, as are arguments and results.
    runtime_only : bool
        Do without TVM's compiler.
    """

    def __init__(self, service: Callable[[], Service], *, runtime_only: bool) -> None:
        environment = dict(os.environ)
        if runtime_only:
            environment["TVM_USE_RUNTIME_LIB"] = "1"
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._lock, self._sending = threading.Lock(), threading.Lock()
        self._calls: dict[int, Future] = {}
        self._number = 0
        self._ended = False
        self._send(pickle.dumps(service))
        threading.Thread(target=self._listen, name="tvm-pattern-answers", daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether it has ended, and answers nothing any more."""
        return self._ended

    def submit(self, argument: Any) -> Future:
        """Begin one call; its result fails with ProcessEndedError if the process ends before."""
        future: Future = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            if self._ended:
                future.set_exception(self._error())
                return future
            data = pickle.dumps((self._number, argument))
            self._calls[self._number] = future
            self._number += 1
        self._send(data)
        return future

    def close(self) -> None:
        """End it, with all that it does."""
        self._process.kill()
        self._process.wait()

    @property
    def _stdin(self) -> BinaryIO:
        return self._process.stdin  # type: ignore[return-value]  # a pipe was asked for

    def _send(self, data: bytes) -> None:
        # Where it has ended, or is closed, the listener tells.
        with self._sending, contextlib.suppress(OSError, ValueError):
            _write(self._stdin, data)

    def _listen(self) -> None:
        answers: BinaryIO = self._process.stdout  # type: ignore[assignment]
        with answers:
            while (message := _read(answers)) is not None:
                number, result, error = message
                with self._lock:
                    future = self._calls.pop(number)
                _settle(future, result, None if error is None else RuntimeError(error))
        self._process.wait()
        with self._lock:
            self._ended = True
            calls, self._calls = self._calls, {}
        for future in calls.values():
            _settle(future, None, self._error())

    def _error(self) -> ProcessEndedError:
        return ProcessEndedError(
            f"a process that holds sessions ended (exit code {self._process.returncode}) before it"
            " answered; is this computer short of memory?"
        )


def _settle(future: Future, result: Any, error: Exception | None) -> None:
    with contextlib.suppress(InvalidStateError):
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(_LENGTH.pack(len(data)) + data)
    file.flush()


def _read(file: BinaryIO) -> Any:
    """The next message; None at the end."""
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = file.read(length)
    return pickle.loads(data) if len(data) == length else None


def _answer(number: int, future: Future) -> bytes:
    """A call's number, result and error's text."""
    error = future.exception()
    if error is None:
        try:
            return pickle.dumps((number, future.result(), None))
        except (pickle.PicklingError, TypeError, AttributeError) as problem:
            error = problem
    return pickle.dumps((number, None, f"{type(error).__name__}: {error}"))


def main() -> None:
    """The process itself, until its parent ends or hangs up."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What anybody prints is no answer.
    # TVM imports it where it can, for tensors that no session has.
    sys.modules["torch"] = None  # type: ignore[assignment]
    make_service = _read(sys.stdin.buffer)
    if make_service is None:
        return
    service, lock = make_service(), threading.Lock()

    def answer(number: int, future: Future) -> None:
        data = _answer(number, future)
        with lock, contextlib.suppress(OSError):  # the parent has ended
            _write(answers, data)

    while (message := _read(sys.stdin.buffer)) is not None:
        number, argument = message
        service.submit(argument).add_done_callback(
            lambda future, number=number: answer(number, future)
        )
    os._exit(0)


if __name__ == "__main__":
    main()
