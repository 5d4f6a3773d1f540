"""The benchmark of layers of bytes: its peers' file, its rows."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest

from benchmarks import int8_layers
from benchmarks.workloads import LayerSpec
from topi_kernels.backend import Backend

SPEC = LayerSpec("56x56x64", 8, 8, (6, 6), 2.0, (2,))


def test_peers_compute_the_dense_layer() -> None:
    """ONNX Runtime gives what integer arithmetic gives, up to a step."""
    layer = int8_layers.layer_of(SPEC, None)
    model = int8_layers.qdq_model(SPEC, layer)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).integers(0, 256, (1, 8, 6, 6), np.uint8)
    (got,) = session.run(None, {"x": x})
    shifted = np.pad(x.astype(np.int64) - 7, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(shifted, (3, 3), (2, 3))
    sums = np.einsum("nchwij,ocij->nohw", windows, layer.weight.astype(np.int64))
    real = sums * (0.02 * 1e-3) + layer.bias[:, None, None]
    want = np.clip(np.rint(np.maximum(real, 0) / 0.2) + 5, 0, 255)
    assert np.abs(got.astype(int) - want).max() <= 1


def test_rows(tmp_path, monkeypatch) -> None:
    if not Backend.of(int8_layers.targets.resolve("pattern/native")).int8:
        pytest.skip("this computer has no instructions for bytes")
    monkeypatch.setattr(int8_layers, "load_workloads", lambda: ((SPEC,), ()))
    monkeypatch.setattr(int8_layers, "GROUPS", (2,))
    monkeypatch.setattr(int8_layers.Budget, "quick", lambda: int8_layers.Budget(0.01, 1))
    path = tmp_path / "rows.json"
    int8_layers.main(path, quick=True, only="tvm-pattern|onnxruntime")
    result = json.loads(path.read_text())
    rows = result["rows"]
    assert [(r["engine"], r["group"]) for r in rows] == [
        ("tvm-pattern", 2),
        ("tvm-pattern", None),
        ("onnxruntime", None),
    ]
    assert {row["dtype"] for row in rows} == {"int8"}
    assert result["dot_peak_gops"] > 0
    assert rows[0]["effective_gflops"] < rows[0]["dense_equivalent_gflops"]


def test_a_machine_without_instructions(monkeypatch) -> None:
    monkeypatch.setattr(int8_layers.Backend, "of", lambda *_: Backend.named("arm-neon", 1))
    with pytest.raises(RuntimeError, match="no instructions for bytes"):
        int8_layers.OurLayer.build(SPEC, int8_layers.layer_of(SPEC, 2))
