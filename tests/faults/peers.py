"""TCP peers that say nothing, little by little, lies, or that leave."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

#: What may reach any port: a browser, a scanner, a TLS client, another protocol's length.
GREETINGS: dict[str, bytes] = {
    "http-probe": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls-hello": bytes.fromhex("16030100c8010000c40303") + bytes(190),
    "ssh-banner": b"SSH-2.0-OpenSSH_9.2\r\n",
    "zeros": bytes(64),
    "ones": b"\xff" * 64,
    "half-a-word": b"\x71\xf2",
    "server-magic-then-nothing": struct.pack("<i", 0xFF271),
    "server-negative-length": struct.pack("<ii", 0xFF271, -1),
    "server-huge-length": struct.pack("<ii", 0xFF271, 2**31 - 1),
    "server-length-then-nothing": struct.pack("<ii", 0xFF271, 40) + b"client:",
    "server-empty-key": struct.pack("<ii", 0xFF271, 0),
    "server-blank-key": struct.pack("<ii", 0xFF271, 1) + b" ",
    "server-wrong-key": struct.pack("<ii", 0xFF271, 11) + b"client:none",
    "server-key-no-utf8": struct.pack("<ii", 0xFF271, 4) + b"\xff\xfe\xfd\xfc",
    "tracker-magic-then-nothing": struct.pack("<i", 0x2F271),
    "tracker-negative-length": struct.pack("<ii", 0x2F271, -1),
    "tracker-huge-length": struct.pack("<ii", 0x2F271, 2**31 - 1),
    "tracker-no-json": struct.pack("<ii", 0x2F271, 4) + b"{[,}",
    "tracker-wrong-json": struct.pack("<ii", 0x2F271, 4) + b"null",
}


class Peer:
    """A server at a port of its own that treats each connection by ``behave``.

    Parameters
    ----------
    behave : callable
        Called with the connected socket and an event that is set when the peer is to end.
    """

    def __init__(self, behave: Callable[[socket.socket, threading.Event], None]) -> None:
        self._behave = behave
        self._stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._listener.settimeout(0.1)
        self.port = int(self._listener.getsockname()[1])
        self.accepted = 0
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            self.accepted += 1
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._behave(connection, self._stop)

    def close(self) -> None:
        self._stop.set()
        self._listener.close()
        for thread in self._threads:
            thread.join(5)


def _idle(_: socket.socket, stop: threading.Event) -> None:
    stop.wait()


def _closing(connection: socket.socket, _: threading.Event) -> None:
    # A reset, not an orderly end.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def saying(reply: bytes, pause: float = 0.0) -> Callable[[socket.socket, threading.Event], None]:
    """A behaviour: ``reply``, byte by byte where there is a ``pause`` in seconds, then idle."""

    def behave(connection: socket.socket, stop: threading.Event) -> None:
        for part in [reply] if pause == 0 else [bytes([byte]) for byte in reply]:
            connection.sendall(part)
            if stop.wait(pause):
                return
        stop.wait()

    return behave


def endless(connection: socket.socket, stop: threading.Event) -> None:
    """A behaviour: zeros for ever."""
    while not stop.is_set():
        connection.sendall(bytes(4096))


BEHAVIOURS: dict[str, Callable[[socket.socket, threading.Event], None]] = {
    "idle": _idle,
    "resets": _closing,
    "slow": saying(struct.pack("<i", 0x2F271) + bytes(1000), pause=0.5),
    "endless-zeros": endless,
    "http-answer": saying(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"),
    "tracker-magic-then-idle": saying(struct.pack("<i", 0x2F271)),
    "tracker-negative-length": saying(struct.pack("<ii", 0x2F271, -1)),
    "tracker-huge-length": saying(struct.pack("<ii", 0x2F271, 2**31 - 1)),
    "tracker-no-json": saying(struct.pack("<ii", 0x2F271, 4) + b"{[,}"),
    "tracker-wrong-json": saying(struct.pack("<ii", 0x2F271, 4) + b"null"),
    "server-magic-then-idle": saying(struct.pack("<i", 0xFF271)),
    "server-negative-length": saying(struct.pack("<ii", 0xFF271, -1)),
    "server-huge-length": saying(struct.pack("<ii", 0xFF271, 2**31 - 1)),
    "server-handshake-then-idle": saying(struct.pack("<ii", 0xFF271, 12) + b"server:board"),
    "server-handshake-then-zeros": saying(
        struct.pack("<ii", 0xFF271, 12) + b"server:board" + bytes(256)
    ),
}


@contextlib.contextmanager
def peer(behaviour: str) -> Iterator[Peer]:
    """A :class:`Peer` with one of :data:`BEHAVIOURS`."""
    opened = Peer(BEHAVIOURS[behaviour])
    try:
        yield opened
    finally:
        opened.close()


@contextlib.contextmanager
def connected(address: str, greeting: bytes = b"") -> Iterator[socket.socket]:
    """A client that connects to ``address``, sends ``greeting``, and then holds the line."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(greeting)
        yield sock
