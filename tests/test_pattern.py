"""Patterns and the built-in pattern sets."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from topi_kernels.pattern import (
    Pattern,
    PatternSet,
    builtin_pattern_set,
    dense_pattern,
    fixed8_patterns,
    natural_patterns,
    pconv_patterns,
    single_tap_patterns,
)


def test_natural_patterns_are_the_centre_and_three_of_eight() -> None:
    patterns = natural_patterns()
    assert len(patterns) == 56
    assert all(len(p) == 4 and (1, 1) in p.taps for p in patterns)


def test_fixed8_is_four_corners_and_four_t_shapes() -> None:
    masks = fixed8_patterns().masks
    assert masks.shape == (8, 3, 3)
    corners = [
        m for m in masks if any(m[r : r + 2, c : c + 2].all() for r in (0, 1) for c in (0, 1))
    ]
    assert len(corners) == 4
    assert sum(m[1].all() or m[:, 1].all() for m in masks) == 4


def test_pconv_patterns_come_from_the_enhanced_laplacian_of_gaussian() -> None:
    elog = np.array([[0, 1, 0], [1, 8, 1], [0, 1, 0]]) > 0
    masks = pconv_patterns().masks
    assert len(masks) == 4
    for mask in masks:
        assert mask[1, 1]
        assert mask.sum() == 4
        assert not (mask & ~elog).any()


@pytest.mark.parametrize("name", ["natural56", "fixed8", "pconv4"])
def test_builtin_sets_survive_json(name: str) -> None:
    patterns = builtin_pattern_set(name)
    assert PatternSet.from_json(patterns.to_json()) == patterns
    assert PatternSet.from_bits(name, [p.bits for p in patterns]) == patterns


def test_unknown_builtin_set_names_the_choices() -> None:
    with pytest.raises(ValueError, match="fixed8"):
        builtin_pattern_set("fixed9")


@given(st.integers(1, 7), st.integers(1, 7), st.data())
def test_mask_and_taps_describe_the_same_pattern(kh: int, kw: int, data: st.DataObject) -> None:
    flat = data.draw(st.lists(st.booleans(), min_size=kh * kw, max_size=kh * kw))
    mask = np.array(flat).reshape(kh, kw)
    pattern = Pattern.from_mask(mask)
    assert np.array_equal(pattern.mask, mask)
    assert len(pattern) == mask.sum()
    assert pattern.bits == sum(1 << i for i, kept in enumerate(flat) if kept)


def test_dense_and_single_tap_patterns() -> None:
    assert dense_pattern((5, 3)).mask.all()
    singles = single_tap_patterns((3, 3))
    assert sum(p.mask.astype(int) for p in singles).tolist() == [[1] * 3] * 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pattern((3, 3), ((3, 0),)), "outside"),
        (lambda: Pattern((3, 3), ((0, 0), (0, 0))), "distinct"),
        (lambda: Pattern.from_mask(np.ones(9)), "2 dimensions"),
        (lambda: PatternSet("empty", ()), "empty"),
        (lambda: PatternSet("twice", (dense_pattern((3, 3)),) * 2), "twice"),
        (lambda: PatternSet("mix", (dense_pattern((3, 3)), dense_pattern((1, 1)))), "mixes"),
        (lambda: PatternSet.from_bits("many", range(1, 258)), "at most 255"),
        (lambda: PatternSet.from_dict({"name": "x"}), "needs the keys"),
    ],
)
def test_bad_patterns_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_unknown_schema_is_refused() -> None:
    data = json.loads(fixed8_patterns().to_json())
    data["schema"] = 99
    with pytest.raises(ValueError, match="schema 99"):
        PatternSet.from_dict(data)
