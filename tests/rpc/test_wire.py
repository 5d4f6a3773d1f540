"""Deadlines of bytes over TCP."""

from __future__ import annotations

import socket
import time

import pytest

from tvm_pattern.rpc import wire


@pytest.fixture
def pair():
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def test_what_came_while_this_computer_slept_is_read(pair):
    """The deadline is over, the answer is here."""
    here, there = pair
    wire.send_json(there, {"a": 1}, time.monotonic() + 10)
    assert wire.receive_json(here, time.monotonic() - 60) == {"a": 1}


def test_what_has_not_come_is_not_waited_for(pair):
    here, there = pair
    there.sendall(b"123")
    with pytest.raises(TimeoutError, match="3 of 4 bytes came in time"):
        wire.receive(here, 4, time.monotonic() - 60)
    with pytest.raises(TimeoutError, match="0 of 4 bytes"):
        wire.receive(here, 4, time.monotonic() + 0.05)
    there.close()
    with pytest.raises(ConnectionError, match="it hung up"):
        wire.receive(here, 4, time.monotonic() - 60)
