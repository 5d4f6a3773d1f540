"""FKW packing: exact inverse, size, order and refusal of bad input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conv_cases import pattern_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from topi_kernels.fkw import pack, unpack, validate
from topi_kernels.pattern import Pattern, fixed8_patterns
from topi_kernels.reorder import (
    GROUP_SIZES,
    detect_group,
    distinct_patterns,
    filter_order,
    kernel_codes,
    padded_slots,
    sharing_classes,
)


@settings(max_examples=60, deadline=None)
@given(
    out_channels=st.integers(1, 20),
    in_channels=st.integers(1, 24),
    group=st.sampled_from([1, 2, 4, 8, 16]),
    kernel=st.sampled_from([(1, 1), (3, 3), (5, 5), (1, 3)]),
    density=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    structure=st.sampled_from(["pattern", "tap", "dense"]),
    seed=st.integers(0, 1000),
)
def test_unpack_inverts_pack(out_channels, in_channels, group, kernel, density, structure, seed):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((out_channels, in_channels, *kernel)).astype(np.float32)
    weight *= rng.random(weight.shape) < density
    packed = pack(weight, group, structure=structure)
    validate(packed)
    assert np.array_equal(unpack(packed), weight)


@pytest.mark.parametrize("in_channels", [256, 257, 300, 512, 700])
@pytest.mark.parametrize("connectivity", [2.0, 3.6, 40.0, 1000.0])
def test_wide_layers_survive_either_index_encoding(in_channels: int, connectivity: float) -> None:
    weight = pattern_weights(8, in_channels, connectivity=connectivity)
    packed = pack(weight)
    validate(packed)
    assert np.array_equal(unpack(packed), weight)
    narrow = {"absolute8"} if in_channels <= 256 else {"delta8", "absolute16"}
    assert packed.index_encoding in narrow


def test_a_gap_above_255_is_bridged() -> None:
    weight = np.zeros((200, 1000, 3, 3), np.float32)
    mask = fixed8_patterns()[0].mask
    weight[:, ::3] = mask
    weight[0] = 0
    weight[0, [0, 900]] = mask
    packed = pack(weight)
    assert packed.index_encoding == "delta8"
    assert np.array_equal(unpack(packed), weight)
    kept = int(np.count_nonzero(weight.any(axis=(2, 3))))
    assert packed.num_kernels == kept + 3


@pytest.mark.parametrize(
    ("channels", "group", "limit"),
    [(64, 1, 1.12), (128, 1, 1.12), (256, 1, 1.12), (512, 1, 1.12), (64, 4, 1.04), (512, 4, 1.04)],
)
def test_packed_size_at_8x(channels: int, group: int, limit: float) -> None:
    weight = pattern_weights(channels, channels, group=group)
    kept = int(np.count_nonzero(weight))
    assert pack(weight, group).nbytes <= limit * 4 * kept


def test_filters_are_ordered_by_length_and_kernels_by_pattern() -> None:
    weight = pattern_weights(12, 16)
    weight[3, 4:] = 0
    weight[7] = 0
    packed = pack(weight)
    lengths = np.diff(packed.group_start)
    assert (np.diff(lengths) <= 0).all()
    assert packed.filter_order[-1] == 7
    assert lengths[-1] == 0


def test_sharing_is_found_wherever_the_filters_stand() -> None:
    weight = pattern_weights(32, 16, group=4)
    shuffled = weight[np.random.default_rng(1).permutation(32)]
    assert detect_group(shuffled) == 4
    packed = pack(shuffled, 4)
    assert packed.num_groups == 8
    assert np.array_equal(unpack(packed), shuffled)


def test_filters_that_do_not_share_never_meet_in_a_group() -> None:
    weight = pattern_weights(6, 16)
    packed = pack(weight, 4)
    assert packed.num_groups == 6
    assert padded_slots(sharing_classes(weight), 4) == 18
    assert np.array_equal(unpack(packed), weight)


def test_detected_group_is_a_known_size() -> None:
    assert detect_group(np.ones((3, 2, 3, 3), np.float32)) in GROUP_SIZES
    assert detect_group(np.zeros((16, 2, 3, 3), np.float32)) == 16


def test_share_all_ignores_zeros() -> None:
    weight = pattern_weights(5, 8)
    assert filter_order(weight, 4, share_all=True).tolist() == [0, 1, 2, 3, 4, 5, 5, 5]


def test_distinct_patterns_do_not_depend_on_frequency() -> None:
    masks = fixed8_patterns().masks
    weight = np.zeros((1, 6, 3, 3), np.float32)
    weight[0, :4] = masks[5]
    weight[0, 4] = masks[2]
    swapped = weight.copy()
    swapped[0, :4], swapped[0, 4] = masks[2], masks[5]
    assert distinct_patterns(weight) == distinct_patterns(swapped)
    assert {p.bits for p in distinct_patterns(weight)} == {
        Pattern.from_mask(masks[i]).bits for i in (2, 5)
    }


def test_kernels_of_more_than_64_taps() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 3, 9, 9)).astype(np.float32)
    weight *= np.random.default_rng(1).random(weight.shape) < 0.01
    weight[1] = 0
    codes = kernel_codes(weight)
    assert (codes == 0).tolist() == (~weight.any(axis=(2, 3))).tolist()
    assert np.array_equal(unpack(pack(weight)), weight)


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        (np.zeros((2, 2, 3)), {}, "got shape"),
        (np.full((1, 1, 3, 3), np.nan), {}, "NaN"),
        (np.full((1, 1, 3, 3), np.inf), {}, "NaN or Inf"),
        (np.zeros((1, 1, 3, 3)), {"group": 0}, "group must be"),
        (np.zeros((1, 1, 3, 3)), {"structure": "blocks"}, "structure"),
        (np.ones((1, 1, 3, 3)), {"patterns": tuple(fixed8_patterns())}, "no given pattern covers"),
    ],
)
def test_bad_weights_are_refused(weight, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(weight, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"index_encoding": "other"}, "index_encoding"),
        (lambda p: {"filter_order": np.zeros_like(p.filter_order)}, "filter_order"),
        (lambda p: {"group_start": p.group_start + 1}, "group_start"),
        (lambda p: {"weight_start": p.weight_start + 4}, "weight_start"),
        (lambda p: {"weight_start": p.weight_start * 2}, "weight_start"),
        (lambda p: {"in_channel": p.in_channel[:-1]}, "spare"),
        (lambda p: {"weights": p.weights[:-1]}, "weights holds"),
        (lambda p: {"in_channel": p.in_channel + 200}, "outside"),
    ],
)
def test_validate_finds_broken_layouts(change, message: str) -> None:
    packed = pack(pattern_weights(8, 16))
    validate(packed)
    changed = change(packed)
    if "weight_start" in changed and message == "weight_start":
        changed["weight_start"] = changed["weight_start"] + np.arange(len(packed.weight_start))
    with pytest.raises(ValueError, match=message):
        validate(dataclasses.replace(packed, **changed))
