"""Records: lines, damage, merging, best, and what a full disk does."""

from __future__ import annotations

import json
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
