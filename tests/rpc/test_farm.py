"""Measuring over RPC with a real tracker and two real servers, and everything that goes wrong."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from tuning.candidates import crashing, endless, good, write_inputs, wrong
from tuning.small import record_of, small_task
from typer.testing import CliRunner

from relay_passes.targets import resolve
from tvm_pattern.crosscompile import linker_for
from tvm_pattern.rpc import doctor
from tvm_pattern.rpc.cli import app
from tvm_pattern.rpc.client import NoDeviceError, RPCError, TrackerClient
from tvm_pattern.rpc.doctor import TargetMismatchError, check_target
from tvm_pattern.tuning import device_pool
from tvm_pattern.tuning.measure import MeasureOptions, Measurer
from tvm_pattern.tuning.records import LogError, TuningLog
from tvm_pattern.tuning.session import Progress, Search, TuneOptions, tune
from tvm_pattern.tuning.space import Space
from tvm_pattern.tuning.tasks import WeightedTask

from .conftest import KEY, ROOT, Farm, await_true

NATIVE = resolve("pattern/native")


def options(farm: Farm, timeout: float = 20.0) -> MeasureOptions:
    return MeasureOptions(
        tracker=farm.address, key=KEY, run_timeout=timeout, repeat=2, min_repeat_ms=1
    )


@pytest.fixture(scope="module")
def measurer(farm):
    with Measurer(NATIVE, 1, options(farm)) as opened:
        yield opened


def test_both_devices_work_and_wrong_numbers_fail(measurer):
    token = write_inputs(measurer.folder)
    outcomes = measurer.measure_functions([(f, token) for f in (good(), wrong(), good())])
    assert [o.error_kind for o in outcomes] == ["ok", "wrong_result", "ok"]


def test_more_devices_than_one_process_has_room_for(farm, measurer, monkeypatch):
    """A process for each device: every answer comes, and stands beside its question."""
    monkeypatch.setattr(device_pool, "SESSIONS_PER_PROCESS", 1)
    token = write_inputs(measurer.folder)
    outcomes = measurer.measure_functions([(f, token) for f in (good(), wrong(), good())])
    assert [o.error_kind for o in outcomes] == ["ok", "wrong_result", "ok"]


def test_only_so_many_devices_are_probed_as_there_is_room_for(farm, monkeypatch):
    await_true(lambda: sum(s.free for s in farm.client.status()) == 2, "both devices to be free")
    seen = []
    monkeypatch.setattr(doctor, "SESSIONS_PER_PROCESS", 1)
    monkeypatch.setattr(doctor, "probe", lambda session, *_: seen.append(session))
    check_target(farm.client, KEY, NATIVE, linker_for(NATIVE))
    assert len(seen) == 1
    seen.clear()


def test_a_process_without_room_says_so(monkeypatch):
    client = TrackerClient("127.0.0.1", 1)
    monkeypatch.setattr(client, "count", lambda key: 40)
    monkeypatch.setattr(client, "_reserve", lambda key, deadline: ("127.0.0.1", 1, "k"))

    def full(*_):
        raise RuntimeError("Check failed: maximum number of RPC session reached")

    monkeypatch.setattr(client, "_open", full)
    with pytest.raises(RPCError, match=r"as many sessions as TVM has room for.*beyond 24"):
        client.request("k", 5.0)


def test_a_candidate_that_segfaults_costs_no_device(farm, measurer):
    token = write_inputs(measurer.folder)
    outcomes = measurer.measure_functions([(f, token) for f in (good(), crashing(), good())])
    assert [o.error_kind for o in outcomes] == ["ok", "crash", "ok"]
    await_true(lambda: farm.count() == 2, "both servers to be back")


def test_a_candidate_that_never_ends_runs_into_the_session_timeout(farm):
    with Measurer(NATIVE, 1, options(farm, timeout=6)) as measurer:
        token = write_inputs(measurer.folder)
        outcomes = measurer.measure_functions([(f, token) for f in (endless(), good(), good())])
    assert [o.error_kind for o in outcomes] == ["run_timeout", "ok", "ok"]
    await_true(lambda: farm.count() == 2, "both servers to be back")


def test_a_server_killed_in_a_trial_is_replaced_and_the_trial_repeated(farm, measurer):
    """kill -9 of the server process under a session; its supervisor starts another."""
    token = write_inputs(measurer.folder)
    victims = _servers(farm)
    timer = threading.Timer(1.0, lambda: [p.kill() for p in victims])
    timer.start()
    functions = [good() for _ in range(12)]
    outcomes = measurer.measure_functions([(f, token) for f in functions])
    timer.join()
    assert [o.error_kind for o in outcomes] == ["ok"] * 12
    await_true(lambda: farm.count() == 2, "both servers to be back")
    assert not {p.pid for p in victims} & {p.pid for p in _servers(farm)}


def _servers(farm: Farm) -> list[psutil.Process]:
    alive = [psutil.Process(p.pid) for p in farm.processes if p.poll() is None]
    children = [c for p in alive for c in p.children()]
    return [c for c in children if "tvm_pattern.rpc.serve" in " ".join(c.cmdline())]


def test_the_tracker_may_restart(farm, measurer):
    token = write_inputs(measurer.folder)
    farm.tracker.kill()
    farm.tracker.wait()
    with pytest.raises(RPCError, match=r"no tracker answers.*tvm-pattern rpc tracker"):
        farm.client.summary()
    farm.start_tracker()
    outcomes = measurer.measure_functions([(good(), token)])
    assert [o.error_kind for o in outcomes] == ["ok"]
    await_true(lambda: farm.count() == 2, "both servers to register again")


def test_an_unknown_key_fails_at_once(farm):
    with pytest.raises(NoDeviceError, match=rf"key 'nokey' \(known keys: {KEY}\).*rpc server"):
        Measurer(NATIVE, 1, MeasureOptions(tracker=farm.address, key="nokey"))


def test_busy_devices_are_waited_for_so_long_and_no_longer(farm):
    sessions = [farm.client.request(KEY, session_timeout=60) for _ in range(2)]
    with pytest.raises(NoDeviceError, match=r"became free .* within 1 s.*rpc status"):
        farm.client.request(KEY, session_timeout=60, wait=1.0)
    del sessions
    await_true(lambda: farm.client.request(KEY, 10, wait=5) is not None, "a free device")


def test_a_target_that_does_not_fit_is_found_out(farm):
    target = resolve("pattern/cortex-a76")
    try:
        linker = linker_for(target)
    except ValueError as error:
        pytest.skip(f"no cross compiler: {error}")
    with pytest.raises(TargetMismatchError, match=r"cannot run code for aarch64"):
        check_target(farm.client, KEY, target, linker)


def test_status_and_doctor(farm):
    runner = CliRunner()
    await_true(lambda: farm.count() == 2, "both servers")
    shown = runner.invoke(app, ["status", "--tracker", farm.address, "--json"])
    assert {"key": KEY, "devices": 2}.items() <= json.loads(shown.output)[0].items()
    assert KEY in runner.invoke(app, ["status", "--tracker", farm.address]).output
    healthy = ["doctor", "--tracker", farm.address, "--key", KEY, "--target", "pattern/native"]
    done = runner.invoke(app, [*healthy, "--json"])
    assert done.exit_code == 0, done.output
    assert [f["check"] for f in json.loads(done.output)] == ["tracker", "key", "session", "target"]
    sick = runner.invoke(app, ["doctor", "--tracker", farm.address, "--key", "nokey"])
    assert sick.exit_code == 1
    assert "FAIL key" in sick.output


def test_a_server_is_no_tracker(farm):
    port = farm.client.ports(KEY)[0]
    with pytest.raises(RPCError):
        TrackerClient("127.0.0.1", port, timeout=2).summary()


def a_search(farm: Farm, log: Path, trials: int, batch: int = 6) -> Search:
    task, weight = small_task()
    chosen = TuneOptions(trials=trials, batch=batch, resume=True, measure=options(farm))
    return Search([WeightedTask(task, weight, ["a"])], NATIVE, TuningLog(log), chosen)


def test_a_device_of_another_kind_is_found_out_before_anything_else(farm, tmp_path):
    """The model is not even looked at: this one could not be imported."""
    target = resolve("pattern/cortex-a76")
    try:
        linker_for(target)
    except ValueError as error:
        pytest.skip(f"no cross compiler: {error}")
    log = tmp_path / "log.jsonl"
    chosen = TuneOptions(measure=options(farm))
    with pytest.raises(
        TargetMismatchError, match=r"cannot run code for aarch64.*choose the target"
    ):
        tune("no model", None, target, log, chosen, 1)
    assert not log.exists()
    await_true(lambda: sum(s.free for s in farm.client.status()) == 2, "both devices to be free")


def test_a_device_without_time_is_not_called_another_kind(monkeypatch):
    monkeypatch.setattr(doctor, "_probe_library", lambda *_: b"")

    class Slow:
        def upload(self, data, target):
            raise RuntimeError("RPCSessionTimeoutError: Your 30.0s session has expired")

    with pytest.raises(TargetMismatchError, match=r"is not known: it did not answer within 30 s"):
        doctor.probe(Slow(), NATIVE, "c++")


def test_every_free_device_is_probed(farm, monkeypatch):
    await_true(lambda: sum(s.free for s in farm.client.status()) == 2, "both devices to be free")
    seen = []
    real = doctor.probe

    def probe(session, target, linker):
        seen.append(session)
        real(session, target, linker)

    monkeypatch.setattr(doctor, "probe", probe)
    with Measurer(NATIVE, 1, options(farm)):
        assert len(seen) == 2
    seen.clear()


def test_a_device_that_is_taken_meanwhile_is_not_waited_for(farm, monkeypatch):
    """The tracker's list is a moment old: one device more than there are."""
    await_true(lambda: sum(s.free for s in farm.client.status()) == 2, "both devices to be free")
    seen = []
    monkeypatch.setattr(doctor, "probe", lambda session, *_: seen.append(session))

    class Outdated(TrackerClient):
        def status(self):
            return [replace(s, free=s.free + 1) for s in super().status()]

    check_target(Outdated("127.0.0.1", farm.port), KEY, NATIVE, linker_for(NATIVE))
    assert len(seen) == 2
    seen.clear()


def test_a_search_outlives_its_servers_and_its_tracker(farm, measurer, tmp_path):
    """kill -9 of both servers in a batch, in the next one the tracker is killed and restarted."""
    victims = _servers(farm)
    faults = []

    def restart_tracker() -> None:
        farm.tracker.kill()
        farm.tracker.wait()
        farm.start_tracker()

    actions = [lambda: [p.kill() for p in victims], restart_tracker]

    def disturb(_progress: Progress) -> None:
        if actions:
            faults.append(threading.Timer(0.5, actions.pop(0)))
            faults[-1].start()

    log = tmp_path / "log.jsonl"
    result = a_search(farm, log, trials=24, batch=8).run(measurer, disturb)
    for fault in faults:
        fault.join()
    assert len(faults) == 2
    assert (result.trials, result.failed) == (24, 0)
    assert [r.error_kind for r in TuningLog(log).records()] == ["ok"] * 24
    await_true(lambda: farm.count() == 2, "both servers to be back")
    assert not {p.pid for p in victims} & {p.pid for p in _servers(farm)}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_ends_a_search_with_advice(farm, measurer):
    search = a_search(farm, Path("/dev/full"), trials=8)
    with pytest.raises(LogError, match=r"No space left.*continue with --resume"):
        search.run(measurer)


def test_a_disk_that_fills_up_loses_nothing_that_was_written(farm, tmp_path):
    """The command itself, with room for a few more records behind those of an earlier search.

    The limit is on the size of any file, so the log is made much larger than everything else that
    the search writes.
    """
    log = tmp_path / "log.jsonl"
    task, _ = small_task(size=16)
    config = Space(task).configs[0]
    earlier = [record_of(task, config, 1e-3, timestamp=float(i)) for i in range(2000)]
    TuningLog(log).write(earlier)
    before = log.stat().st_size
    limit = before + 4000

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [
        sys.executable,
        "-m",
        "tvm_pattern.cli",
        "tune",
        "--model",
        "tuning.test_session:Net",
    ]
    command += ["--shape", "1x8x8x8", "--trials", "32"]
    command += ["--log", str(log), "--resume"]
    command += ["--tracker", farm.address, "--key", KEY, "--repeat", "2", "--min-repeat-ms", "1"]
    command += ["--threads", "1", "--batch", "4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=limit_files,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    assert "cannot append to" in done.stderr
    assert "continue with --resume" in done.stderr
    assert "Traceback" not in done.stderr
    records, bad = TuningLog(log).read()
    assert not bad
    assert before < log.stat().st_size <= limit
    assert records[:2000] == earlier
    assert len(records) > 2000
    assert {r.error_kind for r in records} == {"ok"}
    await_true(lambda: sum(s.free for s in farm.client.status()) == 2, "both devices to be free")
