"""Pruned weights stay zero whoever writes them: late parameters, wrappers, early freezes."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from tvm_pattern.pruning import Admm, Gradual, PatternConfig, Pruner, oneshot
from tvm_pattern.pruning.recipe import Recipe

from .small import CONFIG, batch, make_net, run, sgd, train_step


def alive(pruner, model, name="3"):
    """Non-zero weights at pruned positions, counted by numpy from the patterns alone."""
    layer = pruner.assignment[name]
    masks = np.stack([p.mask for p in layer.pattern_set] + [np.zeros((3, 3), bool)])
    ids = layer.pattern_id.numpy().astype(int)
    kept = masks[np.where(ids == 255, len(masks) - 1, ids)]
    weight = dict(model.named_modules())[name].weight.detach().numpy()
    assert kept.shape == weight.shape
    return int(np.count_nonzero(weight[~kept]))


class Accelerated(torch.optim.Optimizer):
    """As Accelerate's: an Optimizer by class that never ran ``Optimizer.__init__``."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure=None):
        return self.optimizer.step(closure)


class Lookahead:
    """Slow weights that are written over the fast ones after every second inner step."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.steps = 0
        self.slow = {p: p.detach().clone() for g in optimizer.param_groups for p in g["params"]}

    def zero_grad(self):
        self.optimizer.zero_grad()

    def step(self, closure=None):
        self.optimizer.step(closure)
        self.steps += 1
        if self.steps % 2 == 0:
            for fast, slow in self.slow.items():
                slow += 0.5 * (fast.detach() - slow)
                fast.data.copy_(slow)


@pytest.mark.parametrize("method", [Gradual(steps=2), Admm(steps=2)])
def test_freezing_before_the_last_update_is_refused(method):
    model = make_net()
    opt = sgd(model)
    pruner = Pruner(model, CONFIG, method).attach(opt)
    train_step(model, opt, 0)
    pruner.step()
    before = model[3].weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"after 1 of the 2 updates.*step\(\) 1 times more"):
        pruner.freeze()
    assert torch.equal(model[3].weight, before)
    assert pruner.phase == "training"
    pruner.step()
    pruner.freeze()
    pruner.finalize()


def test_freezing_early_on_purpose_prunes_the_rest():
    model = make_net()
    pruner = Pruner(model, CONFIG, Gradual(steps=9))
    with pytest.raises(RuntimeError, match="the rest from 128 to 64 kernels at once"):
        pruner.freeze()
    pruner.freeze(early=True)
    assert alive(pruner, model) == 0
    assert int((pruner.assignment["3"].pattern_id != 255).sum()) == 64


def test_a_recipe_whose_ramp_outlasts_its_epochs_is_refused():
    recipe = {"method": {"name": "gradual", "steps": 6}, "train": {"epochs": 10}}
    with pytest.raises(ValueError, match="6 steps, but only 5 epochs before the freeze"):
        Recipe.from_dict(recipe)
    recipe["method"]["steps"] = 5
    assert Recipe.from_dict(recipe).method.steps == 5


def test_a_layer_that_is_unfrozen_and_added_later_is_masked():
    model = make_net()
    model[3].weight.requires_grad_(False)
    others = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.SGD(others, 0.05, momentum=0.9, weight_decay=1e-2)
    config = CONFIG.model_copy(update={"frozen": "prune"})
    pruner = Pruner(model, config, "oneshot").attach(opt)
    train_step(model, opt, 0)
    pruner.freeze()
    model[3].weight.requires_grad_(True)
    opt.add_param_group({"params": [model[3].weight]})
    before = model[3].weight.detach().clone()
    for step in range(4):
        train_step(model, opt, step)
        assert alive(pruner, model) == 0
    assert not torch.equal(model[3].weight, before)  # it did train
    moment = opt.state[model[3].weight]["momentum_buffer"].numpy()
    kept = model[3].weight.detach().numpy() != 0
    assert not moment[~kept].any()
    pruner.finalize()


def test_the_admm_penalty_reaches_a_layer_that_is_added_later():
    model = make_net()
    weight = model[3].weight.requires_grad_(False)
    opt = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0)
    config = CONFIG.model_copy(update={"frozen": "prune"})
    pruner = Pruner(model, config, Admm(steps=4, rho=(0.5,))).attach(opt)
    weight.requires_grad_(True)
    opt.add_param_group({"params": [weight]})
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    before = weight.detach().clone()
    opt.step()
    z = pruner.engine.z["3"]
    torch.testing.assert_close(weight.detach(), before - 0.5 * (before - z))


@pytest.mark.parametrize("method", ["oneshot", Gradual(steps=4), Admm(steps=4)])
def test_accelerates_optimizer_trains_as_the_plain_one(method):
    results = []
    for wrap in (lambda o: o, Accelerated):
        model = make_net()
        opt = wrap(sgd(model))
        pruner = Pruner(model, CONFIG, method).attach(opt)
        run(model, opt, pruner, 0, 22, freeze_at=17)
        assert alive(pruner, model) == 0
        pruner.finalize()
        results.append(model[3].weight.detach().clone())
    assert torch.equal(*results)


def test_lookahead_revives_nothing_that_is_used():
    model = make_net()
    opt = Lookahead(sgd(model))
    pruner = Pruner(model, CONFIG, "oneshot").attach(opt)
    pruner.freeze()
    seen = []
    model[3].register_forward_hook(lambda *_: seen.append(alive(pruner, model)))
    revived = 0
    for step in range(6):
        train_step(model, opt, step)
        revived += alive(pruner, model)
    assert revived > 0  # the wrapper does write dense weights ...
    assert seen == [0] * 6  # ... and no forward has seen them
    copied = copy.deepcopy(model)
    for net in (model, copied):
        net[3].weight.data.fill_(1.0)
        net.eval()(batch(0)[0])
        assert alive(pruner, net) == 0
    report = pruner.finalize()
    assert alive(pruner, model) == 0
    model[3].weight.data.fill_(1.0)
    model(batch(0)[0])
    assert model[3].weight.count_nonzero() == model[3].weight.numel()  # detached: nothing holds
    assert report.pruned[0].weights_kept == 256


def test_saving_and_reporting_mask_what_a_wrapper_wrote():
    model = make_net()
    opt = sgd(model)
    pruner = Pruner(model, CONFIG, "oneshot").attach(opt)
    pruner.freeze()
    model[3].weight.data.fill_(1.0)
    pruner.state_dict()
    assert alive(pruner, model) == 0


def test_a_weight_that_is_used_twice_in_a_forward_can_still_be_differentiated():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x).relu())

    model = Twice()
    opt = torch.optim.SGD(model.parameters(), 0.1)
    config = PatternConfig(connectivity=2.0, first="prune")
    pruner = Pruner(model, config, "oneshot").attach(opt)
    pruner.freeze()
    model(torch.randn(1, 8, 6, 6)).sum().backward()
    opt.step()
    assert alive(pruner, model, "conv") == 0


def test_a_model_under_pruning_can_be_pickled():
    model = make_net()
    Pruner(model, CONFIG, "oneshot").attach(sgd(model)).freeze()
    other = pickle.loads(pickle.dumps(model))
    x = batch(0)[0]
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_what_is_no_optimizer_is_refused():
    model = make_net()
    pruner = Pruner(model, CONFIG)
    with pytest.raises(TypeError, match=r"cannot attach to a object: expected a torch\.optim"):
        pruner.attach(object())
    oneshot(model)
    with pytest.raises(ValueError, match="do not hold the weights of 3"):
        pruner.attach(torch.optim.SGD(model[0].parameters(), 0.1))
