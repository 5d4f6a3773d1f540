"""Patterns and pattern sets: which taps of a kernel survive pattern pruning.

A *pattern* is a fixed set of taps of a ``kh x kw`` kernel; a *pattern set* is the ordered list of
patterns that the kernels of a layer may use. Numpy only: this module is shared by the pruner, the
packer and the schedules.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PATTERN_SET_SCHEMA = 1
# Of a kernel that is read from a file; what is larger is no convolution.
_MAX_TAPS = 1 << 16
_SHOWN = 200


@dataclass(frozen=True, order=True)
class Pattern:
    """A fixed set of kept taps of one kernel.

    Parameters
    ----------
    kernel_size : tuple of int
        ``(kh, kw)``.
    taps : tuple of (int, int)
        Kept positions ``(row, column)``; stored sorted in row-major order.
    """

    kernel_size: tuple[int, int]
    taps: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        kh, kw = self.kernel_size
        taps = tuple(sorted((int(r), int(c)) for r, c in self.taps))
        if len(set(taps)) != len(taps):
            raise ValueError(f"pattern taps must be distinct, got {list(self.taps)}")
        for r, c in taps:
            if not (0 <= r < kh and 0 <= c < kw):
                raise ValueError(f"tap {(r, c)} is outside a {kh}x{kw} kernel")
        object.__setattr__(self, "kernel_size", (int(kh), int(kw)))
        object.__setattr__(self, "taps", taps)

    @classmethod
    def from_mask(cls, mask: np.ndarray) -> Pattern:
        """Pattern whose taps are the non-zero entries of ``mask`` (``[kh, kw]``)."""
        mask = np.asarray(mask)
        if mask.ndim != 2:
            raise ValueError(f"a pattern mask has 2 dimensions [kh, kw], got shape {mask.shape}")
        rows, cols = np.nonzero(mask)
        return cls(mask.shape, tuple(zip(rows.tolist(), cols.tolist(), strict=True)))

    @property
    def mask(self) -> np.ndarray:
        """Boolean ``[kh, kw]`` array, True at the kept taps."""
        out = np.zeros(self.kernel_size, bool)
        for r, c in self.taps:
            out[r, c] = True
        return out

    @property
    def bits(self) -> int:
        """The pattern as an integer; bit ``r * kw + c`` is set for a kept tap ``(r, c)``."""
        kw = self.kernel_size[1]
        return sum(1 << (r * kw + c) for r, c in self.taps)

    def __len__(self) -> int:
        return len(self.taps)

    def __str__(self) -> str:
        return "/".join("".join("x" if v else "." for v in row) for row in self.mask)


@dataclass(frozen=True)
class PatternSet:
    """Ordered, duplicate-free list of patterns of one kernel size."""

    name: str
    patterns: tuple[Pattern, ...] = field(default=())

    def __post_init__(self) -> None:
        patterns = tuple(self.patterns)
        if not patterns:
            raise ValueError(f"pattern set {self.name!r} is empty; give at least one pattern")
        sizes = {p.kernel_size for p in patterns}
        if len(sizes) > 1:
            raise ValueError(
                f"pattern set {self.name!r} mixes kernel sizes {sorted(sizes)}; use one per set"
            )
        if len(set(patterns)) != len(patterns):
            raise ValueError(f"pattern set {self.name!r} holds a pattern twice")
        if len(patterns) > 255:
            raise ValueError(
                f"pattern set {self.name!r} has {len(patterns)} patterns; pattern_id is a uint8"
                " with 255 meaning 'kernel removed', so at most 255 are allowed"
            )
        object.__setattr__(self, "patterns", patterns)

    @property
    def kernel_size(self) -> tuple[int, int]:
        return self.patterns[0].kernel_size

    @property
    def masks(self) -> np.ndarray:
        """Boolean ``[num_patterns, kh, kw]``."""
        return np.stack([p.mask for p in self.patterns])

    def __len__(self) -> int:
        return len(self.patterns)

    def __iter__(self) -> Iterator[Pattern]:
        return iter(self.patterns)

    def __getitem__(self, index: int) -> Pattern:
        return self.patterns[index]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": PATTERN_SET_SCHEMA,
            "name": self.name,
            "kernel_size": list(self.kernel_size),
            "patterns": [[list(t) for t in p.taps] for p in self.patterns],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PatternSet:
        """Inverse of :meth:`to_dict`.

        Raises
        ------
        ValueError
            On an unknown schema or unknown / missing keys.
        """
        expected = {"schema", "name", "kernel_size", "patterns"}
        if not isinstance(data, dict) or set(data) != expected:
            got = sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"a pattern set needs the keys {sorted(expected)}, got {got}")
        if data["schema"] != PATTERN_SET_SCHEMA or isinstance(data["schema"], bool):
            raise ValueError(
                f"pattern set schema {str(data['schema'])[:_SHOWN]} is unknown; this version"
                f" reads {PATTERN_SET_SCHEMA}"
            )
        name, size, patterns = data["name"], data["kernel_size"], data["patterns"]
        if not isinstance(name, str) or not 0 < len(name) <= _SHOWN:
            raise ValueError(f"pattern set name {str(name)[:_SHOWN]!r}: expected a short text")
        if not _is_pair(size) or not 0 < size[0] * size[1] <= _MAX_TAPS or min(size) < 1:
            raise ValueError(
                f"pattern set kernel_size {str(size)[:_SHOWN]}: expected two whole numbers >= 1,"
                f" of at most {_MAX_TAPS} taps"
            )
        if not isinstance(patterns, list) or not all(_is_taps(taps) for taps in patterns):
            raise ValueError(
                "pattern set patterns: expected lists of taps, each tap a [row, column] of whole"
                " numbers"
            )
        return cls(name, tuple(Pattern(tuple(size), tuple(map(tuple, t))) for t in patterns))

    @classmethod
    def from_json(cls, text: str) -> PatternSet:
        """Inverse of :meth:`to_json`.

        Raises
        ------
        ValueError
            If it is no JSON, or as :meth:`from_dict`.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"a pattern set is JSON text; this is none: {error}") from error
        return cls.from_dict(data)

    @classmethod
    def from_bits(
        cls, name: str, bits: Iterable[int], kernel_size: tuple[int, int] = (3, 3)
    ) -> PatternSet:
        """Pattern set from integers as given by :attr:`Pattern.bits`."""
        kh, kw = kernel_size
        return cls(
            name,
            tuple(
                Pattern(
                    kernel_size, tuple(divmod(i, kw) for i in range(kh * kw) if int(b) >> i & 1)
                )
                for b in bits
            ),
        )


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, list | tuple) and len(value) == 2 and all(type(v) is int for v in value)
    )


def _is_taps(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_pair, value))


def _from_flat(name: str, flat: Sequence[Sequence[int]]) -> PatternSet:
    return PatternSet(
        name, tuple(Pattern((3, 3), tuple(divmod(t, 3) for t in taps)) for taps in flat)
    )


def natural_patterns() -> PatternSet:
    """All 56 patterns of the centre and 3 of the 8 other taps (PatDNN, section 4.1)."""
    others = [t for t in range(9) if t != 4]
    return _from_flat("natural56", [sorted((4, *c)) for c in itertools.combinations(others, 3)])


def fixed8_patterns() -> PatternSet:
    """Four 2x2 corners that contain the centre and four T shapes."""
    return _from_flat(
        "fixed8",
        [
            [0, 1, 3, 4],
            [1, 2, 4, 5],
            [3, 4, 6, 7],
            [4, 5, 7, 8],
            [1, 3, 4, 5],
            [3, 4, 5, 7],
            [1, 3, 4, 7],
            [1, 4, 5, 7],
        ],
    )


def pconv_patterns() -> PatternSet:
    """PCONV's sparse convolution patterns (PCONV, AAAI'20).

    The enhanced Laplacian of Gaussian kernel ``[0 1 0; 1 8 1; 0 1 0]`` has five non-zero taps; each
    pattern drops one of the four ones.
    """
    cross = (1, 3, 5, 7)
    return _from_flat("pconv4", [sorted({4, *cross} - {drop}) for drop in cross])


def dense_pattern(kernel_size: tuple[int, int]) -> Pattern:
    """The pattern that keeps every tap."""
    kh, kw = kernel_size
    return Pattern(kernel_size, tuple((r, c) for r in range(kh) for c in range(kw)))


def single_tap_patterns(kernel_size: tuple[int, int]) -> tuple[Pattern, ...]:
    """One pattern per tap, in row-major order."""
    return tuple(Pattern(kernel_size, (tap,)) for tap in dense_pattern(kernel_size).taps)


_BUILTIN = {
    "natural56": natural_patterns,
    "fixed8": fixed8_patterns,
    "pconv4": pconv_patterns,
}


def builtin_pattern_set(name: str) -> PatternSet:
    """Pattern set by name: ``natural56``, ``fixed8`` or ``pconv4``.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    if name not in _BUILTIN:
        raise ValueError(f"unknown pattern set {name!r}; expected one of {sorted(_BUILTIN)}")
    return _BUILTIN[name]()
