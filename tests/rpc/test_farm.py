"""Measuring over RPC with a real tracker and two real servers, and everything that goes wrong."""

from __future__ import annotations

import json
import threading

import psutil
import pytest
from tuning.candidates import crashing, endless, good, write_inputs, wrong
from typer.testing import CliRunner

from relay_passes.targets import resolve
from tvm_pattern.rpc.cli import app
from tvm_pattern.rpc.client import NoDeviceError, RPCError, TrackerClient
from tvm_pattern.rpc.doctor import TargetMismatchError, check_target
from tvm_pattern.tuning.measure import MeasureOptions, Measurer, linker_for

from .conftest import KEY, Farm, await_true

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
    children = [c for p in farm.processes for c in psutil.Process(p.pid).children()]
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
