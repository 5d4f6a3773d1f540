"""ONNX QDQ files: ONNX Runtime gives the same, and the structures come back."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import tvm_pattern as tp
from relay_passes.targets import parse_cpu_flags
from topi_kernels.structure import ASSIGNMENT, METADATA, Structure
from tvm_pattern.frontend import import_model
from tvm_pattern.quantization import QuantizationError, QuantizedModel
from tvm_pattern.quantization.onnx_export import to_onnx
from tvm_pattern.sources import pruned_at_once

from .test_import import IMAGE, Quantized, exported, pruned_weight

KEPT = Structure(pruned_weight() != 0, ASSIGNMENT)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("onnx") / "network.onnx"
    QuantizedModel(exported(Quantized()), {"conv": KEPT}).save(path)
    return path


def run(path, level):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(str(path), options)
    return session.run(None, {session.get_inputs()[0].name: IMAGE.numpy()})[0]


def test_onnx_runtime_gives_the_same(path):
    with torch.no_grad():
        want = Quantized().eval()(IMAGE).numpy()
    levels = onnxruntime.GraphOptimizationLevel
    steps = np.abs(run(path, levels.ORT_DISABLE_ALL) - want) / 0.02
    assert np.mean(steps > 0.01) < 0.01
    # Its integer kernels round some borders the other way, and saturate on AVX2 without VNNI.
    flags = parse_cpu_flags(Path("/proc/cpuinfo").read_text()) or frozenset()
    if flags & {"avx512_vnni", "avx_vnni"}:
        assert np.abs(run(path, levels.ORT_ENABLE_ALL) - want).max() < 0.0201
    model = onnx.load(path)
    assert {t.data_type for t in model.graph.initializer if len(t.dims) == 4} == {
        onnx.TensorProto.INT8
    }


def test_the_assignment_is_in_the_file(path):
    imported = import_model(path)
    assert imported.structures == {"conv": KEPT}
    lib = tp.compile(path, num_threads=1)
    assert lib.manifest.verification["status"] == "checked"
    assert lib.report.rows[0].structure == ASSIGNMENT
    assert lib.report.rows[0].sparsity == pytest.approx(1 - KEPT.kept_weights / KEPT.kept.size)


@pytest.mark.parametrize("value", ["[]", "{", '{"conv": {"shape": [8, 3, 3, 3]}}'])
def test_damaged_metadata_is_named(path, value):
    model = onnx.load(path)
    next(entry for entry in model.metadata_props if entry.key == METADATA).value = value
    with pytest.raises(ValueError, match=f"metadata '{METADATA}' is damaged"):
        import_model(model)


def test_structures_that_weights_contradict_are_not_believed(path):
    model = onnx.load(path)
    import json

    none = Structure(np.zeros((8, 3, 3, 3), bool), ASSIGNMENT)
    entry = next(entry for entry in model.metadata_props if entry.key == METADATA)
    entry.value = json.dumps({"conv": none.to_plain()})
    with pytest.warns(UserWarning, match="the pruning of 1 layers is lost"):
        lib = tp.compile(model, num_threads=1)
    assert lib.manifest.verification["status"] == "checked"


def test_plain_structures_come_back_and_others_are_refused():
    assert Structure.from_plain(KEPT.to_plain()) == KEPT
    assert Structure.from_plain(KEPT.to_plain()).source == ASSIGNMENT
    for wrong in ({}, None, {**KEPT.to_plain(), "kept": "?"}, {**KEPT.to_plain(), "shape": [1, 1]}):
        with pytest.raises(ValueError, match="no structure of a layer"):
            Structure.from_plain(wrong)


class Special(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


def test_networks_that_torch_cannot_export_are_refused(tmp_path, monkeypatch):
    with pytest.raises(QuantizationError, match=r"cannot export the network to ONNX: .*\.pt2"):
        to_onnx(exported(Special()), {}, tmp_path / "network.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match="onnxscript, which is not installed"):
        to_onnx(exported(Quantized()), {}, tmp_path / "network.onnx")


def test_what_is_quantised_is_not_pruned_any_more():
    quantized = QuantizedModel(exported(Quantized()), {"conv": KEPT})
    with pytest.raises(ValueError, match="prune it before it is quantised"):
        pruned_at_once(quantized, 2.0, None, None)
