"""The pruner in a user's loop: every phase, every optimizer, and each known trap."""

from __future__ import annotations

import copy
import functools
import json
import math

import pytest
import torch
from torch import nn

from tvm_pattern.pruning import (
    Admm,
    ConfigError,
    Gradual,
    LibrarySpec,
    MaskedEma,
    OneShot,
    PatternConfig,
    Pruner,
    Rule,
    SparsityError,
)

from .small import CONFIG, batch, make_net, run, sgd, train_step

METHODS = {
    "oneshot": OneShot(),
    "gradual": Gradual(steps=4),
    "admm": Admm(steps=4),
    "admm-separate": Admm(steps=4, separate=True),
}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=5e-4),
    "sgd-fused": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=5e-4, fused=True),
    "adam": lambda p: torch.optim.Adam(p, 1e-3, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-3),
    "adamw-fused": lambda p: torch.optim.AdamW(p, 1e-3, fused=True),
    "adam-amsgrad": lambda p: torch.optim.Adam(p, 1e-3, amsgrad=True),
}


def pruned_weights_alive(pruner):
    return sum(int(torch.count_nonzero(s.weight[s.removed])) for s in pruner.layers)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_pruned_weights_stay_zero_with_every_optimizer(method, optimizer):
    model = make_net()
    opt = OPTIMIZERS[optimizer](model.parameters())
    pruner = Pruner(model, CONFIG, METHODS[method]).attach(opt)
    run(model, opt, pruner, 0, 26, freeze_at=17)
    assert pruned_weights_alive(pruner) == 0
    report = pruner.finalize()
    row = next(r for r in report.rows if r.name == "3")
    assert (row.kernels_kept, row.weights_kept) == (64, 256)
    assert pruner.phase == "finished"


def test_trap_momentum_revives_weights_without_the_hooks():
    """The trap is real: without hooks the very same loop brings pruned weights back."""
    model = make_net()
    opt = sgd(model)
    pruner = Pruner(model, CONFIG, "oneshot").attach(opt)
    run(model, opt, pruner, 0, 10, freeze_at=9)
    pruner.detach()
    train_step(model, opt, 11)
    assert pruned_weights_alive(pruner) > 0
    with pytest.raises(SparsityError, match="pruned weights are not zero"):
        pruner.finalize()


@pytest.mark.parametrize("optimizer", ["sgd", "adam-amsgrad"])
def test_trap_moments_are_cleared_at_the_freeze(optimizer):
    model = make_net()
    opt = OPTIMIZERS[optimizer](model.parameters())
    pruner = Pruner(model, CONFIG, "oneshot").attach(opt)
    run(model, opt, pruner, 0, 8, freeze_at=7)
    layer = pruner.layers[0]
    moments = [v for v in opt.state[layer.weight].values() if v.shape == layer.weight.shape]
    assert moments
    for moment in moments:
        assert not moment[layer.removed].any()
        assert moment[~layer.removed].any()
    train_step(model, opt, 50)
    for moment in moments:
        assert not moment[layer.removed].any()


def test_trap_weight_decay_alone_moves_nothing_pruned():
    model = make_net()
    opt = sgd(model, weight_decay=0.5)
    pruner = Pruner(model, CONFIG, "oneshot").attach(opt)
    pruner.freeze()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    assert pruned_weights_alive(pruner) == 0


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("method", ["gradual", "admm", "admm-separate"])
def test_trap_grad_scaler_sees_the_penalty_in_true_scale(method, fused):
    results = []
    for scaled in (False, True):
        model = make_net()
        opt = sgd(model, fused=fused)
        pruner = Pruner(model, CONFIG, METHODS[method]).attach(opt)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
        run(model, opt, pruner, 0, 24, freeze_at=17, scaler=scaler)
        results.append(model[3].weight.detach().clone())
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_changes_nothing(fused):
    model = make_net()
    opt = sgd(model, fused=fused)
    pruner = Pruner(model, CONFIG, Admm(steps=2)).attach(opt)
    train_step(model, opt, 0)
    before = model[3].weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(model(batch(1)[0]).sum()).backward()
    model[3].weight.grad[0, 0, 0, 0] = math.inf
    scaler.step(opt)
    scaler.update()
    assert torch.equal(before, model[3].weight)
    assert pruner.phase == "training"


def test_autocast_training_keeps_the_masks():
    model = make_net()
    opt = sgd(model)
    pruner = Pruner(model, CONFIG, METHODS["gradual"]).attach(opt)
    for step in range(12):
        x, y = batch(step)
        opt.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x).float(), y)
        loss.backward()
        opt.step()
        pruner.step()
    pruner.freeze()
    pruner.finalize()


def test_the_penalty_is_added_once_per_step_whatever_the_accumulation():
    """The ADMM gradient is rho (W - Z + U), independent of how many backward calls there were."""
    model = make_net()
    opt = torch.optim.SGD(model.parameters(), 1.0)
    pruner = Pruner(model, CONFIG, Admm(steps=4, rho=(0.5,))).attach(opt)
    weight = model[3].weight
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    before = weight.detach().clone()
    opt.step()
    z = pruner.engine.z["3"]
    torch.testing.assert_close(weight.detach(), before - 0.5 * (before - z))
    for _ in range(3):
        model(batch(1)[0]).sum().mul(0).backward()
    before, u = weight.detach().clone(), pruner.engine.u["3"]
    weight.grad.zero_()
    opt.step()
    torch.testing.assert_close(weight.detach(), before - 0.5 * (before - z + u))


def test_gradient_accumulation_runs():
    model = make_net()
    opt = sgd(model)
    pruner = Pruner(model, CONFIG, METHODS["admm"]).attach(opt)
    run(model, opt, pruner, 0, 20, freeze_at=16, accumulate=3)
    pruner.finalize()


def test_trap_adam_penalty_reaches_the_projection():
    """Coupled in the gradient, a strong penalty pulls W onto Z under Adam too."""
    model = make_net()
    opt = torch.optim.Adam(model.parameters(), 2e-3)
    pruner = Pruner(model, CONFIG, Admm(steps=30, rho=(0.1, 1.0, 10.0))).attach(opt)
    run(model, opt, pruner, 0, 300, freeze_at=-1, every=10)
    residuals = [h["residual"] for h in pruner.history]
    assert residuals[-1] < 0.15 < residuals[0]


def test_admm_updates_follow_the_equations():
    model = make_net()
    opt = sgd(model)
    method = Admm(steps=4, rho=(0.1, 0.4), dual_step=0.5)
    pruner = Pruner(model, CONFIG, method).attach(opt)
    train_step(model, opt, 0)
    for update in range(4):
        w, u = model[3].weight.detach().clone(), pruner.engine.u["3"].clone()
        record = pruner.step()
        z = pruner.engine.z["3"]
        ids = pruner.layers[0].project(w + u)
        expected = (w + u).masked_fill(pruner.layers[0].removed_by(ids), 0)
        assert torch.equal(z, expected)
        # rho changes from .1 to .4 after the second update: the scaled dual shrinks by four.
        factor = 0.25 if update == 1 else 1.0
        torch.testing.assert_close(pruner.engine.u["3"], (u + 0.5 * (w - z)) * factor)
        assert record["rho"] == (0.1 if update < 2 else 0.4)
        gap = sum(
            (s.weight.detach() - pruner.engine.z[s.name]).square().sum() for s in pruner.layers
        )
        norm = sum(s.weight.detach().square().sum() for s in pruner.layers)
        assert record["residual"] == pytest.approx(float((gap / norm).sqrt()), rel=1e-5)


def test_separate_admm_projects_patterns_and_connectivity_apart():
    model = make_net()
    opt = sgd(model)
    pruner = Pruner(model, CONFIG, METHODS["admm-separate"]).attach(opt)
    train_step(model, opt, 0)
    record = pruner.step()
    z, y = pruner.engine.z["3"], pruner.engine.y["3"]
    assert (z.flatten(2).count_nonzero(-1) == 4).all()
    assert int(y.flatten(2).count_nonzero(-1).count_nonzero()) == 64
    assert set(y.flatten(2).count_nonzero(-1).unique().tolist()) == {0, 9}
    assert record["residual_connectivity"] > 0


@pytest.mark.parametrize(("separate", "copies"), [(False, 2), (True, 4)])
def test_memory_is_two_or_four_copies_of_the_pruned_weights(separate, copies):
    model = make_net()
    opt = sgd(model)
    pruner = Pruner(model, CONFIG, Admm(steps=4, separate=separate)).attach(opt)
    train_step(model, opt, 0)
    pruner.step()
    held = sum(t.nbytes for group in pruner.engine.tensors().values() for t in group.values())
    assert held == copies * sum(s.weight.nbytes for s in pruner.layers)
    pruner.freeze(early=True)
    assert pruner.engine.tensors() == {}
    assert sum(s.removed.nbytes for s in pruner.layers) * 4 == sum(
        s.weight.nbytes for s in pruner.layers
    )


def test_gradual_removes_kernels_along_the_cubic_ramp():
    model = make_net()
    opt = sgd(model)
    pruner = Pruner(model, CONFIG, Gradual(steps=4)).attach(opt)
    train_step(model, opt, 0)
    kept = [pruner.assignment["3"].kept]
    for step in range(1, 6):
        train_step(model, opt, step)
        pruner.step()
        kept.append(pruner.assignment["3"].kept)
    assert kept == [128, 64 + 27, 64 + 8, 64 + 1, 64, 64]
    removed = pruner.layers[0].removed.clone()
    pruner.freeze()
    assert torch.equal(removed, pruner.layers[0].removed)


def test_phased_extraction_shrinks_the_library_while_training():
    spec = LibrarySpec(source="phased", size=8)
    assert spec.sizes == (56, 32, 16, 8)
    model = make_net()
    opt = sgd(model)
    config = PatternConfig(connectivity=2.0, library=spec, first="skip")
    pruner = Pruner(model, config, Gradual(steps=4)).attach(opt)
    sizes = [len(pruner.layers[0].plan.pattern_set)]
    for step in range(4):
        train_step(model, opt, step)
        pruner.step()
        sizes.append(len(pruner.layers[0].plan.pattern_set))
    assert sizes == [56, 32, 16, 8, 8]
    pruner.freeze()
    report = pruner.finalize()
    assert len(report.assignment["3"].pattern_set) == 8


def test_phased_extraction_ends_at_its_size_even_when_frozen_early():
    spec = LibrarySpec(source="phased", size=4, phases=(20, 4))
    model = make_net()
    pruner = Pruner(model, PatternConfig(library=spec, first="skip", connectivity=2.0), "oneshot")
    pruner.freeze()
    assert len(pruner.assignment["3"].pattern_set) == 4


def test_trap_ema_never_shows_pruned_weights_and_restarts_at_the_freeze():
    model = make_net()
    opt = sgd(model)
    pruner = Pruner(model, CONFIG, "oneshot").attach(opt)
    ema = MaskedEma(pruner, decay=0.99)
    for step in range(6):
        train_step(model, opt, step)
        ema.update()
    pruner.freeze()
    frozen = model[3].weight.detach().clone()
    averaged = ema.model[3].weight
    assert torch.equal(averaged, frozen)  # a restart, not an average with dense weights
    for step in range(6, 12):
        train_step(model, opt, step)
        ema.update()
    averaged = ema.model[3].weight
    assert not averaged[pruner.layers[0].removed].any()
    assert not torch.equal(averaged, model[3].weight)


def test_ema_is_masked_during_the_ramp_and_resumes():
    model = make_net()
    opt = sgd(model)
    pruner = Pruner(model, CONFIG, Gradual(steps=2)).attach(opt)
    ema = MaskedEma(pruner, decay=0.9)
    for step in range(4):
        train_step(model, opt, step)
        ema.update()
        pruner.step()
    removed = pruner.layers[0].removed
    assert removed.any()
    assert not ema.model[3].weight[removed].any()
    other = MaskedEma(pruner, decay=0.9)
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.model[3].weight, ema.model[3].weight)
    with pytest.raises(ValueError, match="not the state"):
        other.load_state_dict({"x": 1})
    with pytest.raises(ValueError, match="between 0 and 1"):
        MaskedEma(pruner, decay=1.0)


def test_trap_batch_norm_is_recalibrated_without_touching_modes():
    model = make_net()
    pruner = Pruner(model, CONFIG, "oneshot")
    pruner.freeze()
    model.train()
    model[1].eval()
    norm = model[4]
    used = pruner.recalibrate_bn((batch(i) for i in range(9)), batches=4)
    assert used == 4
    assert (model[0].training, model[1].training, norm.momentum) == (True, False, 0.1)
    # The cumulative average over the batches, computed independently.
    means = []
    with torch.no_grad():
        for i in range(4):
            x = model[0](batch(i)[0])
            x = nn.functional.batch_norm(
                x, None, None, model[1].weight, model[1].bias, training=True
            )
            means.append(model[3](x.relu()).mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))


def test_recalibration_needs_data_and_restores_what_was():
    model = make_net()
    pruner = Pruner(model, CONFIG)
    before = model[4].running_var.clone().add_(1)
    model[4].running_var.copy_(before)
    with pytest.raises(ValueError, match="got no batch"):
        pruner.recalibrate_bn([])
    assert torch.equal(model[4].running_var, before)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        pruner.recalibrate_bn([batch(0)], batches=0)
    with pytest.raises(RuntimeError, match="size"):
        pruner.recalibrate_bn([torch.zeros(2, 5, 6, 6)])
    assert model[4].momentum == 0.1
    assert model.training
    plain = nn.Sequential(nn.Conv2d(3, 4, 3))
    assert Pruner(plain, PatternConfig(first="prune")).recalibrate_bn([]) == 0
    used = pruner.recalibrate_bn([{"x": batch(0)[0]}], forward=lambda m, b: m(b["x"]))
    assert used == 1


class _Named(nn.Module):
    """A model with a child that is really called ``module``."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))

    def forward(self, x):
        return self.module(x)


def test_trap_wrappers_do_not_change_layer_names():
    plain = make_net()
    names = [s.name for s in Pruner(plain, CONFIG).layers]
    assert names == ["3"]
    compiled = torch.compile(make_net(), backend="eager")
    assert [s.name for s in Pruner(compiled, CONFIG).layers] == names
    partly = make_net()
    partly[3] = torch.compile(partly[3], backend="eager")
    assert [s.name for s in Pruner(partly, CONFIG).layers] == names
    parallel = nn.DataParallel(make_net())
    assert [s.name for s in Pruner(parallel, CONFIG).layers] == names
    config = PatternConfig(first="skip", rules=[Rule(name="module.1", connectivity=2.0)])
    assert [s.name for s in Pruner(_Named(), config).layers] == ["module.1"]


def test_compiled_model_trains_as_the_plain_one():
    results = []
    for wrap in (lambda m: m, lambda m: torch.compile(m, backend="eager")):
        model = make_net()
        wrapped = wrap(model)
        opt = sgd(wrapped)
        pruner = Pruner(wrapped, CONFIG, METHODS["gradual"]).attach(opt)
        run(wrapped, opt, pruner, 0, 14, freeze_at=9, early=True)
        pruner.finalize()
        results.append(model[3].weight.detach())
    assert torch.equal(*results)


def test_channels_last_weights_keep_their_layout():
    model = make_net().to(memory_format=torch.channels_last)
    opt = sgd(model)
    pruner = Pruner(model, CONFIG, METHODS["gradual"]).attach(opt)
    run(model, opt, pruner, 0, 6, freeze_at=4, early=True)
    assert pruner.layers[0].removed.is_contiguous(memory_format=torch.channels_last)
    assert model[3].weight.is_contiguous(memory_format=torch.channels_last)


def test_the_model_is_untouched_until_the_first_step():
    model = make_net()
    before = copy.deepcopy(model.state_dict())
    for method in METHODS.values():
        Pruner(model, CONFIG, method).attach(sgd(model))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


def test_group_is_shared_by_neighbouring_filters_on_request():
    model = make_net()
    config = CONFIG.model_copy(update={"group": 4, "sharing": "neighbours"})
    pruner = Pruner(model, config, "oneshot")
    pruner.freeze()
    ids = pruner.assignment["3"].pattern_id.view(4, 4, 8)
    assert (ids == ids[:, :1]).all()


def partners(ids, group):
    """How many filters have the same kernels and patterns as each one, itself included."""
    return (ids[:, None] == ids[None]).all(2).sum(1) >= group


@pytest.mark.parametrize("method", METHODS)
def test_filters_alike_share_and_stay_together_after_a_resume(method):
    """Also where training makes others alike later: which filters share is settled at the start."""
    config = CONFIG.model_copy(update={"group": 4})
    results = []
    for interrupted in (False, True):
        model = make_net()
        opt = sgd(model)
        pruner = Pruner(model, config, METHODS[method]).attach(opt)
        run(model, opt, pruner, 0, 9, freeze_at=17)
        if interrupted:
            states = copy.deepcopy((model.state_dict(), opt.state_dict(), pruner.state_dict()))
            model = make_net()
            opt = sgd(model)
            pruner = Pruner(model, config, METHODS[method]).attach(opt)
            for part, state in zip((model, opt, pruner), states, strict=True):
                part.load_state_dict(state)
        run(model, opt, pruner, 9, 24, freeze_at=17)
        ids = pruner.assignment["3"].pattern_id
        assert partners(ids, 4).all()
        assert not (ids.view(4, 4, -1) == ids.view(4, 4, -1)[:, :1]).all()  # no neighbours
        results.append(ids)
        pruner.finalize()
    assert torch.equal(*results)


@pytest.mark.parametrize("group", [1, 4])
def test_a_state_of_before_filters_alike_shared_goes_on_with_neighbours(group):
    def of(sharing):
        config = CONFIG.model_copy(update={"group": group, "sharing": sharing})
        return Pruner(make_net(), config, Gradual(steps=4))

    old = of("neighbours")
    old.step()
    state = old.state_dict()
    assert state.pop("orders") == {}
    config = json.loads(state["config"])
    assert config.pop("sharing") == "neighbours"
    state["config"] = json.dumps(config, sort_keys=True)
    again = of("neighbours")
    again.load_state_dict(state)
    assert torch.equal(again.assignment["3"].pattern_id, old.assignment["3"].pattern_id)
    if group > 1:
        with pytest.raises(ConfigError, match="made with the configuration"):
            of("similar").load_state_dict(state)
    else:
        of("similar").load_state_dict(state)


def test_a_state_with_a_damaged_order_is_refused():
    config = CONFIG.model_copy(update={"group": 4})
    pruner = Pruner(make_net(), config, Gradual(steps=4))
    pruner.step()
    state = pruner.state_dict()
    state["orders"]["3"][0] = state["orders"]["3"][1]
    with pytest.raises(ConfigError, match="orders of 3 is no permutation of its 16 filters"):
        Pruner(make_net(), config, Gradual(steps=4)).load_state_dict(state)


def test_several_optimizers_are_attached_together():
    model = make_net()
    first = torch.optim.SGD(model[0].parameters(), 0.1)
    second = torch.optim.SGD(model[3].parameters(), 0.1, momentum=0.9)
    config = PatternConfig(connectivity=2.0, first="pattern")
    pruner = Pruner(model, config, "gradual")
    with pytest.raises(ValueError, match="do not hold the weights of 3"):
        pruner.attach(first)
    pruner.attach(first, second)
    model(batch(0)[0]).sum().backward()
    first.step()
    second.step()
    assert pruned_weights_alive(pruner) == 0


def test_frozen_backbones_need_no_optimizer():
    model = make_net()
    model[3].weight.requires_grad_(False)
    others = [p for p in model.parameters() if p.requires_grad]
    config = CONFIG.model_copy(update={"frozen": "prune"})
    pruner = Pruner(model, config, "admm").attach(torch.optim.SGD(others, 0.1))
    pruner.freeze(early=True)
    pruner.finalize()


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("method", ["gradual", "admm", "admm-separate"])
def test_a_closure_trains_as_separate_calls_do(method, keyword):
    """Lightning hands the whole training step to ``optimizer.step`` as a closure."""
    results = []
    for closed in (False, True):
        model = make_net()
        opt = sgd(model)
        pruner = Pruner(model, CONFIG, METHODS[method]).attach(opt)

        def closure(model=model, opt=opt, step=0):
            opt.zero_grad()
            x, y = batch(step)
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        for step in range(20):
            call = functools.partial(closure, step=step)
            if not closed:
                call()
                opt.step()
            elif keyword:
                assert opt.step(closure=call).item() > 0
            else:
                assert opt.step(call).item() > 0
            if step % 4 == 3:
                pruner.step()
        pruner.freeze()
        results.append(model[3].weight.detach().clone())
    assert torch.equal(*results)


def test_finishing_is_refused_unless_frozen_and_as_asked():
    model = make_net()
    opt = sgd(model)
    pruner = Pruner(model, CONFIG, "gradual").attach(opt)
    train_step(model, opt, 0)
    with pytest.raises(SparsityError, match="needs the frozen phase, got 'training'"):
        pruner.finalize()
    pruner.freeze(early=True)
    with pytest.raises(RuntimeError, match="belongs to the training phase"):
        pruner.freeze()
    assert pruner.step()["phase"] == "frozen"
    layer = pruner.layers[0]
    good = layer.pattern_id.clone()
    layer.pattern_id[layer.pattern_id != 255] = 255
    with pytest.raises(SparsityError, match="0 kernels kept, asked 64"):
        pruner.finalize()
    layer.pattern_id = good
    with torch.no_grad():
        model[3].weight.fill_(math.nan)
    with pytest.raises(SparsityError, match="not finite"):
        pruner.finalize()


def test_freezing_weights_that_are_not_finite_is_refused():
    model = make_net()
    pruner = Pruner(model, CONFIG, "oneshot")
    with torch.no_grad():
        model[3].weight[0, 0, 0, 0] = math.inf
    with pytest.raises(RuntimeError, match="weights of 3 are not finite"):
        pruner.freeze()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("magic", "expected oneshot, gradual or admm"),
        ({"name": "gradual", "step": 3}, "step"),
        ({"name": "gradual", "steps": 0}, "greater than or equal to 1"),
        ({"name": "admm", "rho": []}, "at least one value"),
        ({"name": "admm", "rho": [-1.0]}, "greater than 0"),
        ({"name": "admm", "dual_step": 2.0}, "less than or equal to 1"),
    ],
)
def test_bad_methods_are_named(method, message):
    with pytest.raises(ConfigError, match=message):
        Pruner(make_net(), CONFIG, method)
