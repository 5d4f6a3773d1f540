"""Tuning sees the convolutions that compiling asks for, in float16 too."""

from __future__ import annotations

import ast
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from torch import nn

from relay_passes import pipeline
from relay_passes.report import ReportBuilder
from relay_passes.targets import resolve, targets
from topi_kernels.backend import Backend
from topi_kernels.conv_task import ConvTask
from topi_kernels.devices import DEVICES
from topi_kernels.operator import plan_conv
from topi_kernels.schedules.config import ConvConfig
from tvm_pattern.frontend import import_model
from tvm_pattern.pruning import oneshot
from tvm_pattern.tuning import worker
from tvm_pattern.tuning.features import FEATURES, config_features
from tvm_pattern.tuning.lookup import ConfigLookup, config_of
from tvm_pattern.tuning.measure import MeasureOptions, Measurer
from tvm_pattern.tuning.records import TuningLog
from tvm_pattern.tuning.session import Search, TuneOptions, warm_start_sets
from tvm_pattern.tuning.space import Space
from tvm_pattern.tuning.tasks import WeightedTask, extract_tasks

ROOT = Path(__file__).resolve().parents[2]
HALF_TARGET = resolve("pattern/cortex-a76")


class Net(nn.Module):
    """A stem with batch norm, a residual, stride 2, a depthwise layer and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Hardswish())
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.points = nn.ModuleList(nn.Conv2d(32, 32, 1) for _ in range(2))
        self.head = nn.Linear(32, 10)
        with torch.no_grad():
            self.points[1].weight.copy_(self.points[0].weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(self.depthwise(torch.relu(self.down(self.block(x) + x))))
        for point in self.points:
            x = torch.relu(point(x))
        return self.head(x.mean((2, 3)))


@cache
def module(dtype: str) -> tvm.IRModule:
    torch.manual_seed(0)
    model = Net().eval()
    oneshot(model, connectivity=2.0, connectivity_1x1=2.0, group=2)
    kind = getattr(torch, dtype)
    return import_model(model.to(kind), torch.randn(1, 3, 16, 16).to(kind)).mod


def seen_by_compile(mod: tvm.IRModule, target: tvm.target.Target) -> list[ConvTask]:
    """The tasks that compiling looks up, in order."""
    seen: list[ConvTask] = []
    pipeline.lower(mod, target, num_threads=1, config_for=seen.append)
    return seen


@pytest.fixture(scope="module")
def half_tasks() -> list[WeightedTask]:
    return extract_tasks(module("float16"), HALF_TARGET)


@pytest.mark.parametrize(
    ("dtype", "target"),
    [
        ("float32", "native"),
        ("float32", "armv7"),
        ("float32", "cortex-a76"),
        ("float16", "cortex-a76"),
        ("float16", "cortex-a55"),
    ],
)
def test_tuning_measures_what_compiling_asks_for(dtype: str, target: str) -> None:
    mod, resolved = module(dtype), resolve(f"pattern/{target}")
    tasks, seen = extract_tasks(mod, resolved), seen_by_compile(mod, resolved)
    assert [t.task.key for t in tasks] == list(dict.fromkeys(task.key for task in seen))
    assert sum(t.count for t in tasks) == len(seen) == 5
    assert max(t.count for t in tasks) == 2
    assert {t.task.dtype for t in tasks} == {str(t.weight.dtype) for t in tasks} == {dtype}


@pytest.mark.parametrize("target", targets())
def test_compiling_schedules_what_the_shared_passes_leave(target: str) -> None:
    backend = Backend.of(resolve(target), 1)
    shared = pipeline.marker_passes(backend, ReportBuilder())
    whole = pipeline.sparse_passes(backend, ReportBuilder())
    last = ["Schedule"] if backend.name in DEVICES.names(with_schedules=True) else []
    last += ["VectorRows"] if last and backend.device_kind == "cpu" else []
    assert [p.info.name for p in whole] == [
        "CenterNorms",
        *(p.info.name for p in shared),
        *last,
        "WidenHalf",
    ]


def test_no_other_list_of_passes() -> None:
    """Whoever rewrites a module takes the pipeline's list; no pass is imported by itself."""
    backend = Backend.of(resolve("pattern/native"))
    shared = pipeline.marker_passes(backend, ReportBuilder())
    names = {str(p.info.name) for p in shared} | {"Schedule"}
    assert {"LowerMatmul", "PatternRewrite", "PlaneLayout"} <= names
    found = []
    for folder in ("tvm_pattern", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and "relay_passes" in (node.module or ""):
                    found += [f"{path.name}: {a.name}" for a in node.names if a.name in names]
    assert not found


def test_a_float16_space_has_float16_vectors(half_tasks: list[WeightedTask]) -> None:
    for task, weight in ((t.task, t.weight) for t in half_tasks):
        space = Space(task)
        assert task.machine.vector_width == 8
        assert {c.vector_width for c in space.configs} == {4, 8}
        default = space.configs[space.default]
        assert default.vector_width == 8
        assert default == plan_conv(task, weight).config


def test_features_of_float16_count_its_lanes_and_bytes() -> None:
    half, single = (
        extract_tasks(module(dtype), HALF_TARGET)[1].task for dtype in ("float16", "float32")
    )
    column = {name: i for i, name in enumerate(FEATURES)}
    narrow = ConvConfig(4, 1, 2, 4, 1)
    a, b = (config_features(task, narrow, 1e6) for task in (half, single))
    # Four lanes are half a vector of float16.
    assert (a[column["width_share"]], b[column["width_share"]]) == (-1, 0)
    for name in ("input_tile_bytes", "weight_bytes"):
        assert b[column[name]] - a[column[name]] == pytest.approx(1, abs=1e-5)
    assert b[column["splits_per_fma"]] == pytest.approx(2 * a[column["splits_per_fma"]])


def test_float16_trials_run_and_teach(half_tasks: list[WeightedTask], tmp_path: Path) -> None:
    """Candidates for an ARM core are built for this one, where LLVM computes float16 too."""
    task = min(half_tasks, key=lambda t: t.task.effective_flops)
    options = TuneOptions(
        trials=6, batch=3, measure=MeasureOptions(run_timeout=60, repeat=2, min_repeat_ms=1)
    )
    native, log = resolve("pattern/native"), TuningLog(tmp_path / "half.jsonl")
    with Measurer(native, 1, options.measure) as measurer:
        search = Search([task], native, log, options)
        result = search.run(measurer)
    assert (result.trials, result.failed) == (6, 0)
    records = log.records()
    assert {r.task["dtype"] for r in records} == {"float16"}
    assert 8 in {r.config["vector_width"] for r in records}
    fastest = min(records, key=lambda record: record.seconds)
    assert ConfigLookup(records)(task.task) == config_of(fastest)
    ((features, seconds),) = warm_start_sets(records)
    assert features.shape == (6, len(FEATURES))
    assert np.isfinite(seconds).all()


def test_a_wrong_float16_candidate_is_found(half_tasks: list[WeightedTask]) -> None:
    task, weight = half_tasks[1].task, half_tasks[1].weight
    other = replace(task, epilogue=replace(task.epilogue, activation="none"))
    options = MeasureOptions(run_timeout=60, repeat=1, min_repeat_ms=1)
    with Measurer(resolve("pattern/native"), 1, options) as measurer:
        token = measurer.inputs(task, weight).token(plan_conv(task, weight))
        functions = [plan_conv(t, weight).primfunc() for t in (task, other)]
        jobs = [(f.with_attr("global_symbol", worker.ENTRY), token) for f in functions]
        right, wrong = measurer.measure_functions(jobs)
    assert (right.error_kind, wrong.error_kind) == ("ok", "wrong_result")


def test_float16_configurations_become_eight_lanes(half_tasks: list[WeightedTask]) -> None:
    weighted = half_tasks[1]
    space = Space(weighted.task)
    for index in (space.default, len(space) // 2):
        config = space.configs[index]
        function = plan_conv(weighted.task, weighted.weight, config).primfunc()
        text = tvm.compile(function, HALF_TARGET).mod.inspect_source("asm")
        assert f".{config.vector_width}h" in text
