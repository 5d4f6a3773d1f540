"""Fine-tuning: the same rounding as the result, gradients that pass it, masks that hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tvm_pattern as tp
from tvm_pattern.pruning import oneshot

pytest.importorskip("torchao")

from tvm_pattern.quantization import QuantizationError, finetuning, quantize

from .conftest import Residual


def pruned_network() -> Residual:
    model = Residual()
    oneshot(model, connectivity=1.5, group=2)
    return model


def trained(tuning, batches, steps=30, lr=0.05):
    labels = [torch.arange(len(b)) for b in batches]
    optimizer = torch.optim.SGD(tuning.parameters(), lr=lr, momentum=0.9)
    losses = []
    for _ in range(steps):
        for batch, label in zip(batches, labels, strict=True):
            loss = nn.functional.cross_entropy(tuning(batch), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


def test_it_learns_keeps_its_zeros_and_ends_as_what_it_was(batches):
    model = pruned_network()
    removed = model.body[0].weight.detach() == 0
    before = {k: v.clone() for k, v in model.state_dict().items()}
    tuning = finetuning(model, batches).train()
    losses = trained(tuning, batches)
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    last = torch.cat(batches)[:1]
    with torch.no_grad():
        want = tuning(last).clone()
    result = tuning.finish()
    state = result.program.state_dict
    assert not state["body.0.weight"][removed].any()
    assert result.structures["body.0"].kept.sum() == int((~removed).sum())
    torch.testing.assert_close(result(last), want, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert result.settings["fine_tuned"]


def test_untrained_it_is_what_quantising_gives(batches):
    model = pruned_network()
    tuned = finetuning(model, batches, method="minmax").finish()
    plain = quantize(model, batches, method="minmax", bias_correction=False)
    for name, value in plain.program.state_dict.items():
        torch.testing.assert_close(tuned.program.state_dict[name], value, atol=1e-6, rtol=1e-6)
    assert [r.input_range for r in tuned.layers] == [r.input_range for r in plain.layers]


def test_the_result_compiles(batches):
    tuning = finetuning(pruned_network(), batches)
    trained(tuning, batches, steps=1)
    lib = tp.compile(tuning.finish(), num_threads=1)
    assert lib.manifest.verification["status"] == "checked"


def test_what_is_refused(batches):
    tuning = finetuning(Residual(), batches)
    with torch.no_grad():
        tuning.graph.head.weight.fill_(float("nan"))
    with pytest.raises(QuantizationError, match="NaN or Inf"):
        tuning.finish()
    tuning = finetuning(Residual(), batches)
    tuning.finish()
    with pytest.raises(QuantizationError, match=r"finish\(\) was called before"):
        tuning.finish()
    with pytest.raises(QuantizationError, match="expected one of minmax"):
        finetuning(Residual(), batches, method="best")
    broken = Residual()
    with torch.no_grad():
        broken.body[1].weight.fill_(3e38)
    with pytest.raises(QuantizationError, match="are NaN or Inf on the calibration data"):
        finetuning(broken, batches)
