"""Libraries extracted from weights."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from topi_kernels.pattern import Pattern, natural_patterns
from tvm_pattern.pruning import LibrarySpec, greedy_library, model_library, natural_library
from tvm_pattern.pruning.libraries import natural_taps, pattern_frequencies, shrink_library


def _weights(seed=0, shape=(20, 30, 3, 3)):
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape), dtype=torch.float32)


def _energy(weights, library):
    square = weights.double().square().flatten(0, 1).flatten(1).numpy()
    masks = np.stack([p.mask.ravel() for p in library]).astype(float)
    return (square @ masks.T).max(1).sum()


def test_natural_patterns_by_brute_force():
    w = _weights()
    counts = {}
    for kernel in w.flatten(0, 1).abs().numpy():
        flat = kernel.ravel()
        others = sorted((t for t in range(9) if t != 4), key=lambda t: -flat[t])[:3]
        pattern = Pattern((3, 3), tuple(divmod(t, 3) for t in (4, *others)))
        counts[pattern] = counts.get(pattern, 0) + 1
    assert pattern_frequencies([w]) == counts
    top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:8]
    assert list(natural_library([w], 8)) == [p for p, _ in top]


@pytest.mark.parametrize("size", [4, 6, 8, 12, 56])
def test_natural_library_sizes(size):
    library = natural_library([_weights()], size)
    assert len(library) == size
    assert set(library) <= set(natural_patterns())


def test_few_kernels_are_filled_up():
    library = natural_library([_weights(shape=(1, 2, 3, 3))], 12)
    assert len(library) == 12


def test_greedy_beats_frequency_and_nears_the_best_pair():
    w = _weights(3, (6, 8, 3, 3))
    greedy = greedy_library([w], 2)
    best = max(_energy(w, pair) for pair in itertools.combinations(natural_patterns().patterns, 2))
    single = max(_energy(w, [p]) for p in natural_patterns())
    assert _energy(w, list(greedy)[:1]) == pytest.approx(single)
    assert _energy(w, greedy) >= (1 - 1 / np.e) * best
    assert _energy(w, greedy) >= _energy(w, natural_library([w], 2)) - 1e-9


def test_greedy_is_not_ruled_by_the_scale_of_a_layer():
    a, b = _weights(1), _weights(2)
    assert set(greedy_library([a, b], 4)) == set(greedy_library([a * 100, b], 4))


@pytest.mark.parametrize(("size", "taps"), [((5, 5), 9), ((7, 7), 13), ((4, 4), 6), ((3, 5), 5)])
def test_other_kernel_sizes(size, taps):
    w = _weights(0, (8, 8, *size))
    for library in (natural_library([w], 5, taps), greedy_library([w], 5, taps)):
        assert library.kernel_size == size
        assert {len(p) for p in library} == {taps}
        if size[0] % 2 and size[1] % 2:
            centre = (size[0] // 2, size[1] // 2)
            assert all(centre in p.taps for p in library)


def test_phases_keep_the_most_used_patterns():
    library = natural_library([_weights()], 8)
    ids = torch.tensor([[3, 3, 3, 5], [5, 255, 255, 0]], dtype=torch.uint8)
    assert list(shrink_library(library, [ids], 2)) == [library[3], library[5]]


def test_model_library_uses_the_models_convolutions():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 5))
    assert len(model_library(model, LibrarySpec(size=6))) == 6
    assert len(model_library(model, LibrarySpec(source="phased", size=8))) == 56
    five = model_library(model, LibrarySpec(source="greedy", size=3, taps=7), (5, 5))
    assert five.kernel_size == (5, 5)
    with pytest.raises(ValueError, match=r"no \(7, 7\) convolution"):
        model_library(model, LibrarySpec(), (7, 7))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: natural_taps(_weights(), 10), "keeps 1 to 9 taps, got 10"),
        (lambda: natural_library([_weights()], 57), "only 56 natural patterns"),
        (lambda: greedy_library([_weights()], 57), "offer 56 patterns"),
        (lambda: natural_library([_weights(), _weights(0, (2, 2, 5, 5))], 4), "one kernel size"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
