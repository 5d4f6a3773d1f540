"""What a network computes of an image depends neither on its batch nor on the number of threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tvm_pattern as tp
from tvm_pattern import threads

IMAGES = np.random.default_rng(0).standard_normal((3, 3, 34, 34), "f4")


class Network(nn.Module):
    """Every kind of operator on planes, then a pruned linear layer and a dense one."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.wide = nn.Conv2d(16, 48, 1)
        self.depthwise = nn.Conv2d(48, 48, 3, padding=1, groups=48)
        self.narrow = nn.Conv2d(48, 16, 1)
        self.spatial = nn.Conv2d(16, 32, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(32 * 8 * 8, 64), nn.ReLU())
        self.last = nn.Linear(64, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.narrow(nn.functional.relu6(self.depthwise(torch.relu(self.wide(x)))))
        return self.last(self.head(self.pool(torch.relu(self.spatial(x)))))


@pytest.fixture(scope="module", params=[1, 4])
def outputs(request):
    """Outputs of single images and of all in one batch, on one thread and on two."""
    torch.manual_seed(0)
    model = Network().eval()
    tp.pruning.oneshot(model, group=request.param, connectivity_1x1=2.0, connectivity_linear=4.0)
    sizes = [(IMAGES[:1],), (IMAGES,)]
    library = tp.compile(model, sizes=sizes, num_threads=2, verify=False)
    results = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "_CPUS", (threads.available_cpus() * 2)[:2])
        for number in (1, 2):
            library.num_threads = number
            single = np.concatenate([library(image[None]) for image in IMAGES])
            results[number] = (single, library(IMAGES))
    with torch.no_grad():
        expected = model(torch.from_numpy(IMAGES)).numpy()
    return results, expected


def test_batches_are_their_images_bit_for_bit(outputs):
    results, expected = outputs
    for single, batch in results.values():
        np.testing.assert_array_equal(batch, single)
        np.testing.assert_allclose(batch, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_threads_change_no_bit(outputs):
    results, _ = outputs
    for one, two in zip(*results.values(), strict=True):
        np.testing.assert_array_equal(one, two)
