"""Projections: invariants by property tests, optimality against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topi_kernels.pattern import (
    Pattern,
    PatternSet,
    fixed8_patterns,
    natural_patterns,
    pconv_patterns,
)
from tvm_pattern.pruning import projection as pj

SETS = {s.name: s for s in (fixed8_patterns(), natural_patterns(), pconv_patterns())}
QUICK = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def layers(draw):
    group = draw(st.sampled_from([1, 2, 3, 4]))
    rows = draw(st.integers(1, 4))
    in_channels = draw(st.integers(1, 6))
    seed = draw(st.integers(0, 10_000))
    # Few distinct values make ties common.
    levels = draw(st.sampled_from([2, 3, 0]))
    rng = np.random.default_rng(seed)
    shape = (group * rows, in_channels, 3, 3)
    w = rng.integers(0, levels, shape) if levels else rng.standard_normal(shape)
    balance = draw(st.sampled_from(["layer", "filter"]))
    units = draw(st.integers(rows if balance == "filter" else 1, rows * in_channels))
    patterns = SETS[draw(st.sampled_from(sorted(SETS)))]
    return torch.tensor(w, dtype=torch.float64), group, units * group, balance, patterns


@QUICK
@given(layers())
def test_joint_keeps_exactly_the_kernels_and_taps_asked(case):
    w, group, kept, balance, patterns = case
    ids = pj.project_joint(w, pj.pattern_masks(patterns), kept, group, balance)
    assert ids.dtype == torch.uint8
    assert int((ids != pj.REMOVED).sum()) == kept
    removed = pj.removed_positions(ids, pj.pattern_masks(patterns))
    for o, i in itertools.product(*map(range, ids.shape)):
        mask = (~removed[o, i]).numpy()
        if ids[o, i] == pj.REMOVED:
            assert not mask.any()
        else:
            assert mask.sum() == 4
            assert (mask == patterns[int(ids[o, i])].mask).all()
    shared = ids.view(-1, group, ids.shape[1])
    assert (shared == shared[:, :1]).all()
    if balance == "filter":
        counts = (ids != pj.REMOVED).sum(1)
        assert int(counts.max() - counts.min()) <= 1


@QUICK
@given(layers())
def test_pattern_projection_is_optimal_per_kernel_group(case):
    w, group, _, _, patterns = case
    ids = pj.project_pattern(w, pj.pattern_masks(patterns), group)
    energies = np.stack([(w.numpy() ** 2 * p.mask).sum((2, 3)) for p in patterns])  # [P, O, I]
    grouped = energies.reshape(len(patterns), -1, group, w.shape[1]).sum(2)
    rows = ids.view(-1, group, w.shape[1])[:, 0].long().numpy()
    got = np.take_along_axis(grouped, rows[None], 0)[0]
    np.testing.assert_allclose(got, grouped.max(0), rtol=1e-12)


def _brute_force(w, patterns, kept, group, balance):
    """Smallest squared distance over every choice of kernel groups, patterns chosen per group."""
    square = w.numpy() ** 2
    rows, cols = w.shape[0] // group, w.shape[1]
    best = np.max(
        [(square * p.mask).sum((2, 3)).reshape(rows, group, cols).sum(1) for p in patterns],
        0,
    )
    low, high = kept // group // rows, -(-kept // group // rows)
    smallest = np.inf
    for chosen in itertools.combinations(range(rows * cols), kept // group):
        if balance == "filter":
            counts = np.bincount(np.array(chosen) // cols, minlength=rows)
            if counts.min() < low or counts.max() > high:
                continue
        smallest = min(smallest, square.sum() - best.reshape(-1)[list(chosen)].sum())
    return smallest


@pytest.mark.parametrize("balance", ["layer", "filter"])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_joint_projection_is_the_nearest_point(seed, group, balance):
    rng = np.random.default_rng(seed)
    w = torch.tensor(rng.standard_normal((3 * group, 4, 3, 3)))
    patterns = fixed8_patterns()
    for units in (3, 5, 7, 12):
        ids = pj.project_joint(w, pj.pattern_masks(patterns), units * group, group, balance)
        removed = pj.removed_positions(ids, pj.pattern_masks(patterns))
        distance = float((w.square() * removed).sum())
        expected = _brute_force(w, patterns, units * group, group, balance)
        assert distance == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("group", [1, 2])
def test_connectivity_projection_keeps_the_largest_norms(group):
    rng = np.random.default_rng(0)
    w = torch.tensor(rng.standard_normal((4, 5, 3, 3)))
    norms = (w.numpy() ** 2).sum((2, 3)).reshape(-1, group, 5).sum(1)
    for units in range(1, norms.size + 1):
        alive = pj.project_connectivity(w, units * group, group)
        assert int(alive.sum()) == units * group
        kept = norms[alive.view(-1, group, 5)[:, 0].numpy()].sum()
        assert kept == pytest.approx(np.sort(norms.ravel())[::-1][:units].sum())


def test_ties_keep_exactly_the_count_and_the_lowest_indices():
    w = torch.ones(4, 4, 3, 3)
    ids = pj.project_joint(w, pj.pattern_masks(fixed8_patterns()), 5)
    assert torch.nonzero(ids.flatten() != pj.REMOVED).flatten().tolist() == [0, 1, 2, 3, 4]
    assert int(ids[0, 0]) == 0
    assert int(pj.project_connectivity(torch.zeros(3, 3, 3, 3), 4).sum()) == 4


@pytest.mark.parametrize(("size", "taps"), [((5, 5), 9), ((7, 7), 13), ((3, 5), 6), ((1, 1), 1)])
def test_other_kernel_sizes(size, taps):
    rng = np.random.default_rng(1)
    positions = [divmod(i, size[1]) for i in range(size[0] * size[1])]
    chosen = {
        tuple(sorted(map(tuple, rng.permutation(positions)[:taps].tolist()))) for _ in range(5)
    }
    patterns = PatternSet("own", tuple(Pattern(size, taps_) for taps_ in sorted(chosen)))
    w = torch.tensor(rng.standard_normal((3, 7, *size)))
    ids = pj.project_joint(w, pj.pattern_masks(patterns), 10)
    removed = pj.removed_positions(ids, pj.pattern_masks(patterns))
    assert int((~removed).sum()) == 10 * taps
    best = np.max([(w.numpy() ** 2 * p.mask).sum((2, 3)) for p in patterns], 0)
    expected = np.sort(best.ravel())[::-1][:10].sum()
    assert float((w.square() * ~removed).sum()) == pytest.approx(expected)


def test_half_precision_does_not_overflow():
    w = torch.full((2, 2, 3, 3), 300.0, dtype=torch.float16)
    w[0, 0] = 400.0
    ids = pj.project_joint(w, pj.pattern_masks(fixed8_patterns()), 1)
    assert int(ids[0, 0]) != pj.REMOVED


def test_large_layer_is_projected_in_blocks_like_a_small_one():
    w = torch.randn(80, 64, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    masks = pj.pattern_masks(natural_patterns())
    whole = pj.project_pattern(w, masks)
    parts = torch.cat([pj.project_pattern(part, masks) for part in w.split(7)])
    assert torch.equal(whole, parts)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pj.kept_kernels(8, 8, 0.5), "at least 1, got 0.5"),
        (lambda: pj.kept_kernels(8, 8, float("nan")), "at least 1"),
        (lambda: pj.kept_kernels(8, 8, 65.0), "at most 64"),
        (lambda: pj.kept_kernels(8, 8, 9.0, balance="filter"), "at most 8"),
        (lambda: pj.kept_kernels(6, 8, 2.0, group=4), "group 4 does not divide"),
        (lambda: pj.select_largest(torch.ones(3), 4), "select 4 of 3"),
        (lambda: pj.project_pattern(torch.ones(3, 3, 3), torch.ones(1, 3, 3)), r"\[O, I, kh, kw\]"),
        (lambda: pj.project_pattern(torch.ones(3, 1, 3, 3), torch.ones(1, 3, 3), 2), "divide"),
        (lambda: pj.project_pattern(torch.ones(2, 1, 5, 5), torch.ones(1, 3, 3)), "25"),
        (
            lambda: pj.project_pattern(torch.full((2, 1, 3, 3), torch.nan), torch.ones(1, 3, 3)),
            "not finite",
        ),
        (lambda: pj.project_connectivity(torch.full((2, 1, 3, 3), torch.inf), 1), "not finite"),
        (lambda: pj.project_connectivity(torch.ones(4, 2, 3, 3), 3, group=2), "multiple of group"),
        (
            lambda: pj.removed_positions(
                torch.tensor([[9]], dtype=torch.uint8), torch.ones(2, 3, 3, dtype=torch.bool)
            ),
            "outside a set of 2",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_kept_kernels_counts():
    assert pj.kept_kernels(512, 512, 3.6) == 72818
    assert pj.kept_kernels(16, 16, 3.6, group=8) % 8 == 0
    assert pj.kept_kernels(7, 5, 5.0, balance="filter") == 7
    assert pj.kept_kernels(7, 5, 1.0) == 35


@QUICK
@given(layers(), st.randoms(use_true_random=False))
def test_filters_that_share_by_an_order_are_neighbours_of_the_reordered_layer(case, random):
    w, group, kept, balance, patterns = case
    order = torch.tensor(random.sample(range(w.shape[0]), w.shape[0]))
    masks = pj.pattern_masks(patterns)
    joint = pj.project_joint(w, masks, kept, group, balance, order)
    assert torch.equal(joint[order], pj.project_joint(w[order], masks, kept, group, balance))
    pattern = pj.project_pattern(w, masks, group, order)
    assert torch.equal(pattern[order], pj.project_pattern(w[order], masks, group))
    alive = pj.project_connectivity(w, kept, group, balance, order)
    assert torch.equal(alive[order], pj.project_connectivity(w[order], kept, group, balance))


@pytest.mark.parametrize("kept", [16, 32])
def test_filters_alike_keep_more_energy_than_neighbours(kept):
    """By their kernels where some fall (16 of 32), by their taps where there are only patterns."""
    generator = torch.Generator().manual_seed(3)
    kinds = torch.rand(4, 4, 3, 3, generator=generator).pow(4)
    weight = kinds.repeat(2, 1, 1, 1)[torch.randperm(8, generator=generator)]
    masks = pj.pattern_masks(fixed8_patterns())
    order = pj.order_filters(weight, masks, kept, 2)
    energy = {}
    for name, by in (("alone", None), ("similar", order), ("neighbours", None)):
        ids = pj.project_joint(weight, masks, kept, 1 if name == "alone" else 2, "layer", by)
        removed = pj.removed_positions(ids, masks)
        energy[name] = float(weight.masked_fill(removed, 0).square().sum())
    assert energy["similar"] == pytest.approx(energy["alone"], rel=1e-6)  # equal pairs were found
    assert energy["neighbours"] < 0.95 * energy["similar"]
    assert pj.order_filters(weight, masks, kept, 1) is None
