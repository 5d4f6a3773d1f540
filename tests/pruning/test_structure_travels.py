"""The pruner's assignment reaches plan, tuner, report and manifest, whatever rounding does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import tvm_pattern as tp
from relay_passes import targets
from topi_kernels.structure import ASSIGNMENT, COVERING, ZEROS, Structure, determine
from tvm_pattern.assigned import assigned_structures
from tvm_pattern.frontend import import_model
from tvm_pattern.models import ResNet
from tvm_pattern.pruning import forget_assignment, load_pruned, oneshot, save_pruned
from tvm_pattern.tuning.tasks import extract_tasks

TARGET = targets.resolve("pattern/x86-avx2")
IMAGE = torch.randn(1, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def convolutions(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def rounded(weight: np.ndarray) -> np.ndarray:
    """Symmetric 8 bits per filter, as integers."""
    scale = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
    return np.round(weight / np.maximum(scale, 1e-12)).astype(np.int8)


def round_in_place(model):
    with torch.no_grad():
        for conv in convolutions(model).values():
            conv.weight.copy_(torch.from_numpy(rounded(conv.weight.numpy()).astype("float32")))


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 16, 1),
    ).eval()


def pruned(group=4):
    model = small()
    report = oneshot(model, connectivity=2.0, group=group, connectivity_1x1=2.0)
    return model, report.assignment


def test_rounding_a_pruned_resnet_changes_no_structure():
    torch.manual_seed(0)
    model = ResNet((1, 1, 1, 1), num_classes=10)  # the widths of ResNet-50, a block of each
    oneshot(model, connectivity=3.6, group=4, connectivity_1x1=2.0)
    before = assigned_structures(model)
    assert len(before) == 16  # all but the 7x7 stem, which has no library
    moved = 0
    for name, conv in convolutions(model).items():
        if name in before:
            integers = rounded(conv.weight.detach().numpy())
            assert determine(integers, before[name]) is before[name]
            moved += Structure.from_zeros(integers) != before[name]
    assert moved == 16  # what inferring from zeros would make of it
    round_in_place(model)
    after = assigned_structures(model)
    assert after == before
    assert {s.max_group for s in after.values()} == {s.max_group for s in before.values()}


def test_tasks_of_rounded_weights_are_the_same():
    model, assignment = pruned()
    exact = import_model(model, IMAGE)
    wanted = extract_tasks(exact.mod, TARGET, 1, exact.structures)
    round_in_place(model)
    imported = import_model(model, IMAGE)
    tasks = extract_tasks(imported.mod, TARGET, 1, imported.structures)
    assert [t.task.key for t in tasks] == [t.task.key for t in wanted]
    assert [t.structure for t in tasks] == [t.structure for t in wanted]
    assert {t.structure.source for t in tasks} == {t.source for t in tasks} == {ASSIGNMENT}
    ids = assignment["3"].pattern_id.numpy()
    assert tasks[1].task.kept_kernels == int((ids != 255).sum())
    assert tasks[1].task.max_group >= 4
    inferred = extract_tasks(imported.mod, TARGET)
    assert inferred[1].task.max_group < 4
    assert inferred[1].structure.source == ZEROS


@pytest.mark.parametrize("rounding", [False, True])
def test_libraries_say_where_the_structure_is_from_and_compute_it_right(rounding, tmp_path):
    model, assignment = pruned()
    if rounding:
        round_in_place(model)
    save_pruned(tmp_path / "w.safetensors", model, assignment)
    other = small(seed=7)
    load_pruned(tmp_path / "w.safetensors", other)
    library = tp.compile(other, IMAGE, interleaved_lanes=False)
    assert [row.structure for row in library.report.rows] == [ASSIGNMENT] * 3
    layer = assignment["3"].pattern_id.numpy()
    kept = 4 * int((layer != 255).sum())
    assert library.report.rows[1].sparsity == pytest.approx(1 - kept / (32 * 32 * 9))
    # How much of the sharing so small a layer uses depends on the processor.
    assert library.report.rows[1].group >= 2
    with torch.no_grad():
        want = model(IMAGE).numpy()
    got = library(IMAGE.numpy())
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    library.export(tmp_path / "m.so")
    manifest = json.loads((tmp_path / "m.so.json").read_text())
    assert "assignment" in json.dumps(manifest["report"])
    assert [r.structure for r in tp.load(tmp_path / "m.so").report.rows] == [ASSIGNMENT] * 3


def test_without_an_assignment_the_weights_speak():
    model, _ = pruned()
    forget_assignment(model)
    imported = import_model(model, IMAGE)
    assert imported.structures == {}
    tasks = extract_tasks(imported.mod, TARGET, 1, imported.structures)
    assert {t.structure.source for t in tasks} == {ZEROS}
    weight = model[3].weight.detach().numpy()
    assert determine(rounded(weight)).source == COVERING


def test_wrapped_models_find_their_layers():
    model, _ = pruned()
    for wrapped in (torch.compile(model, backend="eager"), nn.DataParallel(model)):
        structures = assigned_structures(wrapped)
        assert len(structures) == 3
        names = {n for n, m in wrapped.named_modules() if isinstance(m, nn.Conv2d)}
        assert set(structures) == names
