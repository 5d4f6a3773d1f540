"""How long a session lasts: by its client's clock, and once its client has hung up."""

from __future__ import annotations

import os
import socket
import time
import weakref

import pytest

from tvm_pattern.rpc import line, sessions
from tvm_pattern.rpc.sessions import Session

PATIENCE = 60.0


def compute_on(sock, folder, inherited) -> None:
    """A session that does not look at its client."""
    for file in inherited:
        os.close(file)
    time.sleep(600)


@pytest.fixture
def session_of(monkeypatch):
    monkeypatch.setattr(sessions, "_run", compute_on)
    monkeypatch.setattr(sessions, "LEFT_SECONDS", 0.05)
    opened = []

    def make() -> tuple[Session, socket.socket]:
        here, there = socket.socketpair()
        opened.append((Session(here, "a client", None, [there.fileno()]), there))
        return opened[-1]

    yield make
    for session, there in opened:
        session.close()
        there.close()


def test_a_session_that_computes_on_ends_once_its_client_hung_up(session_of):
    session, client = session_of()
    client.sendall(b"a call, unread")
    time.sleep(0.1)
    assert not session.is_over()
    client.close()
    assert not session.is_over()  # It may notice by itself.
    deadline = time.monotonic() + PATIENCE
    while not session.is_over():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_client_that_is_there_keeps_its_session(session_of):
    session, _client = session_of()
    time.sleep(0.2)
    assert not session.is_over()


class Named:
    """Stands for a session of TVM."""


@pytest.fixture
def lined():
    """A session with a time of 60 s, and the far end of its connection."""
    here, there = socket.socketpair()
    session = Named()
    own = line._Line(here.fileno(), os.fstat(here.fileno()).st_ino)
    term = line._Term({own}, time.monotonic(), 60.0)
    line._terms[session] = term
    yield session, there
    term.disarm()
    here.close()
    there.close()


def test_a_candidates_time_cuts_its_session_off(lined):
    session, there = lined
    line.end_in(session, 0.05)
    there.settimeout(PATIENCE)
    assert there.recv(1) == b""
    assert line.was_cut(session)
    assert line.is_over(session)


def test_a_limit_is_taken_back(lined):
    session, there = lined
    line.end_in(session, 0.2)
    line.end_in(session, None)
    there.settimeout(0.5)
    with pytest.raises(TimeoutError):
        there.recv(1)
    assert not line.was_cut(session)
    assert not line.is_over(session)


def test_no_limit_is_longer_than_the_servers(lined):
    session, _ = lined
    line.end_in(session, 1e9)
    assert line._terms[session].end - time.monotonic() <= 60.0


def test_what_is_forgotten_leaves_no_timer(lined):
    session, _ = lined
    term = line._terms[session]
    line.end_in(session, None)
    finalizer = weakref.finalize(session, term.disarm)
    timer = term._timer
    assert timer is not None
    finalizer()
    timer.join(PATIENCE)
    assert not timer.is_alive()
    assert not term.was_cut
