"""Files and resuming: exact round trips, bitwise-equal continuation, damaged and foreign files."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tvm_pattern.pruning import (
    Admm,
    CheckpointError,
    ConfigError,
    Gradual,
    LibrarySpec,
    PatternConfig,
    Pruner,
    load_pruned,
    load_training,
    load_weights,
    oneshot,
    save_pruned,
    save_training,
)

from .small import CONFIG, make_net, run, sgd, train_step


@pytest.fixture
def pruned(tmp_path):
    model = make_net()
    report = oneshot(model, connectivity=2.0, connectivity_1x1=2.0, library=6)
    path = tmp_path / "w.safetensors"
    save_pruned(path, model, report.assignment)
    return path, model, report


def test_pruned_files_round_trip_exactly(pruned):
    path, model, report = pruned
    other = make_net(seed=5)
    assignment = load_pruned(path, other)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
    assert set(assignment) == {"0", "3", "6"}
    for name, layer in report.assignment.items():
        assert torch.equal(assignment[name].pattern_id, layer.pattern_id)
        assert assignment[name].pattern_set == layer.pattern_set
        assert (assignment[name].group, assignment[name].connectivity) == (
            layer.group,
            layer.connectivity,
        )
    assert load_pruned(path).keys() == assignment.keys()


def test_a_plain_model_loads_the_file_without_this_package(pruned):
    path, model, _ = pruned
    tensors = load_file(path)
    plain = make_net(seed=5)
    result = plain.load_state_dict(tensors, strict=False)
    assert not result.missing_keys
    assert all(k.endswith(".pattern_id") for k in result.unexpected_keys)
    assert torch.equal(plain[3].weight, model[3].weight)
    ids = tensors["3.pattern_id"]
    assert ids.dtype == torch.uint8
    assert ((ids == 255) == (model[3].weight.flatten(2).count_nonzero(-1) == 0)).all()


def test_wrapped_models_save_and_load_plain_names(pruned, tmp_path):
    _, model, report = pruned
    path = tmp_path / "c.safetensors"
    save_pruned(path, torch.compile(model, backend="eager"), report.assignment)
    load_pruned(path, torch.nn.DataParallel(make_net(seed=5)))
    ordinary = tmp_path / "o.safetensors"
    save_file({f"module.{k}": v.clone() for k, v in model.state_dict().items()}, ordinary)
    fresh = make_net(seed=5)
    load_weights(ordinary, fresh)
    load_weights(path, fresh)
    assert torch.equal(fresh[3].weight, model[3].weight)


def test_saving_what_is_not_pruned_is_refused(pruned, tmp_path):
    report = pruned[2]
    target = tmp_path / "x.safetensors"
    with pytest.raises(ValueError, match="pruned weights are not zero"):
        save_pruned(target, make_net(), report.assignment)
    with pytest.raises(ValueError, match="no layer '3'"):
        save_pruned(target, torch.nn.Linear(2, 2), {"3": report.assignment["3"]})
    with pytest.raises(ValueError, match="the patterns are for"):
        save_pruned(target, make_net(width=4), report.assignment)
    assert not target.exists()


def _rewrite(path, change_tensors=lambda t: None, change_content=lambda c: None):
    tensors = load_file(path)
    report_content = json.loads(_metadata(path)["tvm_pattern"])
    change_tensors(tensors)
    change_content(report_content)
    save_file(tensors, path, {"format": "pt", "tvm_pattern": json.dumps(report_content)})


def _metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize(
    ("tensors", "content", "message"),
    [
        (lambda t: t["3.weight"].fill_(1.0), lambda c: None, "pruned weights are not zero"),
        (lambda t: t["3.pattern_id"].fill_(200), lambda c: None, "pattern_id 200 is outside"),
        (lambda t: t.pop("3.pattern_id"), lambda c: None, "damaged or inconsistent"),
        (lambda t: t.pop("3.weight"), lambda c: None, "damaged or inconsistent"),
        (
            lambda t: t.update({"3.pattern_id": t["3.pattern_id"].float()}),
            lambda c: None,
            "pattern_id of 3 is torch.float32",
        ),
        (lambda t: None, lambda c: c.update(version=9), "format 9, this release reads 1"),
        (lambda t: None, lambda c: c.pop("layers"), "damaged or inconsistent"),
        (lambda t: None, lambda c: c["layers"]["3"].update(pattern_set=7), "damaged"),
        (lambda t: t.pop("1.bias"), lambda c: None, r"missing \['1.bias'\]"),
    ],
)
def test_inconsistent_files_are_named(pruned, tensors, content, message):
    path, *_ = pruned
    _rewrite(path, tensors, content)
    with pytest.raises(CheckpointError, match=message):
        load_pruned(path, make_net())


def test_corrupt_foreign_and_pickled_files_are_named(pruned, tmp_path):
    path, model, _ = pruned
    data = path.read_bytes()
    broken = tmp_path / "broken.safetensors"
    for content in (data[: len(data) // 2], b"", b"\xff" * 100):
        broken.write_bytes(content)
        with pytest.raises(CheckpointError, match="no readable safetensors file"):
            load_pruned(broken)
    foreign = tmp_path / "foreign.safetensors"
    save_file({k: v.clone() for k, v in model.state_dict().items()}, foreign)
    with pytest.raises(CheckpointError, match="was not written by save_pruned"):
        load_pruned(foreign)
    save_file({"x": torch.zeros(1)}, foreign, {"tvm_pattern": "{"})
    with pytest.raises(CheckpointError, match="damaged metadata"):
        load_pruned(foreign)
    for name, write in (
        ("a.safetensors", lambda p: torch.save(model.state_dict(), p)),
        ("b.pkl", lambda p: p.write_bytes(pickle.dumps({"a": 1}))),
    ):
        write(tmp_path / name)
        with pytest.raises(CheckpointError, match="is a pickle, which could run code"):
            load_weights(tmp_path / name, model)
        with pytest.raises(CheckpointError, match="is a pickle, which could run code"):
            load_pruned(tmp_path / name, model)
    with pytest.raises(CheckpointError, match="no such file"):
        load_pruned(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="does not fit Sequential"):
        load_pruned(path, make_net(width=4))


class _Evil:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_training_checkpoints_run_no_code(tmp_path, capsys):
    path = tmp_path / "c.pt"
    save_training(path, {"a": torch.ones(2), "b": {"c": [1, "x", None]}})
    assert load_training(path, {"a", "b"})["b"] == {"c": [1, "x", None]}
    with pytest.raises(CheckpointError, match="expected the keys"):
        load_training(path, {"z"})
    for content in (pickle.dumps(_Evil()), b"", path.read_bytes()[:200]):
        (tmp_path / "evil.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match="no readable checkpoint"):
            load_training(tmp_path / "evil.pt")
    torch.save(_Evil(), tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        load_training(tmp_path / "evil.pt")
    assert "code ran" not in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="no such file"):
        load_training(tmp_path / "none.pt")


CASES = {
    "gradual": (CONFIG, Gradual(steps=4)),
    "admm": (CONFIG, Admm(steps=4)),
    "admm-separate": (CONFIG, Admm(steps=4, separate=True)),
    "phased": (
        PatternConfig(library=LibrarySpec(source="phased", size=8), connectivity=2.0),
        Admm(steps=4),
    ),
}


@pytest.mark.parametrize("stop", [0, 6, 22])
@pytest.mark.parametrize("case", CASES)
def test_resume_is_bitwise_equal_in_every_phase(case, stop, tmp_path):
    config, method = CASES[case]

    def fresh():
        model = make_net()
        opt = torch.optim.AdamW(model.parameters(), 1e-2)
        return model, opt, Pruner(model, config, method).attach(opt)

    model, opt, pruner = fresh()
    run(model, opt, pruner, 0, 30, freeze_at=17)
    first, first_opt, first_pruner = fresh()
    run(first, first_opt, first_pruner, 0, stop, freeze_at=17)
    save_training(
        tmp_path / "c.pt",
        {
            "model": first.state_dict(),
            "optimizer": first_opt.state_dict(),
            "pruner": first_pruner.state_dict(),
        },
    )
    state = load_training(tmp_path / "c.pt")
    second, second_opt, second_pruner = fresh()
    second.load_state_dict(state["model"])
    second_opt.load_state_dict(state["optimizer"])
    second_pruner.load_state_dict(state["pruner"])
    run(second, second_opt, second_pruner, stop, 30, freeze_at=17)
    for name, value in model.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert second_pruner.history == pruner.history
    assert second_pruner.finalize().to_dict() == pruner.finalize().to_dict()


def test_an_optimizer_rebuilt_after_the_freeze_is_attached_again():
    model = make_net()
    opt = sgd(model)
    pruner = Pruner(model, CONFIG, "oneshot").attach(opt)
    run(model, opt, pruner, 0, 6, freeze_at=4)
    again = torch.optim.AdamW(model.parameters(), 1e-2)
    pruner.attach(again)
    for step in range(4):
        train_step(model, again, step)
    pruner.finalize()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(version=7), "version 7, this release reads 1"),
        (lambda s: s.pop("phase"), "expected the keys"),
        (lambda s: s.update(phase="soon"), "unknown phase 'soon'"),
        (lambda s: s.update(config="{}"), "made with the configuration"),
        (lambda s: s.update(method="{}"), "made with the method"),
        (lambda s: s["libraries"].update(x="{}"), "its layers are"),
        (
            lambda s: s["pattern_id"].update({"3": torch.zeros(1, 1)}),
            "pattern_id of 3 is torch.float32",
        ),
        (
            lambda s: s["tensors"].update(z={"3": torch.zeros(1)}),
            r"z of 3 is \(1,\), expected \(16, 8, 3, 3\)",
        ),
    ],
)
def test_unusable_pruner_states_are_named(change, message):
    model = make_net()
    opt = sgd(model)
    pruner = Pruner(model, CONFIG, "admm").attach(opt)
    train_step(model, opt, 0)
    state = pruner.state_dict()
    change(state)
    with pytest.raises(ConfigError, match=message):
        pruner.load_state_dict(state)
    with pytest.raises(ConfigError, match="expected the keys"):
        pruner.load_state_dict([])


@pytest.mark.parametrize("start", [b"\x80\x02", b"\x80\x04", b"PK"])
def test_a_good_file_is_not_taken_for_a_pickle_by_its_length(start, tmp_path):
    """The first bytes of safetensors are the header's length, which may be any number."""
    path = tmp_path / "w.safetensors"
    model = make_net()
    save_file(model.state_dict(), path)
    content = path.read_bytes()
    own = int.from_bytes(content[:8], "little")
    length = int.from_bytes(start, "little")
    length += -(-max(0, own - length) // 65536) * 65536
    header = content[8 : 8 + own] + b" " * (length - own)  # the format pads with spaces
    path.write_bytes(length.to_bytes(8, "little") + header + content[8 + own :])
    assert path.read_bytes().startswith(start)
    other = make_net(seed=5)
    load_weights(path, other)
    assert torch.equal(other[3].weight, model[3].weight)


def test_state_dicts_of_torch_are_read_without_running_code(tmp_path):
    model = make_net()
    plain, nested = tmp_path / "w.pth", tmp_path / "n.pt"
    torch.save(model.state_dict(), plain)
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, nested)
    for path in (plain, nested):
        other = make_net(seed=5)
        load_weights(path, other)
        assert torch.equal(other[3].weight, model[3].weight)
    torch.save({"epoch": 3}, plain)
    with pytest.raises(CheckpointError, match="expected a state dict of tensors"):
        load_weights(plain, model)
    torch.save({"0.weight": _Evil()}, plain)
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        load_weights(plain, model)
