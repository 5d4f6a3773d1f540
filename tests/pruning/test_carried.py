"""The patterns stay with a live model, whatever is done to it, and contradictions are refused."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import tvm_pattern as tp
from tvm_pattern.assigned import LostPruningWarning
from tvm_pattern.pruning import (
    Pruner,
    StalePatternsError,
    apply_assignment,
    carried_assignment,
    forget_assignment,
    load_pruned,
    oneshot,
    save_pruned,
)

from .small import CONFIG, make_net, run, sgd


@pytest.fixture
def pruned():
    model = make_net()
    report = oneshot(model, connectivity=2.0, connectivity_1x1=2.0)
    return model, report.assignment


def same(found, assignment):
    assert found.keys() == assignment.keys()
    for name, layer in assignment.items():
        assert torch.equal(found[name].pattern_id, layer.pattern_id)
        assert found[name].pattern_set == layer.pattern_set
    return True


def test_copies_types_and_state_dicts_neither_lose_nor_change_it(pruned):
    model, assignment = pruned
    plain = make_net().state_dict()
    assert model.state_dict().keys() == plain.keys()
    assert same(carried_assignment(copy.deepcopy(model)), assignment)
    assert same(carried_assignment(copy.deepcopy(model).half()), assignment)
    assert same(carried_assignment(copy.deepcopy(model).to(torch.bfloat16)), assignment)
    assert same(carried_assignment(pickle.loads(pickle.dumps(model))), assignment)
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    assert same(carried_assignment(model), assignment)
    assert same(carried_assignment(nn.DataParallel(model)), assignment)
    assert same(carried_assignment(torch.compile(model, backend="eager")), assignment)


def test_distributed_training_carries_it(pruned, tmp_path):
    model, assignment = pruned
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert same(carried_assignment(nn.parallel.DistributedDataParallel(model)), assignment)
    finally:
        dist.destroy_process_group()


def test_checkpoints_and_the_pruner_leave_it_on_the_model(pruned, tmp_path):
    model, assignment = pruned
    save_pruned(tmp_path / "w.safetensors", model, assignment)
    other = make_net(seed=5)
    load_pruned(tmp_path / "w.safetensors", other)
    assert same(carried_assignment(other), assignment)
    trained = make_net()
    opt = sgd(trained)
    pruner = Pruner(trained, CONFIG, "oneshot").attach(opt)
    assert carried_assignment(trained) == {}
    run(trained, opt, pruner, 0, 6, freeze_at=3)
    report = pruner.finalize()
    assert same(carried_assignment(trained), report.assignment)
    resumed = make_net()
    resumed.load_state_dict(trained.state_dict())
    again = Pruner(resumed, CONFIG, "oneshot")
    again.load_state_dict(pruner.state_dict())
    assert same(carried_assignment(resumed), report.assignment)
    Pruner(trained, CONFIG, "oneshot")  # begins anew
    assert carried_assignment(trained) == {}


def test_weights_that_contradict_their_patterns_are_refused(pruned):
    model, assignment = pruned
    layer = assignment["3"]
    dead = np.argwhere(layer.removed().numpy())[0]
    with torch.no_grad():
        model[3].weight[tuple(dead)] = 0.5
    with pytest.raises(StalePatternsError, match=r"not zero in 3 \(1 weights\)"):
        carried_assignment(model)
    with pytest.raises(ValueError, match="forget_assignment"):
        tp.compile(model.eval(), torch.zeros(1, 3, 6, 6))
    apply_assignment(model, assignment)
    assert same(carried_assignment(model), assignment)
    model.load_state_dict(make_net(seed=3).state_dict())
    with pytest.raises(StalePatternsError, match=r"0 .* 3 "):
        carried_assignment(model)
    forget_assignment(model)
    assert carried_assignment(model) == {}


def test_layers_that_share_a_weight_carry_the_same_patterns():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    model[2].weight = model[1].weight
    oneshot(model)
    found = carried_assignment(model)
    assert set(found) == {"0", "1", "2"}
    assert torch.equal(found["1"].pattern_id, found["2"].pattern_id)


class Centred(nn.Module):
    """Computes the weight of its ordinary convolution, which only the compiler can see."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        x = self.stem(x)
        return F.conv2d(x, self.conv.weight - self.conv.weight.mean(), padding=1)


def test_the_compiler_warns_of_pruning_that_is_lost():
    model = Centred().eval()
    oneshot(model, connectivity=2.0)
    with pytest.warns(LostPruningWarning, match=r"lost in the compiled model: conv: ") as caught:
        library = tp.compile(model, torch.zeros(1, 3, 8, 8))
    assert len([w for w in caught if w.category is LostPruningWarning]) == 1
    assert "stem" not in str(caught[0].message)
    assert len(library.report.rows) == 2


def test_the_compiler_is_silent_where_the_pruning_arrives():
    model = make_net().eval()
    oneshot(model, connectivity=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LostPruningWarning)
        report = tp.compile(model, torch.zeros(1, 3, 6, 6)).report
    kept = {
        r.layer: 1
        - np.count_nonzero(model[int(r.layer)].weight.detach().numpy())
        / model[int(r.layer)].weight.numel()
        for r in report.rows
    }
    assert {r.layer: r.sparsity for r in report.rows} == pytest.approx(kept)
