"""Libraries on devices: servers of this machine stand for phones."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import tvm
from torch import nn
from typer.testing import CliRunner

import tvm_pattern as tp
from tvm_pattern.artifact import Manifest, manifest_path
from tvm_pattern.cli import app as main_app
from tvm_pattern.deploy import (
    Device,
    DeviceError,
    DeviceLostError,
    WrongDeviceError,
    run_everywhere,
)
from tvm_pattern.deploy import farm as deploy_farm
from tvm_pattern.deploy.device import Verification
from tvm_pattern.deploy.farm import results_table
from tvm_pattern.rpc.client import NoDeviceError, TrackerUnreachableError
from tvm_pattern.rpc.server import end_group, free_port
from tvm_pattern.rpc.session_process import ProcessEndedError

from .conftest import await_true

KEY = "board"
# Bytes that a full device has left: for all files, or for each.
SPACE = {"tmpfs": 16384, "file size": 4096}
IMAGE = np.random.default_rng(0).standard_normal((1, 3, 10, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    tp.pruning.oneshot(net, connectivity=1.5, group=4)
    return net


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    library = tp.compile(model, torch.from_numpy(IMAGE), num_threads=1)
    return library.export(tmp_path_factory.mktemp("deploy") / "net.so")


@pytest.fixture(scope="module")
def expected(model):
    with torch.no_grad():
        return model(torch.from_numpy(IMAGE)).numpy()


def test_a_library_of_several_sizes(farm, model, tmp_path):
    wide = np.random.default_rng(1).standard_normal((2, 3, 10, 16)).astype(np.float32)
    library = tp.compile(model, num_threads=1, sizes=[IMAGE, wide])
    path = library.export(tmp_path / "sizes.so")
    with torch.no_grad():
        wanted = [model(torch.from_numpy(x)).numpy() for x in (IMAGE, wide)]
    with Device.from_tracker(farm.address, KEY) as device:
        remote = device.load(path)
        for x, want in zip((IMAGE, wide), wanted, strict=True):
            assert remote.verify([x], [want]).passed
            assert len(remote.time(x, repeat=2).seconds) == 2
        steps = remote.profile(repeat=1, min_repeat_ms=0, size=1).steps
        assert {"0", "2"} <= {step.layer for step in steps}
        with pytest.raises(ValueError, match=r"the nearest is \[2, 3, 10, 16\]"):
            remote.run(wide[:, :, :, :15])
        with pytest.raises(ValueError, match="expected the dtypes"):
            remote.run(wide.astype("float64"))
    place = ("--tracker", farm.address, "--key", KEY, "--lib", path)
    options = ("--repeat", "2", "--cool-down", "0", "--json")
    result = CliRunner().invoke(main_app, [str(a) for a in ("bench", *place, *options)])
    rows = json.loads(result.stdout)
    assert {row["device"].partition(", ")[2] for row in rows} == {"1x3x10x12", "2x3x10x16"}
    assert not any(row["error"] for row in rows)


def test_run_time_and_verify(farm, exported, expected):
    with Device.from_tracker(farm.address, KEY) as device:
        device.use_cores("big", 1)
        library = device.load(exported)
        np.testing.assert_allclose(library.run(IMAGE)[0], expected, rtol=1e-4, atol=1e-5)
        assert library.verify([IMAGE], [expected]).passed
        assert not library.verify([IMAGE], [expected + 1]).passed
        timing = library.time(IMAGE, repeat=3, cool_down=0.01)
        assert len(timing.seconds) == 3
        assert timing.median_ms > 0
        assert timing.quantile_ms(0.1) <= timing.quantile_ms(0.9)
        assert len(library.time(IMAGE, repeat=2).seconds) == 2
        assert all(value > -100 for value in device.state().values())
        assert "model name" in (device.read_file("/proc/cpuinfo") or "model name")
        assert device.read_file("/no/such/file") is None
        with pytest.raises(ValueError, match="got inputs"):
            library.run(IMAGE[0])
        with pytest.raises(ValueError, match="the device gives shapes"):
            library.verify([IMAGE], [expected[0]])
        with pytest.raises(ValueError, match="repeat=0"):
            library.time(IMAGE, repeat=0)
        with pytest.raises(ValueError, match="cluster 'huge'"):
            device.use_cores("huge", 1)
    with pytest.raises(DeviceError, match="has been given back"):
        device.load(exported)


def test_nan_is_no_pass():
    assert not Verification(float("nan"), 1.0, 1e-4).passed


def test_all_devices_of_a_key(farm, exported, expected):
    results = run_everywhere(farm.address, KEY, exported, [IMAGE], [expected], repeat=2)
    assert [row.device for row in results] == ["board 0", "board 1"]
    assert all(row.verified and not row.error and row.median_ms > 0 for row in results)
    assert results_table(results).row_count == 2


def test_all_devices_by_several_processes(farm, exported, expected, monkeypatch):
    """As where one process has no room for all: still none is used twice."""
    monkeypatch.setattr(deploy_farm, "SESSIONS_PER_PROCESS", 1)
    results = run_everywhere(farm.address, KEY, exported, [IMAGE], [expected], repeat=2)
    assert [row.device for row in results] == ["board 0", "board 1"]
    assert all(row.verified and not row.error for row in results)


def test_a_process_that_crashed_does_not_hold_up_the_others(monkeypatch, tmp_path):
    """Of two processes one never comes: the other's devices are given back all the same."""
    monkeypatch.setattr(deploy_farm, "MEETING_SECONDS", 0.2)

    class Work:
        wait = 0.0

        def on_devices(self, numbers, meet):
            meet()
            return list(numbers)

    assert deploy_farm._in_process(Work(), range(0, 4, 2), str(tmp_path), 2) == [0, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["requested-0", "started-0"]


def test_devices_of_a_process_that_ended_have_rows_that_say_so():
    answers: Future = Future()
    answers.set_exception(ProcessEndedError("a process ended (exit code -9)"))
    rows = deploy_farm._rows("k", range(1, 6, 2), answers)
    assert [row.device for row in rows] == ["k 1", "k 3", "k 5"]
    assert all(row.failed and "exit code -9" in row.error for row in rows)


def test_commands(farm, exported, expected, tmp_path):
    np.save(tmp_path / "x.npy", IMAGE)
    np.save(tmp_path / "y.npy", expected)
    where = ["--lib", str(exported), "--tracker", farm.address, "--key", KEY]
    data = ["-i", str(tmp_path / "x.npy"), "--expected", str(tmp_path / "y.npy"), "--json"]
    done = CliRunner().invoke(main_app, ["run", *where, *data])
    assert done.exit_code == 0, done.output
    assert [row["verified"] for row in json.loads(done.stdout)] == [True, True]
    np.save(tmp_path / "y.npy", expected + 1)
    assert CliRunner().invoke(main_app, ["run", *where, *data]).exit_code == 1
    done = CliRunner().invoke(main_app, ["bench", *where, "--repeat", "2", "--cool-down", "0"])
    assert done.exit_code == 0
    assert "board 1" in done.stdout


def in_words(*arguments):
    """Exit code, output and error of ``tvm-pattern``."""
    done = CliRunner().invoke(main_app, [str(a) for a in arguments])
    return done.exit_code, done.stdout, done.stderr.replace("\n", " ")


def test_run_on_a_tracker(farm, exported, expected, tmp_path):
    np.save(tmp_path / "x.npy", IMAGE)
    np.savez(tmp_path / "y.npz", expected)
    where = ["--tracker", farm.address, "--key", KEY, "--lib", exported]
    data = ["-i", tmp_path / "x.npy", "--expected", tmp_path / "y.npz"]
    code, output, _ = in_words("run", *where, *data, "--repeat", 2, "--json")
    assert code == 0
    rows = json.loads(output)
    assert [row["device"] for row in rows] == ["board 0", "board 1"]
    assert all(row["verified"] and row["median_ms"] > 0 for row in rows)
    np.savez(tmp_path / "y.npz", expected + 1)
    code, output, errors = in_words("run", *where, *data, "--repeat", 0)
    assert code == 1, errors
    assert output.count("NO") == 2, errors


def test_bench_on_a_tracker(farm, exported):
    where = ["--tracker", farm.address, "--key", KEY, "--lib", exported, "--cool-down", 0]
    code, output, _ = in_words("bench", *where, "--repeat", 2, "--profile", "--cluster", "big")
    assert code == 0
    for text in ("board 0: ms", "board 1: ms", "all / whole run"):
        assert text in output
    code, output, _ = in_words("bench", *where, "--repeat", 1, "--profile", "--json")
    assert code == 0
    for row in json.loads(output):
        steps = row["profile"]["steps"]
        assert [s["layer"] for s in steps if s["op"].startswith("pattern")] == ["0", "2"]
        assert sum(s["share"] for s in steps) == pytest.approx(1)


def test_bench_and_profile_here(exported):
    code, output, _ = in_words("bench", exported, "--repeat", 2, "--cool-down", 0, "--profile")
    assert code == 0
    assert "this machine" in output
    assert "share of FLOP" in output
    code, output, _ = in_words("run", "--lib", exported, "--repeat", 0, "--profile", "--json")
    assert code == 0
    assert json.loads(output)["profile"]["whole_ms"] > 0
    assert "share of FLOP" in in_words("run", exported, "--repeat", 0, "--profile")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run",), "got 0 libraries, expected one"),
        (("bench", "a.so", "--lib", "b.so"), "got 2 libraries, expected one"),
        (("run", "a.so", "--tracker", "h:1"), "got --tracker without --key"),
        (("bench", "a.so", "--key", "k"), "got --key without --tracker"),
        (("run", "a.so", "--tracker", "h:1", "--key", "k", "-o", "y.npz", "--threads", "2"),
         "--output and --threads: no effect with --tracker"),
        (("run", "a.so", "--expected", "y.npz"), "--expected: no effect with a run on this"),
        (("bench", "a.so", "--session-timeout", "9"), "--session-timeout: no effect with a run on"),
        (("bench", "a.so", "--cluster", "big"), "--cluster: no effect with a run on this"),
        (("bench", "a.so", "--tracker", "h:1", "--key", "k", "--threads", "2"),
         "got --threads 2 without --cluster"),
    ],
)  # fmt: skip
def test_arguments_that_contradict_each_other(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = in_words(*arguments)
    assert code == 2
    # Wrong arguments are shown in a box.
    assert message in " ".join(error.replace("│", " ").split())
    assert in_words("run", "a.so", "--tracker", "nowhere", "--key", "k")[0] == 1


def test_a_session_of_bench_may_be_longer(exported, monkeypatch):
    seen: list[float | None] = []

    def nobody(*_arguments, **options):
        seen.append(options.get("session_timeout"))
        return []

    monkeypatch.setattr(deploy_farm, "run_everywhere", nobody)
    place = ("bench", exported, "--tracker", "h:1", "--key", "k")
    assert in_words(*place, "--session-timeout", 300)[0] == in_words(*place)[0] == 0
    assert seen == [300.0, None]


def test_profile_on_a_device(farm, exported):
    with Device.from_tracker(farm.address, KEY) as device:
        library = device.load(exported)
        profile = library.profile(repeat=2, min_repeat_ms=0)
        assert len(profile.steps) == len(library.manifest.steps)
        assert all(step.ms > 0 for step in profile.steps)
        assert profile.whole_ms > 0
        with pytest.raises(ValueError, match="repeat=0"):
            library.profile(repeat=0)
        # The session still runs what it ran before.
        assert len(library.run(IMAGE)) == 1


def test_library_of_another_architecture(farm, exported, tmp_path):
    """The header is enough: loaders look no further."""
    other = tmp_path / "net.so"
    data = bytearray(exported.read_bytes())
    data[18:20] = (183 if data[18] != 183 else 62).to_bytes(2, "little")
    other.write_bytes(data)
    manifest = Manifest.read(manifest_path(exported))
    digest = hashlib.sha256(data).hexdigest()
    dataclasses.replace(manifest, sha256=digest).write(manifest_path(other))
    device = Device.from_tracker(farm.address, KEY)
    with (
        device,
        pytest.raises(WrongDeviceError, match=r"cannot load net\.so, which is built for ARM64"),
    ):
        device.load(other)
    row = run_everywhere(farm.address, KEY, other, [IMAGE])[0]
    assert "built for ARM64" in row.error
    assert row.median_ms is None


def test_files_that_cannot_be_sent(farm, tmp_path):
    with Device.from_tracker(farm.address, KEY) as device:
        for name in ("missing.so", "net.tar"):
            with pytest.raises(DeviceError, match=r"expected an existing \.so"):
                device.load(tmp_path / name)


def test_a_kept_error_does_not_keep_the_device(farm, tmp_path):
    kept = []
    bad = tmp_path / "bad.so"
    with Device.from_tracker(farm.address, KEY) as device:
        device.session.upload(bytearray(b"no library"), target=bad.name)
        try:
            with device._translated("loading"):
                device.session.load_module(bad.name)
        except DeviceError as error:
            kept.append(error)
    assert kept
    with Device.from_tracker(farm.address, KEY, wait=30):
        pass


def test_unknown_key_and_missing_tracker(farm, exported):
    with pytest.raises(NoDeviceError, match="no device with the key 'pixel9'"):
        Device.from_tracker(farm.address, "pixel9")
    with pytest.raises(TrackerUnreachableError):
        run_everywhere(f"127.0.0.1:{free_port()}", KEY, exported, [IMAGE])


def test_busy_farm(farm):
    with (
        Device.from_tracker(farm.address, KEY),
        Device.from_tracker(farm.address, KEY),
        pytest.raises(NoDeviceError, match="became free"),
    ):
        Device.from_tracker(farm.address, KEY, wait=1.0)


def test_direct_connection_past_the_tracker(farm):
    host, port = next(iter(farm.client.servers(KEY)))
    address = f"{host}:{port}"
    with pytest.raises(DeviceError, match=r"is registered at a tracker.*Device\.from_tracker"):
        Device.connect(address)


def test_direct_connection(exported, expected):
    """TVM's own server, without a tracker."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    with pytest.raises(DeviceError, match="no RPC server answers"):
        Device.connect(address)
    command = [sys.executable, "-m", "tvm.exec.rpc_server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--port-end", str(port + 1)]
    server = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        await_true(lambda: _listens(port), "the server")
        with Device.connect(address) as device:
            assert device.load(exported).verify([IMAGE], [expected]).passed
    finally:
        end_group(server)


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


class Session:
    """Fails as told; stands for devices whose failures cannot be staged here."""

    def __init__(self, error: Exception, method: str) -> None:
        self.error, self.method = error, method
        self.files: dict[str, bytearray] = {}

    def _may_fail(self, method: str) -> None:
        if method == self.method:
            raise self.error

    def upload(self, data: str | bytearray, target: str = "") -> None:
        self._may_fail("upload")
        if target:
            self.files[target] = data

    def download(self, name: str) -> bytearray:
        return self.files[name]

    def remove(self, name: str) -> None:
        self.files.pop(name)

    def load_module(self, _name: str) -> object:
        self._may_fail("load")
        return object()

    def cpu(self, _index: int) -> object:
        self._may_fail("cpu")
        return object()


@pytest.mark.parametrize(
    ("error", "method", "kind", "message"),
    [
        (RuntimeError("OSError: [Errno 28] No space left on device"), "upload", DeviceError,
         "no space left on the device while uploading"),
        (RuntimeError("code == RPCCode::kReturn: kShutdown"), "upload", DeviceLostError,
         "disappeared while uploading"),
        (RuntimeError("kShutdown"), "load", DeviceLostError, "disappeared while loading"),
        (ConnectionResetError("Connection reset by peer"), "cpu", DeviceLostError, "disappeared"),
        (RuntimeError("RPCSessionTimeoutError: over"), "upload", DeviceLostError,
         "session's time ended"),
        (ValueError("Check failed: version mismatch"), "cpu", WrongDeviceError,
         "cannot run a library of TVM .*install that version"),
        (RuntimeError("Error caught from RPC call:\nwrong ELF class"), "load", WrongDeviceError,
         "compile for the device's own"),
        (ValueError(""), "upload", DeviceError, "uploading net.so failed: ValueError"),
        (RuntimeError("Unknown event 262148"), "upload", DeviceLostError, "cannot be read"),
    ],
)  # fmt: skip
def test_failures_are_explained(exported, error, method, kind, message):
    device = Device(Session(error, method), "phone")
    with pytest.raises(kind, match=message):
        device.load(exported)


@pytest.mark.parametrize("limit", ["tmpfs", "file size"])
def test_device_without_space(farm, exported, tmp_path, limit):
    """Servers whose folder is full: a file system of 16 KiB, and files that may not grow."""
    space, key = SPACE[limit], limit.replace(" ", "-")
    assert exported.stat().st_size > space
    command = [sys.executable, "-m", "tvm_pattern.cli", "rpc", "server"]
    command += ["--tracker", farm.address, "--key", key, "--port", str(free_port())]
    before = None
    if limit == "tmpfs":
        enter = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
        mount = f"mount -t tmpfs -o size={space} none {tmp_path}"
        if subprocess.run([*enter, mount], capture_output=True).returncode != 0:
            pytest.skip("this system lets no process mount a tmpfs; the other case remains")
        command = [*enter, f'{mount} && exec "$@"', "sh", *command]
    else:

        def before() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (space, space))

    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    server = subprocess.Popen(
        command, env=environment, preexec_fn=before, start_new_session=True, stdout=subprocess.PIPE
    )
    farm.processes.append(server)
    await_true(lambda: farm.count(key) == 1, f"the server of {key}")
    with Device.from_tracker(farm.address, key) as device:
        with pytest.raises(DeviceError, match="no space left on the device while uploading"):
            device.load(exported)
        # The session is still good for what needs no space.
        device.use_cores("big", 1)
    row = run_everywhere(farm.address, key, exported, [IMAGE])[0]
    assert "no space left" in row.error


def runtime_of(folder: Path, version: bytes, older: bytes) -> dict[str, str]:
    """Environment of a process that runs TVM's own runtime with another version number in it."""
    library = Path(tvm.__file__).parent / "lib" / "libtvm_runtime.so"
    code = library.read_bytes()
    assert version in code
    (folder / library.name).write_bytes(code.replace(version, older))
    other = library.with_name("libtvm_runtime_extra.so")
    if other.exists():
        (folder / other.name).symlink_to(other)
    return {**os.environ, "TVM_LIBRARY_PATH": str(folder), "TVM_USE_RUNTIME_LIB": "1"}


@pytest.mark.parametrize(
    ("version", "older", "how"),
    [
        pytest.param(b"0.14", b"0.13", "tracker", id="file format"),
        pytest.param(b"0.8.0", b"0.7.0", "tracker", id="protocol"),
        pytest.param(b"0.8.0", b"0.7.0", "direct", id="protocol, direct"),
    ],
)
def test_device_with_another_runtime(farm, exported, tmp_path, version, older, how):
    """A real server whose runtime says that it is older."""
    port, key = free_port(), f"old{older.decode()}"
    command = [sys.executable, "-m", "tvm.exec.rpc_server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--port-end", str(port + 1)]
    if how == "tracker":
        command += ["--tracker", farm.address, "--key", key]
    server = subprocess.Popen(
        command,
        env=runtime_of(tmp_path, version, older),
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    said = f"runtime there is of another version, this one is {tvm.__version__}"
    try:
        if how == "tracker":
            await_true(lambda: farm.count(key) == 1, "the server at the tracker")
        else:
            await_true(lambda: _listens(port), "the server")

        def load() -> None:
            if how == "tracker":
                device = Device.from_tracker(farm.address, key, wait=8.0)
            else:
                device = Device.connect(f"127.0.0.1:{port}")
            with device:
                device.load(exported)

        with pytest.raises(WrongDeviceError, match=said):
            load()
    finally:
        end_group(server)


def test_device_that_disappears(farm, exported):
    """The process of the session is killed while it computes."""
    server = farm.start_server("fragile")
    with Device.from_tracker(farm.address, "fragile", session_timeout=60) as device:
        library = device.load(exported)

        def kill() -> None:
            for child in psutil.Process(server.pid).children(recursive=True):
                kill_if_alive(child.pid)

        timer = threading.Timer(1.0, kill)
        timer.start()
        with pytest.raises(DeviceLostError, match="disappeared while"):
            run_until_it_fails(library)
        timer.join()


def run_until_it_fails(library) -> None:
    for _ in range(100_000):
        library.run(IMAGE)


def kill_if_alive(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
