"""Post-training quantisation: ranges, integers, biases, structures, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import tvm_pattern as tp
from topi_kernels.structure import ASSIGNMENT
from tvm_pattern.sources import open_model

pytest.importorskip("torchao")

from tvm_pattern.quantization import QuantizationError, QuantizedModel, quantize

from .conftest import Residual


def one_layer(weight=None, bias=None) -> nn.Sequential:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    with torch.no_grad():
        if weight is not None:
            model[0].weight.copy_(weight)
        if bias is not None:
            model[0].bias.copy_(bias)
    return model.eval()


def names(program) -> list[str]:
    calls = [n for n in program.graph.nodes if n.op == "call_function"]
    return [str(n.target).split(".")[1] for n in calls]


def outputs(model, batches):
    with torch.no_grad():
        return torch.cat([model(x) for b in batches for x in b.split(1)])


def test_integers_are_those_of_the_definition(batches):
    model = one_layer()
    result = quantize(model, batches, method="minmax", bias_correction=False)
    state = result.program.state_dict
    weight = model[0].weight.detach().numpy()
    scale = np.abs(weight).max((1, 2, 3)) / np.float32(127)
    np.testing.assert_allclose(state["0.weight_scale"], scale, rtol=1e-6)
    integers = np.rint(weight / scale[:, None, None, None])
    assert np.array_equal(state["0.weight"].numpy(), integers)

    data = torch.cat(batches).numpy()
    step = (data.max() - data.min()) / np.float32(255)
    zero = int(np.rint(-data.min() / step))
    assert result.layers[0].input_range == pytest.approx((-zero * step, (255 - zero) * step))
    x = batches[0][:1]
    q = np.clip(np.rint(x.numpy().astype("float64") / step) + zero, 0, 255)
    sums = nn.functional.conv2d(
        torch.from_numpy(q - zero), torch.from_numpy(integers.astype("float64")), padding=1
    ).numpy()
    bias = model[0].bias.detach().numpy()[:, None, None]
    want = sums * step * scale[:, None, None] + bias
    np.testing.assert_allclose(result(x).numpy(), want, atol=1e-5)


def test_seven_bits_keep_pairs_of_products_within_16_bits(batches):
    result = quantize(one_layer(), batches, weight_bits=7)
    assert int(result.program.state_dict["0.weight"].abs().max()) == 63
    assert 2 * 255 * 63 < 2**15


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_a_network_with_batch_norms_stays_close(pruned, batches, method):
    result = quantize(pruned, batches, method=method)
    want, got = outputs(pruned, batches), outputs(result.module(), batches)
    assert float((got - want).norm() / want.norm()) < 0.05
    assert {row.layer for row in result.layers} == {"stem.0", "body.0", "project", "head"}
    assert all(row.weight_sqnr > 35 for row in result.layers)


def test_outliers_cost_minmax_its_steps(batches):
    data = [b.clone() for b in batches]
    data[1][0, 0, 0, 0] = 100.0
    ends = {
        method: quantize(one_layer(), data, method=method, percentile=99).layers[0].input_range[1]
        for method in ("minmax", "mse", "percentile")
    }
    assert ends["minmax"] == pytest.approx(100, rel=0.01)
    assert ends["percentile"] < 5
    assert ends["mse"] <= 100.1


def test_biases_make_up_for_rounded_weights(batches):
    weight = torch.rand(4, 3, 3, 3) * 0.006  # rounded up or down by chance, far from zero mean
    weight[:, 0, 0, 0] = 1.0
    data = [b.abs() for b in batches]
    model = one_layer(weight)
    want = outputs(model, data).mean((0, 2, 3))
    shifts = []
    for correct in (False, True):
        result = quantize(model, data, method="minmax", bias_correction=correct)
        shifts.append((outputs(result.module(), data).mean((0, 2, 3)) - want).abs().max())
    assert shifts[1] < 0.1 * shifts[0]
    assert result.layers[0].bias_shift > 1


def test_nothing_is_rounded_between_a_convolution_and_its_residual(quantized):
    kinds = names(quantized.program)
    add = kinds.index("add")
    body = max(i for i in range(add) if kinds[i] == "conv2d")
    # Of the two convolutions that are added, the later one stays in sums, the other is rounded.
    assert kinds[body + 1] == "add"
    adds = next(n for n in quantized.program.graph.nodes if str(n.target) == "aten.add.Tensor")
    operands = [str(a.target) for a in adds.args]
    assert sum("dequantize" in name for name in operands) == 1


def test_concatenated_values_share_their_range(quantized):
    node = next(n for n in quantized.program.graph.nodes if str(n.target) == "aten.cat.default")
    ranges = {tuple(part.args[1:3]) for part in node.args[0]}
    (after,) = node.users
    assert ranges == {tuple(after.args[1:3])}


class Preactivated(nn.Module):
    """Batch norms in front of convolutions, as in DenseNet; a value concatenated with itself."""

    def __init__(self, affine: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.norm = nn.BatchNorm2d(3, eps=0.5, affine=affine)
        self.conv = nn.Conv2d(6, 4, 3)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 1.5)
        if affine:
            nn.init.normal_(self.norm.weight)
            nn.init.normal_(self.norm.bias)

    def forward(self, x):
        x = torch.relu(self.norm(x))
        return self.conv(torch.cat([x, x], 1))


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norms_without_a_convolution_before_them(batches, affine):
    model = Preactivated(affine).eval()
    quantized = quantize(model, batches)
    assert not any("batch_norm" in name for name in names(quantized.program))
    image = batches[0][:1]
    wanted = model(image)
    assert torch.linalg.norm(quantized(image) - wanted) < 0.03 * torch.linalg.norm(wanted)
    assert [row.reason for row in quantized.layers] == [""]


def test_the_float_network_is_not_changed(batches):
    model = Residual()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    quantize(model, batches)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.training


def test_assigned_patterns_outlive_rounding(tmp_path, batches):
    model = Residual()
    tp.pruning.oneshot(model, connectivity=1.5, group=2)
    kept = model.body[0].weight.detach() != 0
    with torch.no_grad():  # kept weights that are too small for a step
        small = kept & (torch.rand(kept.shape, generator=torch.Generator().manual_seed(0)) < 0.3)
        model.body[0].weight[small] *= 1e-4
    result = quantize(model, batches)
    structure = result.structures["body.0"]
    assert structure.source == ASSIGNMENT
    assert np.array_equal(structure.kept, kept.numpy())
    assert {r.layer: r.rounded_to_zero for r in result.layers}["body.0"] >= int(small.sum())

    path = tmp_path / "network.pt2"
    result.save(path)
    again = open_model(str(path))
    assert isinstance(again, QuantizedModel)
    assert again.structures == result.structures
    assert again.layers == result.layers
    assert again.settings == result.settings
    lib = tp.compile(again, num_threads=1)
    assert lib.manifest.verification["status"] == "checked"
    row = next(row for row in lib.report.rows if row.layer == "body.0")
    assert row.structure == ASSIGNMENT
    assert row.sparsity == pytest.approx(1 - structure.kept_weights / structure.kept.size)


class Reshaped(nn.Module):
    """Insists on the batch that it was traced with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x).reshape(2, 4, 36)


def test_networks_of_one_batch_size_are_fed_in_parts(batches):
    result = quantize(Reshaped().eval(), batches, torch.cat(batches)[:2])
    assert result.settings["inputs"] == 12
    assert result(batches[0][:2]).shape == (2, 4, 36)
    with pytest.raises(QuantizationError, match="no calibration batch has 2 inputs"):
        quantize(Reshaped().eval(), [b[:1] for b in batches], torch.cat(batches)[:2])


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.table = nn.Parameter(torch.ones(2, 2, 3, 3))

    def forward(self, x):
        return nn.functional.conv2d(self.up(self.conv(x)), self.table * 2)


def test_what_is_not_quantised_says_why(batches):
    rows = {row.layer: row.reason for row in quantize(Transposed().eval(), batches).layers}
    assert rows["conv"] == ""
    assert "only convolutions in one and two dimensions" in rows["up"]
    assert "its weight is computed in the forward pass" in rows.values()
    skipped = {
        r.layer: r.reason for r in quantize(Residual(), batches, skip=("st*", "head")).layers
    }
    assert skipped["stem.0"] == skipped["head"] == "skip names it"
    assert skipped["body.0"] == ""


def test_a_range_of_one_value(batches):
    zeros = [torch.zeros(2, 3, 8, 8)]
    result = quantize(one_layer(), zeros)
    assert torch.isfinite(result(batches[0][:1])).all()
    np.testing.assert_allclose(
        result(zeros[0][:1]).numpy(), one_layer()(zeros[0][:1]).detach().numpy(), atol=1e-6
    )
    ones = [torch.full((2, 3, 8, 8), 0.7)]
    for method in ("minmax", "percentile", "mse"):
        result = quantize(one_layer(), ones, method=method, bias_correction=False)
        assert result.layers[0].input_range == pytest.approx((0, 0.7))


def test_biases_stay_within_integers_of_32_bits(batches):
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[1] = 1e-30
    weight[2] = 0
    model = one_layer(weight, torch.tensor([1.0, 5.0, 7.0, 1e4]))
    result = quantize(model, batches, bias_correction=False)
    state = result.program.state_dict
    low, high = result.layers[0].input_range
    bias = state["0.bias"].double() / (state["0.weight_scale"].double() * (high - low) / 255)
    assert float(bias.detach().abs().max()) <= 2**30 * 1.001
    x = batches[0][:1]
    want = model(x).detach()
    got = result(x)
    assert torch.isfinite(got).all()
    np.testing.assert_allclose(got[0, 1:3], want[0, 1:3], atol=1e-4)


def infinite(batches):
    model = Residual()
    with torch.no_grad():
        model.body[1].weight.fill_(3e38)
    return model, batches, {}


REFUSED = {
    "empty": (lambda b: (Residual(), [], {}), "the calibration data is empty"),
    "read before": (lambda b: (Residual(), iter(()), {}), "the calibration data is empty"),
    "empty batch": (lambda b: (Residual(), [b[0][:0]], {}), "calibration batch 0: is empty"),
    "nan": (
        lambda b: (Residual(), [b[0], b[1] * float("nan")], {}),
        "calibration batch 1: 768 of 768 values are NaN or Inf",
    ),
    "no tensor": (lambda b: (Residual(), ["x"], {}), "batch of str, expected a tensor"),
    "inner": (infinite, "values of '.*' are NaN or Inf on the calibration data"),
    "method": (lambda b: (Residual(), b, {"method": "best"}), "expected one of minmax"),
    "percentile": (lambda b: (Residual(), b, {"percentile": 30}), "expected above 50"),
    "bits": (lambda b: (Residual(), b, {"weight_bits": 4}), "expected 7 or 8"),
    "skip": (lambda b: (Residual(), b, {"skip": "tail"}), "skip 'tail' matches no layer"),
    "training": (lambda b: (Residual().train(), b, {}), "training mode; call model.eval"),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_what_is_refused(case, batches):
    make, message = REFUSED[case]
    model, data, options = make(batches)
    with pytest.raises(QuantizationError, match=message):
        quantize(model, data, **options)


def test_weights_that_are_not_finite_are_refused(batches):
    model = one_layer()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = float("inf")
    with pytest.raises(QuantizationError, match=r"'0.weight': 1 of 108 values are NaN or Inf"):
        quantize(model, batches)


def test_untraceable_networks_are_refused(batches):
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(QuantizationError, match="cannot trace Branching"):
        quantize(Branching().eval(), batches)


def test_files_with_other_facts_are_refused(quantized, tmp_path):
    with pytest.raises(QuantizationError, match=r"expected a name ending in \.pt2 or \.onnx"):
        quantized.save(tmp_path / "network.safetensors")
    with pytest.raises(QuantizationError, match="facts are damaged"):
        QuantizedModel.from_program(quantized.program, "{")
    facts = json.dumps({"version": 99})
    with pytest.raises(QuantizationError, match="version 99, expected 1"):
        QuantizedModel.from_program(quantized.program, facts)
