"""Sparsity as data: which weights of a layer are kept, where that is known from, what follows.

It is determined once, where a layer enters, and carried along: a kept weight may be zero, and after
rounding to integers many are, so later values of the weights say less than the structure does.
Everything else (how the layer is filed, which filters share) follows from it. Only this module
looks for zeros in weights.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .pattern import Pattern, dense_pattern, single_tap_patterns
from .reorder import GROUP_SIZES, detect_group, distinct_patterns, kernel_codes, sharing_classes

# Above this many distinct patterns one loop body per pattern costs more instruction cache and
# mispredicted loop ends than it saves; weights are then filed tap by tap.
MAX_PATTERNS = 24
# Above this density skipping the zeros costs more than multiplying by them.
DENSE_DENSITY = 0.6
REMOVED = 255
"""``pattern_id`` of a removed kernel in an assignment."""
# Covering compares tap sets pairwise; weights with more of them follow no patterns anyway.
MAX_TAP_SETS = 4096

METADATA = "tvm_pattern.structures"
"""Key of the structures, by layer, in the metadata of an ONNX file."""

ASSIGNMENT, ZEROS, COVERING = "assignment", "zeros", "covering"


@dataclass(frozen=True, eq=False)
class Structure:
    """The kept weights of one layer.

    Parameters
    ----------
    kept : numpy.ndarray
        bool ``[out_channels, in_channels, kh, kw]``.
    source : str
        ``assignment``: the pruner said so. ``zeros``: weights that are not zero. ``covering``:
        every kernel has the most frequent pattern that contains its non-zero weights.
    """

    kept: np.ndarray
    source: str = ZEROS

    def __post_init__(self) -> None:
        kept = np.ascontiguousarray(self.kept, bool)
        if kept.ndim != 4:
            raise ValueError(f"weights are [out, in, kh, kw], got shape {kept.shape}")
        kept.flags.writeable = False
        object.__setattr__(self, "kept", kept)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and np.array_equal(self.kept, other.kept)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        # Kept, since much is looked up under a structure, and the same in every process.
        return hash((self.kept.shape, zlib.crc32(self.to_bits().data)))

    # Where it is known from ---------------------------------------------------------------------

    @classmethod
    def from_assignment(
        cls, pattern_id: np.ndarray, patterns: tuple[Pattern, ...] | list[Pattern]
    ) -> Structure:
        """What the pruner chose.

        Parameters
        ----------
        pattern_id : numpy.ndarray
            Integers ``[out_channels, in_channels]``: index into ``patterns``, 255 for a removed
            kernel.
        patterns : sequence of Pattern
            Of one kernel size.

        Raises
        ------
        ValueError
            If an index names no pattern.
        """
        ids = np.asarray(pattern_id)
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise ValueError(f"pattern_id is integers [out, in], got {ids.dtype} {ids.shape}")
        alive = ids != REMOVED
        if alive.any() and not 0 <= ids[alive].min() <= ids[alive].max() < len(patterns):
            raise ValueError(
                f"pattern_id names pattern {int(ids[alive].max())}, expected 0 to"
                f" {len(patterns) - 1}, or {REMOVED} for a removed kernel"
            )
        table = np.stack([p.mask for p in patterns] + [np.zeros(patterns[0].kernel_size, bool)])
        return cls(table[np.where(alive, ids, len(patterns))], ASSIGNMENT)

    @classmethod
    def from_zeros(cls, weight: np.ndarray) -> Structure:
        """What the zeros of weights say, which have not been rounded since they were pruned."""
        return cls(kept_by_zeros(weight), ZEROS)

    @classmethod
    def by_covering(cls, weight: np.ndarray) -> Structure:
        """The patterns behind rounded weights, some of whose kept values became zero.

        The patterns are the tap sets that no other one contains. A kernel takes the most frequent
        of them that contains its own; one whose weights are all zero is taken as removed.
        """
        kept = np.asarray(weight) != 0
        codes, first, which, count = np.unique(
            kernel_codes(kept).reshape(-1),
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )
        if len(codes) > MAX_TAP_SETS:
            return cls(kept, COVERING)
        sets = kept.reshape(-1, kept.shape[2] * kept.shape[3])[first]
        sizes = sets.sum(axis=1)
        shared = sets.astype(np.int32) @ sets.T.astype(np.int32)
        inside = shared == sizes[:, None]  # [a, b]: every tap of a is one of b
        maximal = (inside.sum(axis=1) == 1) & (sizes > 0)
        score = np.where(inside & maximal[None, :], count[None, :], -1)
        cover = np.where(sizes > 0, score.argmax(axis=1), np.arange(len(codes)))
        return cls(sets[cover][which.reshape(-1)].reshape(kept.shape), COVERING)

    # What follows -------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(out_channels, in_channels, kh, kw)``."""
        out_channels, in_channels, kh, kw = self.kept.shape
        return out_channels, in_channels, kh, kw

    @cached_property
    def kept_weights(self) -> int:
        """Weights that are kept."""
        return int(np.count_nonzero(self.kept))

    @cached_property
    def kept_kernels(self) -> int:
        """Kernels with any kept weight."""
        return int(np.count_nonzero(self.kept.any(axis=(2, 3))))

    @cached_property
    def tap_sets(self) -> tuple[Pattern, ...]:
        """The distinct patterns of the kernels, in canonical order."""
        return distinct_patterns(self.kept)

    @cached_property
    def kind(self) -> str:
        """How the layer is best filed: ``pattern``, ``tap`` by tap, or ``dense``."""
        if self.kept_weights > DENSE_DENSITY * self.kept.size:
            return "dense"
        return "tap" if len(self.tap_sets) > MAX_PATTERNS else "pattern"

    @cached_property
    def patterns(self) -> tuple[Pattern, ...]:
        """What the kernels are filed under."""
        size = self.shape[2:]
        if self.kind == "dense":
            return (dense_pattern(size),)
        if self.kind == "tap":
            return single_tap_patterns(size)
        return self.tap_sets or (Pattern(size, ((0, 0),)),)

    @cached_property
    def pattern_id(self) -> np.ndarray:
        """int32 ``[out, in]``: index into :attr:`tap_sets`, -1 for a removed kernel."""
        ids = np.full(self.shape[:2], -1, np.int32)
        flat = self.kept.reshape(*self.shape[:2], -1)
        for index, pattern in enumerate(self.tap_sets):
            ids[(flat == pattern.mask.reshape(-1)).all(axis=2)] = index
        return ids

    @cached_property
    def classes(self) -> tuple[np.ndarray, ...]:
        """Partition of the filters: those of one part have equal kernels and patterns."""
        return tuple(sharing_classes(self.kept))

    @cached_property
    def max_group(self) -> int:
        """Largest number of filters that can be computed together."""
        if self.kind == "dense":
            return max(g for g in GROUP_SIZES if g <= max(1, self.shape[0]))
        return detect_group(self.kept)

    @cached_property
    def in_block(self) -> int:
        """Neighbouring in_channels whose kernels are kept together in every filter: 4, 2 or 1."""
        out_channels, in_channels = self.shape[:2]
        kernels = np.asarray(self.kept.any(axis=(2, 3)))
        for size in (4, 2):
            if in_channels % size == 0:
                blocks = kernels.reshape(out_channels, -1, size)
                if bool((blocks.all(axis=2) == blocks.any(axis=2)).all()):
                    return size
        return 1

    def contradictions(self, weight: np.ndarray) -> int:
        """Weights that are not zero although the structure has removed them.

        Raises
        ------
        ValueError
            If the shape is another one.
        """
        if weight.shape != self.kept.shape:
            raise ValueError(f"the structure is of {self.kept.shape}, the weights {weight.shape}")
        return int(np.count_nonzero(np.asarray(weight)[~self.kept]))

    # As a tensor of a marker --------------------------------------------------------------------

    def to_bits(self) -> np.ndarray:
        """The kept weights as uint8, eight to a byte, row-major from the lowest bit."""
        return np.packbits(self.kept.reshape(-1), bitorder="little")

    @classmethod
    def from_bits(cls, bits: np.ndarray, shape: tuple[int, ...], source: str = ZEROS) -> Structure:
        """Inverse of :meth:`to_bits`.

        Raises
        ------
        ValueError
            If there are too few or too many bytes for the shape.
        """
        size = int(np.prod(shape))
        bits = np.asarray(bits, np.uint8).reshape(-1)
        if len(bits) != -(-size // 8):
            raise ValueError(f"{len(bits)} bytes of kept weights, {shape} needs {-(-size // 8)}")
        kept = np.unpackbits(bits, count=size, bitorder="little").astype(bool)
        return cls(kept.reshape(shape), source)

    # In files ---------------------------------------------------------------------------------

    def to_plain(self) -> dict[str, Any]:
        """As data that JSON takes."""
        bits = base64.b64encode(self.to_bits().tobytes()).decode()
        return {"shape": list(self.shape), "source": self.source, "kept": bits}

    @classmethod
    def from_plain(cls, data: Any) -> Structure:
        """Inverse of :meth:`to_plain`.

        Raises
        ------
        ValueError
            If the data is something else.
        """
        try:
            bits = np.frombuffer(base64.b64decode(data["kept"], validate=True), np.uint8)
            return cls.from_bits(bits, tuple(data["shape"]), str(data["source"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no structure of a layer: {error}; write the file again") from error


def kept_by_zeros(weight: np.ndarray) -> np.ndarray:
    """Which weights of a layer of floats are kept, of whatever shape."""
    return np.asarray(weight) != 0


def count_kept(weight: np.ndarray) -> int:
    """Weights, of whatever shape, that a layer of floats left as it is computes with."""
    return int(np.count_nonzero(weight))


def longest_sum(weight: np.ndarray) -> int:
    """Products of the output that has most of them, 1 at least: what its rounding grows with."""
    return max(1, *(count_kept(one) for one in weight))


def density_of(weight: np.ndarray) -> float:
    """Share of the weights, of whatever shape, that a layer left as it is computes with."""
    return count_kept(weight) / weight.size


def determine(weight: np.ndarray, assigned: Structure | None = None) -> Structure:
    """The structure of a layer that enters: assigned, by zeros of floats, or by covering.

    Parameters
    ----------
    weight : numpy.ndarray
        ``[out_channels, in_channels, kh, kw]``.
    assigned : Structure, optional
        Ignored where it contradicts the weights: what arrives is then not what was pruned.
    """
    if (
        assigned is not None
        and assigned.kept.shape == weight.shape
        and not assigned.contradictions(weight)
    ):
        return assigned
    if weight.dtype.kind == "f":
        return Structure.from_zeros(weight)
    return Structure.by_covering(weight)


def over_all_channels(weight: np.ndarray, groups: int) -> np.ndarray:
    """A grouped convolution's weights, or which are kept, as those of an ordinary convolution.

    Kernels between different groups are removed kernels.

    Parameters
    ----------
    weight : numpy.ndarray
        ``[out_channels, in_channels / groups, kh, kw]``.
    groups : int
        Divides ``out_channels``.

    Returns
    -------
    numpy.ndarray
        ``[out_channels, in_channels, kh, kw]``, zero or False outside the groups.
    """
    out_channels, per_group, *size = weight.shape
    full = np.zeros((groups, out_channels // groups, groups, per_group, *size), weight.dtype)
    same = np.arange(groups)
    full[same, :, same] = weight.reshape(groups, out_channels // groups, per_group, *size)
    return full.reshape(out_channels, groups * per_group, *size)
