"""Records: lines, damage, merging, best, and what a full disk does."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tvm_pattern.tuning.records import LogError, Record, TuningLog, best_records, merge


def record(task: str = "t", knob: int = 1, seconds: float = 1e-3, **more) -> Record:
    return Record(task, {"batch": 1}, {"knob": knob}, (seconds,), timestamp=float(knob), **more)


def test_lines_round_trip(tmp_path):
    log = TuningLog(tmp_path / "deep" / "log.jsonl")
    written = [record(knob=i) for i in range(3)]
    for one in written:
        log.append(one)
    assert log.records() == written


def test_seconds_ignore_disturbed_repeats():
    times = (5.0, 1.0, 1.1, 9.0, 1.2, 1.3, 8.0, 7.0)
    assert Record("t", {}, {}, times).seconds == 1.1
    assert Record("t", {}, {}, (), error_kind="crash").seconds == float("inf")


def test_a_half_written_line_is_named_and_the_log_goes_on(tmp_path):
    log = TuningLog(tmp_path / "log.jsonl")
    log.append(record(knob=1))
    line = record(knob=2).to_line()
    with log.path.open("a") as file:
        file.write(line[: len(line) // 2])
    log.append(record(knob=3))
    with pytest.raises(LogError, match=r"line 2: not JSON.*cut off.*--skip-bad"):
        log.records()
    assert [r.config["knob"] for r in log.records(skip_bad=True)] == [1, 3]
    assert [line.number for line in log.read()[1]] == [2]


def test_killed_while_writing_loses_one_line_at_most(tmp_path):
    """kill -9 at a random moment of a process that only appends."""
    path = tmp_path / "log.jsonl"
    code = f"""
        import itertools
        from tvm_pattern.tuning.records import Record, TuningLog
        log = TuningLog({str(path)!r})
        for i in itertools.count():
            log.append(Record("t", {{}}, {{"i": i}}, (1.0,)))
            if i == 20:
                print("running", flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert process.stdout.readline() == b"running\n"
    process.kill()
    process.wait()
    process.stdout.close()
    records, bad = TuningLog(path).read()
    assert len(bad) <= 1
    assert [r.config["i"] for r in records] == list(range(len(records)))
    assert len(records) > 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "schema version 99, this program reads 1"),
        ({"schema": "autotvm"}, "schema 'autotvm', expected"),
        ({"surprise": 1}, r"unknown: \['surprise'\]"),
        ({"times": []}, "has 0 times"),
        ({"error_kind": "tired"}, "error_kind 'tired'"),
        ({"times": [1e-3, 0.0]}, r"times \[0\.0\] of 2: expected positive, finite seconds"),
        ({"times": [-1e-3]}, "expected positive, finite seconds"),
        ({"times": [float("nan")]}, "expected positive, finite seconds"),
        ({"times": [float("inf")]}, "expected positive, finite seconds"),
        ({"times": ["fast"]}, "holds no seconds"),
        ({"times": None}, "field 'times' is 'None', expected list"),
        ({"device": 7}, "field 'device' is '7', expected str"),
        ({"num_threads": True}, "field 'num_threads' is 'True', expected int"),
    ],
)
def test_foreign_lines_are_refused(tmp_path, change, message):
    path = tmp_path / "log.jsonl"
    data = {**json.loads(record().to_line()), **change}
    path.write_text(json.dumps(data) + "\n")
    with pytest.raises(LogError, match=message):
        TuningLog(path).records()


def test_a_list_is_no_record():
    with pytest.raises(LogError, match="schema 'list'"):
        Record.from_line("[1]")


def test_missing_and_binary_logs_are_refused(tmp_path):
    with pytest.raises(LogError, match=r"does not exist.*tvm-pattern tune"):
        TuningLog(tmp_path / "none.jsonl").records()
    path = tmp_path / "binary.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LogError, match="no text file"):
        TuningLog(path).records()


def test_a_full_device_is_an_error_with_advice():
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(LogError, match=r"No space left.*--resume"):
        TuningLog("/dev/full").append(record())


def test_a_line_that_fits_only_partly_is_taken_back(tmp_path):
    """A file size limit cuts a write short, as a disk does that becomes full."""
    path = tmp_path / "log.jsonl"
    size = len(record().to_line())
    code = f"""
        import resource, signal
        from tvm_pattern.tuning.records import LogError, Record, TuningLog
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({size * 5 // 2}, resource.RLIM_INFINITY))
        log = TuningLog({str(path)!r})
        one = Record("t", {{"batch": 1}}, {{"knob": 1}}, (1e-3,), timestamp=1.0)
        log.append(one)
        log.append(one)
        try:
            log.append(one)
        except LogError as error:
            print(error)
    """
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert "bytes fit; free some space" in done.stdout
    assert len(TuningLog(path).records()) == 2


def test_unwritable_places_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match="cannot open"):
        TuningLog(tmp_path / "file" / "log.jsonl").append(record())
    (tmp_path / "folder").mkdir()
    with pytest.raises(LogError, match="cannot write"):
        TuningLog(tmp_path / "folder").write([record()])


def test_merge_keeps_each_record_once():
    a, b = record(knob=2), record(knob=1)
    assert merge([[a, b], [a]]) == [b, a]


def test_best_takes_the_median_of_repeated_measurements():
    records = [
        record(knob=1, seconds=1.0),
        record(knob=1, seconds=9.0),
        record(knob=1, seconds=3.0),
        record(knob=2, seconds=2.0),
        record("other", knob=3, seconds=5.0),
        Record("t", {}, {"knob": 4}, (), error_kind="run_timeout"),
    ]
    assert [r.config["knob"] for r in best_records(records)] == [2, 3]
    assert [r.config["knob"] for r in best_records(records, keep=2)] == [2, 1, 3]
    assert len(best_records([record(num_threads=1), record(num_threads=2)])) == 2


def test_usable_passes_over_what_was_cut_off_and_nothing_else(tmp_path):
    log = TuningLog(tmp_path / "log.jsonl")
    log.append(record(knob=1))
    with log.path.open("a") as file:
        file.write(record(knob=2).to_line()[:-20])
    assert [line.number for line in log.usable()[1]] == [2]
    log.append(record(knob=3))
    records, lost = log.usable()
    assert [r.config["knob"] for r in records] == [1, 3]
    assert [str(line) for line in lost] == [f"{log.path}, line 2: {lost[0].reason}"]
    assert lost[0].cut_off
    with log.path.open("a") as file:
        file.write("[1]\n")
    with pytest.raises(LogError, match=r"line 4: schema 'list'.*--skip-bad"):
        log.usable()


def test_killed_at_every_byte_of_an_append(tmp_path):
    """Whatever part of the last line reached the disk: the others are read, and the log goes on."""
    lines = [record(knob=i).to_line() for i in (1, 2)]
    for kept in range(len(lines[1]) + 1):
        log = TuningLog(tmp_path / "log.jsonl")
        log.path.write_text(lines[0] + lines[1][:kept])
        before, lost = log.usable()
        whole = kept >= len(lines[1]) - 1
        assert [r.config["knob"] for r in before] == ([1, 2] if whole else [1])
        assert len(lost) == (0 < kept < len(lines[1]) - 1)
        log.append(record(knob=3))
        assert [r.config["knob"] for r in log.usable()[0]] == [r.config["knob"] for r in before] + [
            3
        ]


def test_mutated_logs_are_read_or_named(tmp_path):
    """1,000 logs with bytes changed, dropped, doubled or exchanged: no raw error, no lost line."""
    rng = random.Random(0)
    strings = (b"NaN", b"-1", b"[[[[", b"null", b"1e999", b"\x00", b"\n")
    lines = [record(knob=i).to_line().encode() for i in range(3)]
    path = tmp_path / "log.jsonl"
    damaged = 0
    for _ in range(1000):
        data = bytearray(b"".join(lines))
        for _ in range(rng.randint(1, 4)):
            at, kind = rng.randrange(len(data)), rng.randrange(4)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                del data[at : at + rng.randint(1, 30)]
            elif kind == 2:
                data[at:at] = data[at : at + rng.randint(1, 30)]
            else:
                data[at:at] = rng.choice(strings)
            if not data:
                break
        path.write_bytes(data)
        records, bad = TuningLog(path).read()
        assert len(records) + len(bad) == sum(bool(line.strip()) for line in data.split(b"\n"))
        assert all(0 < r.seconds < float("inf") for r in records)
        damaged += bool(bad)
        best_records(records)
    assert damaged > 500
    path.write_text("[" * 100_000 + "\n" + '{"a":' + "9" * 5000 + "}\n")
    assert [line.number for line in TuningLog(path).read()[1]] == [1, 2]


def test_a_folder_is_no_log(tmp_path):
    with pytest.raises(LogError, match="does not exist"):
        TuningLog(tmp_path).read()
