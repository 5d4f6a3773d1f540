"""The training command: data sets, recipes, killing and resuming, divergence, bad input."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import tvm_pattern as tp
from tvm_pattern.prune_cli import app
from tvm_pattern.pruning import ConfigError, load_pruned, load_training, oneshot
from tvm_pattern.pruning.command import build_model
from tvm_pattern.pruning.data import (
    IGNORED,
    DataError,
    EpochSampler,
    ImageFolder,
    collate,
    make_loader,
    open_data,
    read_cifar10,
)
from tvm_pattern.pruning.optimisation import distillation, learning_rate
from tvm_pattern.pruning.pictures import read_picture
from tvm_pattern.pruning.recipe import Recipe
from tvm_pattern.pruning.train import CHECKPOINT, Trainer, TrainingDiverged

from .small import TRAINERS
from .test_distributed import ROOT, launch


def tiny(num_classes: int = 10) -> nn.Module:
    """A convolutional network with dropout, small enough for seconds."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(8, num_classes),
    )


@pytest.fixture
def folder(tmp_path):
    """Two classes, six training and four validation images each, of different sizes."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 4)):
        for label, name in enumerate(("cat", "dog")):
            where = tmp_path / "data" / part / name
            where.mkdir(parents=True)
            for i in range(count):
                size = (20 + i, 24, 3)
                pixels = (rng.integers(0, 100, size) + 120 * label).astype(np.uint8)
                Image.fromarray(pixels).save(where / f"{i}.png")
    return tmp_path / "data"


def recipe(**train):
    settings = {"workers": 0, "image_size": 16, "batch_size": 4, "epochs": 4, **train}
    return Recipe.from_dict({"patterns": {"connectivity": 2.0}, "train": settings})


def trainer(folder, output, settings=None, **kwargs):
    settings = settings or recipe()
    torch.manual_seed(settings.train.seed)
    data = open_data(str(folder), image_size=settings.train.image_size, seed=settings.train.seed)
    return Trainer(tiny(len(data.classes)), data, settings, output, **kwargs)


def test_a_run_writes_weights_reports_and_plots(folder, tmp_path):
    run = trainer(folder, tmp_path / "out", recipe(ema=0.5, accumulate=2, warmup=1))
    report = run.run()
    assert report.rows[1].kernels_kept == 16
    assert load_pruned(tmp_path / "out" / "model.safetensors", tiny(2)).keys() == {"0", "3"}
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert [e["epoch"] for e in history["epochs"]] == [1, 2, 3, 4]
    assert [e["phase"] for e in history["epochs"]] == ["training"] * 2 + ["frozen"] * 2
    for name in ("report.json", "report.md", "report.html", "plots/training.png", "history.csv"):
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_a_run_that_prunes_to_the_end_is_frozen_at_the_end(folder, tmp_path):
    settings = recipe(epochs=2, prune_fraction=1.0, amp=True, optimizer="adamw")
    run = trainer(folder, tmp_path, settings)
    assert run.run().rows[1].kernels_kept == 16
    assert [e["phase"] for e in run.epochs] == ["training", "frozen"]


def test_distillation_is_the_divergence_of_softened_classes():
    logits, wanted = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    p, q = (torch.softmax(v / 3.0, 1) for v in (logits, wanted))
    expected = 9.0 * (q * (q / p).log()).sum(1).mean()
    torch.testing.assert_close(distillation(logits, wanted, 3.0), expected)
    assert float(distillation(wanted, wanted, 3.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(distillation(logits[:0], wanted[:0], 3.0)) == 0.0


def test_the_dense_network_alone_teaches_where_labels_have_no_share(folder, tmp_path):
    """Training goes to the outputs of the network as it came, through a resume as well."""
    settings = recipe(distill=1.0, epochs=6, lr=0.05, label_smoothing=0.1)
    run = trainer(folder, tmp_path / "out", settings)
    images = torch.stack([run.data.train[0, i][0] for i in range(len(run.data.train))])
    teacher = run.teacher
    assert teacher is not None
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    run.run()
    assert all(torch.equal(v, teacher.state_dict()[k]) for k, v in before.items())
    losses = [row["loss"] for row in run.epochs]
    assert losses[-1] < 0.05  # of two classes after training by labels: 0.7
    again = trainer(folder, tmp_path / "out", settings)
    assert torch.equal(again.teacher(images), teacher(images))


def test_gradients_are_clipped_as_long_as_they_are_too_large(folder, tmp_path):
    norms = []

    def watch(optimizer, *_):
        grads = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        norms.append(float(torch.cat([g.flatten() for g in grads]).norm()))

    for clip in (0.0, 1e-3):
        settings = Recipe.from_dict(
            {"method": "oneshot", "train": {**recipe(epochs=1).train.model_dump(), "clip": clip}}
        )
        run = trainer(folder, tmp_path / str(clip), settings)
        run.optimizer.register_step_pre_hook(watch)
        norms.clear()
        run.run()
        assert all((norm <= 1.001e-3) == bool(clip) for norm in norms)
        assert norms


@pytest.fixture
def torchvision_like(monkeypatch):
    """Transforms with torchvision's names, whose mixing can be followed."""

    class Half:
        def __init__(self, *, alpha, num_classes):
            self.alpha, self.num_classes = alpha, num_classes

        def __call__(self, images, labels):
            shares = nn.functional.one_hot(labels, self.num_classes).float()
            return (images + images.roll(1, 0)) / 2, (shares + shares.roll(1, 0)) / 2

    def choice(transforms):
        return lambda *batch: transforms[int(torch.rand(()) < 0.5)](*batch)

    v2 = SimpleNamespace(MixUp=Half, CutMix=Half, RandomChoice=choice)
    transforms = SimpleNamespace(v2=v2)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(transforms=transforms))
    monkeypatch.setitem(sys.modules, "torchvision.transforms", transforms)


def test_the_loss_is_that_of_mixed_pictures(folder, tmp_path, torchvision_like):
    """Those that cannot be read are not mixed in, and have no share."""
    run = trainer(folder, tmp_path, recipe(mixup=0.2, label_smoothing=0.1))
    run.model.eval()
    run.scaler = torch.amp.GradScaler("cpu", enabled=False)
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, IGNORED, 1, 1])
    kept = images[[0, 2, 3]]
    log_p = torch.log_softmax(run.model((kept + kept.roll(1, 0)) / 2), 1)
    shares = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.0, 1.0]]) * 0.9 + 0.05
    expected = -(shares * log_p).sum(1).mean()
    torch.testing.assert_close(run._backward(images, labels), expected.detach())
    none = run._backward(images, torch.full((4,), IGNORED))
    assert float(none) == 0.0


@pytest.mark.parametrize("kinds", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
def test_torchvision_mixes_and_a_resumed_run_mixes_alike(kinds, folder, tmp_path):
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        if TRAINERS:
            raise
        pytest.skip(
            f"pip install '.[trainers]' brings torchvision, whose transforms these are: {error}"
        )
    settings = recipe(epochs=3, lr=0.01, **kinds)
    whole = trainer(folder, tmp_path / "a", settings)
    whole.run()
    plain = trainer(folder, tmp_path / "c", recipe(epochs=3, lr=0.01))
    plain.run()
    assert whole.epochs[0]["loss"] != plain.epochs[0]["loss"]
    first = trainer(folder, tmp_path / "b", settings)
    record, original = [], first._record

    def stop_at_second(figures):
        record.append(figures)
        if len(record) == 2:
            raise KeyboardInterrupt
        original(figures)

    first._record = stop_at_second
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = trainer(folder, tmp_path / "b", settings)
    second.run()
    assert whole.epochs == second.epochs


def test_mixing_without_torchvision_says_what_to_install(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    with pytest.raises(ConfigError, match="pip install torchvision of this torch, or leave"):
        trainer(folder, tmp_path, recipe(cutmix=1.0))
    with pytest.raises(ConfigError, match="mixup"):
        recipe(mixup=-0.1)


def test_top5_is_there_for_more_than_five_classes(tmp_path):
    settings = Recipe.from_dict(
        {"train": {"workers": 0, "image_size": 10, "batch_size": 256}}, epochs=1
    )
    run = Trainer(tiny(), open_data("digits", image_size=10), settings, tmp_path)
    run.run()
    [row] = run.epochs
    assert row["accuracy"] < row["top5"] <= 100
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert lines[0].split(",")[:5] == ["epoch", "phase", "loss", "accuracy", "top5"]
    assert len(lines) == 2
    labels = torch.cat([y for _, y, _ in run._loaders["validation"]])
    model = run.model.eval()
    with torch.no_grad():
        outputs = torch.cat([model(x) for x, _, _ in run._loaders["validation"]])
    ranks = (outputs > outputs.gather(1, labels[:, None])).sum(1)
    assert row["top5"] == pytest.approx(100 * float((ranks < 5).double().mean()))


def test_a_checkpoint_of_before_a_setting_goes_on(folder, tmp_path):
    trainer(folder, tmp_path).run()
    text = recipe().to_json()
    older = json.loads(text)
    for name in ("distill", "temperature", "clip"):
        del older["train"][name]
    assert recipe().is_same(json.dumps(older))
    assert not recipe(clip=1.0).is_same(json.dumps(older))
    assert not recipe().is_same("no recipe")


@pytest.mark.parametrize("name", ["resnet50", "vgg16_bn", "mobilenet_v2"])
def test_recipes_for_imagenet_run_on_a_small_folder(name, folder, tmp_path):
    """With a small network; the built-in one has the layers that the recipe names."""
    path = ROOT / "recipes" / f"{name}.yaml"
    whole = Recipe.from_file(path)
    assert whole.prune_epochs < whole.train.epochs
    network = getattr(tp.models, name)(num_classes=10)
    assert len(oneshot(network, **one_shot_settings(whole)).pruned) > 10
    small = {"workers": 0, "image_size": 16, "batch_size": 4, "epochs": 2}
    text = json.loads(whole.to_json())
    text["train"] |= small
    text["method"] = {"name": whole.method.name}
    run = trainer(folder, tmp_path, Recipe.from_dict(text))
    assert len(run.run().pruned) == 2


def one_shot_settings(whole):
    names = ("connectivity", "connectivity_1x1", "group", "library", "first", "rules")
    return {name: getattr(whole.patterns, name) for name in names}


@pytest.mark.parametrize("method", ["oneshot", "admm", "gradual"])
def test_every_method_runs_on_the_bundled_digits(method, tmp_path):
    settings = Recipe.from_dict(
        {"method": method, "train": {"workers": 0, "image_size": 10, "batch_size": 256}}, epochs=2
    )
    data = open_data("digits", image_size=10)
    assert len(data.train) + len(data.validation) == 1797
    assert len(Trainer(tiny(), data, settings, tmp_path).run().pruned) == 2


def test_interrupted_after_an_epoch_equals_uninterrupted(folder, tmp_path):
    whole = trainer(folder, tmp_path / "a", recipe(amp=False, ema=0.9))
    whole.run()
    first = trainer(folder, tmp_path / "b", recipe(ema=0.9))
    original, calls = first.evaluate, []

    def stop_at_third():
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original()

    first.evaluate = stop_at_third
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = trainer(folder, tmp_path / "b", recipe(ema=0.9))
    second.run()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert whole.epochs == second.epochs


def _command(folder, output, epochs, *more):
    return [
        "-m", "tests.pruning.train_worker", "--model", "tests.pruning.test_train:tiny",
        "--data", str(folder), "--output", str(output), "--epochs", str(epochs), *more,
    ]  # fmt: skip


def test_kill_9_in_the_middle_and_resume_equals_uninterrupted(folder, tmp_path):
    (tmp_path / "r.json").write_text(
        json.dumps({"train": {"workers": 0, "image_size": 16, "batch_size": 2}})
    )
    epochs = 40
    more = ("--recipe", str(tmp_path / "r.json"))
    process = subprocess.Popen(
        [sys.executable, *_command(folder, tmp_path / "b", epochs, *more)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint = tmp_path / "b" / CHECKPOINT
    while process.poll() is None:
        if checkpoint.is_file() and load_training(checkpoint)["epoch"] >= 3:
            process.send_signal(signal.SIGKILL)
            process.wait()
        time.sleep(0.05)
    assert process.returncode == -signal.SIGKILL
    assert 3 <= load_training(checkpoint)["epoch"] < epochs
    for output in ("a", "b"):  # a from the start, b from where it was killed
        arguments = _command(folder, tmp_path / output, epochs, *more)[2:]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    a, b = (load_training(tmp_path / n / CHECKPOINT) for n in "ab")
    assert a["epochs"] == b["epochs"]
    for name, value in a["model"].items():
        assert torch.equal(value, b["model"][name]), name
    saved = [load_file(tmp_path / n / "model.safetensors") for n in "ab"]
    assert all(torch.equal(v, saved[1][k]) for k, v in saved[0].items())


def test_two_processes_train_one_model(folder, tmp_path):
    (tmp_path / "r.yaml").write_text("train: {workers: 0, image_size: 16, batch_size: 2}\n")
    command = _command(folder, tmp_path / "o", 3, "--recipe", str(tmp_path / "r.yaml"), "--json")
    done = launch(command, 2)
    for process in done:
        assert process.returncode == 0, process.stderr
    assert json.loads(done[0].stdout)["compression_rate"] > 2
    assert done[1].stdout == ""
    load_pruned(tmp_path / "o" / "model.safetensors", tiny(2))


def test_nan_loss_stops_with_the_last_good_state(folder, tmp_path):
    run = trainer(folder, tmp_path)
    original = run._train_epoch

    def poison(progress, task):
        if run.epoch == 2:
            with torch.no_grad():
                run.model[9].weight.fill_(float("nan"))
        return original(progress, task)

    run._train_epoch = poison
    with pytest.raises(TrainingDiverged, match="became nan in epoch 3; the state after epoch 2"):
        run.run()
    state = load_training(tmp_path / CHECKPOINT)
    assert state["epoch"] == 2
    assert all(bool(torch.isfinite(v).all()) for v in state["model"].values())
    again = trainer(folder, tmp_path)
    again.run()
    assert again.epoch == 4


def test_divergence_in_the_first_epoch_leaves_the_initial_state(folder, tmp_path):
    run = trainer(folder, tmp_path)
    good = {k: v.clone() for k, v in run.model.state_dict().items()}
    run.scaler.scale = lambda loss: loss * float("nan")
    with pytest.raises(TrainingDiverged, match="in epoch 1"):
        run.run()
    state = load_training(tmp_path / CHECKPOINT)
    assert state["epoch"] == 0
    assert all(torch.equal(v, state["model"][k]) for k, v in good.items())


def test_unreadable_images_are_named_counted_and_not_fatal(folder, tmp_path):
    bad = [folder / "train/cat/0.png", folder / "train/dog/9.jpg", folder / "val/cat/1.png"]
    bad[0].write_bytes(bad[0].read_bytes()[:60])
    bad[1].write_bytes(b"no image")
    bad[2].write_bytes(b"")
    run = trainer(folder, tmp_path / "o")
    run.run()
    assert run.unreadable == {str(p) for p in bad}
    history = json.loads((tmp_path / "o/history.json").read_text())
    assert history["unreadable"] == sorted(str(p) for p in bad)


def test_batch_norms_see_no_unreadable_images(folder, tmp_path):
    """Neither in training nor in the recalibration at the freeze."""
    for name in ("cat/0", "cat/3", "dog/1", "dog/5"):
        (folder / f"train/{name}.png").write_bytes(b"")
    run = trainer(folder, tmp_path / "o", recipe(epochs=2))
    darkest = []

    def look(norm, arguments):
        if norm.training:
            darkest.append(float(arguments[0].detach().flatten(1).std(1).min()))

    run.model[1].register_forward_pre_hook(look)
    run.model[0].bias.data.zero_()
    run.model[0].bias.requires_grad_(False)
    run.run()
    # Of zeros, a convolution without bias makes zeros, and they do not vary.
    assert min(darkest) > 0.01
    assert len(run.unreadable) == 4


def test_a_batch_without_a_readable_image_has_no_statistics(folder, tmp_path):
    run = trainer(folder, tmp_path / "o")
    run.model.train()
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    assert float(run._backward(torch.zeros(4, 3, 16, 16), torch.full((4,), IGNORED))) == 0.0
    assert all(torch.equal(v, before[k]) for k, v in run.model.state_dict().items())
    assert all(module.training for module in run.model.modules())
    for file in (folder / "train").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="no training image could be read"):
        trainer(folder, tmp_path / "none").run()


def test_unreadable_items_of_a_batch_show_readable_ones():
    one, two = torch.ones(3, 2, 2), torch.full((3, 2, 2), 2.0)
    gone = (torch.zeros(3, 2, 2), IGNORED, 7)
    images, labels, indices = collate([gone, (one, 4, 1), gone, (two, 5, 2)])
    assert [float(image.mean()) for image in images] == [1.0, 1.0, 1.0, 2.0]
    assert labels.tolist() == [IGNORED, 4, IGNORED, 5]
    assert indices.tolist() == [7, 1, 7, 2]
    images, labels, _ = collate([gone, gone])
    assert not images.any()
    assert labels.tolist() == [IGNORED] * 2


def test_validation_needs_one_readable_image(folder, tmp_path):
    for file in (folder / "val").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="no validation image could be read"):
        trainer(folder, tmp_path / "o").run()


def test_checkpoints_of_another_run_are_refused(folder, tmp_path):
    trainer(folder, tmp_path).run()
    with pytest.raises(ValueError, match="belongs to another recipe"):
        trainer(folder, tmp_path, recipe(lr=0.01)).run()
    other = trainer(folder, tmp_path)
    other.model.add_module("10", nn.Linear(2, 2))
    with pytest.raises(ValueError, match="does not fit this model"):
        other.run()
    (tmp_path / CHECKPOINT).write_bytes(b"PK damaged")
    with pytest.raises(ValueError, match="no readable checkpoint"):
        trainer(folder, tmp_path).run()
    trainer(folder, tmp_path).run(resume=False)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_do_not_change_the_images(folder):
    data = open_data(str(folder), image_size=16, seed=3)
    seen = []
    for workers in (0, 2):
        sampler = EpochSampler(len(data.train), train=True, seed=3)
        sampler.epoch = 5
        loader = make_loader(data.train, sampler, 4, workers)
        seen.append(torch.cat([images for images, _, _ in loader]))
    assert torch.equal(*seen)
    sampler.epoch = 6
    assert not torch.equal(seen[0], torch.cat([i for i, _, _ in loader]))


def test_samplers_share_every_image_once():
    for train in (False, True):
        parts = [
            [i for _, i in EpochSampler(11, train=train, seed=0, rank=r, world=2)] for r in (0, 1)
        ]
        together = parts[0] + parts[1]
        assert len(set(together)) == len(together) == (10 if train else 11)
        assert len(EpochSampler(11, train=train, seed=0, rank=0, world=2)) == len(parts[0])
    with pytest.raises(DataError, match="1 training images for 2 processes"):
        EpochSampler(1, train=True, seed=0, world=2)


def test_central_crop_keeps_the_middle(tmp_path):
    where = tmp_path / "a"
    where.mkdir()
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, 36:92] = 255  # the central 56 of the short side's 64
    Image.fromarray(pixels).save(where / "x.png")
    image, label, _ = ImageFolder(tmp_path, ["a"], 16, 0, train=False)[0, 0]
    assert label == 0
    assert image.shape == (3, 16, 16)
    assert float(image.min()) > 1.5  # all white after normalisation


def _cifar(path, count, label=3):
    record = np.full((count, 3073), 7, np.uint8)
    record[:, 0] = label
    record[:, 1] = np.arange(count)
    path.write_bytes(record.tobytes())


def test_cifar10_binaries_are_read(tmp_path):
    for name, count in (("data_batch_1", 5), ("data_batch_2", 3), ("test_batch", 2)):
        _cifar(tmp_path / f"{name}.bin", count)
    data = open_data(str(tmp_path))
    assert (len(data.train), len(data.validation), len(data.classes)) == (8, 2, 10)
    images, labels = read_cifar10([tmp_path / "data_batch_1.bin"])
    assert images.shape == (5, 3, 32, 32)
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert labels.tolist() == [3] * 5
    assert data.train[0, 1][0].shape == (3, 32, 32)


def test_bad_data_is_named(tmp_path, folder):
    with pytest.raises(DataError, match="no such folder"):
        open_data(str(tmp_path / "none"))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="neither train/ and val/"):
        open_data(str(empty))
    for part in ("train", "val"):
        (empty / part).mkdir()
    with pytest.raises(DataError, match="both need the same class folders"):
        open_data(str(empty))
    for part, name in itertools.product(("train", "val"), ("cat", "dog")):
        (empty / part / name).mkdir()
    with pytest.raises(DataError, match="has no images"):
        open_data(str(empty))
    (folder / "val/bird").mkdir()
    with pytest.raises(DataError, match="unknown"):
        open_data(str(folder))
    shutil.rmtree(folder / "val/bird")
    for part in ("train", "val"):
        shutil.rmtree(folder / part / "dog")
    with pytest.raises(DataError, match="the one class cat; expected two at least"):
        open_data(str(folder))
    _cifar(tmp_path / "data_batch_1.bin", 2)
    with pytest.raises(DataError, match=r"test_batch\.bin: no such file"):
        open_data(str(tmp_path))
    (tmp_path / "test_batch.bin").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="no whole number of 3073-byte records"):
        open_data(str(tmp_path))
    _cifar(tmp_path / "test_batch.bin", 2, label=11)
    with pytest.raises(DataError, match="label 11"):
        open_data(str(tmp_path))


def test_grey_pictures_are_warned_of(folder):
    for number, path in enumerate((folder / "train").glob("*/*.png")):
        with Image.open(path) as picture:
            grey = picture.convert("L")
        if number % 2:  # as most tools write them
            grey = grey.convert("RGB")
        grey.save(path)
    with pytest.warns(UserWarning, match="12 of 12 pictures that were looked at are grey"):
        open_data(str(folder))


def test_pictures_of_sixteen_bits_are_left_out(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(path)
    with pytest.raises(DataError, match="more than 8 bits"):
        read_picture(path, 8)


def test_a_picture_of_too_many_pixels_is_left_out(folder, monkeypatch):
    """Pillow refuses it by an error of its own."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"0\.png is no readable picture: Image size"):
        read_picture(folder / "val/cat/0.png", 8)
    _, label, _ = ImageFolder(folder / "val", ["cat", "dog"], 16, 0, train=False)[0, 0]
    assert label == IGNORED


def test_unreadable_items_are_ignored_by_label(folder):
    (folder / "val/cat/0.png").write_bytes(b"")
    image, label, _ = ImageFolder(folder / "val", ["cat", "dog"], 16, 0, train=False)[0, 0]
    assert label == IGNORED
    assert not image.any()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "is a mapping, got list"),
        ({"patern": {}}, r"unknown keys \['patern'\]"),
        ({"version": 3}, "version 3"),
        ({"train": {"epoch": 3}}, "epoch"),
        ({"train": 3}, "invalid train settings"),
        ({"train": {"lr": -1}}, "lr"),
        ({"method": "magic"}, "expected oneshot"),
        ({"patterns": {"connectivity": 0}}, "connectivity"),
    ],
)
def test_bad_recipes_are_named(data, message):
    with pytest.raises(ConfigError, match=message):
        Recipe.from_dict(data)


def test_recipes_fit_the_method_to_the_epochs(tmp_path):
    assert Recipe.from_dict({}, epochs=21).method.steps == 9
    assert Recipe.from_dict({"method": {"name": "admm", "steps": 7}}, 20).method.steps == 7
    assert Recipe.from_dict({"method": "oneshot"}).prune_epochs == 0
    whole = Recipe.from_dict({"train": {"prune_fraction": 1.0, "epochs": 3, "warmup": 1}})
    assert whole.prune_epochs == 3
    assert learning_rate(whole, 0.5) == pytest.approx(0.05 * 0.5, rel=0.01)
    assert learning_rate(Recipe.from_dict({}, 10), 7.5) == pytest.approx(0.025)
    path = tmp_path / "r.yaml"
    path.write_text("version: 1\npatterns: {library: pconv4}\nmethod: {name: admm, rho: [0.1]}\n")
    assert Recipe.from_file(path).patterns.library == "pconv4"
    assert Recipe.from_file(None) == Recipe.from_dict({})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vgg99", "--data", "digits"], "unknown model 'vgg99'"),
        (["--model", "nowhere:net", "--data", "digits"], "expected package.module:factory"),
        (["--model", "builtins:dict", "--data", "digits"], "gave a dict, expected an nn.Module"),
        (["--model", "vgg16", "--data", "/nowhere"], "no such folder"),
        (["--model", "vgg16", "--data", "digits", "--recipe", "no.yaml"], "no such file"),
        (["--model", "tests.pruning.test_train:tiny", "--data", "digits", "--weights", "no"],
         "no such file"),
        (["--model", "vgg16", "--data", "digits", "--epochs", "0"], "epochs"),
        (["--model", "vgg16", "--data", "digits", "--device", "cuda"], "no CUDA device"),
    ],
)  # fmt: skip
def test_bad_arguments_end_with_one_clear_line(arguments, message, tmp_path):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    result = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path)])
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_named_models_are_built():
    assert isinstance(build_model("mobilenet_v2", 4), nn.Module)


def test_the_command_line_trains_and_reports_json(tmp_path, folder):
    (tmp_path / "r.yaml").write_text("train: {workers: 0, image_size: 16, batch_size: 4}\n")
    result = CliRunner().invoke(
        app,
        [
            "--model", "tests.pruning.test_train:tiny", "--data", str(folder),
            "--recipe", str(tmp_path / "r.yaml"), "--epochs", "1", "--json",
            "--output", str(tmp_path / "o"),
        ],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["output"] == str(Path(tmp_path / "o"))
    assert figures["compression_rate_pruned"] > 2


def test_distillation_needs_weights_to_learn_from(folder, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("train: {distill: 0.5}\n")
    arguments = ["--model", "resnet50", "--data", str(folder), "--recipe", str(path)]
    result = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "name trained ones with --weights" in " ".join(result.output.split())


def test_a_network_of_fewer_outputs_than_classes_is_refused(folder, tmp_path):
    settings = recipe(epochs=1)
    data = open_data(str(folder), image_size=16, seed=0)
    run = Trainer(tiny(1), data, settings, tmp_path / "out")
    with pytest.raises(
        DataError, match=r"of 2 classes, the network gives \[\d+, 1\].*num_classes=2"
    ):
        run.run()
