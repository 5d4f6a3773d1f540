"""Damaged files: every reader reads, or raises the error that it documents; nothing raw."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
import yaml
from safetensors import safe_open
from torch import nn
from tuning.small import record_of, small_task

import tvm_pattern as tp
from relay_passes.targets import resolve
from topi_kernels.pattern import PatternSet, fixed8_patterns
from topi_kernels.schedules.config import ConvConfig
from tvm_pattern.crosscompile import CrossCompileError, read_elf
from tvm_pattern.pruning import ConfigError, PatternConfig, load_pruned, oneshot, save_pruned
from tvm_pattern.pruning.checkpoint import CheckpointError, load_training, save_training
from tvm_pattern.pruning.recipe import Recipe
from tvm_pattern.tuning.lookup import ConfigLookup
from tvm_pattern.tuning.records import LogError, Record, TuningLog
from tvm_pattern.tuning.space import Space
from tvm_pattern.tuning.task_inputs import FloatInputs

from . import mutate, processes
from .conftest import LONG, amount

MUTANTS = amount(60, 1000)
IMAGE = np.random.default_rng(0).standard_normal((1, 3, 9, 9)).astype(np.float32)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


def write_bytes(path: Path) -> Callable[[bytes], None]:
    return lambda content: path.write_bytes(content) and None


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    net = network()
    oneshot(net, connectivity=2.0)
    compiled = tp.compile(net, torch.from_numpy(IMAGE), num_threads=1)
    return compiled.export(tmp_path_factory.mktemp("library") / "net.so")


def all_field_mutants(document: object) -> list[tuple[str, object]]:
    """All mutants of the first level, and a sample of all."""
    mutants = list(mutate.json_mutants(document))
    first = [m for m in mutants if "/" not in m[0].split(" ")[0]]
    return first + mutate.sample(iter(mutants), MUTANTS)


def test_elf_header(library, tmp_path):
    path = tmp_path / "net.so"
    mutants = mutate.bytes_mutants(library.read_bytes()[:4096], MUTANTS)
    mutate.survey(mutants, write_bytes(path), lambda: read_elf(path), CrossCompileError)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    task, _ = small_task()
    configs = Space(task).configs[:6]
    return [record_of(task, c, (1 + i) * 1e-3, timestamp=i) for i, c in enumerate(configs)]


def assert_right(configs: set[ConvConfig | None], folder: Path) -> None:
    """What the tuner would not have tried computes what the convolution is."""
    task, weight = small_task()
    inputs = FloatInputs(task, weight, 1, folder)
    for config in configs - {None, *Space(task).configs}:
        plan = inputs.plan(config)
        built = tvm.compile(plan.primfunc(), target=resolve("pattern/native"))
        tensors = [tvm.runtime.tensor(a) for a in inputs.arguments(plan)]
        built(*tensors)
        answer, tolerance = inputs.answer(plan)
        off = np.abs(tensors[-1].numpy() - answer)[~np.isnan(answer)]
        assert off.max() <= tolerance, config


def test_tuning_log_bytes(records, tmp_path):
    """What can be read is used for a configuration that computes right, or passed over."""
    path = tmp_path / "log.jsonl"
    TuningLog(path).write(records)
    task, _ = small_task()

    def look_up() -> object:
        good, bad = TuningLog(path).read()
        assert all(str(line).startswith(str(path)) for line in bad)
        return ConfigLookup(good)(task)

    read = mutate.survey(
        mutate.bytes_mutants(path.read_bytes(), MUTANTS), write_bytes(path), look_up, LogError
    )
    assert_right(set(read.values()), tmp_path)
    assert any(config is not None for config in read.values())


def test_tuning_log_fields(records, tmp_path):
    path = tmp_path / "log.jsonl"
    task, _ = small_task()

    def look_up() -> object:
        return ConfigLookup(TuningLog(path).records())(task)

    read = mutate.survey(
        all_field_mutants(json.loads(records[0].to_line())),
        lambda content: path.write_text(json.dumps(content) + "\n") and None,
        look_up,
        LogError,
    )
    assert_right(set(read.values()), tmp_path)


def test_pruned_checkpoint(tmp_path):
    path = tmp_path / "pruned.safetensors"
    net = network()
    save_pruned(path, net, oneshot(net, connectivity=2.0).assignment)
    mutate.survey(
        mutate.bytes_mutants(path.read_bytes(), MUTANTS),
        write_bytes(path),
        lambda: load_pruned(path, network()),
        CheckpointError,
    )


def test_pruned_checkpoint_metadata(tmp_path):
    """The header stays readable, and what it says is wrong."""
    path = tmp_path / "pruned.safetensors"
    net = network()
    save_pruned(path, net, oneshot(net, connectivity=2.0).assignment)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, tensors = json.loads(data[8 : 8 + size]), data[8 + size :]
    with safe_open(path, "pt") as file:
        assert set(file.metadata()) == set(header["__metadata__"])

    def write(content: object) -> None:
        text = json.dumps(content).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + tensors)

    def unpacked() -> list[tuple[str, object]]:
        found = []
        for key, text in header["__metadata__"].items():
            try:
                inner = json.loads(text)
            except ValueError:
                continue
            for name, changed in all_field_mutants(inner):
                metadata = {**header["__metadata__"], key: json.dumps(changed)}
                found.append((f"{key}: {name}", {**header, "__metadata__": metadata}))
        return found

    mutants = unpacked() + all_field_mutants(header)
    mutate.survey(mutants, write, lambda: load_pruned(path, network()), CheckpointError)


def test_training_state(tmp_path):
    path = tmp_path / "training.pt"
    save_training(path, {"epoch": 3, "model": network().state_dict()})
    mutate.survey(
        mutate.bytes_mutants(path.read_bytes(), MUTANTS),
        write_bytes(path),
        lambda: load_training(path, {"epoch", "model"}),
        CheckpointError,
    )


RECIPE = {
    "version": 1,
    "patterns": {
        "library": "fixed8",
        "connectivity": 2.0,
        "rules": [{"match": "layer.*", "connectivity": 3.0, "group": 2}],
        "skip": ["stem"],
    },
    "method": {"name": "admm", "rho": 0.01, "steps": 3},
    "train": {"epochs": 12, "optimizer": "sgd", "lr": 0.1},
}


@pytest.fixture
def recipe() -> dict:
    """A recipe that reads, cut down to the fields that this version has."""
    config = PatternConfig().to_dict()
    return {**RECIPE, "patterns": json.loads(json.dumps(config)), "method": "gradual"}


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_recipe_bytes(recipe, tmp_path, suffix):
    path = tmp_path / f"recipe{suffix}"
    text = json.dumps(recipe, indent=1) if suffix == ".json" else yaml.safe_dump(recipe)
    path.write_text(text)
    Recipe.from_file(path)
    read = mutate.survey(
        mutate.bytes_mutants(text.encode(), MUTANTS),
        write_bytes(path),
        lambda: Recipe.from_file(path),
        ConfigError,
    )
    assert all(isinstance(found, Recipe) for found in read.values())


def test_recipe_fields(recipe, tmp_path):
    path = tmp_path / "recipe.json"
    given = {**recipe, "patterns": {**recipe["patterns"], "rules": []}}
    mutants = mutate.json_mutants(given)
    mutate.survey(
        list(mutants) if LONG else mutate.sample(mutants, 6 * MUTANTS),
        lambda content: mutate.write_json(path, content),
        lambda: Recipe.from_file(path),
        ConfigError,
    )


def alias_bomb() -> str:
    """Nine lists of nine aliases each: half a million entries from 300 bytes."""
    names = "bcdefg"
    lines = [f"{n}: &{n} [{', '.join(['*' + chr(ord(n) - 1)] * 9)}]" for n in names]
    return "\n".join(["a: &a [x, x, x, x]", *lines])


YAML_TEXTS = {
    "alias-bomb": alias_bomb(),
    "deep": "[" * 5000,
    "deep-mapping": "{a: " * 3000,
    "python-object": "!!python/object/apply:os.system ['false']",
    "date-key": "2020-01-01: 1",
    "list-key": "? [a]\n: 1",
    "two-documents": "a: 1\n---\nb: 2\n",
    "number": "1",
    "merge-key": "<<: 1",
    "anchor-loop": "&a [*a]",
    "bad-utf8-escape": '"\\xZZ"',
    "tab": "a:\n\t- 1",
}


@pytest.mark.parametrize("name", YAML_TEXTS)
def test_yaml_that_is_no_recipe(tmp_path, name):
    path = tmp_path / "recipe.yaml"
    path.write_text(YAML_TEXTS[name])
    with pytest.raises(ConfigError) as caught:
        Recipe.from_file(path)
    assert 0 < len(str(caught.value)) <= 2000


def test_pattern_set_bytes():
    held: list[bytes] = []
    read = mutate.survey(
        mutate.bytes_mutants(fixed8_patterns().to_json().encode(), MUTANTS),
        held.append,
        lambda: PatternSet.from_json(held[-1].decode("latin-1")),
        ValueError,
    )
    assert all(len(found) > 0 for found in read.values())


def test_pattern_set_fields():
    held: list[object] = []
    read = mutate.survey(
        all_field_mutants(fixed8_patterns().to_dict()),
        held.append,
        lambda: PatternSet.from_json(json.dumps(held[-1])),
        ValueError,
    )
    for name, found in read.items():
        assert isinstance(found.name, str), name
        assert PatternSet.from_json(found.to_json()) == found, name


_READ_ONNX = """
import faulthandler, pathlib, pickle, resource, sys, warnings
warnings.simplefilter("ignore")
faulthandler.enable()
resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))
from faults import mutate
import tvm_pattern as tp
path = pathlib.Path(sys.argv[1])
original = path.read_bytes()
first, last = int(sys.argv[2]), int(sys.argv[3])
mutants = list(mutate.bytes_mutants(original, last))[first:]
from tvm_pattern.frontend import import_model
mutate.survey(mutants, path.write_bytes, lambda: import_model(path), ValueError)
print("all read")
"""


def onnx_model(path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    image = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4, 8, 8])
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        onnx.helper.make_node("Relu", ["c"], ["y"]),
    ]
    graph = onnx.helper.make_graph(
        nodes, "net", [image], [out], [onnx.numpy_helper.from_array(weight, "w")]
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)


@pytest.mark.parametrize("part", range(amount(1, 4)))
def test_onnx(tmp_path, part):
    """In a process of its own: a mutant that crashes it, or eats all memory, is a fault as well."""
    path = tmp_path / "net.onnx"
    onnx_model(path)
    step = amount(60, 250)
    command = processes.python(_READ_ONNX, path, part * step, (part + 1) * step)
    env = processes.environment()
    env["PYTHONPATH"] += os.pathsep + str(processes.ROOT / "tests")
    result = processes.run(command, env=env, patience=900)
    assert result.code == 0, result
    assert result.out.endswith("all read\n"), sys.executable
