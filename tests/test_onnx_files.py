"""The command behind ``docs/onnx-files.md``, on a file that is small enough."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from benchmarks import onnx_files


@pytest.fixture
def file(tmp_path):
    weight = np.random.default_rng(0).standard_normal((6, 3, 3, 3)).astype("float32")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w_"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "net.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_a_row(file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(onnx_files, "pin", lambda threads: [0])
    figures = tmp_path / "row.json"
    words = [str(file), "--shape", "1x3x9x11", "--seconds", "0", "--json", str(figures)]
    assert onnx_files.main(words) == 0
    assert capsys.readouterr().out.startswith("| `net.onnx` | 1x3x9x11 | 1 of 1 | ")
    row = json.loads(figures.read_text())
    assert 0 <= row["max_abs_error"] < 1e-4 < row["largest_value"]
    assert row["here"]["runs"] >= 5
    assert row["onnxruntime"]["p10_ms"] <= row["onnxruntime"]["median_ms"]


def test_errors_are_those_of_all_outputs():
    got, expected = [np.zeros(2), np.array([1.0, 5.0])], [np.zeros(2), np.array([1.0, -3.0])]
    assert onnx_files.largest_error(got, expected) == (8.0, 3.0)
    with pytest.raises(ValueError, match=r"\(2,\) here and \(3,\) in ONNX Runtime"):
        onnx_files.largest_error([np.zeros(2)], [np.zeros(3)])
