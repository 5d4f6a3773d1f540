"""Names of outputs, bfloat16, and operators that are taken apart."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import tvm_pattern as tp
from tvm_pattern.frontend import import_model

IMAGE = torch.randn(1, 3, 8, 10, generator=torch.Generator().manual_seed(0))


class Then(nn.Module):
    """A convolution and a function of its output."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.function = function

    def forward(self, x):
        return self.function(self.conv(x))


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda y: {"out": y, "aux": y + 1}, ["out", "aux"]),
        (lambda y: {"out": y}, ["out"]),
        (lambda y: {"maps": [y, y + 1], "x": {"y": y}}, ["maps.0", "maps.1", "x.y"]),
        (lambda y: (y, y + 1), ["output0", "output1"]),
    ],
)
def test_outputs_keep_the_keys_of_a_dict(function, names):
    imported = import_model(Then(function).eval(), IMAGE)
    assert [spec.name for spec in imported.outputs] == names


def test_named_outputs_are_those_of_the_model(tmp_path):
    model = Then(lambda y: {"out": y, "aux": y.mean((2, 3))}).eval()
    path = tp.compile(model, IMAGE, num_threads=1).export(tmp_path / "net.so")
    lib = tp.load(path)
    with torch.no_grad():
        want = model(IMAGE)
    for spec, got in zip(lib.outputs, lib(IMAGE.numpy()), strict=True):
        np.testing.assert_allclose(got, want[spec.name], rtol=1e-4, atol=1e-5)


def onnx_model(nodes, stored, outputs):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, IMAGE.shape)],
        values,
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    imports = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def test_outputs_of_an_onnx_file_keep_their_names():
    nodes = [
        helper.make_node("Relu", ["x"], ["boxes"]),
        helper.make_node("Neg", ["x"], ["scores"]),
    ]
    imported = import_model(onnx_model(nodes, {}, ["boxes", "scores"]))
    assert [spec.name for spec in imported.outputs] == ["boxes", "scores"]


@pytest.mark.parametrize("kind", ["NonZero", "Unique", "NonMaxSuppression"])
def test_results_sized_by_data_are_refused_by_name(kind):
    inputs = ["x", "x"] if kind == "NonMaxSuppression" else ["x"]
    model = onnx_model([helper.make_node(kind, inputs, ["y"])], {}, ["y"])
    with pytest.raises(ValueError, match=f"{kind}, whose result has as many entries as the data"):
        import_model(model)


def regions_of_interest(**attributes):
    regions = np.array([[1, 1, 9, 9], [-3, 2.3, 20, 7.7], [5, 5, 5.2, 5.1]], np.float32)
    stored = {"regions": regions, "batches": np.zeros(3, np.int64)}
    size = {"output_height": 3, "output_width": 2, "sampling_ratio": 2}
    node = helper.make_node("RoiAlign", ["x", *stored], ["y"], **size, **attributes)
    return onnx_model([node], stored, ["y"])


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_regions_on_a_scaled_feature_map(scale):
    """Their half pixel is one of the feature map, the default from opset 16 on."""
    model = regions_of_interest(spatial_scale=scale)
    x = IMAGE.numpy()
    lib = tp.compile(model, x, num_threads=1, verify=False)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (want,) = session.run(None, {"x": x})
    np.testing.assert_allclose(lib(x), want, rtol=1e-5, atol=1e-5)


def test_what_detectors_have_beside_is_refused_by_name():
    with pytest.raises(ValueError, match="RoiAlign in node 'y' has mode='max'"):
        import_model(regions_of_interest(mode="max"))
    stored = {"w": np.zeros((4, 3, 1, 1), np.float32), "o": np.zeros((1, 2, 8, 8), np.float32)}
    deformed = helper.make_node("DeformConv", ["x", *stored], ["y"])
    model = onnx_model([deformed], stored, ["y"])
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 19))
    with pytest.raises(ValueError, match=r"without a translation: DeformConv .*ONNX Runtime"):
        import_model(model)


def test_bfloat16_is_compiled_in_float32_with_a_note():
    model = Then(torch.relu).eval().bfloat16()
    tp.pruning.oneshot(model, connectivity=2.0)
    lib = tp.compile(model, IMAGE.bfloat16(), num_threads=1)
    assert lib.inputs[0].dtype == lib.outputs[0].dtype == "float32"
    assert any("bfloat16 is compiled as float32" in note for note in lib.report.notes)
    assert lib.manifest.verification["status"] == "checked"
    assert lib.report.rows[0].structure == "assignment"
    x = IMAGE.bfloat16()
    with torch.no_grad():
        want = Then(torch.relu).eval().float()
        want.load_state_dict(model.float().state_dict())
        expected = want(x.float()).numpy()
    for given in (x, x.float().numpy()):
        np.testing.assert_allclose(np.asarray(lib(given)), expected, rtol=1e-4, atol=1e-5)


def test_a_bfloat16_program_and_the_models_own_weights():
    model = Then(torch.relu).eval().bfloat16()
    program = torch.export.export(model, (IMAGE.bfloat16(),))
    lib = tp.compile(program, num_threads=1)
    assert lib.inputs[0].dtype == "float32"
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}  # the caller's are as before
    with torch.no_grad():
        want = model.float()(IMAGE).numpy()
    np.testing.assert_allclose(lib(IMAGE.numpy()), want, rtol=1e-4, atol=1e-5)


class Fold(nn.Module):
    def __init__(self, size, **options):
        super().__init__()
        self.size, self.options = size, options

    def forward(self, x):
        columns = F.unfold(x, **self.options)
        return F.fold(columns * 1.5, self.size, **self.options)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 0)},
        {"kernel_size": 3, "dilation": 2, "padding": 2, "stride": 2},
    ],
    ids=str,
)
def test_fold_adds_up_what_overlaps(options):
    lib = tp.compile(Fold((8, 10), **options).eval(), IMAGE, num_threads=1)
    with torch.no_grad():
        want = Fold((8, 10), **options)(IMAGE).numpy()
    np.testing.assert_allclose(lib(IMAGE.numpy()), want, rtol=1e-5, atol=1e-5)


def test_rrelu_has_its_mean_slope():
    model = nn.Sequential(nn.RReLU(0.1, 0.5)).eval()
    lib = tp.compile(model, IMAGE, num_threads=1)
    want = np.where(IMAGE.numpy() >= 0, IMAGE.numpy(), 0.3 * IMAGE.numpy())
    np.testing.assert_allclose(lib(IMAGE.numpy()), want, rtol=1e-5, atol=1e-6)
