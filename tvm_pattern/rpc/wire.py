"""Bytes and JSON over TCP with a deadline and a limit on what a peer may announce."""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any

from . import protocol

#: Bytes of the longest message; a tracker's and a server's messages are a few hundred.
MAX_MESSAGE = 1 << 20
_SHOWN = 40


class ProtocolError(ValueError):
    """A peer that says something else than the protocol has it."""


def word(value: int) -> bytes:
    """``value`` as the protocol's 32-bit number."""
    return struct.pack("<i", value)


def receive(sock: socket.socket, count: int, deadline: float) -> bytes:
    """Exactly ``count`` bytes.

    Parameters
    ----------
    sock : socket.socket
    count : int
    deadline : float
        Value of ``time.monotonic()`` after which waiting ends, however many bytes have come. What
        is there already is read after it too: this computer may have slept meanwhile.

    Raises
    ------
    TimeoutError
        At the deadline.
    ConnectionError
        If the peer hangs up before.
    """
    data = bytearray()
    while len(data) < count:
        sock.settimeout(max(0.0, deadline - time.monotonic()))
        try:
            chunk = sock.recv(count - len(data))
        except (BlockingIOError, TimeoutError):
            raise TimeoutError(f"{len(data)} of {count} bytes came in time") from None
        if not chunk:
            raise ConnectionError("it hung up")
        data += chunk
    return bytes(data)


def receive_word(sock: socket.socket, deadline: float) -> int:
    """A 32-bit number; raises as :func:`receive`."""
    return int(struct.unpack("<i", receive(sock, 4, deadline))[0])


def receive_json(sock: socket.socket, deadline: float) -> Any:
    """A value; raises as :func:`receive`, and ProtocolError if it is none."""
    size = receive_word(sock, deadline)
    if not 0 < size <= MAX_MESSAGE:
        raise ProtocolError(f"it announces a message of {size} bytes")
    data = receive(sock, size, deadline)
    try:
        return json.loads(data.decode("utf-8"))
    except ValueError as error:
        raise ProtocolError(f"it sends {data[:_SHOWN]!r}, which is no JSON") from error
    except RecursionError as error:
        raise ProtocolError("it sends JSON that is nested without end") from error


def send_json(sock: socket.socket, value: Any, deadline: float) -> None:
    """Send a value; raises TimeoutError at the deadline, OSError if the peer hung up."""
    data = json.dumps(value).encode()
    sock.settimeout(max(1e-3, deadline - time.monotonic()))
    sock.sendall(word(len(data)) + data)


def greet_tracker(sock: socket.socket, deadline: float) -> None:
    """Exchange the tracker's magic number.

    Raises
    ------
    ProtocolError
        If the peer is no tracker.
    OSError
        If it does not answer, or hangs up.
    """
    sock.settimeout(max(1e-3, deadline - time.monotonic()))
    sock.sendall(word(protocol.RPC_TRACKER_MAGIC))
    magic = receive_word(sock, deadline)
    if magic != protocol.RPC_TRACKER_MAGIC:
        raise ProtocolError(f"it answers {magic:#x}")
