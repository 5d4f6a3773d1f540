"""The benchmark harness: timing order, statistics, row format, workloads, results, peers.

Nothing here depends on how fast anything runs: clocks are fakes where time matters.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tvm_pattern.pruning
from benchmarks import (
    accuracy_linear,
    device,
    harness,
    int8_networks,
    networks,
    ours,
    peak,
    resident,
    results,
    session,
    workloads,
)
from benchmarks.harness import OURS, Budget, Contender, Row, Selection, interleave
from benchmarks.peers import PEERS, UNTUNED, Peer
from benchmarks.peers.tflite_writer import to_tflite

ROOT = Path(__file__).resolve().parent.parent

ROW_KEYS = [
    "workload",
    "engine",
    "threads",
    "median_ms",
    "p10_ms",
    "p90_ms",
    "runs",
    "sparsity",
    "group",
    "effective_gflops",
    "dense_equivalent_gflops",
    "peak_fraction",
    "max_abs_error",
    "note",
    "dtype",
    "images_per_second",
    "peak_memory_mb",
]


class FakeTime:
    """A clock that only the calls themselves advance."""

    def __init__(self) -> None:
        self.now = 0.0
        self.processor = 0.0
        self.calls: list[str] = []

    def call(self, name: str, seconds: float, busy: float = 1.0) -> Callable[[], None]:
        def run() -> None:
            self.calls.append(name)
            self.now += seconds
            self.processor += seconds * busy

        return run

    def clocks(self) -> dict[str, Callable[[], float]]:
        return {"clock": lambda: self.now, "processor_clock": lambda: self.processor}


class Constant:
    """A runner that always gives the same output."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value

    def run(self) -> None:
        pass

    def output(self) -> np.ndarray:
        return self.value


# -- interleaving ------------------------------------------------------------------------------


def test_every_round_times_every_engine_once() -> None:
    time = FakeTime()
    calls = {name: time.call(name, 0.01) for name in "abc"}
    rounds: list[int] = []
    timings = interleave(
        calls,
        Budget(seconds=0.3, min_rounds=2),
        each_round=lambda: rounds.append(len(time.calls)),
        **time.clocks(),
    )
    timed = time.calls[6:]  # two warm-up calls each
    assert time.calls[:6] == ["a", "a", "b", "b", "c", "c"]
    assert len(timed) % 3 == 0
    orders = [tuple(timed[i : i + 3]) for i in range(0, len(timed), 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert len(set(orders)) > 1, "the order is drawn anew each round"
    assert rounds == list(range(6, 6 + len(timed), 3))
    for timing in timings.values():
        assert timing.samples_ms == pytest.approx([10.0] * len(orders))


def test_budget_ends_the_rounds_but_not_before_the_minimum() -> None:
    time = FakeTime()
    timings = interleave(
        {"a": time.call("a", 1.0)}, Budget(seconds=0.5, min_rounds=4), **time.clocks()
    )
    assert len(timings["a"].samples_ms) == 4


def test_short_calls_repeat_in_a_turn_after_an_untimed_one() -> None:
    time = FakeTime()
    budget = Budget(seconds=0.0, min_rounds=2, turn_seconds=0.004, max_calls=3)
    timings = interleave({"a": time.call("a", 0.001)}, budget, **time.clocks())
    assert len(timings["a"].samples_ms) == 2 * 3
    assert len(time.calls) == 2 + 2 * (1 + 3)


def test_same_seed_same_order() -> None:
    runs = []
    for _ in range(2):
        time = FakeTime()
        calls = {name: time.call(name, 0.01) for name in "abcd"}
        interleave(calls, Budget(seconds=0.5), seed=3, **time.clocks())
        runs.append(time.calls)
    assert runs[0] == runs[1]


def test_contention_is_noticed_and_reported() -> None:
    time = FakeTime()
    calls = {"free": time.call("free", 0.01), "starved": time.call("starved", 0.01, busy=0.5)}
    timings = interleave(calls, Budget(seconds=0.2), **time.clocks())
    assert timings["free"].busy == pytest.approx(1.0)
    assert timings["starved"].busy == pytest.approx(0.5)
    contender = Contender("w", "torch", None, samples_ms=[1.0], busy=0.5)
    assert "contended" in contender.row(1, 100.0).note
    contender.busy = 1.0
    assert contender.row(1, 100.0).note == ""


# -- rows --------------------------------------------------------------------------------------


def test_row_has_the_documented_keys() -> None:
    assert [f.name for f in fields(Row)] == ROW_KEYS
    assert list(Row("w", "e", 1).as_dict()) == ROW_KEYS


def test_row_statistics() -> None:
    contender = Contender(
        "w",
        OURS,
        None,
        dense_flops=8_000_000,
        effective_flops=1_000_000,
        sparsity=0.875,
        group=4,
        samples_ms=[float(v) for v in range(1, 12)],
    )
    row = contender.row(threads=2, peak_gflops=10.0)
    assert (row.p10_ms, row.median_ms, row.p90_ms, row.runs) == (2.0, 6.0, 10.0, 11)
    assert row.effective_gflops == pytest.approx(1e6 / 6e-3 / 1e9)
    assert row.dense_equivalent_gflops == pytest.approx(8e6 / 6e-3 / 1e9)
    assert row.peak_fraction == pytest.approx(row.effective_gflops / 20.0)
    assert (row.sparsity, row.group, row.threads) == (0.875, 4, 2)
    assert row.images_per_second == pytest.approx(1000 / 6)
    contender.batch, contender.peak_memory_mb = 8, 12.5
    row = contender.row(threads=2, peak_gflops=10.0)
    assert row.images_per_second == pytest.approx(8000 / 6)
    assert row.peak_memory_mb == 12.5


def test_row_without_samples_has_no_figures() -> None:
    row = Contender("w", "ncnn", None, note="unavailable: not installed").row(1, 100.0)
    assert row.runs == 0
    assert row.note == "unavailable: not installed"
    assert row.median_ms is row.effective_gflops is row.peak_fraction is None


# -- outputs are checked -----------------------------------------------------------------------


def _checked(engine: str, error: np.ndarray) -> Contender:
    reference = np.linspace(-1.0, 1.0, 1000, dtype=np.float32)
    contender = Contender("w", engine, Constant(reference + error), reference=reference)
    contender.check()
    return contender


def _spike(size: float) -> np.ndarray:
    error = np.zeros(1000, np.float32)
    error[7] = size
    return error


@pytest.mark.parametrize(
    ("engine", "error", "right"),
    [
        (OURS, _spike(5e-5), True),
        (OURS, _spike(5e-4), False),
        ("mnn", _spike(2e-3), True),
        ("mnn", _spike(0.1), False),
        ("mnn", np.full(1000, 1e-3, np.float32), False),
        (OURS, _spike(np.nan), False),
        ("torch", _spike(np.nan), False),
    ],
)
def test_wrong_outputs_are_not_timed(engine: str, error: np.ndarray, right: bool) -> None:
    contender = _checked(engine, error)
    assert (contender.runner is not None) == right
    assert ("wrong output" in contender.note) != right


def test_wrong_shape_is_not_timed() -> None:
    contender = Contender("w", "e", Constant(np.zeros(3)), reference=np.zeros((2, 2)))
    harness.measure([contender], Budget(seconds=0.0, min_rounds=1))
    assert contender.samples_ms == []
    assert "expected (2, 2)" in contender.note


# -- selection and options ---------------------------------------------------------------------


def test_selection() -> None:
    assert Selection(None)("a", "torch")
    only = Selection("56x56x256/(ncnn|tvm-pattern)")
    assert only("56x56x256", "ncnn")
    assert only("56x56x256", OURS, 4)
    assert not only("56x56x64", "ncnn")
    one = Selection("/F4$")
    assert one("a", OURS, 4)
    assert not one("a", OURS, 16)
    assert not one("a", "torch")
    assert Selection("dense")("a", OURS, None)
    with pytest.raises(ValueError, match="no regular expression"):
        Selection("(")


def test_budgets() -> None:
    assert session.budget_of(True, None, 9.0) == Budget.quick()
    assert session.budget_of(True, 2.0, 9.0).seconds == 2.0
    assert session.budget_of(False, None, 9.0).seconds == 9.0
    assert session.budget_of(False, 3.0, 9.0).seconds == 3.0


@pytest.mark.parametrize(
    ("threads", "cores", "match"),
    [(0, None, "at least 1"), (10**4, None, "as many cores"), (1, [10**6], "not available")],
)
def test_pin_refuses(threads: int, cores: list[int] | None, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        device.pin(threads, cores)


def test_bad_cores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="numbers separated by commas"):
        session.Session.start(
            "t", threads=1, cores="x", only=None, budget=Budget.quick(), json_path=tmp_path / "r"
        )


# -- the peak ----------------------------------------------------------------------------------


def test_peak_is_positive() -> None:
    meter = peak.PeakMeter()
    assert meter.gflops > 0
    assert len(meter.samples) == 1
    assert meter.widths
    meter.samples[:] = [1.0, 5.0, 3.0]
    assert meter.gflops == 3.0


def test_peak_without_a_working_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    with pytest.raises(RuntimeError, match="failed"):
        peak.PeakMeter()
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="no C compiler"):
        peak.PeakMeter()


# -- workloads ---------------------------------------------------------------------------------


def test_workloads_file() -> None:
    layers, networks = workloads.load_workloads()
    by_name = {spec.name: spec for spec in layers}
    assert {"112x112x128", "56x56x256", "28x28x512", "14x14x512", "7x7x512"} <= set(by_name)
    assert by_name["56x56x128-s2"].out_size == (28, 28)
    assert by_name["1x1-7x7x2048-512"].out_size == (7, 7)
    assert by_name["56x56x256"].dense_flops == 2 * 56 * 56 * 256 * 256 * 9
    assert [spec.name for spec in networks][-1] == "mobilenet_v2"
    rates = {spec.name: spec.connectivity_linear for spec in networks}
    assert (rates["vgg16"], rates["vgg16-linear-4x"]) == (1.0, 4.0)
    for spec in layers:
        assert all(spec.out_channels % group == 0 for group in spec.groups)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('[[layer]]\nname = "a"\ncolour = 1', "unknown keys"),
        ('[[layer]]\nname = "a"', "missing"),
        ('[[network]]\nname = "a"\nmodel = "vgg16"', "missing"),
    ],
)
def test_bad_workloads_file(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "w.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=match):
        workloads.load_workloads(path)


def test_workload_names_are_unique(tmp_path: Path) -> None:
    entry = '[[network]]\nname = "a"\nmodel = "vgg16"\ninput = [1]\n'
    path = tmp_path / "w.toml"
    path.write_text("[defaults]\nconnectivity = 3.6\ngroups = [1]\n" + entry * 2)
    with pytest.raises(ValueError, match="twice"):
        workloads.load_workloads(path)


SMALL = workloads.LayerSpec("small", 12, 16, (9, 11), connectivity=3.6, groups=(1, 4))


@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
def test_sparse_weights(group: int) -> None:
    weight, _ = workloads.sparse_weights(SMALL, group)
    again, _ = workloads.sparse_weights(SMALL, group)
    np.testing.assert_array_equal(weight, again)
    kept = weight != 0
    shared = kept.reshape(16 // group, group, 12, 3, 3)
    assert (shared == shared[:, :1]).all(), "filters of a group share kernels and patterns"
    taps = kept.sum(axis=(2, 3))
    assert set(np.unique(taps)) <= {0, 4}
    pairs = 16 // group * 12
    assert np.count_nonzero(taps) == round(pairs / 3.6) * group
    dense, _ = workloads.dense_weights(SMALL)
    np.testing.assert_array_equal(weight[kept], dense[kept])


def test_sparse_weights_refuse_a_group_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match="does not divide"):
        workloads.sparse_weights(SMALL, 3)


def test_network_flops() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    with torch.no_grad():
        model[0].weight[:4] = 0
    dense, effective, sparsity = workloads.network_flops(model, torch.zeros(1, 3, 6, 7))
    conv, linear = 8 * 3 * 9, 8 * 5
    assert dense == 2 * (conv * 42 + linear)
    assert effective == 2 * (conv // 2 * 42 + linear)
    assert sparsity == pytest.approx(conv / 2 / (conv + linear))
    with pytest.raises(ValueError, match="no convolution"):
        workloads.network_flops(nn.ReLU(), torch.zeros(1))


# -- results -----------------------------------------------------------------------------------


def _rows(note: str = "") -> list[Row]:
    timed = {"p10_ms": 1.0, "p90_ms": 3.0, "runs": 5, "sparsity": 0.0, "effective_gflops": 7.0}
    return [
        Row("w1", "torch", 1, median_ms=4.0, note=note, **timed),
        Row("w1", OURS, 1, median_ms=2.0, group=4, **timed),
        Row("w1", OURS, 1, median_ms=8.0, **timed),
        Row("w2", "ncnn", 1, note="unavailable: a | b"),
    ]


def test_result_files(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.json"
    about = device.describe(1, [0], {"torch": "2"})
    written = results.write_all(path, "Title", about, 123.456, _rows())
    assert [p.suffix for p in written] == [".json", ".md", ".png"]
    data = json.loads(path.read_text())
    assert sorted(data) == ["device", "fma_peak_gflops", "rows"]
    assert data["fma_peak_gflops"] == 123.46
    assert [list(row) for row in data["rows"]] == [ROW_KEYS] * 4
    assert data["device"]["threads"] == 1
    table = (tmp_path / "new" / "r.md").read_text()
    assert "| tvm-pattern F=4 | **2** |" in table
    assert "| 2.00x |" in table
    assert "| 0.50x |" in table
    assert "unavailable: a \\| b" in table
    assert "not a result" not in table
    assert not list(path.parent.glob("*.part"))


def test_contended_results_say_so() -> None:
    about = device.describe(1, [0], {})
    assert "not a result" in results.markdown("T", about, 1.0, _rows("contended: 50%"))


def test_processors_of_one_name_are_told_apart(tmp_path: Path) -> None:
    path, text = (
        tmp_path / "cpuinfo",
        "processor : {}\nmodel name : AMD EPYC\nflags : fma avx2 mmx\n",
    )
    path.write_text(text.format(0) + text.format(1))
    assert device._cpuinfo(path) == ("AMD EPYC", ["fma", "avx2"])
    path.write_text("cpu family\t: 25\nmodel\t\t: 1\n" + text.format(0) + "model : 2\n")
    assert device._cpuinfo(path)[0] == "AMD EPYC (family 25, model 1)"
    path.write_text("processor : 0\nFeatures : asimd fp\n")
    assert device._cpuinfo(path)[1] == ["asimd"]


def test_nothing_to_plot(tmp_path: Path) -> None:
    assert not results.plot(tmp_path / "p.png", "T", [Row("w", "e", 1)])


def test_sample_log(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    contenders = [Contender("w", "e", None, samples_ms=[1.0, 2.0]), Contender("w", "f", None)]
    results.write_samples(path, contenders, [10.0])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"fma_peak_gflops": [10.0]}
    assert [line["engine"] for line in lines[1:]] == ["e"]


# -- engines -----------------------------------------------------------------------------------


def _model() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()).eval()
    return model, torch.randn(1, 8, 9, 11)


@pytest.mark.parametrize("peer", PEERS, ids=lambda p: p.name)
def test_peer_agrees_with_torch(peer: Peer, tmp_path: Path) -> None:
    reason = peer.unavailable()
    if reason is not None:
        pytest.skip(reason)
    model, example = _model()
    torch.set_num_threads(1)
    with torch.inference_mode():
        reference = model(example).numpy()
    contender = Contender("w", peer.name, peer.build(model, example, 1, tmp_path))
    contender.reference = reference
    contender.check()
    assert contender.note == ""
    assert peer.version() != "not installed"


def test_peer_that_is_not_installed() -> None:
    class Missing(Peer):
        name = "missing"
        packages = ("no-such-package",)
        modules = ("no_such_module",)

        def build(self, *_args: object) -> Constant:
            raise AssertionError("an unavailable peer is not built")

    assert "no-such-package" in (Missing().unavailable() or "")
    assert Missing().version() == "not installed"


def _session(tmp_path: Path) -> session.Session:
    torch.set_num_threads(1)
    return session.Session(
        "T", 1, [0], Selection(None), Budget(0.0, 1), tmp_path / "r.json", peak.PeakMeter()
    )


def test_unavailable_and_refusing_peers_stay_in_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Absent(Constant):
        name = "absent"

        def unavailable(self) -> str | None:
            return "not installed"

        def version(self) -> str:
            return "0"

    class Refusing(Absent):
        name = "refusing"

        def unavailable(self) -> str | None:
            return None

        def build(self, *_args: object) -> Constant:
            raise subprocess.CalledProcessError(3, ["convert"], stderr=b"bad\nmodel")

    monkeypatch.setattr(session, "PEERS", (Absent(np.zeros(1)), Refusing(np.zeros(1))))
    run = _session(tmp_path)
    model, example = _model()
    run.run(run.add_peers("w", model, example, tmp_path, 10))
    notes = {row["engine"]: row["note"] for row in json.loads(run.json_path.read_text())["rows"]}
    assert notes["absent"] == "unavailable: not installed"
    assert notes["refusing"].startswith("unavailable: cannot build: CalledProcessError")
    assert "bad model" in notes["refusing"]


def test_our_refusal_is_a_note(tmp_path: Path) -> None:
    def refuse() -> Constant:
        raise ValueError("weights contain NaN")

    contender = _session(tmp_path).add_ours(Contender("w", OURS, None), refuse, np.zeros(1))
    assert contender.note == "failed: ValueError: weights contain NaN"


def test_a_run_that_selects_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="selects nothing"):
        _session(tmp_path).finish()


@pytest.mark.parametrize("group", [1, 4, None])
def test_our_layer_engine(group: int | None) -> None:
    weights = workloads.dense_weights(SMALL)
    if group is not None:
        weights = workloads.sparse_weights(SMALL, group)
    example = SMALL.example()
    engine = ours.LayerEngine.build(*weights, example.numpy(), SMALL, 1)
    with torch.inference_mode():
        reference = SMALL.model(*weights)(example).numpy()
    contender = Contender("w", OURS, engine, reference=reference)
    contender.check()
    assert contender.note == ""
    assert "filters" in engine.describe()


# -- the TensorFlow Lite writer ----------------------------------------------------------------


class _Block(nn.Module):
    """Everything the writer knows: folded batch norm, depthwise, strides, sums, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, 1, padding=1, groups=8, bias=False)
        self.six = nn.ReLU6()
        self.average = nn.AdaptiveAvgPool2d((3, 4))
        self.drop = nn.Dropout()
        self.linear = nn.Linear(8 * 3 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.relu(self.norm(self.stem(x))))
        x = self.relu(x + self.six(self.depthwise(x)))
        return self.linear(self.drop(torch.flatten(self.average(x), 1)))


def test_tflite_writer() -> None:
    interpreters = pytest.importorskip("ai_edge_litert.interpreter")
    torch.manual_seed(1)
    model = _Block().eval()
    model.norm.running_mean.uniform_(-1, 1)
    example = torch.randn(1, 3, 11, 13)
    interpreter = interpreters.Interpreter(model_content=bytes(to_tflite(model, example)))
    interpreter.allocate_tensors()
    feed = np.ascontiguousarray(example.numpy().transpose(0, 2, 3, 1))
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], feed)
    interpreter.invoke()
    got = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    with torch.inference_mode():
        np.testing.assert_allclose(got, model(example).numpy(), rtol=1e-5, atol=1e-5)


class _Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (nn.Sequential(nn.Softplus()), "Softplus"),
        (nn.Conv2d(8, 8, 3, dilation=2), "dilation"),
        (nn.Conv2d(8, 8, 3, groups=2), "grouped"),
        (nn.Sequential(nn.MaxPool2d(3, 2, padding=1)), "only after a ReLU"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(2)), "only to 1x1"),
        (_Branching(), "cannot be traced"),
    ],
)
def test_tflite_writer_refuses_by_name(model: nn.Module, match: str) -> None:
    pytest.importorskip("ai_edge_litert")
    with pytest.raises(ValueError, match=match):
        to_tflite(nn.Sequential(model).eval(), torch.zeros(1, 8, 9, 9))


# -- the commands ------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["layers", "networks"])
def test_commands_explain_bad_input(module: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{module}", "--only", "(", "--json", "x.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is no regular expression" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_layer_from_end_to_end(tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    only = "^7x7x512/(torch|tvm-pattern/F4)$"
    command = [sys.executable, "-m", "benchmarks.layers", "--quick", "--seconds", "0.1"]
    done = subprocess.run(
        [*command, "--only", only, "--json", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    assert [(r["engine"], r["group"]) for r in rows] == [("torch", None), (OURS, 4)]
    for row in rows:
        assert row["runs"] > 0
        assert row["median_ms"] > 0
        assert row["max_abs_error"] <= 1e-3
    assert rows[1]["sparsity"] == pytest.approx(1 - 4 / 9 / 3.6, abs=1e-3)


def test_networks_are_pruned_at_the_rates_of_their_rows() -> None:
    spec = workloads.NetworkSpec("a", "vgg16", (1, 3, 8, 8), 3.6, (4,), connectivity_linear=4.0)
    torch.manual_seed(0)
    dense = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 64)
    )
    model = ours.pruned(dense, spec, 4)
    assert int(torch.count_nonzero(model[2].weight)) == 288 * 64 // 4
    assert int(torch.count_nonzero(dense[2].weight)) == 288 * 64


def test_other_batches_and_groups_are_rows_of_their_own() -> None:
    spec = workloads.NetworkSpec("a", "vgg16", (1, 3, 8, 8), 3.6, (4,))
    batches = spec.with_batch(8)
    assert (batches.name, batches.input) == ("a-batch8", (8, 3, 8, 8))
    assert spec.with_batch(1) == spec
    assert spec.with_groups((1, 2)).groups == (1, 2)
    names = {networks.library_name(g, t, n) for g in (None, 2) for t in "ab" for n in (1, 2)}
    assert len(names) == 8
    assert networks.library_name(2, "pattern/x86-avx2", 1) == "F2-x86-avx2-1.so"


@pytest.mark.skipif(not resident._RESET.exists(), reason="the peak is known on Linux alone")
def test_the_peak_of_a_process_counts_what_is_freed_again() -> None:
    size = 64_000_000
    # In a process of its own: this one may give memory back at any moment.
    script = (
        "import numpy as np; from benchmarks.resident import added_peak\n"
        f"print(added_peak(lambda: np.ones({size}, np.uint8).sum()), added_peak(lambda: None))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    added, nothing = map(int, done.stdout.split())
    # The kernel counts pages in batches.
    assert 0.97 * size <= added < 1.2 * size
    assert nothing < 0.1 * size


def test_memory_that_cannot_be_measured_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> float:
        raise RuntimeError("it is a pity")

    right = Contender("w", OURS, None, group=4, samples_ms=[1.0])
    wrong = Contender("w", "torch", None, note="wrong output")
    monkeypatch.setattr(resident, "peak_mb", refuse)
    networks.add_memory([right, wrong], "w", Path(), ours.TARGET, 1, 1)
    assert (right.peak_memory_mb, right.note) == (None, "memory: it is a pity")
    assert wrong.note == "wrong output"
    asked = []
    monkeypatch.setattr(resident, "peak_mb", lambda *what: asked.append(what) or 3.5)
    networks.add_memory([right, wrong], "w", Path("f"), ours.TARGET, 2, 8)
    assert asked == [(f"{OURS}:F4-native-2.so", "w", Path("f"), 2, 8)]
    assert right.peak_memory_mb == 3.5


def test_an_engine_that_cannot_be_opened_is_told_by_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"in a process of its own: .*no such library"):
        resident.peak_mb(f"{OURS}:F4.so", "keyword-spotting", tmp_path, 1)


def test_a_network_compiled_before_is_not_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = torch.ones(1, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    path = tmp_path / "new" / "F1.so"
    first = ours.NetworkEngine.build(model, example, 1, path=path)
    monkeypatch.setattr(tvm_pattern, "compile", None)
    again = ours.NetworkEngine.build(model, example, 1, path=path)
    for engine in (first, again):
        engine.run()
    np.testing.assert_array_equal(first.output(), again.output())


def test_what_networks_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--prepare without --keep FOLDER"):
        networks.main(tmp_path / "x.json", prepare=True)
    with pytest.raises(ValueError, match=r"--groups 'a': expected numbers"):
        networks.main(tmp_path / "x.json", groups="a")
    with pytest.raises(ValueError, match=r"--weight-bits 7 with --dtype float32; expected int8"):
        networks.main(tmp_path / "x.json", weight_bits=7)


@pytest.mark.parametrize("limit", [None, "AVX2"])
def test_rows_say_which_instructions_an_engine_had(monkeypatch, limit: str | None) -> None:
    monkeypatch.delenv(networks.ONEDNN_LIMIT, raising=False)
    if limit is not None:
        monkeypatch.setenv(networks.ONEDNN_LIMIT, limit)
    found = [Contender("w", engine, None) for engine in (OURS, "openvino", "ncnn")]
    networks.note_instructions(found, ours.TARGET)
    assert [c.note for c in found] == ["", "", ""]
    found[0].note = "7-bit weights"
    networks.note_instructions(found, "pattern/x86-avx2")
    free = "any instructions of this machine"
    held = free if limit is None else "ONEDNN_MAX_CPU_ISA=AVX2"
    assert [c.note for c in found] == ["7-bit weights; pattern/x86-avx2", held, free]


def test_weights_of_other_bits_have_files_of_their_own(tmp_path: Path) -> None:
    library = tmp_path / int8_networks.of_bits("F2-x86-avx2-1.so", 7)
    assert library.name == "F2-x86-avx2-1-w7.so"
    assert int8_networks.of_bits("F2-x86-avx2-1.so", 8) == "F2-x86-avx2-1.so"
    assert int8_networks.qdq_file(library, 7) == tmp_path / "model-w7.onnx"
    assert int8_networks.qdq_file(library, 8) == tmp_path / "model.onnx"


def test_plain_tvm_computes_the_network(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    example = torch.randn(2, 3, 8, 8)
    for runner in (
        UNTUNED.build(model, example, 1, tmp_path),
        UNTUNED.reopen(lambda: model, example, 1, tmp_path),
    ):
        runner.run()
        np.testing.assert_allclose(runner.output(), model(example).detach().numpy(), atol=1e-5)


def test_the_study_of_linear_layers_prunes_two_of_three() -> None:
    model = accuracy_linear.network()
    config = accuracy_linear.config_of(4.0, 8)
    report = tvm_pattern.pruning.Pruner(model, config, "oneshot").report()
    pruned = {row.name: row.group for row in report.pruned}
    assert pruned == {"15": 8, "17": 8}
    assert [row.name for row in report.rows if row.kind == "linear"] == ["15", "17", "19"]
