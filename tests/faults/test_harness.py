"""The tools of this suite do what the faults rely on."""

from __future__ import annotations

import json
import signal
import socket
import time
from pathlib import Path

import pytest

from . import mutate, peers, processes, strace

_TWO_WRITES = (
    "import os, sys\n"
    "a = os.open(sys.argv[1] + '/a', os.O_CREAT | os.O_WRONLY)\n"
    "print('elsewhere', flush=True)\n"
    "os.write(a, b'one')\n"
    "os.write(a, b'two')\n"
    "os.rename(sys.argv[1] + '/a', sys.argv[1] + '/b')\n"
)


def test_strace_kills_at_every_write(tmp_path):
    seen = []
    command = processes.python(_TWO_WRITES, tmp_path / "first")
    (tmp_path / "first").mkdir()
    points = strace.kill_points(command, tmp_path / "first", tmp_path / "trace")
    assert [point.syscall for point in points] == ["write", "write", "rename"]
    for number, point in enumerate(points):
        folder = tmp_path / str(number)
        folder.mkdir()
        result = strace.run_killed(processes.python(_TWO_WRITES, folder), point)
        assert result.code == -9, result
        seen.append({path.name: path.read_text() for path in folder.iterdir()})
    assert seen == [{"a": ""}, {"a": "one"}, {"a": "onetwo"}]


@pytest.mark.parametrize("what", ["time.sleep(600)", "\n while True: pass"])
def test_a_hang_is_reported_with_its_stack(what):
    with pytest.raises(AssertionError, match=r"hung for 3 s(.|\n)*in hanging"):
        processes.run(
            processes.python(f"import time\ndef hanging(): {what}\nhanging()"), patience=3
        )


def test_computing_and_being_stopped_are_seen():
    """By both a command that waits for its turn, or is stopped, is told from one that hangs."""
    busy = processes.start(processes.python("while True: pass"))
    try:
        while processes.computed(busy.pid)[0] < 0.3:
            time.sleep(0.05)
        assert not processes.computed(busy.pid)[1]
        busy.send_signal(signal.SIGSTOP)
        while not processes.computed(busy.pid)[1]:
            time.sleep(0.05)
    finally:
        processes.end(busy)
    assert processes.computed(busy.pid) == (0.0, False)


def test_a_small_disk_ends(small_disk):
    small_disk.fill(leave=8192)
    code = "import sys; open(sys.argv[1] + '/x', 'wb').write(bytes(1 << 20))"
    result = processes.run(
        processes.python(code, small_disk.path), preexec_fn=small_disk.limit(8192)
    )
    assert result.code == 1
    assert "No space left" in result.err or "File too large" in result.err
    small_disk.empty()


@pytest.mark.parametrize("name", peers.BEHAVIOURS)
def test_peers_behave(name):
    with peers.peer(name) as peer:
        try:  # a reset may come before the connection is there
            with socket.create_connection(("127.0.0.1", peer.port), 10) as sock:
                sock.settimeout(0.3)
                answer = sock.recv(64)
        except TimeoutError:
            answer = None
        except ConnectionResetError:
            answer = b""
    expected = {"idle": answer is None, "resets": answer == b""}
    assert expected.get(name, bool(answer))


def test_mutants_are_many_different_and_repeatable():
    document = {"a": [1, {"b": "x"}], "c": None}
    named = dict(mutate.json_mutants(document))
    assert {"a/1/b missing", "a/0 = null", "c renamed", "all = list"} <= named.keys()
    assert named["a/1/b missing"] == {"a": [1, {}], "c": None}
    assert document == {"a": [1, {"b": "x"}], "c": None}
    original = json.dumps(document).encode()
    first, again = (list(mutate.bytes_mutants(original, 200)) for _ in range(2))
    assert first == again
    assert len({data for _, data in first}) > 150


def test_survey_tells_raw_errors_from_documented_ones(tmp_path):
    path = Path(tmp_path, "x.json")

    def read() -> int:
        try:
            return int(json.loads(path.read_text())["a"])
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None

    def write(content: object) -> None:
        mutate.write_json(path, content)

    good = mutate.survey([("fine", {"a": 3})], write, read, ValueError)
    assert good == {"fine": 3}
    with pytest.raises(AssertionError, match=r"1 of 2 mutants(.|\n)*missing: KeyError"):
        mutate.survey([("missing", {}), ("fine", {"a": 3})], write, read, ValueError)
