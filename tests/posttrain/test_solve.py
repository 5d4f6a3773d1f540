"""Choice and solution against brute force in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from topi_kernels.pattern import builtin_pattern_set
from tvm_pattern.posttrain.solve import (
    blocks_of,
    kernel_energy,
    relative_error,
    removal_errors,
    solve_masked,
)
from tvm_pattern.posttrain.statistics import inputs_from_the_start, layer_moments, patches_of


def samples(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Correlated, as the pixels of an image are."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=generator)
    return torch.randn(rows, columns, generator=generator) @ mixed / columns**0.5


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), filters=st.integers(1, 5), columns=st.integers(1, 40))
def test_solution_is_least_squares_on_the_mask(seed, filters, columns):
    x = samples(4 * columns + 8, columns, seed)
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.randn(len(x), filters, generator=generator)
    mask = torch.rand(filters, columns, generator=generator) < 0.5
    damped = x.T @ x / len(x) + 0.05 * torch.eye(columns)
    target = wanted.T @ x / len(x)
    got = solve_masked(
        damped, target, mask, torch.ones(filters, columns), iterations=300, tolerance=1e-6
    )
    assert not got[~mask].any()
    for row, keep, goal in zip(got, mask, target, strict=True):
        matrix = damped[keep][:, keep].double().numpy()
        expected = np.linalg.solve(matrix, goal[keep].double().numpy())
        np.testing.assert_allclose(row[keep], expected, rtol=2e-3, atol=2e-4)


def test_solution_without_any_weight_is_zero():
    gram, target = torch.eye(4), torch.ones(2, 4)
    mask = torch.zeros(2, 4, dtype=torch.bool)
    assert not solve_masked(gram, target, mask, torch.ones(2, 4)).any()


@pytest.mark.parametrize("name", ["fixed8", "natural56"])
def test_removal_errors_against_brute_force(name):
    """Each kernel by itself: its kept taps solved for again, in float64."""
    masks = torch.from_numpy(builtin_pattern_set(name).masks).flatten(1)
    x = samples(500, 2 * 9)
    gram = x.T @ x / len(x)
    weight = torch.randn(3, 2, 9, generator=torch.Generator().manual_seed(1))
    got = removal_errors(weight, blocks_of(gram, 9), masks)
    for number, out, channel in itertools.product(range(0, len(masks), 5), range(3), range(2)):
        mine = x[:, 9 * channel : 9 * channel + 9].double()
        output = mine @ weight[out, channel].double()
        kept = mine[:, masks[number]]
        best = torch.linalg.lstsq(kept, output[:, None]).solution
        expected = float(((kept @ best).flatten() - output).square().mean())
        assert float(got[number, out, channel]) == pytest.approx(expected, rel=1e-3)


def test_energy_of_a_kernel_is_the_power_of_its_output():
    x = samples(300, 18)
    weight = torch.randn(2, 2, 9, generator=torch.Generator().manual_seed(2))
    got = kernel_energy(weight, blocks_of(x.T @ x / len(x), 9))
    expected = (x.view(-1, 2, 9)[:, None] * weight).sum(3).square().mean(0)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": (2, 1)},
        {"padding": "same", "dilation": 2},
        {"padding": "valid", "bias": False},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": 1, "padding_mode": "circular", "stride": 2},
        {"groups": 4, "padding": 1},
    ],
    ids=str,
)
def test_patches_give_the_convolution(options):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, **options)
    image = torch.randn(4, 9, 7)
    patches = patches_of(conv, image, None)
    filters = conv.weight.reshape(conv.groups, -1, patches.shape[2])
    output = (patches @ filters.transpose(1, 2)).permute(0, 2, 1).reshape(8, -1)
    expected = conv(image[None])[0]
    if conv.bias is not None:
        output = output + conv.bias[:, None]
    torch.testing.assert_close(output.view_as(expected), expected, rtol=1e-4, atol=1e-5)


def test_moments_give_the_error_of_other_weights():
    """For a layer that is called twice, with other inputs in the pruned network."""
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)

        def forward(self, x):
            return self.conv(F.relu(self.conv(x)))

    dense, pruned = Twice().eval(), Twice().eval()
    batches = [torch.randn(2, 4, 6, 5), torch.randn(1, 4, 6, 5)]
    convs = (dense.conv, pruned.conv)
    inputs = inputs_from_the_start((dense, pruned), convs, 2, batches, lambda m, b: m(b))
    moments = layer_moments(convs, inputs, 1000)
    assert moments.count == 3 * 2 * 30
    total = power = 0.0
    with torch.no_grad():
        for x in batches:
            a, b = x, x
            for _ in range(2):
                y, z = dense.conv(a), pruned.conv(b)
                total += float((y - z).square().sum())
                power += float(y.square().sum())
                a, b = F.relu(y), F.relu(z)
        target = dense.conv.weight.flatten(1) @ moments.cross[0]
        got = relative_error(pruned.conv.weight.flatten(1), moments.gram[0], target, moments.power)
    assert got == pytest.approx(total / power, rel=1e-4)
