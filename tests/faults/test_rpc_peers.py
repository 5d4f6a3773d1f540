"""Idle, slow, lying and vanishing peers at the ports of trackers and servers, and at the client."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from rpc.conftest import Farm, await_true
from torch import nn
from tvm.rpc import base
from typer.testing import CliRunner

import tvm_pattern as tp
from tvm_pattern.cli import app
from tvm_pattern.deploy import Device, DeviceError, DeviceLostError, run_everywhere
from tvm_pattern.rpc import line
from tvm_pattern.rpc.client import NoDeviceError, RPCError, TrackerClient
from tvm_pattern.rpc.doctor import diagnose
from tvm_pattern.rpc.server import free_port

from . import peers, processes
from .conftest import amount

KEY, TVM_KEY = "board", "plain"
IMAGE = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
#: What a call may take longer than the wait that it states, on a machine with much else to do.
SLACK = 60.0


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds + SLACK


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    """Our tracker with one server of ours."""
    opened = Farm()
    try:
        opened.start_tracker()
        opened.start_server(KEY)
        yield opened
    finally:
        opened.stop()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A library for this machine, and the network."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()).eval()
    library = tp.compile(net, torch.from_numpy(IMAGE), num_threads=1)
    return library.export(tmp_path_factory.mktemp("peers") / "net.so"), library(IMAGE)


def server_process(farm: Farm) -> psutil.Process:
    children = psutil.Process(farm.processes[1].pid).children(recursive=True)
    return next(c for c in children if "tvm_pattern.rpc.serve" in " ".join(c.cmdline()))


def serves(farm: Farm, key: str = KEY, wait: float = 60.0) -> None:
    """A client gets a session, and it computes."""
    with within(wait):
        session = farm.client.request(key, session_timeout=60, wait=wait)
        assert session.get_function("tvm.rpc.server.workpath")("x").endswith("/x")


@pytest.mark.parametrize("greeting", peers.GREETINGS)
def test_server_survives(farm, greeting):
    """Whatever is said to the server, held or not, the next client is served, and by it."""
    before = server_process(farm)
    address = f"127.0.0.1:{farm.client.ports(KEY)[0]}"
    with peers.connected(address, peers.GREETINGS[greeting]):
        serves(farm)
    serves(farm)
    assert server_process(farm) == before


@pytest.mark.parametrize("greeting", peers.GREETINGS)
def test_tracker_survives(farm, greeting):
    before = farm.tracker.pid
    with peers.connected(farm.address, peers.GREETINGS[greeting]), within(5):
        assert farm.count() == 1
    assert farm.count() == 1
    assert farm.tracker.poll() is None
    assert farm.tracker.pid == before


def test_server_with_hundreds_of_idle_connections(farm):
    address = f"127.0.0.1:{farm.client.ports(KEY)[0]}"
    with contextlib.ExitStack() as held:
        for _ in range(amount(100, 500)):
            held.enter_context(peers.connected(address))
        serves(farm)


def test_tracker_with_hundreds_of_idle_connections(farm):
    with contextlib.ExitStack() as held:
        for _ in range(amount(100, 500)):
            held.enter_context(peers.connected(farm.address))
        with within(5):
            assert farm.count() == 1


def test_server_with_a_handshake_byte_by_byte(farm):
    """A client on a poor line is served, and does not keep others waiting."""
    host, port = "127.0.0.1", farm.client.ports(KEY)[0]
    with socket.create_connection((host, port), timeout=10) as sock:
        for byte in struct.pack("<ii", base.RPC_MAGIC, 11) + b"client:none":
            sock.sendall(bytes([byte]))
            time.sleep(0.05)
        assert struct.unpack("<i", base.recvall(sock, 4))[0] == base.RPC_CODE_MISMATCH
    serves(farm)


def match(farm: Farm) -> tuple[str, int, str]:
    """A free server's host, port and match key."""
    with farm.client._connection() as (sock, _):
        base.sendjson(sock, [base.TrackerCode.REQUEST, KEY, "", 1])
        _, (host, port, match_key) = base.recvjson(sock)
    return host, port, match_key


def reserved(farm: Farm) -> tuple[socket.socket, bytes]:
    """A connection to the server, and the handshake that it is waiting for."""
    host, port, match_key = match(farm)
    words = f"client:{match_key} -timeout=30".encode()
    connection = socket.create_connection((host, port), timeout=10)
    return connection, struct.pack("<ii", base.RPC_MAGIC, len(words)) + words


@pytest.mark.parametrize(
    "packet",
    [b"", bytes(64), b"\xff" * 64, struct.pack("<Q", 2**63), struct.pack("<Q", 24) + b"\x07" * 24],
    ids=["nothing", "zeros", "ones", "huge-packet", "wrong-code"],
)
def test_server_with_a_session_of_garbage(farm, packet):
    """A client with the right key that then breaks the protocol costs its own session only."""
    before = server_process(farm)
    connection, handshake = reserved(farm)
    with connection:
        connection.sendall(handshake)
        assert struct.unpack("<i", base.recvall(connection, 4))[0] == base.RPC_CODE_SUCCESS
        connection.sendall(packet)
    serves(farm)
    assert server_process(farm) == before


@pytest.mark.parametrize("option", ["nan", "-1", "1e999", "soon"])
def test_server_with_a_session_time_that_is_none(farm, option):
    before = server_process(farm)
    connection, handshake = reserved(farm)
    with connection:
        words = handshake[8:].split(b" ")[0] + b" -timeout=" + option.encode()
        connection.sendall(struct.pack("<ii", base.RPC_MAGIC, len(words)) + words)
        assert connection.recv(4) == b""
    serves(farm)
    assert server_process(farm) == before


def test_server_with_a_client_that_does_not_use_its_key(farm):
    connection, _ = reserved(farm)
    connection.close()
    serves(farm)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_server_whose_session_crashes(farm, number):
    server = server_process(farm)
    session = farm.client.request(KEY, session_timeout=60, wait=60)
    for child in server.children():
        child.send_signal(number)
    with pytest.raises(RuntimeError), within(5):
        session.get_function("tvm.rpc.server.workpath")("x")
    del session
    serves(farm)
    assert server_process(farm) == server


BAD_REGISTRATIONS = {
    "key-is-a-number": [base.TrackerCode.UPDATE_INFO, {"key": 5, "addr": ["127.0.0.1", 9]}],
    "key-is-missing": [base.TrackerCode.UPDATE_INFO, {"addr": ["127.0.0.1", 9]}],
    "address-is-null": [base.TrackerCode.UPDATE_INFO, {"key": "server:x", "addr": None}],
    "port-is-huge": [base.TrackerCode.UPDATE_INFO, {"key": "server:x", "addr": ["h", 1 << 40]}],
    "offer-without-match-key": [base.TrackerCode.PUT, KEY, [9, "none"], None],
    "offer-of-no-port": [base.TrackerCode.PUT, KEY, ["x", f"{KEY}:0.5"], None],
    "offer-of-a-list": [base.TrackerCode.PUT, [KEY], [9, f"{KEY}:0.5"], None],
    "request-of-a-list": [base.TrackerCode.REQUEST, ["x"], "", 1],
    "request-with-priority-text": [base.TrackerCode.REQUEST, KEY, "", "high"],
    "unknown-code": [99],
    "code-is-text": ["summary"],
    "null": None,
    "stop-with-a-guess": [base.TrackerCode.STOP, "guess"],
}


@pytest.mark.parametrize("name", BAD_REGISTRATIONS)
def test_tracker_with_a_peer_that_registers_nonsense(farm, name):
    with peers.connected(farm.address, struct.pack("<i", base.RPC_TRACKER_MAGIC)) as sock:
        base.recvall(sock, 4)
        base.sendjson(sock, BAD_REGISTRATIONS[name])
        with within(5):
            assert [s.key for s in farm.client.status()] == [KEY]
        serves(farm)
    assert farm.count() == 1


@pytest.mark.parametrize("behaviour", peers.BEHAVIOURS)
def test_client_of_what_is_no_tracker(behaviour):
    with peers.peer(behaviour) as peer:
        client = TrackerClient("127.0.0.1", peer.port, timeout=1.0)
        with pytest.raises(RPCError, match=rf"{peer.address}"), within(1):
            client.summary()
        with pytest.raises(RPCError, match=rf"{peer.address}"), within(2):
            client.request(KEY, session_timeout=5, wait=2)
        assert [f.ok for f in diagnose(client, KEY, None, None)] == [False]


def tracker_that_answers(*answers: object) -> peers.Peer:
    """A peer with a tracker's greeting and then these values, whatever is asked."""

    def behave(connection: socket.socket, stop: threading.Event) -> None:
        connection.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
        for answer in answers:
            base.sendjson(connection, answer)
        stop.wait()

    return peers.Peer(behave)


GOOD_SUMMARY = {"queue_info": {}, "server_info": []}
LYING_ANSWERS = {
    "text": "summary",
    "empty": [],
    "three": [0, GOOD_SUMMARY, 1],
    "failure": [-1, GOOD_SUMMARY],
    "no-servers": [0, {"queue_info": {}}],
    "no-queues": [0, {"server_info": []}],
    "queue-is-a-number": [0, {"queue_info": {"a": 1}, "server_info": []}],
    "free-is-text": [0, {"queue_info": {"a": {"free": "1", "pending": 0}}, "server_info": []}],
    "free-is-negative": [0, {"queue_info": {"a": {"free": -1, "pending": 0}}, "server_info": []}],
}


@pytest.mark.parametrize("name", LYING_ANSWERS)
def test_client_of_a_tracker_that_lies(name):
    peer = tracker_that_answers(LYING_ANSWERS[name])
    try:
        client = TrackerClient("127.0.0.1", peer.port, timeout=2.0)
        with pytest.raises(RPCError, match=peer.address), within(2):
            client.status()
    finally:
        peer.close()


def test_client_of_a_tracker_that_lists_nonsense_beside_a_server():
    """As TVM's own tracker does when a peer registers it."""
    servers = [{"key": 5, "addr": ["h", 1]}, None, {"key": "server:x"}, {}]
    good = {"key": "server:x", "addr": ["10.0.0.1", 9090]}
    peer = tracker_that_answers([0, {"queue_info": {}, "server_info": [*servers, good]}])
    try:
        client = TrackerClient("127.0.0.1", peer.port, timeout=5.0)
        assert client.servers("x") == [("10.0.0.1", 9090)]
        assert client.count("x") == 1
    finally:
        peer.close()


@pytest.mark.parametrize("behaviour", peers.BEHAVIOURS)
def test_client_of_what_is_no_server(behaviour):
    with peers.peer(behaviour) as peer, within(2), pytest.raises(DeviceError, match=peer.address):
        Device.connect(peer.address, wait=2.0)


@pytest.mark.parametrize(
    "behaviour",
    # The others begin as a server does; the deadline of the connection ends those.
    [name for name in peers.BEHAVIOURS if not name.startswith("server-")],
)
def test_client_is_told_why_a_listed_server_is_none(behaviour):
    with peers.peer(behaviour) as peer, within(2), pytest.raises(line.SilentServerError):
        line.check_answers("127.0.0.1", peer.port, 2.0)


@pytest.fixture(scope="module")
def tvm_server(farm) -> Iterator[tuple[int, Farm]]:
    """TVM's own server at our tracker; its port."""
    port = free_port()
    command = [sys.executable, "-m", "tvm.exec.rpc_server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--port-end", str(port + 1)]
    command += ["--tracker", farm.address, "--key", TVM_KEY]
    process = processes.start(command)
    try:
        await_true(lambda: farm.count(TVM_KEY) == 1, "TVM's server")
        yield port
    finally:
        processes.end(process)


def test_client_of_tvms_server_that_an_idle_connection_holds(farm, tvm_server):
    with peers.connected(f"127.0.0.1:{tvm_server}"):
        time.sleep(0.5)  # so that the server takes it first
        with within(4), pytest.raises(NoDeviceError, match="idle connection holds it"):
            farm.client.request(TVM_KEY, session_timeout=60, wait=4)
        with within(2), pytest.raises(DeviceError, match="idle connection holds it"):
            Device.connect(f"127.0.0.1:{tvm_server}", wait=2)
        found = diagnose(farm.client, TVM_KEY, None, None)
        assert "idle connection holds it" in found[-1].detail
        assert not found[-1].ok


def test_loading_one_name_twice_at_tvms_server(farm, tvm_server, exported, tmp_path):
    """The second file has other contents: its answers are given, and the first keeps its own."""
    path, expected = exported
    other = tmp_path / path.name
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()).eval()
    library = tp.compile(net, torch.from_numpy(IMAGE), num_threads=1)
    library.export(other)
    await_true(lambda: farm.count(TVM_KEY) == 1, "TVM's server")
    with Device.from_tracker(farm.address, TVM_KEY, wait=60) as device:
        first, again, second = (device.load(p) for p in (path, path, other))
        np.testing.assert_array_equal(first.run(IMAGE)[0], expected)
        np.testing.assert_array_equal(again.run(IMAGE)[0], expected)
        np.testing.assert_array_equal(second.run(IMAGE)[0], library(IMAGE))
        np.testing.assert_array_equal(first.run(IMAGE)[0], expected)


def test_bench_with_a_server_that_cannot_be_reached_beside_a_good_one(farm, exported):
    """As with a server that listens at 127.0.0.1 of another machine."""
    process = farm._start(
        "server", "--tracker", farm.address, "--key", KEY, "--port", str(free_port()),
        "--custom-address", "127.0.0.2",
    )  # fmt: skip
    try:
        await_true(lambda: farm.count() == 2, "the second server")
        with within(30):
            rows = run_everywhere(farm.address, KEY, exported[0], [IMAGE], [exported[1]], repeat=1)
        assert sorted(row.verified is True for row in rows) == [False, True]
        [bad] = [row for row in rows if row.failed]
        assert "no server answers at 127.0.0.2:" in bad.error
        assert "--host 0.0.0.0" in bad.error
        found = [f for f in diagnose(farm.client, KEY, None, None) if f.check == "server"]
        assert len(found) == 1
        assert "127.0.0.2" in found[0].detail
        serves(farm)
    finally:
        process.terminate()
        process.wait(60)
        await_true(lambda: farm.count() == 1, "the second server to leave")


def test_device_that_falls_silent(farm, exported, monkeypatch):
    """Stopped, as a phone is that is switched off: calls end with the session's time."""
    monkeypatch.setattr(line, "GRACE", 1.0)
    server = server_process(farm)
    device = Device.from_tracker(farm.address, KEY, session_timeout=8, wait=60)
    library = device.load(exported[0])
    stopped = [server, *server.children()]
    try:
        for process in stopped:
            process.suspend()
        with within(9), pytest.raises(DeviceLostError, match="did not say so"):
            library.run(IMAGE)
    finally:
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
    device.close()
    serves(farm)


def test_a_session_leads_to_its_own_machine():
    """Others may be set up at the same time, at the same port of other machines."""
    with (
        socket.create_server(("127.0.0.2", 0)) as there,
        socket.create_connection(there.getsockname()) as sock,
    ):
        [found] = line._lines(there.getsockname()[1])
        assert found.file == sock.fileno()
        assert found.leads_to("127.0.0.2")
        assert not found.leads_to("127.0.0.1")
        assert not found.leads_to("host.invalid")


def test_a_connection_that_another_thread_closes_meanwhile_is_none(monkeypatch):
    """TVM closes its sockets whenever it likes, also while they are looked through."""
    status = os.fstat

    with (
        socket.create_server(("127.0.0.1", 0)) as there,
        socket.create_connection(there.getsockname()) as sock,
    ):
        port, file = there.getsockname()[1], sock.fileno()
        [found] = line._lines(port)

        def closed(number: int) -> os.stat_result:
            if number == file:
                raise OSError(errno.EBADF, "Bad file descriptor")
            return status(number)

        monkeypatch.setattr(line.os, "fstat", closed)
        assert line._lines(port) == set()
        found.cut()  # it is another's by now
        monkeypatch.undo()
        assert line._lines(port) == {found}
        assert sock.send(b"x") == 1


def run_on(device: Device, path: Path, expected: np.ndarray) -> None:
    library = device.load(path)
    while True:
        np.testing.assert_array_equal(library.run(IMAGE)[0], expected)


@pytest.mark.parametrize("key", [KEY, TVM_KEY])
def test_device_session_that_runs_out(farm, tvm_server, exported, key):
    with (
        Device.from_tracker(farm.address, key, session_timeout=2, wait=60) as device,
        within(7),
        pytest.raises(DeviceLostError, match=r"session's time ended|disappeared"),
    ):
        run_on(device, *exported)
    serves(farm, key)


def test_sessions_that_run_out_at_any_moment(farm, exported):
    """However far an answer had come: never a wrong one, and the client's process goes on."""
    for number in range(amount(8, 200)):
        seconds = 1.0 + (0.013 * number) % 0.5
        with (
            Device.from_tracker(farm.address, KEY, session_timeout=seconds, wait=60) as device,
            pytest.raises(DeviceLostError),
        ):
            run_on(device, *exported)
    serves(farm)


@pytest.mark.parametrize(
    "answer",
    [b"\xff" * 64, struct.pack("<Q", 2**63), struct.pack("<Qi", 4, 77), b"HTTP/1.1 400 Bad\r\n"],
    ids=["ones", "huge-packet", "unknown-code", "http"],
)
def test_client_of_a_server_that_breaks_the_protocol(farm, exported, monkeypatch, answer):
    """The call is an error, and so is the next; what lives there is forgotten without a crash."""
    monkeypatch.setattr(line, "GRACE", 1.0)
    seconds = 4.0
    _, port, match_key = match(farm)
    relay = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("relay.py"), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        way = int(relay.stdout.readline())
        with Device(line.connect("127.0.0.1", way, match_key, seconds, 10), "relayed") as device:
            library = device.load(exported[0])
            np.testing.assert_array_equal(library.run(IMAGE)[0], exported[1])
            relay.stdin.write(answer.hex() + "\n")
            relay.stdin.flush()
            assert relay.stdout.readline() == "ready\n"
            for _ in range(2):
                with within(seconds + 2 * line.GRACE), pytest.raises(DeviceLostError):
                    library.run(IMAGE)
    finally:
        relay.kill()
        relay.communicate()
    serves(farm)


@pytest.mark.parametrize("command", ["doctor", "status", "bench", "run"])
def test_commands_show_no_raw_error(exported, command):
    """At an idle peer: words and exit code 1, within the stated wait."""
    with peers.peer("idle") as peer:
        where = ["--tracker", peer.address]
        words = {
            "doctor": ["rpc", "doctor", *where, "--key", KEY],
            "status": ["rpc", "status", *where],
            "bench": ["bench", "--lib", str(exported[0]), *where, "--key", KEY],
            "run": ["run", "--lib", str(exported[0]), *where, "--key", KEY],
        }
        with within(5):
            result = CliRunner().invoke(app, words[command])
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)
        assert "no tracker answers" in result.output


def test_a_server_without_room_for_sessions(farm, small_disk):
    """TMPDIR is full: each client is told, and served once there is room."""
    env = processes.environment(TMPDIR=str(small_disk.path))
    command = processes.cli(
        "rpc", "server", "--tracker", farm.address, "--key", "full", "--port", free_port()
    )
    if not small_disk.is_tmpfs:
        pytest.skip("needs a tmpfs; a limit on file sizes does not stop folders")
    process = processes.start(command, env=env)
    try:
        await_true(lambda: farm.count("full") == 1, "the server")
        # From its first session on, the server keeps to this folder.
        serves(farm, "full")
        exhaust_inodes(small_disk.path)
        with within(10), pytest.raises(NoDeviceError):
            farm.client.request("full", session_timeout=10, wait=10)
        shutil.rmtree(small_disk.path / "many")
        serves(farm, "full")
    finally:
        processes.end(process)


def exhaust_inodes(folder: Path) -> None:
    many = folder / "many"
    many.mkdir()
    number = 0
    for _ in range(4):  # the folder of the session before is removed a moment after its end
        with contextlib.suppress(OSError):
            while number < 2048:
                os.mkfifo(many / str(number))
                number += 1
        time.sleep(0.25)


def test_records_of_the_doctor_are_json(farm):
    result = CliRunner().invoke(
        app, ["rpc", "doctor", "--tracker", farm.address, "--key", KEY, "--json"]
    )
    assert result.exit_code == 0, result.output
    assert all(finding["ok"] for finding in json.loads(result.stdout))
