"""Programs that are taken apart without tracing give what torch's own decomposition gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import tvm
from torch import nn
from tvm.relax.frontend.torch import from_exported_program

import tvm_pattern as tp
from tvm_pattern.frontend.torch_decompositions import decompositions
from tvm_pattern.frontend.torch_direct import taken_apart
from tvm_pattern.frontend.torch_operators import converters


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(4, 4, 3, padding=1), function

    def forward(self, x):
        return self.function(self.conv(x))


def exported(model, size=16):
    torch.manual_seed(0)
    channels = 3 if not isinstance(model, Function) else 4
    with torch.no_grad():
        return torch.export.export(model.eval(), (torch.randn(1, channels, size, size),))


def relax_of(program):
    return from_exported_program(
        program,
        keep_params_as_input=False,
        unwrap_unit_return_tuple=True,
        custom_convert_map=converters(),
        run_ep_decomposition=False,
    )


def check_same(program):
    direct = taken_apart(program)
    assert direct is not None
    wanted = program.run_decompositions(decompositions(frozenset(converters())))
    tvm.ir.assert_structural_equal(relax_of(direct), relax_of(wanted), map_free_vars=True)


def strided(x):
    return F.max_pool2d(F.conv2d(x, torch.ones(4, 1, 3, 3), None, 2, 1, 1, 4), 3, 2, 1, 1, True)


FUNCTIONS = {
    "in place": lambda x: F.relu_(x).mul_(2.0).add_(1.0),
    "read after it is overwritten": lambda x: F.relu_(x) + x,
    "hardtanh_": lambda x: F.hardtanh_(x, 0.0, 6.0),
    "hardtanh": lambda x: F.hardtanh(x),
    "relu6": lambda x: F.relu6(x) + F.relu6(x + 1, inplace=True),
    "silu": lambda x: F.silu(x) + F.silu(x + 1, inplace=True),
    "hardswish": lambda x: F.hardswish(x) + F.hardswish(x + 1, inplace=True),
    "hardsigmoid": lambda x: F.hardsigmoid(x) * F.hardsigmoid(x + 1, inplace=True),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1) + F.leaky_relu(x + 1, 0.2, inplace=True),
    "gelu": lambda x: F.gelu(x),
    "cat": lambda x: torch.cat([x, torch.sigmoid(x) * x], 1),
    "pools": lambda x: F.max_pool2d(F.avg_pool2d(x, 2), 2),
    "mean": lambda x: x.mean((2, 3)),
    "nearest": lambda x: F.interpolate(x, scale_factor=2.0),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 2).flatten(1),
    "squeeze and excite": lambda x: x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1)),
    "dropout": lambda x: F.dropout(F.relu(x), 0.5, False),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operators_are_taken_apart_as_torch_does(name):
    check_same(exported(Function(FUNCTIONS[name])))


def test_a_network_is_taken_apart_as_torch_does():
    check_same(exported(tp.models.mobilenet_v2(), 32))


def test_prelu_stays_whole():
    check_same(exported(nn.PReLU()))


def overwritten_view(x):
    y = F.relu(x)
    F.relu_(y.flatten(1)).add_(1.0)
    return y


def overwritten_alias(x):
    y = torch.sigmoid(x)
    return F.dropout(y, 0.5, False).mul_(2.0) + y


OTHERS = {
    "read before it is overwritten": lambda x: (x + 1) * F.relu_(x),
    "overwritten through a view": overwritten_view,
    "overwritten through an alias": overwritten_alias,
    "scaled addition": lambda x: torch.add(x, x, alpha=2),
    "unknown operator": lambda x: torch.tanh(x),
    "batch statistics": lambda x: F.batch_norm(x, None, None, training=True),
    "no affine": lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4)),
    "other dtype": lambda x: x.double() * 2.0,
    "channels last": lambda x: F.relu(x.to(memory_format=torch.channels_last)),
    "product of three axes": lambda x: F.linear(x, torch.ones(5, 16)),
    "flatten that is none": lambda x: x.flatten(3),
    "dropout that drops": lambda x: F.dropout(x, 0.5, True),
    "one image without a batch": lambda x: F.conv2d(x[0], torch.ones(4, 4, 3, 3)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_has_to_be_traced_is_left_to_torch(name):
    assert taken_apart(exported(Function(OTHERS[name]))) is None


def test_inputs_keep_names_of_python():
    class Model(nn.Module):
        def forward(self, input, max, relu):
            return F.relu(input) * F.relu(max) + relu

    image = torch.randn(1, 3, 4, 4)
    program = torch.export.export(Model(), (image, image, image))
    names = [p.name for p in relax_of(taken_apart(program))["main"].params]
    assert names == ["input", "max", "relu"]
    check_same(program)


def test_overwriting_an_input_is_left_to_torch():
    class Model(nn.Module):
        def forward(self, x):
            return F.relu_(x)

    assert taken_apart(exported(Model())) is None


def test_a_buffer_that_changes_is_left_to_torch():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x):
            self.seen.add_(1.0)
            return F.relu(x) + self.seen

    assert taken_apart(exported(Model())) is None


def test_a_channels_last_network_is_left_to_torch():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).to(memory_format=torch.channels_last)
    assert taken_apart(exported(model)) is None


def test_the_program_of_the_caller_is_not_changed():
    program = exported(Function(lambda x: F.relu_(x)))
    before = str(program.graph)
    assert taken_apart(program) is not None
    assert str(program.graph) == before
