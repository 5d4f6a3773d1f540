"""One session of a client: a process of its own, which may crash or outlive its time."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import select
import shutil
import socket
import struct
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import psutil
from tvm.rpc import _ffi_api
from tvm.rpc.server import _serve_loop

logger = logging.getLogger(__name__)

#: Seconds without a sign of life after which a client counts as gone: idle, pause, tries.
_KEEPALIVE = (60, 10, 6)
#: Seconds that a session has to notice that its client hung up: one that computes does not.
LEFT_SECONDS = 2.0


class _Folder:
    """Where a session keeps its files, as TVM's server functions ask for it."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="tvm-pattern-rpc-")
        self.libs: list[Any] = []

    def relpath(self, name: str) -> str:
        return os.path.join(self.path, name)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class Session:
    """Serve the client at ``sock`` in a forked process.

    Parameters
    ----------
    sock : socket.socket
        After the handshake; closed with the session.
    peer : str
        The client, for messages.
    timeout : float, optional
        Seconds until the session is ended, None for no end.
    inherited : sequence of int
        Files of the server that the process shall not keep open.

    Raises
    ------
    OSError
        If there is no room for its folder or process.
    """

    def __init__(
        self, sock: socket.socket, peer: str, timeout: float | None, inherited: Sequence[int]
    ) -> None:
        self.peer = peer
        self.timeout = timeout
        self._sock = sock
        self._folder = _Folder()
        self._end = None if timeout is None else time.monotonic() + timeout
        self._left_at: float | None = None
        sock.settimeout(None)
        _keep_alive(sock)
        self._process = multiprocessing.get_context("fork").Process(
            target=_run, args=(sock, self._folder, list(inherited))
        )
        try:
            self._process.start()
        except OSError:
            self._folder.remove()
            raise

    @property
    def sentinel(self) -> int:
        """A file that is readable once the process has ended."""
        return self._process.sentinel

    @property
    def seconds_left(self) -> float | None:
        """Until its time is over; None without an end."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def is_over(self) -> bool:
        """Whether it has ended; ends it when its time is over."""
        if self._process.is_alive() and self.seconds_left != 0.0:
            return self._is_left()
        if self._process.is_alive():
            # In this order: an answer after the message would leave the client out of step.
            _kill(self._process.pid)
            self._process.join()
            self._say_that_time_is_over()
            logger.info("the time of the session of %s is over", self.peer)
            return True
        self._process.join()
        if self._process.exitcode != 0:
            logger.warning(
                "the session of %s crashed (exit code %s); the server goes on",
                self.peer,
                self._process.exitcode,
            )
        return True

    def close(self) -> None:
        """Free what it holds; kills it if it runs."""
        _kill(self._process.pid)
        self._process.join()
        self._process.close()
        self._sock.close()
        self._folder.remove()

    def _is_left(self) -> bool:
        """Whether its client hung up so long ago that it will not end by itself."""
        if self._left_at is None:
            if not _hung_up(self._sock):
                return False
            self._left_at = time.monotonic()
        if time.monotonic() - self._left_at < LEFT_SECONDS:
            return False
        logger.info("%s hung up, its session computed on", self.peer)
        return True

    def _say_that_time_is_over(self) -> None:
        # A client that reads nothing must not hold the server: one second at most.
        pause = struct.pack("ll", 1, 0)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, pause)
        message = (
            f"RPCSessionTimeoutError: Your {self.timeout}s session has expired, try to increase the"
            ' "session_timeout" value.'
        )
        with contextlib.suppress(RuntimeError, OSError):
            _ffi_api.ReturnException(self._sock.fileno(), message)


def _run(sock: socket.socket, folder: _Folder, inherited: list[int]) -> None:
    for file in inherited:
        with contextlib.suppress(OSError):
            os.close(file)
    os.chdir(folder.path)
    _serve_loop(sock, None, folder)


def _kill(pid: int | None) -> None:
    """Kill a process and what it started."""
    if pid is None:
        return
    try:
        family = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for process in (psutil.Process(pid), *family):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _hung_up(sock: socket.socket) -> bool:
    """Whether the peer sends nothing any more, whatever of it is still unread; Linux tells."""
    if not hasattr(select, "POLLRDHUP"):
        return False
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def _keep_alive(sock: socket.socket) -> None:
    """Find out when a client's machine has gone without a word."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in zip(
            ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"), _KEEPALIVE, strict=True
        ):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
