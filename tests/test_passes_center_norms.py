"""Norms of images whose mean is large beside their spread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import tvm
from relax_oracle import execute
from tvm import relax

from relay_passes import pipeline
from relay_passes.targets import resolve

SHAPE, CHANNELS, GROUPS = (2, 6, 5, 7), 6, 3
GAMMA, BETA = np.linspace(0.5, 2, CHANNELS), np.linspace(-1, 1, CHANNELS)


def module(dtype: str) -> tvm.IRModule:
    """A group norm, one of channels that lie last, an instance norm, and one of a whole batch."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(SHAPE, dtype))
    gamma, beta = (relax.const(v.astype(dtype)) for v in (GAMMA, BETA))
    with builder.function("main", [x]):
        with builder.dataflow():
            last = builder.emit(relax.op.permute_dims(x, [0, 2, 3, 1]))
            group = relax.op.nn.group_norm(x, gamma, beta, GROUPS, 1, [2, 3])
            turned = relax.op.nn.group_norm(last, gamma, beta, GROUPS, -1, [1, 2])
            instance = relax.op.nn.instance_norm(x, gamma, beta, 1, [2, 3])
            batch = relax.op.nn.instance_norm(x, gamma, beta, 1, [0, 2, 3])
            norms = [builder.emit(v) for v in (group, turned, instance, batch)]
            result = builder.emit_output(relax.Tuple(norms))
        builder.emit_func_output(result)
    return builder.get()


def norm(x: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """By the definition, in float64."""
    away = x - x.mean(tuple(axes), keepdims=True)
    return away / np.sqrt(np.square(away).mean(tuple(axes), keepdims=True) + 1e-5)


def expected(x: np.ndarray) -> list[np.ndarray]:
    gamma, beta = (v.reshape(-1, 1, 1) for v in (GAMMA, BETA))
    grouped = norm(x.reshape(2, GROUPS, -1), [2]).reshape(SHAPE) * gamma + beta
    instance, batch = (norm(x, axes) * gamma + beta for axes in ([2, 3], [0, 2, 3]))
    return [grouped, grouped.transpose(0, 2, 3, 1), instance, batch]


@pytest.mark.parametrize(
    ("dtype", "mean", "spread", "tolerance"),
    [
        ("float32", 1e3, 0.1, 1e-5),  # E[x * x] - E[x] * E[x] is negative for some
        ("float16", 4e3, 50, 2e-2),  # in float16 the sum of an image is infinite
    ],
)
def test_equals_the_definition(dtype: str, mean: float, spread: float, tolerance: float) -> None:
    rng = np.random.default_rng(0)
    x = (mean + spread * rng.standard_normal(SHAPE)).astype(dtype)
    lowered, _ = pipeline.lower(module(dtype), "pattern/x86-avx2")
    got = execute(tvm.compile(lowered, resolve("pattern/x86-avx2")), x)
    for g, want in zip(got, expected(x.astype(np.float64)), strict=True):
        np.testing.assert_allclose(g, want, rtol=0, atol=tolerance * np.abs(want).max())
