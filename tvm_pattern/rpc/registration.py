"""A server's entry at a tracker, renewed whenever the tracker went away or forgot it."""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import time
from typing import Any

from tvm.rpc import base

from . import wire

logger = logging.getLogger(__name__)

#: Seconds within which a tracker answers; meanwhile the server does nothing else.
ANSWER_TIMEOUT = 2.0
PING_PERIOD = 2.0
#: Seconds after which a client that took the key, and did not come, loses it.
UNUSED_KEY = 6.0
_RETRY_PERIOD = 5.0


class Registration:
    """Lists one server, and offers it to one client at a time by a match key.

    Parameters
    ----------
    tracker : tuple of str and int
    key : str
    port : int
    custom_address : str, optional
        What the tracker tells clients instead of the address that it sees.
    """

    def __init__(
        self, tracker: tuple[str, int], key: str, port: int, custom_address: str | None
    ) -> None:
        self.tracker = tracker
        self.key = key
        self.port = port
        self.custom_address = custom_address
        self.match_key: str | None = None
        self._sock: socket.socket | None = None
        self._next_try = 0.0
        self._next_ping = 0.0
        self._taken_since: float | None = None

    def keep(self, *, is_free: bool) -> None:
        """Register if need be, and offer the server while it is free; never raises for a peer."""
        now = time.monotonic()
        try:
            if self._sock is None:
                if now < self._next_try:
                    return
                self._next_try = now + _RETRY_PERIOD
                self._register()
            if is_free and self.match_key is None:
                self._offer()
            if now >= self._next_ping:
                self._next_ping = now + PING_PERIOD
                self._ping(is_free=is_free)
        except (OSError, wire.ProtocolError) as error:
            logger.info("no tracker at %s:%d: %s", *self.tracker, error)
            self.close()

    def withdraw(self) -> None:
        """The key has been used; the server is offered under another one when it is free again."""
        self.match_key = None
        self._taken_since = None

    def close(self) -> None:
        """Hang up; the tracker forgets the server."""
        self.withdraw()
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.close()
            self._sock = None

    def fileno(self) -> int | None:
        """The connection's file, None without one."""
        return None if self._sock is None else self._sock.fileno()

    def _register(self) -> None:
        deadline = time.monotonic() + ANSWER_TIMEOUT
        self._sock = socket.create_connection(self.tracker, timeout=ANSWER_TIMEOUT)
        wire.greet_tracker(self._sock, deadline)
        info = {"key": f"server:{self.key}", "addr": (self.custom_address, self.port)}
        self._ask([base.TrackerCode.UPDATE_INFO, info])

    def _ask(self, question: list[Any]) -> Any:
        if self._sock is None:
            raise ConnectionError("not connected")
        deadline = time.monotonic() + ANSWER_TIMEOUT
        wire.send_json(self._sock, question, deadline)
        return wire.receive_json(self._sock, deadline)

    def _offer(self) -> None:
        # Of the form of `base.random_key`, and not to be guessed.
        match_key = f"{self.key}:{secrets.token_hex(16)}"
        value = (self.port, match_key)
        answer = self._ask([base.TrackerCode.PUT, self.key, value, self.custom_address])
        if answer != base.TrackerCode.SUCCESS:
            raise wire.ProtocolError(f"it answers {str(answer)[:80]} to an offer")
        self.match_key = match_key
        self._taken_since = None

    def _ping(self, *, is_free: bool) -> None:
        pending = self._ask([base.TrackerCode.GET_PENDING_MATCHKEYS])
        if not isinstance(pending, list):
            raise wire.ProtocolError(f"it answers {str(pending)[:80]}, expected match keys")
        if not is_free or self.match_key is None or self.match_key in pending:
            self._taken_since = None
        elif self._taken_since is None:
            self._taken_since = time.monotonic()
        elif time.monotonic() - self._taken_since > UNUSED_KEY:
            logger.info("the client that was given this server did not come")
            self._offer()
