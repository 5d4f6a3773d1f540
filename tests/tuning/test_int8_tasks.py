"""Convolutions of bytes as tasks: what a quantised network has, searched, recorded, compiled."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from conv_cases import pattern_weights
from int8_cases import int8_case, padding_of
from qdq_networks import QdqNetwork

import tvm_pattern
from relay_passes.targets import resolve
from topi_kernels.backend import Backend
from topi_kernels.conv_task import ConvTask
from topi_kernels.schedules.cpu_int8.byte_layout import LINE
from topi_kernels.schedules.cpu_int8.isa import ISAS
from topi_kernels.schedules.cpu_int8.packing import filings, pack
from topi_kernels.schedules.cpu_int8.plan import plan_int8_depthwise
from topi_kernels.schedules.cpu_int8.reference import reference
from topi_kernels.schedules.cpu_int8.task import Int8Task
from topi_kernels.schedules.cpu_int8.workload import Int8Config, tiles_of
from topi_kernels.task import task_from_dict
from tvm_pattern.tuning.features import config_features
from tvm_pattern.tuning.int8_features import INT8_FEATURES
from tvm_pattern.tuning.int8_inputs import Int8Inputs
from tvm_pattern.tuning.lookup import ConfigLookup
from tvm_pattern.tuning.measure import MeasureOptions
from tvm_pattern.tuning.records import TuningLog
from tvm_pattern.tuning.session import TuneOptions, tune
from tvm_pattern.tuning.space import Space
from tvm_pattern.tuning.tasks import extract_tasks

from .small import record_of

TARGET = resolve("pattern/native")
X = np.random.default_rng(3).standard_normal((1, 8, 10, 12)).astype(np.float32)

KINDS = ("pattern", "dense", "pointwise", "stride", "depthwise")


def task_of(kind: str, isa: str = "avx512-vnni", residual: bool = False, **more) -> Int8Task:
    """A small task."""
    if kind == "depthwise":
        case = int8_case(8, 1, (9, 11), weight=np.ones((8, 1, 3, 3)))
        return Int8Task.of_depthwise(case.layer, (1, 8), case.layouts(), isa)
    arguments: dict[str, dict] = {
        "pattern": {"group": 2},
        "dense": {"weight": np.ones((8, 8, 3, 3))},
        "pointwise": {"weight": np.ones((8, 8, 1, 1)), "kernel": 1},
        "stride": {"group": 2, "stride": 2},
    }
    case = int8_case(8, 8, (9, 11), residual=residual, **arguments[kind], **more)
    return Int8Task.of(case.layer, 1, case.layouts(), isa)


def network():
    """A 3x3 layer, two 1x1 layers that are one task, a depthwise one, a 3x3 with a residual."""
    net = QdqNetwork(X)
    a = net.conv(net.enter(), 8, group=2, name="first")
    b = net.conv(a, 8, kernel=1, name="point")
    c = net.conv(b, 8, kernel=1, name="again")
    d = net.conv(c, 8, groups=8, name="alone")
    return net, net.conv(d, 8, group=2, residual=a, name="added")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    if not Backend.of(TARGET).int8:
        pytest.skip("this computer has no instructions for bytes")
    net, result = network()
    mod, log = net.module(result), tmp_path_factory.mktemp("int8") / "log.jsonl"
    measure = MeasureOptions(run_timeout=300, repeat=1, min_repeat_ms=1)
    found = tune(mod, None, TARGET, log, TuneOptions(trials=6, batch=3, measure=measure), 1)
    return mod, result, log, found


def test_search_of_a_network(tuned) -> None:
    """Each distinct convolution is a task of bytes; every candidate was exact."""
    _, _, log, found = tuned
    tasks = {tuple(s.weighted.layers): s.weighted.task for s in found.states}
    assert [layers for layers in tasks if len(layers) == 2] == [("point", "again")]
    assert sum(map(len, tasks)) == 5
    assert {task.dtype for task in tasks.values()} == {"int8"}
    assert [t.depthwise for n, t in tasks.items() if n == ("alone",)] == [True]
    records = TuningLog(log).records()
    assert len(records) == 6
    assert [r.error for r in records if not r.ok] == []


def test_records_serve_in_compile(tuned, tmp_path) -> None:
    """Configurations come from the log, and results stay what they were."""
    mod, result, _, found = tuned
    state = next(s for s in found.states if s.weighted.layers == ["first"])
    task, default = state.weighted.task, state.weighted.task.default_config()
    other = next(config for config in state.space.configs if config != default)
    log = TuningLog(tmp_path / "log.jsonl")
    log.append(record_of(task, other, 1e-6))
    library = tvm_pattern.compile(mod, None, TARGET, tuning_log=log.path, verify=False)
    configs = {row.layer: row.config for row in library.report.rows}
    assert other.as_dict().items() <= configs["first"].items()
    # The layer with a residual is like it, the others are not.
    assert other.as_dict().items() <= configs["added"].items()
    assert all(not other.as_dict().items() <= configs[n].items() for n in ("point", "alone"))
    np.testing.assert_allclose(library(X), result.real, atol=1e-5 * np.abs(result.real).max())


@pytest.mark.parametrize("isa", sorted(set(ISAS) - {"avx2-narrow"}))
@pytest.mark.parametrize("kind", KINDS)
def test_face(kind: str, isa: str) -> None:
    """Key, data, space, level 0 and features."""
    task = task_of(kind, isa)
    read = task_from_dict(json.loads(json.dumps(task.as_dict())))
    assert (read, read.key, read.similarity_key) == (task, task.key, task.similarity_key)
    space = Space(task)
    assert space.configs == list(task.configs())
    assert len(space) > 1
    assert space.default is not None
    assert {type(c) for c in space.configs} == {Int8Config}
    assert space.features([0]).shape == (1, len(INT8_FEATURES))
    assert np.isfinite(space.features(range(len(space)))).all()
    # All filters that share kernels are computed together; of 1x1 layers the cost says how many.
    rivals = [c for c in space.configs if kind == "pointwise" or c.group == task.max_group]
    assert task.cost(task.default_config()) == min(map(task.cost, rivals))


def test_keys_are_what_they_were() -> None:
    """No change of the task's description may make a record unfindable."""
    keys = [task_of(kind).key for kind in ("pattern", "depthwise")]
    assert keys == ["9aee90c5f547b827", "4d5c6d7c4b8bfc46"]


@pytest.mark.parametrize("isa", sorted(set(ISAS) - {"avx2-narrow"}))
@pytest.mark.parametrize("kind", KINDS)
def test_no_tile_is_larger_than_the_image(kind: str, isa: str) -> None:
    """What a tile covers ends with the image, but for the last vector of a row or run."""
    task = task_of(kind, isa)
    out, pixels = task.out_layout, task.machine.pixels
    for config in task.configs():
        workload = task.workload(task.filing(config))
        covered = config.vectors * pixels
        if config.form in ("run", "window") and workload.in_runs:
            assert covered < (out.height - 1) * out.row_stride + out.width + pixels
        down, beside = tiles_of(workload, config)
        larger = replace(config, vectors=config.vectors + 1, strips=config.strips + 1)
        assert (down, beside) >= tiles_of(workload, larger)


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("group", [1, 2])
def test_filings_are_what_is_packed(group: int, by_rows: bool) -> None:
    """Entries and groups are counted without packing."""
    layer = int8_case(10, 6, (5, 5), weight=pattern_weights(10, 6, group=group)).layer
    found = filings(layer.structure, by_rows=by_rows)
    assert [f.group for f in found] == [4, 2, 1]
    for filing in found:
        packed = pack(layer.weight, layer.structure, filing.group, by_rows=by_rows)
        assert (filing.groups, filing.entries) == (packed.groups, packed.entries)
    assert (
        next(f.group for f in found if f.full)
        == pack(layer.weight, layer.structure, by_rows=by_rows).group
    )


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_whole_numbers(kind: str, tmp_path) -> None:
    """The answer that candidates are held against, against torch's exact sums."""
    weight = {"pointwise": np.ones((8, 8, 1, 1)), "depthwise": np.ones((8, 1, 3, 3))}.get(kind)
    case = int8_case(
        8, 1 if kind == "depthwise" else 8, (9, 11), residual=kind == "pattern",
        kernel=1 if kind == "pointwise" else 3, stride=2 if kind == "stride" else 1, weight=weight,
    )  # fmt: skip
    expected = case.expected()
    got = reference(case.layer, case.x, expected.shape[2:], case.residual)
    np.testing.assert_array_equal(got, expected)
    task = Int8Task.of(case.layer, 1, case.layouts(), "avx512-vnni")
    inputs = Int8Inputs(task, case.layer.weight, 1, tmp_path, case.layer.structure)
    plan = inputs.plan(task.default_config())
    answer, tolerance = inputs.answer(plan)
    assert tolerance == (1.0 if case.residual is not None else 0.0)
    assert len(np.unique(answer[~np.isnan(answer)])) > 20
    layout = case.layouts()[1]
    assert (padding_of(answer, layout) == case.layer.result.zero_point).all()
    assert np.isnan(answer[..., -LINE:]).all()
    assert inputs.token(plan) == inputs.token(inputs.plan(task.default_config()))


def test_depthwise_reference() -> None:
    case = int8_case(8, 1, (9, 11), weight=np.ones((8, 1, 3, 3)))
    x = np.random.default_rng(0).integers(0, 256, (1, 8, 9, 11), np.uint8)
    whole = reference(case.layer, x, (9, 11))
    for channel in range(8):
        layer = case.layer
        one = replace(
            layer,
            weight=layer.weight[channel : channel + 1],
            weight_scale=layer.weight_scale[channel : channel + 1],
            bias=layer.bias[channel : channel + 1],
        )
        case_of_one = replace(case, layer=one, x=x[:, channel : channel + 1])
        np.testing.assert_array_equal(whole[:, channel : channel + 1], case_of_one.expected())
    plan = plan_int8_depthwise(case.layer, (1, 8), case.layouts(), "avx512-vnni")
    task = Int8Task.of_depthwise(case.layer, (1, 8), case.layouts(), "avx512-vnni")
    assert plan.config == task.default_config()


def test_similar_layers_share_records() -> None:
    """A layer of the same shape with a little other weights finds the record; another isa none."""
    task, other = task_of("pattern", seed=1), task_of("pattern", residual=True, seed=2)
    assert task.key != other.key
    record = record_of(task, list(task.configs())[1], 1e-4)
    lookup = ConfigLookup([record])
    assert lookup(other) == list(task.configs())[1]
    assert lookup(task_of("pattern", "avx2")) is None
    assert lookup(task_of("stride")) is None


def test_unusable_configs_have_reasons() -> None:
    task = task_of("pattern")
    default = task.default_config()
    assert task.illegal_reason(default) is None
    assert "exceeds the 2 filters" in str(task.illegal_reason(replace(default, group=4)))
    assert "no tile of int8 3x3" in str(task.illegal_reason(replace(default, strips=99)))
    assert "not for convolutions of bytes" in str(task.illegal_reason("a config"))
    with pytest.raises(ValueError, match="is no tile of"):
        task.cost(replace(default, form="window"))
    with pytest.raises(TypeError, match="Int8Config, got a str"):
        config_features(task, "a config", 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": -1}, "field 'batch'"),
        ({"residual": 1}, "expected bool"),
        ({"filings": []}, "field 'filings'"),
        ({"isa": "amx"}, "unknown 8-bit instructions"),
        ({"more": 1}, "a task of bytes has the fields"),
    ],
)
def test_damaged_tasks(change: dict, message: str) -> None:
    data = json.loads(json.dumps(task_of("pattern").as_dict()))
    with pytest.raises(ValueError, match=message):
        task_from_dict({**data, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "round"}, "knob 'form' has no value 'round'"),
        ({"strips": 0}, "knob 'strips' has no value '0'"),
        ({"vectors": True}, "knob 'vectors'"),
        ({"unroll": 2}, "config has the knobs"),
    ],
)
def test_damaged_configs(change: dict, message: str) -> None:
    data = Int8Config("rows", 1, 1, 1).as_dict()
    assert Int8Config.from_dict(data) == Int8Config("rows", 1, 1, 1)
    with pytest.raises(ValueError, match=message):
        Int8Config.from_dict({**data, **change})


def test_a_device_without_the_instructions_has_tasks_of_floats() -> None:
    net, result = network()
    found = extract_tasks(net.module(result), resolve("pattern/cortex-a53"))
    assert found
    assert all(isinstance(weighted.task, ConvTask) for weighted in found)
