"""Structure: from an assignment, from zeros, by covering; rounding does not move it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topi_kernels.fkw import pack, unpack
from topi_kernels.pattern import Pattern, fixed8_patterns
from topi_kernels.structure import (
    ASSIGNMENT,
    COVERING,
    REMOVED,
    ZEROS,
    Structure,
    count_kept,
    determine,
    longest_sum,
)

ROOT = Path(__file__).resolve().parents[1]


def assignment(out_channels=16, in_channels=8, group=1, density=0.4, seed=0):
    """Pattern ids of fixed8 with 255 for removed kernels, equal inside groups of filters."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 8, (out_channels // group, in_channels)).astype(np.uint8)
    ids[rng.random(ids.shape) > density] = REMOVED
    return np.repeat(ids, group, axis=0)


def weights(ids, seed=0, small=False):
    """Weights that obey the ids, written without this package's packing or detection."""
    rng = np.random.default_rng(seed)
    patterns = list(fixed8_patterns())
    weight = np.zeros((*ids.shape, 3, 3), np.float32)
    for o, i in np.argwhere(ids != REMOVED):
        for r, c in patterns[ids[o, i]].taps:
            weight[o, i, r, c] = rng.standard_normal() * (0.02 if small else 1)
    return weight


def test_an_assignment_and_its_zeros_say_the_same():
    ids = assignment()
    weight = weights(ids)
    told, seen = Structure.from_assignment(ids, list(fixed8_patterns())), determine(weight)
    assert (told.source, seen.source) == (ASSIGNMENT, ZEROS)
    assert told == seen
    assert hash(told) == hash(seen)
    assert told.kind == "pattern"
    assert told.kept_kernels == int((ids != REMOVED).sum())
    assert told.kept_weights == np.count_nonzero(weight)
    assert set(told.patterns) <= set(fixed8_patterns())
    for o, i in np.ndindex(ids.shape):
        index = told.pattern_id[o, i]
        assert (index < 0) == (ids[o, i] == REMOVED)
        if index >= 0:
            assert told.tap_sets[index] == list(fixed8_patterns())[ids[o, i]]


def test_a_kept_weight_may_be_zero_without_changing_anything():
    ids = assignment(group=4)
    weight = weights(ids)
    told = Structure.from_assignment(ids, list(fixed8_patterns()))
    rounded = np.round(weight * 2) / 2
    assert np.count_nonzero(rounded) < np.count_nonzero(weight)
    assert determine(rounded, told) is told
    assert told.max_group == 4
    assert Structure.from_zeros(rounded).max_group < 4
    packed = pack(rounded, 4, told.patterns, told.kind, told.kept)
    assert np.array_equal(unpack(packed), rounded)
    assert packed.num_kernels * 4 == told.kept_kernels


def test_an_assignment_that_contradicts_the_weights_is_not_believed():
    ids = assignment()
    weight = weights(ids)
    told = Structure.from_assignment(ids, list(fixed8_patterns()))
    o, i = np.argwhere(ids == REMOVED)[0]
    weight[o, i, 0, 0] = 1.0
    assert told.contradictions(weight) == 1
    found = determine(weight, told)
    assert found.source == ZEROS
    assert found.kept[o, i, 0, 0]
    assert determine(weight[:8], told).source == ZEROS
    with pytest.raises(ValueError, match=r"structure is of \(16, 8, 3, 3\), the weights \(8, 8"):
        told.contradictions(weight[:8])
    with pytest.raises(ValueError, match="leaves out weights that are not zero"):
        pack(weight, kept=told.kept)


@pytest.mark.parametrize("group", [1, 4])
def test_covering_finds_the_patterns_behind_rounded_weights(group):
    ids = assignment(64, 32, group)
    weight = weights(ids)
    told = Structure.from_assignment(ids, list(fixed8_patterns()))
    integers = np.round(weight * 8).astype(np.int8)
    lost = np.count_nonzero(weight) - np.count_nonzero(integers)
    assert lost > 50
    found = determine(integers)
    assert found.source == COVERING
    assert set(found.tap_sets) == set(told.tap_sets)
    assert not (np.abs(integers) > 0)[~found.kept].any()
    # A kernel that has lost a tap may fit two patterns: covering is a guess, an assignment is not.
    wrong = np.count_nonzero((found.kept != told.kept).any(axis=(2, 3)))
    assert wrong <= 0.1 * told.kept_kernels
    plain = Structure.from_zeros(integers)
    assert np.count_nonzero((plain.kept != told.kept).any(axis=(2, 3))) > 2 * wrong


def test_covering_leaves_what_follows_no_patterns():
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((70, 70, 7, 7)) * (rng.random((70, 70, 7, 7)) < 0.2)).astype("f4")
    assert Structure.by_covering(weight) == Structure.from_zeros(weight)
    empty = Structure.by_covering(np.zeros((4, 4, 3, 3), np.int8))
    assert (empty.kept_weights, empty.kind, empty.max_group) == (0, "pattern", 4)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 5), st.sampled_from([1, 3, 5])),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_bits_are_the_inverse_of_bits(shape, density, seed):
    out_channels, in_channels, k = shape
    kept = np.random.default_rng(seed).random((out_channels, in_channels, k, k)) < density
    structure = Structure(kept, ASSIGNMENT)
    again = Structure.from_bits(structure.to_bits(), kept.shape, ASSIGNMENT)
    assert np.array_equal(again.kept, kept)
    assert again.source == ASSIGNMENT
    assert len(structure.to_bits()) == -(-kept.size // 8)


def test_filters_share_in_any_partition():
    ids = assignment(12, 6, group=3)
    order = np.random.default_rng(1).permutation(12)
    structure = Structure.from_assignment(ids[order], list(fixed8_patterns()))
    parts = {frozenset(part.tolist()) for part in structure.classes}
    expected = {frozenset(np.flatnonzero(order // 3 == g).tolist()) for g in range(4)}
    assert parts == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Structure(np.ones((2, 2))), r"weights are \[out, in, kh, kw\]"),
        (
            lambda: Structure.from_assignment(np.full((2, 2), 9), list(fixed8_patterns())),
            "names pattern 9, expected 0 to 7",
        ),
        (
            lambda: Structure.from_assignment(np.zeros((2, 2)), list(fixed8_patterns())),
            "pattern_id is integers",
        ),
        (lambda: Structure.from_bits(np.zeros(3, "u1"), (2, 2, 3, 3)), "3 bytes of kept weights"),
    ],
)
def test_bad_structures_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_dense_layers_are_filed_whole():
    structure = Structure.from_zeros(np.ones((6, 4, 3, 3), np.float32))
    assert (structure.kind, structure.max_group) == ("dense", 4)
    assert structure.patterns == (Pattern.from_mask(np.ones((3, 3))),)


def test_only_structure_reads_sparsity_off_zeros():
    """Weights that round to zero are kept ones: nobody else may ask which are zero."""
    asking = re.compile(r"\bweights?\b(\.\w+(\(\))?|\[[^\]]*\])*\)* *[!=]= *0(\.0)?\b(?!\.\d)")
    found = [
        f"{path}: {line.strip()}"
        for room in ("topi_kernels", "relay_passes", "tvm_pattern")
        for path in sorted((ROOT / room).rglob("*.py"))
        # Weights of pixels when images are resized are another thing.
        if path.name not in ("structure.py", "torch_resize.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if asking.search(line)
    ]
    assert found == []


def test_the_longest_sum_is_that_of_the_filter_with_most_weights() -> None:
    weight = np.zeros((3, 2, 2, 2), np.float32)
    assert longest_sum(weight) == 1
    weight[1, :, 0] = 1
    weight[2, 0] = -1
    weight[2, 1, 1, 1] = 2
    assert (count_kept(weight), longest_sum(weight), longest_sum(weight[:1])) == (9, 5, 1)
