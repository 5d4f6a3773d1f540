"""Addresses, options and failures that need no tracker."""

from __future__ import annotations

import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest
from tvm.rpc import base
from typer.testing import CliRunner

from tvm_pattern.rpc import protocol, server, tracker
from tvm_pattern.rpc.cli import app
from tvm_pattern.rpc.client import RPCError, TrackerClient, TrackerUnreachableError, parse_address
from tvm_pattern.rpc.doctor import diagnose
from tvm_pattern.rpc.server import ServerOptions, free_port, phone_commands, supervise
from tvm_pattern.tuning.measure import classify_run_error


def test_addresses():
    assert parse_address("10.0.0.7:9190") == ("10.0.0.7", 9190)


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:port", "host:0", "host:70000"])
def test_bad_addresses(text):
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        parse_address(text)


def test_an_unreachable_tracker_fails_in_seconds_with_the_command():
    port = free_port()
    start = time.monotonic()
    with pytest.raises(TrackerUnreachableError, match=rf"rpc tracker --host 0.0.0.0 --port {port}"):
        TrackerClient("127.0.0.1", port).summary()
    assert time.monotonic() - start < 30
    assert [f.ok for f in diagnose(TrackerClient("127.0.0.1", port), None, None, None)] == [False]
    done = CliRunner().invoke(app, ["doctor", "--tracker", f"127.0.0.1:{port}"])
    assert done.exit_code == 1
    assert "FAIL tracker" in done.output


def answer(reply: bytes) -> int:
    """A server on loopback that answers the first client so; returns its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(64)
            connection.sendall(reply)

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def test_something_else_at_the_address():
    port = answer(struct.pack("<i", 17))
    with pytest.raises(RPCError, match="no RPC tracker"):
        TrackerClient("127.0.0.1", port).summary()


def test_answers_of_the_tracker_do_not_wait_for_acknowledgements(monkeypatch):
    """They are sent in two parts, and the second would leave some 40 ms after the first."""
    taken: list[socket.socket] = []
    monkeypatch.setattr(tracker, "_Connection", lambda _tracker, sock, _address: taken.append(sock))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        with socket.create_connection(listener.getsockname()):
            tracker._Tracker._on_event(SimpleNamespace(_sock=listener), None)
    (sock,) = taken
    with sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_tracker_that_hangs_up():
    with pytest.raises(TrackerUnreachableError, match="no tracker answers"):
        TrackerClient("127.0.0.1", answer(b"")).summary()


def test_the_error_names_survive_the_way_through_a_worker():
    lost = f"tvm_pattern.rpc.client.{TrackerUnreachableError.__name__}: no tracker answers"
    assert classify_run_error(lost, remote=True) == "device_lost"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tracker": "nowhere"}, "HOST:PORT"),
        ({"key": "two words"}, "without spaces"),
        ({"port": 0}, "1 to 65535"),
        ({"cpu": 100_000}, "core 100000"),
    ],
)
def test_bad_server_options(changes, message):
    with pytest.raises(ValueError, match=message):
        ServerOptions(**{"tracker": "127.0.0.1:9190", "key": "k", **changes})


def test_the_server_command_has_every_option():
    options = ServerOptions("127.0.0.1:1", "k", "0.0.0.0", 9100, "1.2.3.4", None)
    text = " ".join(options.command())
    assert "--custom-address 1.2.3.4" in text
    assert "--host 0.0.0.0 --port 9100" in text


def test_a_server_listens_where_its_tracker_reaches_it(monkeypatch):
    assert ServerOptions("127.0.0.1:9190", "k").listen_address == "127.0.0.1"
    assert ServerOptions("10.0.0.9:9190", "k", host="0.0.0.0").listen_address == "0.0.0.0"
    monkeypatch.setattr(server, "address_towards", lambda host, port: f"own address to {host}")
    assert ServerOptions("10.0.0.9:9190", "k").listen_address == "own address to 10.0.0.9"
    assert "--host own address to 10.0.0.9" in " ".join(
        ServerOptions("10.0.0.9:9190", "k").command()
    )


def test_no_way_to_the_tracker():
    with pytest.raises(RuntimeError, match=r"no way to the tracker at no\.such\.host\.invalid:1"):
        server.address_towards("no.such.host.invalid", 1)


@pytest.mark.parametrize(("address", "warns"), [("127.0.0.1", False), ("10.0.0.7", True)])
def test_the_server_command_warns_of_other_machines(monkeypatch, address, warns):
    served = []
    monkeypatch.setattr(server, "address_towards", lambda host, port: address)
    monkeypatch.setattr(server, "supervise", lambda options, *_: served.append(options) or 0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    result = CliRunner().invoke(app, ["server", "--tracker", "10.0.0.1:9190", "--key", "k"])
    assert result.exit_code == 0, result.output
    assert served[0].host == address
    assert (f"whoever reaches {address} may run code here" in result.output) == warns


def test_the_protocols_numbers_are_tvms():
    assert protocol.RPC_TRACKER_MAGIC == base.RPC_TRACKER_MAGIC
    for name in ("SUCCESS", "STOP", "REQUEST", "SUMMARY"):
        assert getattr(protocol, name) == getattr(base.TrackerCode, name)


def test_phone_commands_bound_the_ports():
    for command in phone_commands("10.0.0.1:9190", "pixel"):
        assert "10.0.0.1:9190" in command
        assert "pixel" in command
        assert re.search(r"--port[ =]9090 --port-end[ =]9099 ", command)


class FalseServer:
    """Stands for the options of a server whose process ends at once."""

    key = "k"

    @staticmethod
    def command() -> list[str]:
        return ["false"]


def test_a_server_that_cannot_start_is_given_up(monkeypatch):
    monkeypatch.setattr(server, "_RESTART_PAUSE", 0.0)
    told: list[str] = []
    with pytest.raises(RuntimeError, match=r"died 5 times right after its start .*run `false`"):
        supervise(FalseServer(), threading.Event(), told.append)
    assert len(told) == 4
    assert "restarted (4)" in told[-1]


def test_a_stopped_server_ends_its_process(monkeypatch):
    started: list[subprocess.Popen] = []
    real = subprocess.Popen

    def record(*args, **kwargs):
        started.append(real(*args, **kwargs))
        stop.set()
        return started[-1]

    stop = threading.Event()
    options = FalseServer()
    options.command = lambda: ["sleep", "1000"]
    monkeypatch.setattr(server.subprocess, "Popen", record)
    assert supervise(options, stop) == 0
    assert started[0].returncode == -9


def test_a_taken_port_is_explained():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match=rf"cannot listen at 127.0.0.1:{port}.*rpc status"):
            server.run_tracker("127.0.0.1", port, lambda _: None)


def test_the_tracker_command_says_what_to_run_and_ends_when_interrupted():
    port = free_port()
    command = [sys.executable, "-m", "tvm_pattern.cli", "rpc", "tracker", "--port", str(port)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # What runs in a shell's background ignores interrupts, and so would its children.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        lines = [process.stdout.readline() for _ in range(6)]
        assert lines[0] == f"tracker at 127.0.0.1:{port}\n"
        assert f"--tracker 127.0.0.1:{port} --key phone" in lines[2]
        assert lines[5] == f"  tvm-pattern rpc server --tracker 127.0.0.1:{port} --key phone\n"
        client = TrackerClient("127.0.0.1", port)
        assert client.status() == []
        with pytest.raises(RPCError, match="wrong stop key"):
            client.stop("guessed")
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert output.endswith("tracker stopped\n")
        assert errors == ""
    finally:
        server.end_group(process)
