"""Operators on rows of ``[rows, n]`` tensors that are no planes: activations, norms, softmax.

Transformer blocks beside convolutions keep an image as rows of channels. TVM calls the C library
for each of their exponentials and adds up a row in one chain of scalar additions; here rows are
walked in explicit vectors. Work is parallel over rows; arithmetic is float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script import builder as T

from .plane_ops import (
    Index,
    PlaneTarget,
    for_each_vector,
    joined_lanes,
    load,
    store,
    sum_of_lanes,
)
from .primfunc import primfunc_builder
from .vector_math import EXP_MIN, activate, broadcast, vector_exp

#: A vector and the place of its first element -> what is added up.
Term = Callable[[Expr, Index, int], Expr]


def _each_row(rows: int, target: PlaneTarget, body: Callable[[Index], None]) -> None:
    loop = T.parallel if target.num_threads > 1 else T.serial
    with T.sblock("root"), loop(0, rows) as row:
        body(row)


def _matrix(name: str, rows: int, n: int, target: PlaneTarget) -> tirx.Buffer:
    return T.arg(name, T.Buffer((rows, n), target.dtype))


def row_activation(
    rows: int,
    n: int,
    target: PlaneTarget,
    activation: str,
    bounds: tuple[float, float] = (0.0, 0.0),
    *,
    bias: bool = False,
) -> tirx.PrimFunc:
    """``(x[rows, n][, bias[n]], out[rows, n])``: ``activation(x + bias)``.

    Parameters
    ----------
    activation : str
        See :func:`topi_kernels.vector_math.activate`, with its ``bounds``.
    """
    with primfunc_builder(f"row_{activation}") as ib:
        x = _matrix("x", rows, n, target)
        terms = T.arg("bias", T.Buffer((n,), target.dtype)) if bias else None
        out = _matrix("out", rows, n, target)

        def row(r: Index) -> None:
            def vector(at: Index, lanes: int) -> None:
                value = load(x, [r, at], lanes)
                if terms is not None:
                    value = value + load(terms, [at], lanes)
                value = activate(
                    T.Bind(value), activation, lanes, bounds, nan_maximum=target.nan_maximum
                )
                store(out, value, [r, at], lanes)

            for_each_vector(n, target.lanes, vector)

        _each_row(rows, target, row)
    return ib.get()


def _total(x: tirx.Buffer, r: Index, n: int, lanes: int, term: Term) -> Expr:
    """Sum of ``term`` over a row, lane by lane and then over the lanes."""
    sums = T.alloc_buffer((lanes,), "float32", scope="global")
    store(sums, broadcast(0.0, lanes), [0], lanes)
    with T.serial(0, n // lanes) as i:
        value = term(load(x, [r, i * lanes], lanes), i * lanes, lanes)
        store(sums, load(sums, [0], lanes) + value, [0], lanes)
    with T.serial(0, n % lanes) as i:
        at = n // lanes * lanes + i
        T.buffer_store(sums, sums[i] + term(load(x, [r, at], 1), at, 1), [i])
    return sum_of_lanes(T.Bind(load(sums, [0], lanes)), lanes)


def layer_norm(rows: int, n: int, target: PlaneTarget, epsilon: float) -> tirx.PrimFunc:
    """``(x[rows, n], gamma[n], beta[n], out[rows, n])``: each row by its mean and variance.

    The variance is that of the differences from the mean, so a large mean takes nothing from it.
    """
    with primfunc_builder("row_layer_norm") as ib:
        x = _matrix("x", rows, n, target)
        gamma, beta = (T.arg(name, T.Buffer((n,), target.dtype)) for name in ("gamma", "beta"))
        out = _matrix("out", rows, n, target)

        def row(r: Index) -> None:
            share = T.float32(1 / n)
            mean = T.Bind(_total(x, r, n, target.lanes, lambda v, _at, _lanes: v) * share)

            def square(value: Expr, _at: Index, lanes: int) -> Expr:
                difference = T.Bind(value - broadcast(mean, lanes))
                return difference * difference

            variance = _total(x, r, n, target.lanes, square) * share
            scale = T.Bind(T.float32(1.0) / tirx.sqrt(variance + T.float32(epsilon)))

            def vector(at: Index, lanes: int) -> None:
                value = (load(x, [r, at], lanes) - broadcast(mean, lanes)) * broadcast(scale, lanes)
                value = value * load(gamma, [at], lanes) + load(beta, [at], lanes)
                store(out, value, [r, at], lanes)

            for_each_vector(n, target.lanes, vector)

        _each_row(rows, target, row)
    return ib.get()


def softmax(rows: int, n: int, target: PlaneTarget) -> tirx.PrimFunc:
    """``(x[rows, n], out[rows, n])``: exponentials of each row over their sum.

    A NaN makes its row NaN by the sum, whatever the maximum is. What underflows is zero: a place
    that is masked by -inf has no share at all.
    """
    with primfunc_builder("row_softmax") as ib:
        x, out = _matrix("x", rows, n, target), _matrix("out", rows, n, target)

        def row(r: Index) -> None:
            largest = _largest(x, r, n, target.lanes)

            def power(value: Expr, at: Index, lanes: int) -> Expr:
                below = T.Bind(value - broadcast(largest, lanes))
                exponential = vector_exp(below, lanes, nan_maximum=target.nan_maximum)
                underflows = below < broadcast(EXP_MIN, lanes)
                result = T.Bind(T.Select(underflows, broadcast(0.0, lanes), exponential))
                store(out, result, [r, at], lanes)
                return result

            total = _total(x, r, n, target.lanes, power)
            factor = T.Bind(T.float32(1.0) / total)

            lanes = target.lanes
            with T.serial(0, n // lanes) as i:
                scaled = load(out, [r, i * lanes], lanes) * broadcast(factor, lanes)
                store(out, scaled, [r, i * lanes], lanes)
            with T.serial(0, n % lanes) as i:
                at = n // lanes * lanes + i
                store(out, load(out, [r, at], 1) * factor, [r, at], 1)

        _each_row(rows, target, row)
    return ib.get()


def _largest(x: tirx.Buffer, r: Index, n: int, lanes: int) -> Expr:
    """Largest value of a row that is a number."""

    def larger(a: Expr, b: Expr) -> Expr:
        a, b = T.Bind(a), T.Bind(b)
        return T.Select(a < b, b, a)

    best = T.alloc_buffer((lanes,), "float32", scope="global")
    store(best, broadcast(-math.inf, lanes), [0], lanes)
    with T.serial(0, n // lanes) as i:
        value = larger(load(best, [0], lanes), load(x, [r, i * lanes], lanes))
        store(best, value, [0], lanes)
    with T.serial(0, n % lanes) as i:
        value = larger(best[i], load(x, [r, n // lanes * lanes + i], 1))
        T.buffer_store(best, value, [i])
    return joined_lanes(T.Bind(load(best, [0], lanes)), lanes, larger)
