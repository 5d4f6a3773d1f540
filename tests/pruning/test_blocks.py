"""Blocks of in_channels of 1x1 convolutions: kept or removed together, by every method."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from topi_kernels.structure import Structure
from tvm_pattern.posttrain import posttrain
from tvm_pattern.pruning import (
    Admm,
    ConfigError,
    Gradual,
    OneShot,
    PatternConfig,
    Pruner,
    Rule,
    load_pruned,
    oneshot,
    save_pruned,
)
from tvm_pattern.pruning.carried import carried_layers
from tvm_pattern.pruning.projection import kept_kernels, project_joint


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.ReLU(),
        nn.Conv2d(16, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 4, 3),
    )  # fmt: skip


def blocks_of(weight: torch.Tensor, size: int) -> np.ndarray:
    """Weights that are kept in each block: int ``[O, I / size]``."""
    kept = (weight.detach() != 0).flatten(1).numpy()
    return kept.reshape(len(kept), -1, size).sum(2)


def test_the_projection_is_the_nearest():
    """Against trying every choice of blocks."""
    weight = torch.randn(2, 8, 1, 1, generator=torch.Generator().manual_seed(1))
    masks = torch.ones(1, 1, 1, dtype=torch.bool)
    ids = project_joint(weight, masks, 8, block=4)
    kept = weight.masked_fill((ids == 255)[:, :, None, None], 0)
    energies = weight.square().flatten(1).view(2, 2, 4).sum(-1).flatten()
    best = max(float(energies[list(pair)].sum()) for pair in itertools.combinations(range(4), 2))
    assert float(kept.square().sum()) == pytest.approx(best)
    assert set(blocks_of(kept, 4).flatten()) == {0, 4}


def test_groups_of_filters_and_blocks_together():
    weight = torch.randn(8, 16, 1, 1, generator=torch.Generator().manual_seed(1))
    masks = torch.ones(1, 1, 1, dtype=torch.bool)
    kept = kept_kernels(8, 16, 4.0, group=2, balance="filter", block=4)
    assert kept == 32
    alive = project_joint(weight, masks, kept, 2, "filter", block=4) != 255
    assert torch.equal(alive[0::2], alive[1::2])
    assert (alive.view(8, 4, 4).any(2) == alive.view(8, 4, 4).all(2)).all()
    assert (alive.sum(1) == 4).all()


@pytest.mark.parametrize("method", [OneShot(), Gradual(steps=2), Admm(steps=2, rho=(0.1,)),
                                    Admm(steps=2, rho=(0.1,), separate=True)],
                         ids=lambda m: f"{m.name}{getattr(m, 'separate', '')}")  # fmt: skip
def test_every_method_keeps_whole_blocks(method):
    model = network()
    config = PatternConfig(connectivity=2, connectivity_1x1=2, block_1x1=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = Pruner(model, config, method).attach(optimizer)
    for _ in range(3):
        model(torch.randn(2, 3, 6, 6)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    pruner.freeze()
    report = pruner.finalize()
    for index in (2, 4):
        counts = blocks_of(model[index].weight, 4)
        assert set(counts.flatten()) == {0, 4}
        assert (counts > 0).sum() == counts.size // 2
    assert set(blocks_of(model[5].weight, 2).flatten()) == {0, 2}  # 6 in_channels
    notes = {row.name: row.note for row in report.rows}
    assert "1x4 blocks of in_channels" in notes["2"]
    assert "lowered to 2" in notes["5"]


def test_post_training_keeps_whole_blocks(tmp_path):
    model = network().eval()
    data = [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))]
    posttrain(model, data, 1.5, connectivity_1x1=2, block_1x1=4, steps=3, progress=False)
    counts = blocks_of(model[2].weight, 4)
    assert (counts > 0).sum() == counts.size // 2
    assert set(counts.flatten()) == {0, 4}
    save_pruned(tmp_path / "m.safetensors", model, carried_layers(model))
    assert set(load_pruned(tmp_path / "m.safetensors", network())) >= {"2", "4"}


def test_structures_know_their_blocks():
    model = network()
    oneshot(model, connectivity_1x1=2, block_1x1=4)
    kept = [Structure.from_zeros(model[i].weight.detach().numpy()) for i in (2, 5)]
    assert [s.in_block for s in kept] == [4, 2]
    single = np.ones((2, 4, 1, 1), bool)
    single[0, 1] = False
    assert Structure(single).in_block == 1
    assert Structure(np.ones((2, 3, 1, 1), bool)).in_block == 1


def test_states_and_files_without_blocks_are_as_before():
    assert "block_1x1" not in PatternConfig().to_dict()
    config = PatternConfig(block_1x1=4, rules=(Rule(type="pointwise", block=2),))
    assert PatternConfig.from_dict(config.to_dict()) == config
    model = network()
    oneshot(model, connectivity_1x1=2, block_1x1=4, rules=(Rule(name="2", block=2),))
    assert len(np.unique(blocks_of(model[2].weight, 4))) > 1
    assert set(blocks_of(model[2].weight, 2).flatten()) == {0, 2}


def test_what_is_refused():
    with pytest.raises(ConfigError, match="block 4 is for 1x1 convolutions, and this is a conv"):
        oneshot(network(), rules=(Rule(name="6", block=4),))
    with pytest.raises(ConfigError, match="block_1x1"):
        oneshot(network(), block_1x1=0)
    with pytest.raises(ValueError, match="block 4 does not divide the 6 in_channels"):
        kept_kernels(4, 6, 2.0, block=4)
    with pytest.raises(ConfigError, match="above what 16 x 2 kernel groups allow"):
        oneshot(network(), connectivity_1x1=40, block_1x1=4, balance="layer")
