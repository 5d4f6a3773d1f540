"""Connections of TVM's client with a deadline: TVM waits for a silent peer without a limit.

A blocked call cannot be interrupted, but its socket can be shut down: the call then fails as if the
peer had hung up. The socket is TVM's own; it is found among this process's files.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tvm import rpc
from tvm.rpc import base

from . import wire

#: Seconds that a server has for the first answer; TVM's servers give it before any other work.
ANSWER_TIMEOUT = 5.0
#: Seconds after its end at which a session that the server did not end is cut off.
GRACE = 5.0
#: Seconds to read what came while this process did not run: the clock went on.
LAST_CHANCE = 0.2
_WAY_OUT = (
    "TVM's servers serve one connection at a time and wait for it without a limit: restart it, or"
    " serve by `tvm-pattern rpc server`, which no connection holds"
)
# The state's number in /proc/net/tcp.
_SYN_SENT = "02"
_NO_KEY = b"client:is-anyone-there"


class SilentServerError(ConnectionError):
    """A server that cannot be reached, or that does not answer; the text says what to do."""


class HeldServerError(SilentServerError):
    """A server that takes connections, and says nothing: one client or idle peer holds it."""


@dataclass(frozen=True)
class _Line:
    """One socket of this process, however its file's number is used later."""

    file: int
    inode: int

    def cut(self) -> None:
        with _socket_of(self.file) as sock:
            if sock is not None and _line_of(self.file) == self:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def leads_to(self, host: str) -> bool:
        with _socket_of(self.file) as sock:
            try:
                there = "" if sock is None else str(sock.getpeername()[0])
                addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
            except OSError:
                return False
        return there.removeprefix("::ffff:") in addresses

    def limit(self, seconds: float) -> None:
        """Let no read take longer, not even one that keeps other Python threads from running.

        TVM reads in destructors, where no timer of this process's own comes to run.
        """
        limit = struct.pack("ll", math.ceil(seconds), 0)
        with _socket_of(self.file) as sock:
            if sock is not None and _line_of(self.file) == self:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


@contextlib.contextmanager
def _socket_of(file: int) -> Iterator[socket.socket | None]:
    try:
        sock = socket.socket(fileno=file)
    except OSError:
        yield None
        return
    try:
        yield sock
    finally:
        sock.detach()


def _line_of(file: int) -> _Line | None:
    """What has that number now; None if another thread has closed it meanwhile."""
    try:
        return _Line(file, os.fstat(file).st_ino)
    except OSError:
        return None


def _lines(port: int) -> set[_Line]:
    """TCP connections of this process to a ``port``, of any machine, set up or on the way."""
    found, without_peer = set(), set()
    for name in os.listdir("/dev/fd"):
        with _socket_of(int(name)) as sock:
            if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            line, there = _line_of(int(name)), _port_there(sock)
            if line is None:
                continue
            if there == port:
                found.add(line)
            elif there is None:
                without_peer.add(line)
    if without_peer:  # The table of all connections of the machine takes milliseconds to read.
        on_the_way = _connecting(port)
        found |= {line for line in without_peer if line.inode in on_the_way}
    return found


def _port_there(sock: socket.socket) -> int | None:
    try:
        return int(sock.getpeername()[1])
    except OSError:
        return None


def _connecting(port: int) -> set[int]:
    """Inodes of sockets that wait for a connection to ``port``; only Linux tells."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(table) as lines:
            for fields in map(str.split, list(lines)[1:]):
                if fields[3] == _SYN_SENT and int(fields[2].rpartition(":")[2], 16) == port:
                    inodes.add(int(fields[9]))
    return inodes


class _Term:
    """A session's time, and its connections, by this computer's clock."""

    def __init__(self, lines: set[_Line], start: float, seconds: float) -> None:
        self._lines = lines
        self._seconds = seconds
        self._last = self.end = start + seconds if seconds else math.inf
        self._timer: threading.Timer | None = None
        self.was_cut = False
        self.limit(None)

    def cut(self) -> None:
        for line in self._lines:
            line.cut()

    def limit(self, seconds: float | None) -> None:
        """Cut it off after so many seconds; None is the end that its server knows too."""
        self.disarm()
        # The server says that the time is over: that is awaited.
        when, self.end = self._last + GRACE, self._last
        if seconds is not None:
            when = self.end = min(self._last, time.monotonic() + seconds)
        longest = self._seconds if seconds is None else seconds
        if longest:
            for line in self._lines:
                line.limit(longest + GRACE)
        if not math.isinf(when):
            self._timer = threading.Timer(max(0.0, when - time.monotonic()), self.cut_off)
            self._timer.daemon = True
            self._timer.start()

    def disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def cut_off(self) -> None:
        self.was_cut = True
        self.cut()


_terms: weakref.WeakKeyDictionary[Any, _Term] = weakref.WeakKeyDictionary()


def was_cut(session: Any) -> bool:
    """Whether a session's time ended without a word from its server."""
    term = _terms.get(session)
    return term is not None and term.was_cut


def is_over(session: Any) -> bool:
    """Whether a session's time has ended: what it answers from now on cannot be trusted.

    A server that ends a session may be in the middle of an answer. What the client reads after it
    is out of step.
    """
    term = _terms.get(session)
    return term is not None and time.monotonic() >= term.end


def end_in(session: Any, seconds: float | None) -> None:
    """From now on a session has so many seconds, and no more than its server gave it.

    Parameters
    ----------
    session : tvm.rpc.RPCSession
        As of :func:`connect`.
    seconds : float, optional
        None takes an earlier limit back.
    """
    term = _terms.get(session)
    if term is not None:
        term.limit(seconds)


def cut(session: Any) -> None:
    """End a session that failed, so that nothing is said or read on it any more.

    What lives on the device is freed when this process forgets it. TVM ends the process if that
    reads an answer out of step, and ignores a connection that has been shut down.
    """
    term = _terms.get(session)
    if term is not None:
        term.cut()


def connect(host: str, port: int, key: str, session_timeout: float, wait: float) -> Any:
    """A session as of ``tvm.rpc.connect``, within ``wait`` seconds.

    The server should have been reached just now, by :func:`check_reachable` or
    :func:`check_answers`: for a machine that is not there TVM has a limit of minutes. Calls of the
    session end, by an error, :data:`GRACE` seconds after ``session_timeout`` at the latest.

    Parameters
    ----------
    host : str
    port : int
    key : str
        The match key that the tracker gave, or the key of a server without a tracker.
    session_timeout : float
        Seconds after which the server ends the session; 0 for no end.
    wait : float
        Seconds to wait for the server.

    Returns
    -------
    tvm.rpc.RPCSession

    Raises
    ------
    SilentServerError
        If the server cannot be reached or does not answer in time.
    RuntimeError
        If it answers, and refuses: TVM's own message.
    """
    start = time.monotonic()
    deadline = start + wait
    before = _lines(port)
    late, done = threading.Event(), threading.Event()

    def guard() -> None:
        # Where this computer slept, the answer may be here, and only be read now.
        if not done.wait(max(0.0, deadline - time.monotonic())) and not done.wait(LAST_CHANCE):
            late.set()
            # The connection may be set up after the deadline, too.
            while not done.wait(0.1):
                for line in _lines(port) - before:
                    line.cut()

    watcher = threading.Thread(target=guard, name="rpc-connect-deadline", daemon=True)
    watcher.start()
    try:
        session = rpc.connect(host, port, key, session_timeout)
    except (RuntimeError, OSError) as error:
        if late.is_set():
            raise HeldServerError(_held(host, port, wait)) from error
        raise
    finally:
        done.set()
    # Other threads may be connecting to the same port of other machines.
    own = {line for line in _lines(port) - before if line.leads_to(host)}
    _terms[session] = term = _Term(own, start, session_timeout)
    weakref.finalize(session, term.disarm)
    return session


def check_reachable(host: str, port: int, wait: float) -> None:
    """Connect and leave again.

    A server of TVM at a tracker changes its key when somebody leaves: use :func:`check_answers`.

    Raises
    ------
    SilentServerError
        If there is no connection within ``wait`` seconds.
    """
    try:
        socket.create_connection((host, port), timeout=max(0.1, min(ANSWER_TIMEOUT, wait))).close()
    except OSError as error:
        raise _no_connection(host, port, error) from error


def _no_connection(host: str, port: int, error: OSError) -> SilentServerError:
    if isinstance(error, TimeoutError):
        return HeldServerError(
            f"no connection to {host}:{port} in time: the machine cannot be reached, or another"
            f" session or an idle connection holds its server; {_WAY_OUT}"
        )
    return SilentServerError(
        f"no server answers at {host}:{port} ({error}); is it running, and does it listen at an"
        " address that this machine reaches (`--host 0.0.0.0`, not 127.0.0.1)?"
    )


def _held(host: str, port: int, wait: float) -> str:
    return (
        f"the server at {host}:{port} takes connections, but did not answer within {wait:.3g} s:"
        f" another session or an idle connection holds it; {_WAY_OUT}"
    )


def check_answers(host: str, port: int, wait: float = ANSWER_TIMEOUT) -> None:
    """Ask a server with a key that it does not know; one that listens refuses it at once.

    The server stays free for who has its key.

    Raises
    ------
    SilentServerError
        If it cannot be reached, does not answer in time, or is no TVM RPC server.
    """
    deadline = time.monotonic() + wait
    try:
        sock = socket.create_connection((host, port), timeout=max(0.1, wait))
    except OSError as error:
        raise _no_connection(host, port, error) from error
    try:
        with sock:
            sock.sendall(wire.word(base.RPC_MAGIC) + wire.word(len(_NO_KEY)) + _NO_KEY)
            code = wire.receive_word(sock, deadline)
    except TimeoutError as error:
        raise HeldServerError(_held(host, port, wait)) from error
    except OSError as error:
        raise SilentServerError(
            f"the server at {host}:{port} hung up ({error}); it may just be starting again"
        ) from error
    if code not in (base.RPC_CODE_SUCCESS, base.RPC_CODE_DUPLICATE, base.RPC_CODE_MISMATCH):
        raise SilentServerError(
            f"what answers at {host}:{port} is no TVM RPC server (it says {code:#x}); another"
            " program may have its port"
        )
