"""Whole networks: accuracy without labels, exact constraints, interruptions, bad input."""

from __future__ import annotations

import copy
import itertools
import json
import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from typer.testing import CliRunner

import tvm_pattern as tp
from tvm_pattern.cli import app
from tvm_pattern.posttrain import PosttrainError, calibration_batches, posttrain, run
from tvm_pattern.pruning import ConfigError, OnnxNetwork, load_pruned, oneshot, recalibrate_bn
from tvm_pattern.pruning.pictures import IMAGENET_MEAN, IMAGENET_STD, DataError


def network(width: int = 16) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, groups=width),
        nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )


def images() -> tuple[torch.Tensor, torch.Tensor]:
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    pixels = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    return pixels[order], torch.tensor(digits.target)[order]


@pytest.fixture(scope="module")
def trained() -> nn.Sequential:
    torch.manual_seed(0)
    net, (x, y) = network(), images()
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for epoch in range(10):
        order = torch.randperm(1200, generator=torch.Generator().manual_seed(epoch))
        for part in order.split(60):
            optimizer.zero_grad()
            F.cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def batches() -> list[torch.Tensor]:
    return list(images()[0][:256].split(64))


def accuracy(net: nn.Module) -> float:
    x, y = images()
    with torch.no_grad():
        return float((net.eval()(x[1200:]).argmax(1) == y[1200:]).float().mean())


def test_accuracy_without_labels(trained, batches):
    """4.5x: most of what projection and recalibration lose is not lost."""
    dense = accuracy(trained)
    assert dense > 0.95
    projected, fitted = copy.deepcopy(trained), copy.deepcopy(trained)
    oneshot(projected, 2.0, frozen="prune")
    recalibrate_bn(projected, batches)
    report = posttrain(fitted, batches, 2.0)
    assert accuracy(fitted) > dense - 0.08
    assert accuracy(fitted) > accuracy(projected) + 0.2
    assert all(layer.fitted < layer.projected for layer in report.layers)
    assert json.loads(json.dumps(report.to_dict()))["outputs"][0]["name"] == "0"


def test_the_package_is_its_function(trained, batches):
    one, other = copy.deepcopy(trained), copy.deepcopy(trained)
    posttrain(one, batches, connectivity=2.0)
    report = tp.posttrain(other, batches, connectivity=2.0)  # type: ignore[operator]
    assert isinstance(report, tp.posttrain.PosttrainReport)
    expected = one.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in other.state_dict().items())


@pytest.mark.parametrize(("group", "balance"), [(1, "layer"), (4, "layer"), (2, "filter")])
def test_constraints_hold_exactly(trained, batches, group, balance):
    net = copy.deepcopy(trained)
    report = posttrain(net, batches, 3.0, group, balance=balance)
    want = oneshot(copy.deepcopy(trained), 3.0, group, balance=balance, frozen="prune")
    for name, layer in report.assignment.items():
        conv = net.get_submodule(name)
        assert layer.kept == want.assignment[name].kept
        assert not conv.weight.detach()[layer.removed()].any()
        ids = layer.pattern_id
        assert ((ids[:, None] == ids[None]).all(2).sum(1) >= layer.group).all()
    assert report.pruning.compression_rate == pytest.approx(want.compression_rate)
    library = tp.compile(net, batches[0][:1], num_threads=1)
    assert len(library.report.taken) == len(report.assignment)
    np.testing.assert_allclose(
        library(batches[0][:1]), net(batches[0][:1]).detach(), rtol=1e-4, atol=1e-4
    )


def test_without_any_removal_nothing_changes(batches):
    """All taps kept and no kernel dropped: the weights stay what they are."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1)).eval()
    before = copy.deepcopy(net)
    posttrain(net, batches, connectivity_1x1=1.0001, first="prune")
    for old, new in zip(before.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-3, atol=1e-3)


def test_depthwise_patterns_are_the_best_ones(trained, batches):
    """By trying all of them, with the weights solved for in float64."""
    net = copy.deepcopy(trained)
    report = posttrain(net, batches, first="skip", damping=1e-9, skip=["4", "6"])
    [(name, layer)] = report.assignment.items()
    x = torch.cat(batches)
    with torch.no_grad():
        features = trained[:3](x)
        outputs = trained[3](features) - trained[3].bias[:, None, None]
    columns = F.unfold(features, 3, padding=1).view(len(x), 16, 9, -1).double()
    masks = torch.from_numpy(layer.pattern_set.masks).flatten(1)
    for channel in range(16):
        patches = columns[:, channel].permute(0, 2, 1).reshape(-1, 9)
        patches = patches - patches.mean(0)
        goal = outputs[:, channel].reshape(-1, 1).double()
        goal = goal - goal.mean()
        errors = []
        for mask in masks:
            best = torch.linalg.lstsq(patches[:, mask], goal, driver="gelsd").solution
            errors.append(float((patches[:, mask] @ best - goal).square().mean()))
        chosen = errors[int(layer.pattern_id[channel, 0])]
        assert chosen <= min(errors) * 1.001 + 1e-6 * float(goal.square().mean()), name


def test_an_interrupted_run_goes_on(trained, batches, tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    whole, parts = copy.deepcopy(trained), copy.deepcopy(trained)
    posttrain(whole, batches, 2.0)
    fit, count = run.fit_layer, itertools.count()

    def interrupted(*arguments):
        if next(count) == 2:
            raise KeyboardInterrupt
        return fit(*arguments)

    monkeypatch.setattr(run, "fit_layer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        posttrain(parts, batches, 2.0, checkpoint=path)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(parts.state_dict()[name], tensor)
    again = parts
    fitted = []
    monkeypatch.setattr(run, "fit_layer", lambda *a: fitted.append(a[1].name) or fit(*a))
    posttrain(again, batches, 2.0, checkpoint=path)
    assert fitted == ["4", "6"]
    assert not path.exists()
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)


def test_a_checkpoint_of_another_run_is_refused(trained, batches, tmp_path, monkeypatch):
    path, fit = tmp_path / "state.pt", run.fit_layer
    monkeypatch.setattr(run, "recalibrate_bn", lambda *_, **__: exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        posttrain(copy.deepcopy(trained), batches, 2.0, checkpoint=path)
    assert run.fit_layer is fit
    with pytest.raises(PosttrainError, match="another model, configuration or data"):
        posttrain(copy.deepcopy(trained), batches, 2.5, checkpoint=path)
    with pytest.raises(PosttrainError, match="another model, configuration or data"):
        posttrain(copy.deepcopy(trained), [b + 1e-3 for b in batches], 2.0, checkpoint=path)


def test_modes_and_shared_data_stay(trained, batches):
    net = copy.deepcopy(trained).train()
    net[1].eval()
    copies = [batch.clone() for batch in batches]
    posttrain(net, batches, 2.0)
    assert net.training
    assert not net[1].training
    assert all(torch.equal(a, b) for a, b in zip(batches, copies, strict=True))


def test_half_precision_weights(trained, batches):
    net = copy.deepcopy(trained).bfloat16()
    report = posttrain(net, [b.bfloat16() for b in batches], 2.0)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    assert all(layer.fitted < layer.projected for layer in report.layers)


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ([], {}, PosttrainError, "give no batch"),
        (None, {}, PosttrainError, "got NoneType as calibration data, expected a list"),
        ("photos", {}, PosttrainError, "got str as calibration data, expected a list"),
        ([np.zeros((2, 1, 8, 8))], {}, PosttrainError, "no ndarray as a calibration batch; give"),
        ([{"x": torch.zeros(2, 1, 8, 8)}], {}, PosttrainError, "no dict as a calibration batch"),
        (iter([torch.zeros(1, 1, 8, 8)]), {}, PosttrainError, "that can be read once"),
        ([torch.full((2, 1, 8, 8), torch.nan)], {}, PosttrainError, "not finite"),
        ([torch.zeros(2, 1, 8, 8)], {"steps": 0}, PosttrainError, "steps=0"),
        ([torch.zeros(2, 1, 8, 8)], {"damping": 0.0}, PosttrainError, "damping=0.0"),
        ([torch.zeros(2, 1, 8, 8)], {"connectivity": 0.5}, ConfigError, "connectivity"),
        ([torch.zeros(2, 1, 8, 8)], {"skip": ["nothing"]}, ConfigError, "matches no convolution"),
    ],
    ids=[
        "empty", "none", "path", "numpy", "dict", "generator",
        "nan", "steps", "damping", "rate", "skip",
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:the calibration data look")
def test_bad_input_is_refused_and_changes_nothing(trained, data, options, error, message):
    net = copy.deepcopy(trained)
    with pytest.raises(error, match=message):
        posttrain(net, data, **options)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor)


def test_pictures_of_another_size_or_other_colours():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    before = net[0].weight.clone()
    for shape in ((2, 1, 9, 9), (2, 3, 8, 8)):
        with pytest.raises(PosttrainError, match=f"of {re.escape(str(list(shape)))}: .*size"):
            posttrain(net, [torch.randn(*shape)])
    assert torch.equal(net[0].weight, before)


def test_a_layer_that_never_runs(trained, batches):
    net = nn.ModuleDict({"used": copy.deepcopy(trained), "other": nn.Conv2d(1, 8, 3)})
    with pytest.raises(PosttrainError, match="do not reach other"):
        posttrain(net, batches, forward=lambda model, x: model["used"](x))


def test_constant_pictures_are_no_division_by_zero(trained):
    net = copy.deepcopy(trained)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        posttrain(net, [torch.zeros(4, 1, 8, 8)], 2.0)
    assert all(bool(torch.isfinite(p).all()) for p in net.parameters())


def test_wrong_normalisation_is_warned_of(trained, batches):
    with pytest.warns(UserWarning, match="check mean, scale and order of the colours"):
        posttrain(copy.deepcopy(trained), [16 * b for b in batches], 2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        posttrain(copy.deepcopy(trained), batches, 2.0)


@pytest.fixture
def pictures(tmp_path):
    generator = np.random.default_rng(0)
    folder = tmp_path / "pictures" / "deep"
    folder.mkdir(parents=True)
    for number in range(6):
        mode, shape = ("L", (40, 50)) if number % 2 else ("RGB", (50, 40, 3))
        pixels = generator.integers(0, 255, shape, np.uint8)
        Image.fromarray(pixels, mode).save(folder / f"{number}.png")
    return tmp_path / "pictures"


def test_pictures_of_a_folder(pictures):
    (pictures / "broken.jpg").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="1 of 7 pictures cannot be read"):
        loader = calibration_batches(pictures, size=32, batch=4, limit=100)
    assert [tuple(b.shape) for b in loader] == [(4, 3, 32, 32), (2, 3, 32, 32)]
    [few] = calibration_batches(pictures / "deep", limit=3)
    assert len(few) == 3
    with pytest.raises(DataError, match="nowhere: no such folder"):
        calibration_batches(pictures / "nowhere")
    (pictures / "empty").mkdir()
    with pytest.raises(DataError, match="no readable pictures"):
        calibration_batches(pictures / "empty")


def coloured(num_classes: int) -> nn.Module:
    """For the command line."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:the calibration data look")
def test_command(pictures, tmp_path):
    torch.manual_seed(1)
    save_file(coloured(5).state_dict(), tmp_path / "w.safetensors")
    output = tmp_path / "out"
    arguments = ["posttrain", "--model", "posttrain.test_posttrain:coloured", "--classes", "5"]
    arguments += ["--images", str(pictures), "--image-size", "16", "--output", str(output)]
    arguments += ["--connectivity", "2", "--reconstruct", "3"]
    result = CliRunner().invoke(app, [*arguments, "--weights", str(tmp_path / "w.safetensors")])
    assert result.exit_code == 0, result.output
    assert "each block" in result.stderr
    [block] = json.loads((output / "report.json").read_text())["blocks"]
    assert block["layers"] == ["0", "3"]
    net = coloured(5)
    assignment = load_pruned(output / "pruned.safetensors", net)
    assert set(assignment) == {"0", "3"}
    assert json.loads((output / "report.json").read_text())["method"] == "posttrain"
    assert sorted(p.name for p in output.iterdir() if "lock" not in p.name) == [
        "pruned.safetensors",
        "report.json",
    ]
    result = CliRunner().invoke(app, [*arguments, "--weights", str(tmp_path / "none.safetensors")])
    assert result.exit_code == 1
    assert "no such" in result.output


def test_command_with_an_onnx_file(pictures, tmp_path):
    torch.manual_seed(1)
    model = tmp_path / "m.onnx"
    example = torch.zeros(1, 3, 16, 16)
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            coloured(5).eval(), (example,), model, dynamo=True, verbose=False,
            dynamic_shapes=({0: batch},), external_data=False,
        )  # fmt: skip
    arguments = ["prune", "--model", str(model), "--posttrain", str(pictures)]
    arguments += ["--image-size", "16", "--connectivity", "2", "--mean", "0", "0", "0"]
    arguments += ["--std", "1", "1", "1", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    pruned = OnnxNetwork(tmp_path / "out" / "pruned.onnx")
    kept = [int(m.weight.count_nonzero()) for m in pruned.modules() if isinstance(m, nn.Conv2d)]
    assert kept == [3 * 8 * 4, 8 * 8 * 4 // 2]
    library = tp.compile(pruned, example)
    np.testing.assert_allclose(library(example), pruned(example).detach(), rtol=1e-4, atol=1e-5)
    for extra, message in (
        (["--weights", "w.safetensors"], "has its own; leave them out"),
        (["--std", "1", "0", "1"], "std above 0"),
    ):
        result = CliRunner().invoke(app, [*arguments, *extra])
        assert result.exit_code == 1
        assert message in " ".join(result.output.split())
    result = CliRunner().invoke(app, ["prune", "--model", "vgg16", f"--posttrain={pictures}"])
    assert "name them with --weights" in result.output


def test_pictures_are_prepared_as_asked(pictures):
    standard = calibration_batches(pictures, size=16, limit=2)[0]
    plain = calibration_batches(pictures, size=16, limit=2, mean=(0, 0, 0), std=(1, 1, 1))[0]
    assert plain.min() >= 0
    assert plain.max() <= 1
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close((plain - mean) / std, standard)


@pytest.mark.parametrize("sharing", ["similar", "neighbours"])
def test_filters_share_by_likeness_or_as_neighbours(trained, sharing):
    net = copy.deepcopy(trained)
    posttrain(net, [images()[0][:64]], connectivity=2.0, group=4, sharing=sharing, first="skip")
    kept = (net[4].weight.detach() != 0).flatten(1)
    alike = (kept[:, None] == kept[None]).all(2)
    assert (alike.sum(1) >= 4).all()
    neighbours = alike.view(8, 4, 8, 4)[torch.arange(8), :, torch.arange(8)]
    assert bool(neighbours.all()) == (sharing == "neighbours")


@pytest.mark.parametrize("group", [1, 2])
def test_grouped_convolutions_are_fitted_group_by_group(group):
    torch.manual_seed(0)
    mixed = nn.Conv2d(8, 8, 1)
    dense = nn.Sequential(mixed, nn.Conv2d(8, 12, 3, groups=2)).eval()
    pruned = copy.deepcopy(dense)
    pictures = torch.randn(64, 8, 8, 8)
    options = {"connectivity": 2.0, "group": group, "positions": 36, "skip": ["0"]}
    report = posttrain(pruned, [pictures], **options)
    alive = pruned[1].weight.abs().sum((2, 3)) > 0
    assert alive.view(2, 6, 4).sum((1, 2)).tolist() == [12, 12]
    if group == 2:
        assert torch.equal(alive[0::2], alive[1::2])
    with torch.no_grad():
        want, got = dense(pictures), pruned(pictures)
    power = (want - want.mean((0, 2, 3), keepdim=True)).square().mean()
    layer = report.layers[0]
    assert layer.fitted < layer.projected
    assert float((got - want).square().mean() / power) == pytest.approx(layer.fitted, rel=0.05)
