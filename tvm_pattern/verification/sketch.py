"""Intermediate values remembered by samples, so that those of a huge network fit in memory.

Which elements are sampled depends on the number of elements alone. A value and its reshaped copy
have the same sketch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from .compare import error_of

SAMPLES = 1 << 14


@dataclass(frozen=True, eq=False)
class Sketch:
    """Samples of a float tensor: ``size`` elements of magnitude up to ``scale``.

    ``moments`` (mean, root of the mean square, least and largest) do not depend on the order of
    the elements.
    """

    size: int
    scale: float
    samples: np.ndarray
    moments: np.ndarray

    def agrees_with(self, other: Sketch, tolerance: float) -> bool:
        """Whether both may be the same value, up to ``tolerance`` of its scale."""
        if self.size != other.size:
            return False
        # The scale is that of the whole tensor, not of the sample: append it to both.
        mine = np.append(self.samples, self.scale)
        return error_of(mine, np.append(other.samples, other.scale)) <= tolerance

    def has_elements_of(self, other: Sketch, tolerance: float) -> bool:
        """Whether both may hold the same elements in another order (another layout)."""
        return self.size == other.size and error_of(self.moments, other.moments) <= tolerance


def sketch(array: np.ndarray) -> Sketch:
    """Sketch a float array."""
    flat = array.reshape(-1)
    samples = flat.astype(np.float64) if flat.size <= SAMPLES else flat[_positions(flat.size)]
    finite = flat[np.isfinite(flat)].astype(np.float64)
    if not finite.size:
        return Sketch(flat.size, 0.0, samples.astype(np.float64), np.zeros(4))
    least, largest = float(finite.min()), float(finite.max())
    mean_square = float(np.mean(finite * finite))
    moments = np.array([float(finite.mean()), mean_square**0.5, least, largest])
    return Sketch(flat.size, max(-least, largest, 0.0), samples.astype(np.float64), moments)


@lru_cache(maxsize=64)
def _positions(size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(0, size, SAMPLES)


@dataclass(frozen=True)
class Node:
    """One operator of a graph, with what it gave.

    Parameters
    ----------
    name : str
        Unique in its graph.
    op : str
        Name of the operator, such as ``aten.selu.default``.
    layer : str
        Path of the module that it belongs to, empty if unknown.
    inputs : tuple of str
        Nodes whose values it takes.
    values : tuple of Sketch
        Of its float results; empty where there is none.
    discrete : bool
        It takes floats and gives integers or booleans, or steps: a tiny change of its operand may
        change its result by a whole step.
    source : str
        Where the model's code calls it, empty if unknown.
    """

    name: str
    op: str
    layer: str = ""
    inputs: tuple[str, ...] = ()
    values: tuple[Sketch, ...] = field(default=(), repr=False)
    discrete: bool = False
    source: str = ""

    def __str__(self) -> str:
        place = f" in layer {self.layer!r}" if self.layer else ""
        source = f" ({self.source})" if self.source else ""
        return f"{self.op} ({self.name}){place}{source}"
