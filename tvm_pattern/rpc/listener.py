"""A server's loop: no peer holds it, whatever it says, and no session ends it.

TVM's own loop reads a handshake without a limit of time or size, and ends with a session that
crashes. Here connections are greeted all at once, each with a deadline; one session runs at a time.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import selectors
import socket
import struct
import time
from dataclasses import dataclass, field

from tvm.rpc import base

from . import wire
from .registration import PING_PERIOD, Registration
from .sessions import Session

logger = logging.getLogger(__name__)

#: Seconds that a connection has to say who it is.
HANDSHAKE_TIMEOUT = 5.0
MAX_KEY = 1024
#: Connections greeted at a time; the oldest gives way to a new one.
MAX_GREETINGS = 64
_HEADER = 8
_TIMEOUT = "-timeout="
# After an error of the system, such as no files left, it gets time to recover.
_PAUSE = 0.1


@dataclass
class _Greeting:
    """A connection that has not yet said all of ``magic, length, key``."""

    sock: socket.socket
    peer: str
    deadline: float
    data: bytearray = field(default_factory=bytearray)

    def needs(self) -> int:
        """Bytes of the handshake still to come.

        Raises
        ------
        wire.ProtocolError
            If it is no client of an RPC server.
        """
        start = bytes(self.data[:4])
        if not struct.pack("<i", base.RPC_MAGIC).startswith(start):
            raise wire.ProtocolError(f"it says {bytes(self.data[:40])!r}")
        if len(self.data) < _HEADER:
            return _HEADER - len(self.data)
        length = struct.unpack("<i", self.data[4:8])[0]
        if not 0 < length <= MAX_KEY:
            raise wire.ProtocolError(f"it announces a key of {length} bytes")
        return _HEADER + length - len(self.data)

    def words(self) -> list[str]:
        """Match key and options.

        Raises
        ------
        wire.ProtocolError
            If the text is none of a client.
        """
        try:
            words = bytes(self.data[_HEADER:]).decode("utf-8").split()
        except UnicodeDecodeError as error:
            raise wire.ProtocolError(f"its key is no text: {error}") from error
        if not words or not words[0].startswith("client:"):
            raise wire.ProtocolError(f"its key is {' '.join(words)[:40]!r}")
        return [words[0].removeprefix("client:"), *words[1:]]


def _session_time(options: list[str]) -> float | None:
    """Seconds of the last ``-timeout=``, None without one."""
    given = [o.removeprefix(_TIMEOUT) for o in options if o.startswith(_TIMEOUT)]
    return _seconds(given[-1]) if given else None


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise wire.ProtocolError(f"its session time is {text!r}, expected seconds above 0")
    return value


class Listener:
    """Greets connections at ``sock`` and serves those that have the match key.

    Parameters
    ----------
    sock : socket.socket
        Bound; listening starts here.
    registration : Registration
    """

    def __init__(self, sock: socket.socket, registration: Registration) -> None:
        self._sock = sock
        self._registration = registration
        self._greetings: list[_Greeting] = []
        self._session: Session | None = None
        sock.settimeout(0.0)
        sock.listen(MAX_GREETINGS)

    def run(self) -> None:
        """Serve until the process ends."""
        # Sessions are forks of this process: what it holds is not looked through there, which
        # would copy it page by page.
        gc.freeze()
        while True:
            self.step()

    def step(self) -> None:
        """Wait for the next event, a ping period at most, and handle what is there."""
        self._registration.keep(is_free=self._session is None)
        ready = self._wait()
        if self._session is not None and self._session.is_over():
            self._session.close()
            self._session = None
        try:
            if self._sock.fileno() in ready:
                self._accept()
        except OSError as error:
            logger.warning("cannot take a connection: %s", error)
            time.sleep(_PAUSE)
        for greeting in list(self._greetings):
            if greeting.sock.fileno() in ready:
                self._hear(greeting)
            elif time.monotonic() > greeting.deadline:
                self._dismiss(greeting, "it did not say who it is")

    def close(self) -> None:
        """Hang up on everybody and end the session."""
        for greeting in list(self._greetings):
            self._dismiss(greeting, "the server ends")
        if self._session is not None:
            self._session.close()
            self._session = None
        self._registration.close()
        self._sock.close()

    def _wait(self) -> set[int]:
        """Files that are ready."""
        timeout = PING_PERIOD
        now = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self._sock, selectors.EVENT_READ)
            for greeting in self._greetings:
                selector.register(greeting.sock, selectors.EVENT_READ)
                timeout = min(timeout, greeting.deadline - now)
            if self._session is not None:
                selector.register(self._session.sentinel, selectors.EVENT_READ)
                left = self._session.seconds_left
                timeout = timeout if left is None else min(timeout, left)
            return {key.fd for key, _ in selector.select(max(0.0, timeout))}

    def _accept(self) -> None:
        sock, address = self._sock.accept()
        sock.settimeout(0.0)
        if len(self._greetings) >= MAX_GREETINGS:
            self._dismiss(self._greetings[0], "too many connections wait")
        peer = f"{address[0]}:{address[1]}"
        self._greetings.append(_Greeting(sock, peer, time.monotonic() + HANDSHAKE_TIMEOUT))

    def _dismiss(self, greeting: _Greeting, reason: object) -> None:
        logger.info("hung up on %s: %s", greeting.peer, reason)
        self._greetings.remove(greeting)
        greeting.sock.close()

    def _hear(self, greeting: _Greeting) -> None:
        try:
            chunk = greeting.sock.recv(greeting.needs())
            if not chunk:
                raise wire.ProtocolError("it hung up")
            greeting.data += chunk
            if greeting.needs() == 0:
                self._answer(greeting)
        except BlockingIOError:
            return
        except (OSError, wire.ProtocolError) as error:
            if greeting in self._greetings:
                self._dismiss(greeting, error)

    def _answer(self, greeting: _Greeting) -> None:
        """Start the session of a client that has the match key; refuse any other."""
        match_key, *options = greeting.words()
        if self._session is not None or match_key != self._registration.match_key:
            greeting.sock.sendall(wire.word(base.RPC_CODE_MISMATCH))
            self._dismiss(greeting, "it has not the key of a free server")
            return
        # The key is used up, whatever becomes of the session.
        self._registration.withdraw()
        timeout = _session_time(options)
        name = f"server:{self._registration.key}".encode()
        greeting.sock.sendall(wire.word(base.RPC_CODE_SUCCESS) + wire.word(len(name)) + name)
        inherited = [self._sock.fileno(), *(g.sock.fileno() for g in self._greetings)]
        inherited.remove(greeting.sock.fileno())
        tracker = self._registration.fileno()
        inherited += [] if tracker is None else [tracker]
        logger.info("serving %s", greeting.peer)
        self._session = Session(greeting.sock, greeting.peer, timeout, inherited)
        self._greetings.remove(greeting)


def bind(host: str, port: int, last_port: int) -> socket.socket:
    """A socket at the first port of ``port`` to ``last_port`` that is free.

    Raises
    ------
    OSError
        If none is, or ``host`` is no address of this machine.
    """
    error: OSError | None = None
    family = base.get_addr_family((host, port))
    for candidate in range(port, last_port + 1):
        sock = socket.socket(family, socket.SOCK_STREAM)
        with contextlib.ExitStack() as undo:
            undo.callback(sock.close)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((host, candidate))
            except OSError as problem:
                error = problem
                continue
            undo.pop_all()
            return sock
    raise OSError(f"cannot listen at {host}, ports {port} to {last_port}: {error}")
