"""What a model is checked on: the example inputs, and seeded random ones of the same shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..frontend import TensorSpec


@dataclass(frozen=True)
class CheckInput:
    """One set of inputs and its name in reports."""

    name: str
    arrays: tuple[np.ndarray, ...]


def as_arrays(examples: Sequence[Any]) -> tuple[np.ndarray, ...]:
    """Tensors and arrays as numpy arrays."""
    return tuple(
        value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
        for value in examples
    )


def random_input(
    specs: Sequence[TensorSpec], examples: Sequence[np.ndarray] | None, seed: int
) -> CheckInput:
    """Random values where the model takes floats; integers and booleans as given, else zeros.

    Floats are uniform over the range of the example. A constant example (zeros, ones) says nothing
    of the range: then they are standard normal.
    """
    generator = np.random.default_rng(seed)
    arrays = []
    for index, spec in enumerate(specs):
        example = examples[index] if examples is not None else None
        if not spec.dtype.startswith("float"):
            given = example if example is not None else np.zeros(spec.shape)
            arrays.append(np.asarray(given).astype(spec.dtype))
            continue
        arrays.append(_floats(generator, spec, example))
    return CheckInput(f"random values (seed {seed})", tuple(arrays))


def _floats(
    generator: np.random.Generator, spec: TensorSpec, example: np.ndarray | None
) -> np.ndarray:
    low, high = 0.0, 0.0
    if example is not None and example.size and np.isfinite(example).all():
        low, high = float(example.min()), float(example.max())
    if low < high:
        values = generator.uniform(low, high, spec.shape)
    else:
        values = generator.standard_normal(spec.shape)
    return np.asarray(values).astype(spec.dtype)


def positive_input(specs: Sequence[TensorSpec], given: CheckInput, seed: int) -> CheckInput:
    """Floats in [0, 1): for models that give nothing but NaN or Inf on others (logarithms)."""
    generator = np.random.default_rng(seed)
    arrays = tuple(
        np.asarray(generator.random(spec.shape)).astype(spec.dtype)
        if spec.dtype.startswith("float")
        else array
        for spec, array in zip(specs, given.arrays, strict=True)
    )
    return CheckInput(f"random values in [0, 1) (seed {seed})", arrays)


def perturbed(given: CheckInput, relative: float) -> CheckInput:
    """Every float moved by up to ``relative`` of itself."""
    generator = np.random.default_rng(0)
    arrays = tuple(
        (a * (1 + relative * generator.uniform(-1, 1, a.shape))).astype(a.dtype)
        if a.dtype.kind == "f"
        else a
        for a in given.arrays
    )
    return CheckInput(f"{given.name}, perturbed", arrays)
