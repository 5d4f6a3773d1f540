"""Client of an RPC tracker that fails within seconds, and says what to do.

TVM's own client retries a missing tracker for a minute and waits for ever for a key that no device
has. Here every answer has a deadline, and the tracker is asked what it has before a device is
requested.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import rpc
from tvm.rpc import base

ANSWER_TIMEOUT = 5.0
_SERVER_PREFIX = "server:"


class RPCError(RuntimeError):
    """A tracker, key or device that cannot be used."""


class TrackerUnreachableError(RPCError):
    """No tracker answers at the address."""


class NoDeviceError(RPCError):
    """No device of the key is registered, or none became free in time."""


@dataclass(frozen=True)
class KeyStatus:
    """Devices of one key: registered, free, and requests in the queue."""

    key: str
    devices: int
    free: int
    pending: int


def parse_address(text: str) -> tuple[str, int]:
    """``HOST:PORT`` -> ``(host, port)``.

    Raises
    ------
    ValueError
        If the text has another form.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"tracker {text!r}: expected HOST:PORT, such as 127.0.0.1:9190")
    return host, int(port)


class TrackerClient:
    """Questions to a tracker; every one opens and closes a connection of its own.

    Parameters
    ----------
    host : str
    port : int
    timeout : float
        Seconds to wait for a connection and for an answer.
    """

    def __init__(self, host: str, port: int, timeout: float = ANSWER_TIMEOUT) -> None:
        self.host = host
        self.port = port
        self.timeout = timeout

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def _unreachable(self, error: object) -> TrackerUnreachableError:
        return TrackerUnreachableError(
            f"no tracker answers at {self.address} ({error}); start one by `tvm-pattern rpc tracker"
            f" --host 0.0.0.0 --port {self.port}`"
        )

    @contextmanager
    def _connection(self) -> Iterator[socket.socket]:
        address = (self.host, self.port)
        try:
            sock = socket.create_connection(address, timeout=self.timeout)
        except OSError as error:
            raise self._unreachable(error) from error
        with sock:
            try:
                sock.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
                magic = struct.unpack("<i", base.recvall(sock, 4))[0]
            except OSError as error:
                raise self._unreachable(error) from error
            if magic != base.RPC_TRACKER_MAGIC:
                raise RPCError(
                    f"{self.address} is no RPC tracker (it answers {magic:#x}); a server's address"
                    " was given instead of the tracker's?"
                )
            yield sock

    def summary(self) -> dict[str, Any]:
        """The tracker's own summary: ``queue_info`` per key and ``server_info``."""
        with self._connection() as sock:
            try:
                base.sendjson(sock, [base.TrackerCode.SUMMARY])
                code, value = base.recvjson(sock)
            except (OSError, ValueError) as error:
                raise self._unreachable(error) from error
        if code != base.TrackerCode.SUCCESS:
            raise RPCError(f"the tracker at {self.address} answered {code}, expected a summary")
        return value

    def stop(self, stop_key: str) -> None:
        """End the tracker; ``stop_key`` is known to whoever started it.

        Raises
        ------
        RPCError
            If the key is wrong, or no tracker answers.
        """
        with self._connection() as sock:
            try:
                base.sendjson(sock, [base.TrackerCode.STOP, stop_key])
                code = base.recvjson(sock)
            except (OSError, ValueError) as error:
                raise self._unreachable(error) from error
        if code != base.TrackerCode.SUCCESS:
            raise RPCError(f"the tracker at {self.address} refused to stop: wrong stop key")

    def status(self) -> list[KeyStatus]:
        """Devices per key, sorted by key."""
        summary = self.summary()
        keys = [str(server["key"]) for server in summary["server_info"]]
        devices = Counter(key.removeprefix(_SERVER_PREFIX) for key in keys)
        queues = summary["queue_info"]
        return [
            KeyStatus(
                key,
                devices[key],
                int(queues.get(key, {}).get("free", 0)),
                int(queues.get(key, {}).get("pending", 0)),
            )
            for key in sorted({*devices, *(k for k, q in queues.items() if q["pending"])})
        ]

    def ports(self, key: str) -> list[int]:
        """Ports of the registered servers of a key."""
        servers = self.summary()["server_info"]
        return [int(s["addr"][1]) for s in servers if s["key"] == _SERVER_PREFIX + key]

    def count(self, key: str) -> int:
        """Registered devices of a key.

        Raises
        ------
        NoDeviceError
            If there is none.
        """
        found = {s.key: s for s in self.status()}
        if key in found and found[key].devices:
            return found[key].devices
        known = ", ".join(sorted(k for k, s in found.items() if s.devices)) or "none"
        raise NoDeviceError(
            f"the tracker at {self.address} has no device with the key {key!r} (known keys:"
            f" {known}); start `tvm-pattern rpc server --tracker {self.address} --key {key}` on the"
            " device"
        )

    def request(self, key: str, session_timeout: float, wait: float | None = None) -> Any:
        """A session on a free device of ``key``.

        Parameters
        ----------
        key : str
        session_timeout : float
            Seconds after which the server ends the session.
        wait : float, optional
            Seconds to wait for a busy device; default ``session_timeout``.

        Returns
        -------
        tvm.rpc.RPCSession

        Raises
        ------
        NoDeviceError
            If the key is unknown, or its devices stay busy.
        """
        wait = session_timeout if wait is None else wait
        deadline = time.monotonic() + wait
        last: object = ""
        while time.monotonic() < deadline:
            self.count(key)
            try:
                url, port, match_key = self._reserve(key, deadline - time.monotonic())
                return rpc.connect(url, port, match_key, session_timeout)
            except TimeoutError:
                break
            except (RuntimeError, OSError) as error:
                # The server is listed, yet gone; the tracker hands out the next one.
                last = error
                time.sleep(0.2)
        detail = f"; the last one failed: {last}" if last else ""
        raise NoDeviceError(
            f"no device {key!r} became free at {self.address} within {wait:g} s{detail}; see"
            f" `tvm-pattern rpc status --tracker {self.address}`"
        )

    def _reserve(self, key: str, wait: float) -> tuple[str, int, str]:
        with self._connection() as sock:
            sock.settimeout(max(0.1, wait))
            base.sendjson(sock, [base.TrackerCode.REQUEST, key, "", 1])
            code, value = base.recvjson(sock)
        if code != base.TrackerCode.SUCCESS:
            raise RPCError(f"the tracker at {self.address} refused {key!r}: {value}")
        url, port, match_key = value
        return str(url), int(port), str(match_key)
