"""The CIFAR-10 study: its batched arithmetic against ordinary modules, the pruner and itself."""

from __future__ import annotations

import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.cifar import __main__ as command
from benchmarks.cifar import (
    data,
    model,
    networks,
    posttraining,
    projection,
    rows,
    study,
    training,
)
from benchmarks.cifar.operators import ModuleOperators, PlainOperators
from benchmarks.cifar.pruning import PruneSettings, Pruning
from benchmarks.cifar.rows import Row
from topi_kernels.pattern import builtin_pattern_set
from topi_kernels.reorder import similar_filters
from tvm_pattern.posttrain import posttrain
from tvm_pattern.pruning import (
    Admm,
    Gradual,
    PatternConfig,
    Pruner,
    natural_library,
    oneshot,
    recalibrate_bn,
)
from tvm_pattern.pruning.projection import (
    kept_kernels,
    pattern_masks,
    project_joint,
    removed_positions,
)

NARROW = networks.resnet20((4, 8, 8))
SGD = model.Sgd()


@pytest.fixture(autouse=True)
def without_onednn():
    """Gradients of maps of 2x2 overrun memory in the oneDNN (3.12) of torch 2.13 on AVX2."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


def images(seed: int = 0, count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(1, count, 8, 8, 3, generator=generator),
        torch.randint(10, (1, count), generator=generator),
    )


def members(network: networks.Network, count: int = 2) -> model.Members:
    return training.fresh(networks.Layout(network), range(count), torch.device("cpu"))


def plain(batch: model.Members, index: int) -> networks.PlainNetwork:
    return networks.to_plain(
        batch.layout,
        batch.parameters[index].clone(),
        batch.mean[index].clone(),
        batch.variance[index].clone(),
    )


def sgd_of(module: torch.nn.Module) -> torch.optim.SGD:
    weights = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": SGD.weight_decay}, {"params": others}]
    return torch.optim.SGD(groups, lr=0.1, momentum=SGD.momentum, nesterov=True)


# The batched model -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network", [NARROW, networks.vgg((4, 4, 8, 8, 8, 8))], ids=lambda n: n.name
)
@pytest.mark.parametrize("operators", [PlainOperators(), ModuleOperators()])
def test_members_train_as_ordinary_modules_do(
    network: networks.Network, operators: PlainOperators | ModuleOperators
) -> None:
    batch = members(network)
    modules = [plain(batch, s).train() for s in range(2)]
    optimizers = [sgd_of(m) for m in modules]
    decayed = batch.layout.decayed()
    for step in range(3):
        x, y = images(step)
        losses = model.train_step(batch, operators, x, y, 0.1, decayed, 0.1, SGD)
        for index, (module, optimizer) in enumerate(zip(modules, optimizers, strict=True)):
            loss = F.cross_entropy(module(x[0].permute(0, 3, 1, 2)), y[0], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert float(losses[index]) == pytest.approx(float(loss.detach()), rel=1e-4)
    x, _ = images(9)
    answers = model.predict(batch, operators, x)
    for index, module in enumerate(modules):
        expected = module.eval()(x[0].permute(0, 3, 1, 2))
        torch.testing.assert_close(answers[index], expected, rtol=1e-3, atol=1e-3)


def test_bfloat16_members_stay_near_float32_ones() -> None:
    x, y = images()
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        batch = members(NARROW)
        decayed = batch.layout.decayed()
        losses = model.train_step(batch, PlainOperators(), x.to(dtype), y, 0.1, decayed, 0.1, SGD)
        found.append((losses, batch.momentum))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0.05, atol=0)
    # Eight images through twenty batch norms amplify rounding: directions agree, not digits.
    assert float(F.cosine_similarity(found[0][1], found[1][1]).min()) > 0.9


def test_a_masked_network_is_the_thin_network() -> None:
    """Filter rows train at full width; what they train is exactly the narrow network."""
    batch = members(networks.resnet20((4, 8, 8)), 1)
    row = Row("resnet20", "filter-weights", 4.0)
    fraction = 0.5
    pruning = Pruning([row], batch, PruneSettings(1))
    pruning.fraction = lambda _: fraction  # type: ignore[method-assign]
    pruning.start()
    thin = networks.PlainNetwork(networks.resnet20((2, 4, 4)))
    alive = {c.name: batch.mask[0] for c in batch.layout.network.convs}
    full = plain(batch, 0)
    state = {}
    for conv in batch.layout.network.convs:
        gamma = batch.layout.slots[f"{conv.name}.gamma"].of(batch.mask)[0].bool()
        alive[conv.name] = gamma
        weight = full.get_submodule(conv.name).weight.detach()[gamma]
        if conv.source:
            weight = weight[:, alive[conv.source]]
        state[f"{conv.name}.weight"] = weight
        assert int(gamma.sum()) == conv.out_channels // 2
    thin.load_state_dict(state, strict=False)
    thin.classifier.weight.data = full.classifier.weight.detach()[:, alive[conv.name]]
    thin.classifier.bias.data = full.classifier.bias.detach()
    thin.train()
    optimizer = sgd_of(thin)
    for step in range(2):
        x, y = images(step)
        decayed = batch.layout.decayed()
        loss = model.train_step(batch, PlainOperators(), x, y, 0.1, decayed, 0.1, SGD)
        expected = F.cross_entropy(thin(x[0].permute(0, 3, 1, 2)), y[0], label_smoothing=0.1)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        assert float(loss[0]) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert study.kept_weights(batch, 0) == thin.network.conv_weights()


# Projections and methods -------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["fixed8", "pconv4", "natural56"])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("similar", [False, True])
def test_projection_is_the_pruners(library: str, group: int, similar: bool) -> None:
    generator = torch.Generator().manual_seed(group)
    weight = torch.randn(3, 16, 8, 3, 3, generator=generator)
    kept = kept_kernels(16, 8, 3.6, group)
    order = torch.stack([torch.randperm(16, generator=generator) for _ in range(3)])
    masks = pattern_masks(builtin_pattern_set(library))
    got = projection.project(
        weight, projection.masks_of(library, []), kept, group, order if similar else None
    )
    for s in range(3):
        place = order[s] if similar else torch.arange(16)
        ids = project_joint(weight[s][place], masks, kept, group)
        assert torch.equal(got[s][place], ~removed_positions(ids, masks))


def test_extracted_library_is_the_pruners() -> None:
    weights = [torch.randn(8, 4, 3, 3), torch.randn(4, 8, 3, 3)]
    expected = natural_library(weights, 8)
    assert torch.equal(projection.natural_masks(weights), projection.flat_masks(expected))


@pytest.mark.parametrize("method", ["gradual", "admm", "oneshot"])
def test_methods_are_the_pruners(method: str) -> None:
    """The same weights and masks as ``Pruner`` after every epoch, steps of SGD included."""
    row = Row("resnet20", method, 4.0)
    batch = members(NARROW, 1)
    module = plain(batch, 0).train()
    steps = 3
    pruning = Pruning([row], batch, PruneSettings(steps))
    rate = rows.connectivity(NARROW, row.rate)
    config = PatternConfig(library="fixed8", connectivity=rate, connectivity_1x1=1.0, first="skip")
    settings = {"gradual": Gradual(steps=steps), "admm": Admm(steps=steps), "oneshot": "oneshot"}
    optimizer = sgd_of(module)
    pruner = Pruner(module, config, settings[method]).attach(optimizer)
    if method == "oneshot":
        pruner.freeze()
    optimizer.step()  # without gradients: the pruner makes its first choice here
    pruning.start()
    decayed = batch.layout.decayed()
    for step in range(steps + 1):
        x, y = images(step)
        model.train_step(batch, PlainOperators(), x, y, 0.02, decayed, 0.0, SGD)
        for group in optimizer.param_groups:
            group["lr"] = 0.02
        loss = F.cross_entropy(module(x[0].permute(0, 3, 1, 2)), y[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pruning.after_epoch()
        if step < steps and method != "oneshot":
            pruner.step()
        if step == steps - 1 and method != "oneshot":
            pruner.freeze()
        for conv in NARROW.prunable:
            got = batch.layout.slots[conv.name].of(batch.parameters)[0]
            want = module.get_submodule(conv.name).weight.detach()
            torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-4)
            if step >= steps - 1:
                assert torch.equal(got != 0, want != 0)
    pruner.finalize()


def test_similar_filters_recovers_planted_groups() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.permutation(np.repeat(np.arange(4), 4))
    energy = rng.lognormal(sigma=2.0, size=(4, 32))[kinds] * rng.uniform(0.9, 1.1, (16, 32))
    order = similar_filters(energy, 4)
    assert sorted(order) == list(range(16))
    assert all(len(set(kinds[order[i : i + 4]])) == 1 for i in range(0, 16, 4))


def test_similar_filters_refuses_an_uneven_group() -> None:
    with pytest.raises(ValueError, match="group 3 does not divide the 16 filters"):
        similar_filters(np.ones((16, 4)), 3)
    with pytest.raises(ValueError, match="got NaN or infinity among their energies"):
        similar_filters(np.full((16, 4), np.nan), 4)


def test_similar_filters_are_no_worse_than_neighbours_and_near_the_best_partition() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        energy = rng.gamma(0.5, 1.0, (6, 5))
        kept = {
            order: sum(float((energy[list(pair)].sum(0) ** 2).sum()) for pair in pairs_of(order))
            for order in itertools.permutations(range(6))
        }
        found = kept[tuple(int(o) for o in similar_filters(energy, 2))]
        assert kept[tuple(range(6))] <= found
        assert found >= 0.97 * max(kept.values())


def pairs_of(order: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [order[i : i + 2] for i in range(0, len(order), 2)]


def test_rates_hold_over_all_convolutions() -> None:
    for row in rows.all_rows():
        if row.method in rows.PATTERN_METHODS:
            network = networks.NETWORKS[row.network]()
            rate = rows.connectivity(network, row.rate)
            kept = sum(4 * rows.kept_kernels(c.shape, rate, row.group) for c in network.prunable)
            rest = network.conv_weights() - sum(
                9 * c.out_channels * c.in_channels for c in network.prunable
            )
            assert network.conv_weights() / (kept + rest) == pytest.approx(row.rate, rel=0.01)


def test_one_seed_of_every_row_comes_before_a_second_of_any() -> None:
    every = rows.all_rows()
    plan = rows.stages(every, 3)
    assert [(seed, len(part)) for seed, part in plan] == [
        (0, len(every)),
        (1, 2 * rows.CORE),
        (2, 2 * rows.CORE),
        (1, len(every) - 2 * rows.CORE),
        (2, len(every) - 2 * rows.CORE),
    ]
    jobs = [(seed, row) for seed, part in plan for row in part]
    assert len(set(jobs)) == len(jobs) == 3 * len(every)
    core = plan[1][1]
    assert {Row("vgg", "dense"), Row("resnet20", "gradual", 8.0, group=4, similar=True)} < set(core)
    assert rows.stages(every[-2:], 2) == [(0, every[-2:]), (1, every[-2:])]


def test_an_impossible_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="less than its unpruned layers"):
        rows.connectivity(networks.resnet20(), 1000.0)


def test_width_by_latency_takes_the_widest_fast_one() -> None:
    table = {
        "networks": {
            "vgg": {
                "pattern": [{"rate": 8.0, "group": 1, "ratio": 0.5}],
                "thin": [{"fraction": f, "ratio": f} for f in (0.25, 0.5, 0.75)],
            }
        }
    }
    assert rows.fraction_by_latency(table, "vgg", 8.0) == 0.5
    table["networks"]["vgg"]["thin"] = [{"fraction": 0.75, "ratio": 0.75}]
    with pytest.raises(ValueError, match="measure narrower"):
        rows.fraction_by_latency(table, "vgg", 8.0)


# Data --------------------------------------------------------------------------------------------


def write_images(folder: Path, classes: int = 10, mode: str = "RGB", size: int = 32) -> None:
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in range(classes):
            place = folder / part / f"class{label}"
            place.mkdir(parents=True)
            shape = (size, size, 3) if mode == "RGB" else (size, size)
            picture = rng.integers(0, 256, shape).astype(np.uint8)
            Image.fromarray(picture, mode).save(place / "0.png")


def test_folder_tar_and_cache_agree(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    with tarfile.open(tmp_path / "images.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "images", ".")
    cache = tmp_path / "cache.npz"
    found = [
        data.load(tmp_path / "images", None),
        data.load(tmp_path / "images.tar.xz", cache),
        data.load(tmp_path / "images.tar.xz", cache),
    ]
    expected = np.asarray(Image.open(tmp_path / "images/train/class3/0.png"))
    for arrays in found:
        assert arrays.train.shape == arrays.test.shape == (10, 32, 32, 3)
        assert arrays.train_labels.tolist() == list(range(10))
        assert np.array_equal(arrays.train[3], expected)


def test_original_binaries(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        record = rng.integers(0, 256, (2, 3073)).astype(np.uint8)
        record[:, 0] = (3, 9)
        record.tofile(tmp_path / name)
    arrays = data.load(tmp_path, None)
    assert arrays.train.shape == (10, 32, 32, 3)
    assert arrays.test_labels.tolist() == [3, 9]
    assert arrays.test[1, 2, 5, 1] == record[1, 1 + 1024 + 2 * 32 + 5]
    (tmp_path / "data_batch_2.bin").unlink()
    with pytest.raises(data.DataError, match=r"lacks data_batch_2\.bin"):
        data.load(tmp_path, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 1}, "has 1 classes"),
        ({"mode": "L"}, "not readable 32x32 RGB"),
        ({"size": 16}, "not readable 32x32 RGB"),
    ],
)
def test_wrong_folders_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    write_images(tmp_path / "images", **change)
    with pytest.raises(data.DataError, match=message):
        data.load(tmp_path / "images", None)


def test_broken_pictures_and_files_are_named(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    (tmp_path / "images/train/class1/0.png").write_bytes(b"no picture")
    with pytest.raises(data.DataError, match=r"train/class1/0\.png"):
        data.load(tmp_path / "images", None)
    (tmp_path / "file").write_bytes(b"no tar")
    with pytest.raises(data.DataError, match="no readable tar"):
        data.load(tmp_path / "file", None)
    with pytest.raises(data.DataError, match="does not exist"):
        data.load(tmp_path / "nowhere", None)


def test_batches_are_crops_and_flips() -> None:
    arrays = data.synthetic(40, 10)
    device = data.DeviceData(arrays, torch.device("cpu"), torch.float32, 16)
    plan = device.epoch(3, 5)
    batch, labels = device.batch(plan, 0, 40)
    assert batch.shape == (40, 8, 8, 16)
    assert not batch[..., 3:].any()
    for i in range(40):
        source = int(plan["order"][i])
        assert int(labels[i]) == arrays.train_labels[source]
        fill = arrays.train.mean((0, 1, 2)).round()
        padded = np.tile(fill, (16, 16, 1))
        padded[4:12, 4:12] = arrays.train[source]
        top, left = int(plan["top"][i]), int(plan["left"][i])
        crop = padded[top : top + 8, left : left + 8]
        crop = crop[:, ::-1] if int(plan["flip"][i]) else crop
        expected = (crop - arrays.train.mean((0, 1, 2))) / arrays.train.std((0, 1, 2))
        np.testing.assert_allclose(batch[i, ..., :3].numpy(), expected, rtol=1e-4, atol=1e-4)


# The study ---------------------------------------------------------------------------------------


def tiny_study(path: Path, deadline: float = float("inf")) -> study.Study:
    settings = training.Settings(
        pretrain_epochs=1, epochs=4, prune_epochs=2, batch_size=16, admm_rho=(0.01, 0.1)
    )
    arrays = data.DeviceData(data.synthetic(32, 20), torch.device("cpu"), torch.float32, 3)
    trainer = training.Trainer(arrays, settings, PlainOperators(), deadline, -1.0)
    wanted = [
        Row("resnet20", "dense"),
        Row("resnet20", "admm", 8.0),
        Row("resnet20", "gradual", 8.0, group=4, similar=True),
    ]
    return study.Study(trainer, study.Results.read(path), wanted, 1, 3, say=lambda _: None)


def test_a_killed_study_goes_on_to_the_same_rows(tmp_path: Path, monkeypatch) -> None:
    whole = tiny_study(tmp_path / "whole.jsonl")
    assert whole.run()
    ticks = iter(range(1000))
    broken = tiny_study(tmp_path / "broken.jsonl")
    broken.trainer.clock = lambda: float(next(ticks))
    runs = 0
    while not broken.run():
        # Every run gets past one more epoch; a new process would build the study anew.
        runs += 1
        broken = tiny_study(tmp_path / "broken.jsonl")
        broken.trainer.clock = lambda: float(next(ticks))
        broken.trainer.deadline = float(next(ticks)) + 1
        broken.trainer.seconds.clear()
    lines = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in s.results.rows]
        for s in (whole, broken)
    ]
    assert lines[0] == lines[1]


def test_rows_without_training_start_from_the_finished_dense_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(networks.NETWORKS, "resnet20", lambda: NARROW)
    small = tiny_study(tmp_path / "rows.jsonl")
    untrained = [Row("resnet20", method, 4.0) for method in ("projection", "posttrain")]
    small.rows = [*untrained, Row("resnet20", "dense")]
    # Between them, the time is over: a second process goes on.
    small.trainer.deadline, ticks = 0.0, itertools.chain([0.0] * 7, itertools.repeat(1.0))
    small.trainer.clock = lambda: next(ticks)
    assert not small.run()
    small.trainer.deadline = float("inf")
    assert small.run()
    lines = {row["method"]: row for row in study.Results.read(tmp_path / "rows.jsonl").rows}
    assert list(lines) == ["dense", "projection", "posttrain"]
    (kept,) = small.work.glob("*.finished.pt")
    for row in untrained:
        state = torch.load(kept, weights_only=True)
        module = networks.to_plain(networks.Layout(NARROW), **state)
        batches = posttraining.calibration(small.trainer.data)
        rate = rows.connectivity(NARROW, 4.0)
        if row.method == "projection":
            oneshot(module, rate, first="skip", sharing="neighbours")
            recalibrate_bn(module, batches)
        else:
            posttrain(module, batches, rate, first="skip", sharing="neighbours", progress=False)
        images = small.trainer.data.normalised(small.trainer.data.test).permute(0, 3, 1, 2)
        right = module(images).argmax(1) == small.trainer.data.test_labels
        assert lines[row.method]["test"] == pytest.approx(100 * float(right.float().mean()))
        assert lines[row.method]["compression_rate"] == pytest.approx(4.0, rel=0.05)
    # A results file that outlived its networks: the dense one is trained again, with no new row.
    kept.unlink()
    small.results.rows.pop()
    assert small.run()
    again = study.Results.read(tmp_path / "rows.jsonl").rows
    assert [row["method"] for row in again] == ["dense", "projection", "posttrain", "posttrain"]
    assert again[3]["test"] == again[2]["test"]


@pytest.mark.parametrize(
    ("deadline", "others", "expected"),
    [
        (float("inf"), {"resnet20"}, 8),
        (1e4, {"resnet20"}, 8),
        (100.0, {"resnet20"}, 4),  # half of the time, at 10.5 s per member
        (100.0, set(), 8),
        (30.0, {"resnet20"}, 2),  # half is too little for one: all of it
        (15.0, {"resnet20"}, None),  # the shortest epochs alone take longer
    ],
)
def test_a_batch_is_no_larger_than_the_time_left(
    tmp_path: Path, deadline: float, others: set[str], expected: int | None
) -> None:
    small = tiny_study(tmp_path / "rows.jsonl", deadline + 5)
    small.reserve = 5.0
    small.trainer.clock = lambda: 0.0
    small.trainer.settings = training.Settings(epochs=10)
    for network in ("vgg", "resnet20"):
        small.trainer.seconds[network], small.trainer.shortest[network] = 1.0, 2.0
    if expected is None:
        with pytest.raises(training.OutOfTime):
            small._affordable("vgg", 8, others)
    else:
        assert small._affordable("vgg", 8, others) == expected


def test_results_survive_a_cut_line_and_refuse_other_settings(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    results = study.Results.read(path)
    results.append({"settings": {"lr": 0.1}})
    results.append({**rows.as_fields(Row("vgg", "dense")), "seed": 0, "test": 90.0})
    with path.open("a") as stream:
        stream.write('{"network": "vg')
    again = study.Results.read(path)
    assert again.done() == {(Row("vgg", "dense"), 0)}
    assert path.read_text().endswith("}\n")
    with pytest.raises(study.ResultsError, match="other settings"):
        again.require({"lr": 0.2})
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(study.ResultsError, match="line 1 is no JSON"):
        study.Results.read(path)


def test_quick_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    values = ["--quick", "--json", str(path), "--seeds", "1", "--members", "3", "--only", "12x"]
    assert command.main([*values, "--network", "resnet20", "--device", "cpu"]) == 0
    assert "finished" in capsys.readouterr().out
    known = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["rate"] for line in known[1:]} == {12.0}
    assert command.main([*values, "--network", "resnet20", "--epochs", "2", "--device", "cpu"]) == 2
    assert "other settings" in capsys.readouterr().err
