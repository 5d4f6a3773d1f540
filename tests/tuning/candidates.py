"""Small candidates with every way to go wrong, for measuring without a convolution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from tvm_pattern.tuning import worker

LENGTH = 16
TOKEN = 7


def write_inputs(folder: Path) -> int:
    """Inputs of ``y = 2 x``; returns their token."""
    x = np.arange(LENGTH, dtype=np.float32)
    np.savez(folder / "answer.npz", answer=2 * x, tolerance=1e-6)
    out = np.full(LENGTH, np.nan, np.float32)
    path = worker.input_path(folder, TOKEN)
    np.savez(path, answer_file=np.array("answer.npz"), a0=x, a1=out)
    return TOKEN


def _function(body: Any) -> tirx.PrimFunc:
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer((LENGTH,), "float32"))
        y = T.arg("y", T.buffer((LENGTH,), "float32"))
        body(x, y)
    return builder.get()


def _times(factor: float) -> tirx.PrimFunc:
    def body(x: Any, y: Any) -> None:
        with T.serial(0, LENGTH) as i:
            T.buffer_store(y, x[i] * T.float32(factor), [i])

    return _function(body)


def good() -> tirx.PrimFunc:
    """``y = 2 x``."""
    return _times(2.0)


def wrong() -> tirx.PrimFunc:
    """``y = 3 x``."""
    return _times(3.0)


def crashing() -> tirx.PrimFunc:
    """Writes far outside its memory."""

    def body(x: Any, y: Any) -> None:
        with T.serial(0, tirx.const(1 << 20, "int64")) as i:
            T.buffer_store(y, x[0], [i * tirx.const(1 << 24, "int64")])

    return _function(body)


def endless() -> tirx.PrimFunc:
    """Computes for longer than anybody waits."""

    def body(x: Any, y: Any) -> None:
        T.buffer_store(y, x[0], [0])
        with T.serial(0, tirx.const(1 << 50, "int64")):
            T.buffer_store(y, y[0] * T.float32(0.5) + x[1], [0])

    return _function(body)
