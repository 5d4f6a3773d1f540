"""TVM's tracker with its peers checked: none can end it, or list what is no server.

TVM's own takes any JSON: one peer that registers a number as its key makes every later summary
fail, and where no more files can be opened it waits for them in a busy loop.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import struct
import time
from typing import Any

from tornado import ioloop
from tvm.rpc import base
from tvm.rpc.tracker import TCPEventHandler, TrackerServerHandler

logger = logging.getLogger(__name__)

MAX_NAME = 1024
# Bytes that a peer may leave unread.
_MAX_UNREAD = 1 << 20
_PAUSE = 0.1
_MAGIC = struct.pack("<i", base.RPC_TRACKER_MAGIC)
_CODE = base.TrackerCode


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME


def _is_host(value: Any) -> bool:
    return value is None or _is_name(value)


def _is_port(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536


def is_message(args: Any) -> bool:
    """Whether a decoded message is one that the tracker's protocol knows, in form and types."""
    if not isinstance(args, list) or not args or not isinstance(args[0], int):
        return False
    code, rest = args[0], args[1:]
    if code in (_CODE.PING, _CODE.SUMMARY, _CODE.GET_PENDING_MATCHKEYS):
        return not rest
    if code == _CODE.STOP:
        return len(rest) == 1 and isinstance(rest[0], str)
    if code == _CODE.REQUEST:
        return (
            len(rest) == 3
            and _is_name(rest[0])
            and isinstance(rest[1], str)
            and isinstance(rest[2], int)
        )
    if code == _CODE.PUT:
        if len(rest) not in (2, 3) or not _is_name(rest[0]) or not isinstance(rest[1], list):
            return False
        port, match_key = rest[1] if len(rest[1]) == 2 else (0, "")
        # The tracker finds the key again in the match key.
        fits = isinstance(match_key, str) and match_key.rpartition(":")[0] == rest[0]
        return fits and _is_port(port) and _is_host(rest[2] if len(rest) == 3 else None)
    if code == _CODE.UPDATE_INFO:
        return len(rest) == 1 and _is_info(rest[0])
    return False


def _is_info(info: Any) -> bool:
    if not isinstance(info, dict) or not set(info) <= {"key", "addr"}:
        return False
    address = info.get("addr")
    return (
        _is_name(info.get("key"))
        and isinstance(address, list)
        and len(address) == 2
        and _is_host(address[0])
        and _is_port(address[1])
    )


class _Connection(TCPEventHandler):
    """A peer of the tracker."""

    def __init__(self, tracker: Any, sock: socket.socket, address: Any) -> None:
        super().__init__(tracker, sock, address)
        self._greeting = b""

    def on_message(self, message: bytes) -> None:
        """Hand on what comes after the magic number, which may come in pieces."""
        if self._init_req_nbytes:
            self._greeting += message
            if not _MAGIC.startswith(self._greeting[:4]):
                self.close()
                return
            if len(self._greeting) < len(_MAGIC):
                return
            message = self._greeting[len(_MAGIC) :]
            self._init_conn(_MAGIC)
            if not message or self._sock is None:
                return
        try:
            super().on_message(message)
        except (ValueError, OSError) as error:
            logger.info("hung up on %s: %s", self.name(), error)
            self.close()

    def call_handler(self, args: Any) -> None:
        if not is_message(args):
            logger.info("hung up on %s: it sends %.80s", self.name(), args)
            self.close()
            return
        super().call_handler(args)

    def write_message(self, message: bytes, binary: bool = True) -> None:  # noqa: FBT001, FBT002 (tornado's form)
        if sum(map(len, self._pending_write)) > _MAX_UNREAD:
            self.close()
            return
        super().write_message(message, binary)

    def _update_write(self) -> None:
        if self._sock is not None:
            super()._update_write()


class _Tracker(TrackerServerHandler):
    """Accepts peers; an error of the system makes it pause, not spin."""

    def _on_event(self, _: Any) -> None:
        while True:
            try:
                sock, address = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                logger.warning("cannot take a connection: %s", error)
                time.sleep(_PAUSE)
                return
            # Length and text of an answer leave one by one; else the second waits some 40 ms for
            # the peer's delayed acknowledgement of the first.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _Connection(self, sock, address)

    def close(self, conn: Any) -> None:
        if conn in self._connections:
            super().close(conn)


def serve(sock: socket.socket) -> None:
    """Serve at a listening socket until interrupted."""
    asyncio.set_event_loop(asyncio.new_event_loop())
    tracker = _Tracker(sock, secrets.token_hex(16))
    try:
        tracker.run()
    finally:
        tracker.stop()
        ioloop.IOLoop.current().close()
