"""Client of an RPC tracker that fails within seconds, and says what to do.

TVM's own client retries a missing tracker for a minute and waits for ever for a key that no device
has. Here every answer has a deadline, and the tracker is asked what it has before a device is
requested.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from . import protocol, wire
from .messages import means

# `line` is imported where a session is opened: asking a tracker needs no TVM.

ANSWER_TIMEOUT = 5.0
#: Devices that one process should hold at once: TVM has room for 32 sessions, ended ones included
#: until they are forgotten.
SESSIONS_PER_PROCESS = 24
_SERVER_PREFIX = "server:"
_SHOWN = 80


class RPCError(RuntimeError):
    """A tracker, key or device that cannot be used."""


class TrackerUnreachableError(RPCError):
    """No tracker answers at the address."""


class NoDeviceError(RPCError):
    """No device of the key is registered, or none became free in time."""


@dataclass(frozen=True)
class KeyStatus:
    """Devices of one key: registered, free, requests in the queue, ``HOST:PORT`` of each."""

    key: str
    devices: int
    free: int
    pending: int
    addresses: tuple[str, ...] = ()


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

    def _no_tracker(self, detail: object) -> RPCError:
        return RPCError(
            f"{self.address} is no RPC tracker ({detail}); a server's address was given instead of"
            " the tracker's, or another program has its port?"
        )

    @contextmanager
    def _connection(self) -> Iterator[tuple[socket.socket, float]]:
        """A greeted connection and its deadline; errors of the peer become ours."""
        deadline = time.monotonic() + self.timeout
        try:
            with socket.create_connection((self.host, self.port), timeout=self.timeout) as sock:
                wire.greet_tracker(sock, deadline)
                yield sock, deadline
        except TimeoutError:
            raise self._unreachable(f"no answer within {self.timeout:.3g} s") from None
        except OSError as error:
            raise self._unreachable(error) from error
        except wire.ProtocolError as error:
            raise self._no_tracker(error) from error

    def summary(self) -> dict[str, Any]:
        """The tracker's own summary: ``queue_info`` per key and ``server_info``.

        Raises
        ------
        RPCError
            If no tracker answers there, or something that is none.
        """
        with self._connection() as (sock, deadline):
            wire.send_json(sock, [protocol.SUMMARY], deadline)
            answer = wire.receive_json(sock, deadline)
        code, value = self._pair(answer)
        if code != protocol.SUCCESS:
            raise RPCError(f"the tracker at {self.address} answered {code}, expected a summary")
        if not _is_summary(value):
            raise self._no_tracker(f"its summary is {str(value)[:_SHOWN]}")
        # Any peer may register anything at TVM's tracker; what is no server is none of ours.
        return {**value, "server_info": [s for s in value["server_info"] if _is_server(s)]}

    def _pair(self, answer: Any) -> tuple[Any, Any]:
        if not isinstance(answer, list) or len(answer) != 2:
            raise self._no_tracker(f"it answers {str(answer)[:_SHOWN]}")
        return answer[0], answer[1]

    def stop(self, stop_key: str) -> None:
        """End the tracker; ``stop_key`` is known to whoever started it.

        Raises
        ------
        RPCError
            If the key is wrong, or no tracker answers.
        """
        with self._connection() as (sock, deadline):
            wire.send_json(sock, [protocol.STOP, stop_key], deadline)
            code = wire.receive_json(sock, deadline)
        if code != protocol.SUCCESS:
            raise RPCError(f"the tracker at {self.address} refused to stop: wrong stop key")

    def status(self) -> list[KeyStatus]:
        """Devices per key, sorted by key; raises as :meth:`summary`."""
        summary = self.summary()
        keys = [str(server["key"]) for server in summary["server_info"]]
        devices = Counter(key.removeprefix(_SERVER_PREFIX) for key in keys)
        queues = summary["queue_info"]
        addresses: dict[str, list[str]] = {}
        for server, key in zip(summary["server_info"], keys, strict=True):
            host, port = server["addr"]
            addresses.setdefault(key.removeprefix(_SERVER_PREFIX), []).append(f"{host}:{port}")
        return [
            KeyStatus(
                key,
                devices[key],
                int(queues.get(key, {}).get("free", 0)),
                int(queues.get(key, {}).get("pending", 0)),
                tuple(sorted(addresses.get(key, ()))),
            )
            for key in sorted({*devices, *(k for k, q in queues.items() if q["pending"])})
        ]

    def servers(self, key: str) -> list[tuple[str, int]]:
        """Host and port of every registered server of a key, as the tracker tells clients."""
        servers = self.summary()["server_info"]
        mine = [server["addr"] for server in servers if server["key"] == _SERVER_PREFIX + key]
        return [(str(host), int(port)) for host, port in mine]

    def ports(self, key: str) -> list[int]:
        """Ports of the registered servers of a key."""
        return [port for _, port in self.servers(key)]

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

    def request(
        self,
        key: str,
        session_timeout: float,
        wait: float | None = None,
        *,
        skip_silent: bool = True,
    ) -> Any:
        """A session on a free device of ``key``.

        Parameters
        ----------
        key : str
        session_timeout : float
            Seconds after which the server ends the session; its calls end soon after, even if the
            server is gone without a word.
        wait : float, optional
            Seconds to wait for a device that is free and answers; default ``session_timeout``. The
            tracker's own answers have :attr:`timeout` seconds.
        skip_silent : bool
            Go on to the next device where one does not answer; otherwise that is an error at once.

        Returns
        -------
        tvm.rpc.RPCSession

        Raises
        ------
        ValueError
            If ``session_timeout`` is not positive, or ``wait`` negative.
        NoDeviceError
            If the key is unknown, or its devices stay busy or silent; it names the last one.
        """
        from . import line

        wait = session_timeout if wait is None else wait
        if not session_timeout > 0 or not wait >= 0:
            raise ValueError(
                f"got session_timeout={session_timeout} and wait={wait}, expected seconds above 0"
                " and of at least 0"
            )
        deadline = time.monotonic() + wait
        last: object = ""
        while time.monotonic() < deadline:
            # The tracker's own answers have their time, even when the wait is nearly over.
            self.count(key)
            try:
                server = self._reserve(key, deadline)
                return self._open(server, session_timeout, deadline)
            except TimeoutError:
                break
            except (line.SilentServerError, RuntimeError) as error:
                if means(str(error), "no_room"):
                    raise RPCError(
                        "this process holds as many sessions as TVM has room for; close some, or"
                        f" use other processes for devices beyond {SESSIONS_PER_PROCESS}"
                    ) from error
                # Listed, yet gone or held; the tracker hands out the next one. What a server says
                # tells more than the silence after it.
                if not last or not isinstance(error, line.SilentServerError):
                    last = error
                if not skip_silent:
                    break
                time.sleep(max(0.0, min(0.2, deadline - time.monotonic())))
        raise self._no_device(key, wait, last)

    def _open(self, server: tuple[str, int, str], session_timeout: float, deadline: float) -> Any:
        """A session on a reserved server; it first has to answer within seconds."""
        from . import line

        host, port, match_key = server
        left = max(0.1, deadline - time.monotonic())
        line.check_answers(host, port, min(line.ANSWER_TIMEOUT, left))
        left = max(0.1, deadline - time.monotonic())
        return line.connect(host, port, match_key, session_timeout, left)

    def _no_device(self, key: str, wait: float, last: object) -> NoDeviceError:
        from . import line

        if isinstance(last, line.SilentServerError):
            return NoDeviceError(f"no device {key!r} could be used within {wait:g} s: {last}")
        detail = f"; the last one failed: {last}" if last else ""
        return NoDeviceError(
            f"no device {key!r} became free at {self.address} within {wait:g} s{detail}; see"
            f" `tvm-pattern rpc status --tracker {self.address}`"
        )

    def _reserve(self, key: str, deadline: float) -> tuple[str, int, str]:
        """Host, port and match key of a free server.

        Raises
        ------
        TimeoutError
            If none is free before the deadline.
        """
        with self._connection() as (sock, soon):
            wire.send_json(sock, [protocol.REQUEST, key, "", 1], soon)
            try:
                answer = wire.receive_json(sock, deadline)
            except TimeoutError:
                answer = None
        if answer is None:
            raise TimeoutError
        code, value = self._pair(answer)
        if code != protocol.SUCCESS:
            raise RPCError(f"the tracker at {self.address} refused {key!r}: {value}")
        if not _is_address(value, 3) or not isinstance(value[2], str):
            raise self._no_tracker(f"it hands out {str(value)[:_SHOWN]}")
        return str(value[0]), int(value[1]), value[2]


def _is_address(value: Any, length: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == length
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and 0 < value[1] < 65536
    )


def _is_summary(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("server_info"), list):
        return False
    queues = value.get("queue_info")
    if not isinstance(queues, dict) or not all(isinstance(q, dict) for q in queues.values()):
        return False
    counts = [queue.get(name) for queue in queues.values() for name in ("free", "pending")]
    return all(isinstance(count, int) and count >= 0 for count in counts)


def _is_server(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("key"), str)
        and _is_address(value.get("addr"), 2)
    )
