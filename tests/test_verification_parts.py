"""The parts of the check by themselves: errors, tolerances, inputs, ties, search for the fault."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tvm_pattern.frontend import ImportedModel, TensorSpec, import_model
from tvm_pattern.verification import VerificationError
from tvm_pattern.verification.check import Check, Subject, discrete_outputs
from tvm_pattern.verification.compare import error_of, tolerance_of
from tvm_pattern.verification.dense import DenseGraph
from tvm_pattern.verification.inputs import positive_input, random_input
from tvm_pattern.verification.locate import first_wrong_node
from tvm_pattern.verification.sketch import SAMPLES, Node, sketch
from tvm_pattern.verification.torch_kernels import torch_bounded
from tvm_pattern.verification.torch_oracle import TorchOracle

NAN, INF = math.nan, math.inf


def floats(*values, dtype=np.float32):
    return np.array(values, dtype)


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [
        (floats(1, 2, 4), floats(1, 2, 4), 0),
        (floats(1, 2, 4.4), floats(1, 2, 4), 0.1),
        (floats(1, NAN, INF), floats(1, NAN, INF), 0),
        (floats(1, 2, 3), floats(1, NAN, 3), INF),
        (floats(1, NAN, 3), floats(1, 2, 3), INF),
        (floats(1, INF), floats(1, -INF), INF),
        (floats(1, NAN), floats(1, INF), INF),
        (floats(1, 2), floats(1, 2, 3), INF),
        (np.array([1, 2]), floats(1, 2), INF),
        (floats(0, 0), floats(0, 0), 0),
        (floats(0, 1e-9), floats(0, 0), INF),
        (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]), 0.25),
        (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), 0),
        # Whether a float16 value just overflows is rounding.
        (floats(INF, 1, dtype=np.float16), floats(65504, 1, dtype=np.float16), 0),
    ],
)
def test_error(got, want, error):
    assert error_of(got, want) == pytest.approx(error, rel=1e-5)


def test_small_values_beside_large_ones_have_their_own_scale():
    want = np.ones((1, 2, 5), np.float32)
    want[:, 0] = 20  # coordinates beside scores
    got = want.copy()
    got[0, 1, 2] += 0.1
    assert error_of(got, want) == pytest.approx(0.1, rel=1e-5)
    want[:, 0] = 1000  # down to a hundredth of the whole tensor's
    got[:, 0] = 1000
    assert error_of(got, want) == pytest.approx(0.1 / 10, rel=1e-4)


def test_tolerance_follows_dtype_and_depth():
    deep = nn.Sequential(*(nn.Conv2d(64, 64, 3, bias=False) for _ in range(3))).eval()
    image = torch.zeros(1, 64, 8, 8)
    found = tolerance_of(import_model(deep, image).mod)
    assert found.dtype == "float32"
    assert 3 * 576 <= found.reduction_length <= 3 * 576 + 3
    assert found.value == pytest.approx(8 * 2**-24 * math.sqrt(found.reduction_length))
    half = tolerance_of(import_model(deep.half(), image.half()).mod)
    assert half.dtype == "float16"
    assert half.value == pytest.approx(2 * 2**-11 * math.sqrt(half.reduction_length), rel=0.01)


SPECS = (TensorSpec("x", (2, 50), "float32"), TensorSpec("i", (3,), "int64"))


def test_random_inputs():
    indices = np.array([4, 0, 7])
    ranged = np.linspace(0, 255, 100, dtype=np.float32).reshape(2, 50)
    first = random_input(SPECS, [ranged, indices], 0)
    assert first.name == "random values (seed 0)"
    assert first.arrays[0].dtype == np.float32
    assert 0 <= first.arrays[0].min() < 20 < 200 < first.arrays[0].max() <= 255
    np.testing.assert_array_equal(first.arrays[1], indices)
    again = random_input(SPECS, [ranged, indices], 0)
    np.testing.assert_array_equal(first.arrays[0], again.arrays[0])
    normal = random_input(SPECS, [np.zeros((2, 50), np.float32), indices], 0).arrays[0]
    assert normal.min() < -1 < 1 < normal.max()
    np.testing.assert_array_equal(random_input(SPECS, None, 0).arrays[1], np.zeros(3))
    positive = positive_input(SPECS, first, 0)
    assert 0 <= positive.arrays[0].min() < positive.arrays[0].max() < 1
    np.testing.assert_array_equal(positive.arrays[1], indices)


def test_sketches():
    values = np.random.default_rng(0).standard_normal((4, SAMPLES)).astype("float32")
    assert sketch(values).agrees_with(sketch(values.reshape(-1)), 1e-6)
    assert sketch(values).samples.size == SAMPLES
    assert not sketch(values).agrees_with(sketch(values * 1.001), 1e-4)
    assert not sketch(values).agrees_with(sketch(np.roll(values, 1)), 1e-2)
    assert sketch(values).has_elements_of(sketch(values.T), 1e-6)
    assert not sketch(values).agrees_with(sketch(values[:2]), 1)
    assert sketch(floats(NAN, NAN)).agrees_with(sketch(floats(NAN, NAN)), 0)


def test_the_first_wrong_node_skips_what_the_importer_fuses():
    rng = np.random.default_rng(0)
    a, b, c, d = (sketch(rng.standard_normal(9)) for _ in range(4))
    nodes = [
        Node("a", "conv", values=(a,)),
        Node("b", "add", inputs=("a",), values=(b,)),  # has no counterpart, c stands for it
        Node("c", "relu", inputs=("b",), values=(c,)),
        Node("d", "selu", inputs=("c",), values=(d,)),
    ]
    assert first_wrong_node(nodes, [a, c, d], 1e-6) is None
    assert first_wrong_node(nodes, [a, c], 1e-6).op == "selu"
    assert first_wrong_node(nodes, [], 1e-6).op == "conv"


class ArgMax(nn.Module):
    def forward(self, x):
        return (x * 2).argmax(1), x + 1


@pytest.fixture(scope="module")
def arg_max() -> ImportedModel:
    return import_model(ArgMax().eval(), torch.zeros(1, 6, 4, 4))


def check_with(imported, run, **changes):
    oracle = TorchOracle(ArgMax().eval(), None)
    return Check(replace(imported, **changes), oracle, Subject("library", run), None)


def test_ties_of_one_input_are_no_error(arg_max):
    assert discrete_outputs(arg_max.mod) == {0}
    right = DenseGraph(arg_max.mod).run
    calls = []

    def tie(arrays):
        calls.append(1)
        index, values = right(arrays)
        if len(calls) == 1:
            index = index.copy()
            index[0, 0, 0] = (index[0, 0, 0] + 1) % 6
        return [index, values]

    found = check_with(arg_max, tie).result()
    assert found.status == "checked"
    assert found.inputs == ["random values (seed 0)", "random values (seed 1)"]
    assert any("compared before it, in the imported graph" in note for note in found.notes)


def test_indices_that_are_never_right_are_an_error(arg_max):
    right = DenseGraph(arg_max.mod).run

    def wrong(arrays):
        index, values = right(arrays)
        return [index + 1, values]

    with pytest.raises(VerificationError, match=r"output0 differs in 100.00% of its elements"):
        check_with(arg_max, wrong).result()


def test_other_outputs_are_compared_as_ever(arg_max):
    right = DenseGraph(arg_max.mod).run

    def nan(arrays):
        index, values = right(arrays)
        values = values.copy()
        values[0, 1, 2, 3] = NAN
        return [index, values]

    with pytest.raises(VerificationError, match=r"output1 differs: at \[0, 1, 2, 3\] it is nan"):
        check_with(arg_max, nan).result()
    with pytest.raises(VerificationError, match=r"it gives .*\[1, 6, 4\], torch.* gives"):
        check_with(arg_max, lambda x: [right(x)[0], right(x)[1][..., 0]]).result()


def test_rounding_that_the_model_amplifies():
    class Steep(nn.Module):
        def __init__(self, slope):
            super().__init__()
            self.slope = slope

        def forward(self, x):
            return torch.sin(x * self.slope)

    def found_for(slope, shift):
        imported = import_model(Steep(slope).eval(), torch.zeros(1, 50))
        subject = Subject("library", lambda a: [np.sin(a[0] * (1 + shift) * slope)])
        return Check(imported, TorchOracle(Steep(slope).eval(), None), subject, None).result()

    widened = found_for(1e3, 2e-6)
    assert widened.status == "checked"
    assert widened.max_error < widened.tolerance < 0.2
    assert "widened" in widened.basis
    chaotic = found_for(1e6, 1e-6)
    assert chaotic.status == "not checked"
    assert chaotic.reason.startswith("the model amplifies rounding")


def test_a_model_that_gives_only_nan_is_tried_in_its_domain():
    class Log(nn.Module):
        def forward(self, x):
            return torch.log(x - 0.0)

    imported = import_model(Log().eval(), torch.zeros(1, 1))
    seen = []

    def run(arrays):
        seen.append(arrays[0])
        return [np.log(arrays[0])]

    specs = (TensorSpec("x", (1, 1), "float32"),)
    zeros = [-np.ones((1, 1), np.float32)]
    check = Check(
        replace(imported, inputs=specs), TorchOracle(Log(), None), Subject("l", run), zeros
    )
    assert check.result().status == "checked"
    assert all(array.min() >= 0 for array in seen)


def test_the_oracle_leaves_the_model_and_torch_as_they_were():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            return x + self.calls + torch.rand(1)

    model = Counts().eval()
    oracle = TorchOracle(model, None)
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    first, again = (run([floats(0)])[0] for run in (oracle.run, oracle.run_again))
    assert 1 <= first[0] < 2
    assert first != again
    assert model.calls.item() == 0
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.set_num_threads(64)
    try:
        with torch_bounded():
            assert torch.get_num_threads() < 64
        assert torch.get_num_threads() == 64
    finally:
        torch.set_num_threads(threads)
