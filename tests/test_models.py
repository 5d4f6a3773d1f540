"""The networks: torchvision's keys and shapes, deterministic weights of a sensible scale."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import tvm_pattern as tp
from tvm_pattern.models.initialise import build, fill

KEYS = Path(__file__).parent / "data" / "torchvision_keys.txt"


def torchvision_keys() -> dict[str, list[str]]:
    """Network -> lines "key AxBxC" as torchvision 0.28 has them, in order."""
    networks: dict[str, list[str]] = {}
    for line in KEYS.read_text().splitlines():
        if line.startswith("["):
            lines = networks.setdefault(line.strip("[]"), [])
        else:
            lines.append(line.rstrip())
    return networks


@pytest.mark.parametrize("name", sorted(torchvision_keys()))
def test_state_dict_is_torchvisions(name, monkeypatch):
    # Keys and shapes only: the 138 million weights of VGG need not be drawn.
    monkeypatch.setattr("tvm_pattern.models.vgg.build", lambda factory, seed: factory())
    with torch.device("meta"):
        model = getattr(tp.models, name)()
    lines = [f"{k} {'x'.join(map(str, v.shape))}".rstrip() for k, v in model.state_dict().items()]
    assert lines == torchvision_keys()[name]


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_weights_are_deterministic_and_keep_the_scale(name):
    model, again = (getattr(tp.models, name)(num_classes=10, seed=3) for _ in range(2))
    other = getattr(tp.models, name)(num_classes=10, seed=4)
    assert not model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert not torch.equal(next(model.parameters()), next(other.parameters()))
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model(image)
    assert output.shape == (1, 10)
    assert 0.1 < output.std() < 50


def test_vgg_takes_small_odd_sizes():
    layers = tp.models.VGG(num_classes=4, batch_norm=True).features
    fill(layers, 0)
    layers.eval()
    with torch.no_grad():
        features = layers(torch.ones(1, 3, 33, 41))
    assert features.shape == (1, 512, 1, 1)
    assert 0.01 < features.mean() < 10


def test_initialisation_refuses_layers_it_does_not_know():
    with pytest.raises(TypeError, match=r"LayerNorm \('1'\); expected Conv2d"):
        build(lambda: nn.Sequential(nn.ReLU(), nn.LayerNorm(3)), seed=0)
