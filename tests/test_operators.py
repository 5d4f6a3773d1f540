"""The operator table: a part of it is tried again, and the page says what the table says."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from benchmarks.operators import page
from benchmarks.operators.__main__ import batches
from benchmarks.operators.case import SAMPLES, Case, sample_arrays
from benchmarks.operators.onnx_cases import onnx_cases
from benchmarks.operators.onnx_trial import onnx_model, oracle, try_onnx
from benchmarks.operators.torch_cases import torch_cases
from benchmarks.operators.trial import REFUSED, RIGHT, difference, try_torch
from tvm_pattern.frontend import import_model
from tvm_pattern.frontend.onnx_rewrites import GraphEditor

# Once compiled to wrong numbers without a word; they stand for their kinds.
ONCE_WRONG = (
    "F.selu(x)",
    'F.interpolate(x, scale_factor=1.5, mode="bilinear")',
    'F.interpolate(x, size=(25, 25), mode="nearest")',
    'F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)',
    'F.interpolate(x, scale_factor=(0.7, 1.3), mode="bicubic", antialias=True)',
    "F.avg_pool2d(x, 3, divisor_override=4)",
    "F.avg_pool2d(x, 3, 2, 1, True, False, divisor_override=5)",
    "F.max_pool2d(x, 2, ceil_mode=True)",
    "torch.sub(x, y, alpha=3)",
    "torch.any(x, (2, 3))",
    "torch.amax(x, (2, 3))",
    "torch.logsumexp(x, 1)",
    "x[:, torch.tensor([1, 3]), :, torch.tensor([0, 2])]",
    "F.grid_sample(x, y)",
)
STATUSES = page.statuses()


def _sampled(title: str, cases: list[Case], every: int, always: tuple[str, ...] = ()) -> list:
    """Batches of the cases of which the page says right."""
    known = page.keys(title, cases)
    chosen = [
        case
        for i, (case, key) in enumerate(zip(cases, known, strict=True))
        if STATUSES.get(key) == RIGHT and (i % every == 0 or case.code in always)
    ]
    return [[chosen[i] for i in members] for members in batches(chosen, [RIGHT] * len(chosen))]


def _ids(members: list[Case]) -> str:
    return members[0].name


def test_the_page_lists_every_line():
    lines = [*page.keys("torch", torch_cases()), *page.keys("ONNX", onnx_cases())]
    assert len(set(lines)) == len(lines)
    assert sorted(STATUSES) == sorted(lines), "renew it: python -m benchmarks.operators --write"
    assert set(STATUSES.values()) == {RIGHT, REFUSED}
    assert {code for (_, _, code), status in STATUSES.items() if status == RIGHT} >= set(ONCE_WRONG)


@pytest.mark.parametrize("members", _sampled("torch", torch_cases(), 13, ONCE_WRONG), ids=_ids)
def test_torch_operators(members):
    outcomes = try_torch(members)
    assert {c.code: o for c, o in zip(members, outcomes, strict=True) if o.status != RIGHT} == {}


@pytest.mark.parametrize("members", _sampled("ONNX", onnx_cases(), 9), ids=_ids)
def test_onnx_operators(members):
    outcomes = try_onnx(members)
    assert {c.code: o for c, o in zip(members, outcomes, strict=True) if o.status != RIGHT} == {}


def test_quotients_and_remainders_of_multiples():
    """Where the quotient of floats rounds to a whole number that it does not reach."""
    tenths = ("((x * 10).round() / 10)", "((y * 10).round() / 10)")
    codes = [
        f"{tenths[0]} // 0.1",
        f"{tenths[0]} // -0.7",
        f"torch.div({tenths[0]}, {tenths[1]}, rounding_mode='floor')",
        f"{tenths[0]} % {tenths[1]}",
        f"{tenths[0]} % -0.1",
        f"torch.fmod({tenths[0]}, 0.1)",
        f"torch.fmod(x, {tenths[1]} / 0)",
        "x / 0 // 0.7",
    ]
    cases = [Case("quotients", code, {"x": "2,40,9", "y": "2,40,9"}) for code in codes]
    outcomes = try_torch(cases)
    assert {c.code: o for c, o in zip(cases, outcomes, strict=True) if o.status != RIGHT} == {}


def test_refused_operators_name_themselves():
    cases = {case.code: case for case in torch_cases()}
    for code, words in (
        (
            "F.adaptive_max_pool2d(x, (4, 3), return_indices=True)",
            "the indices of the operator 'adaptive_max_pool2d",
        ),
        ("F.dropout(x, 0.5, training=True)", "draws random numbers"),
        ("torch.mode(x, 1)[0]", "the operator 'mode' in layer 'parts.0' has no translation"),
    ):
        (outcome,) = try_torch([cases[code]])
        assert outcome.status == REFUSED
        assert words in outcome.detail


def test_differences_are_found():
    want = np.array([1.0, np.nan, np.inf, -2.0], "float32")
    assert difference([want.copy()], [want]) == ""
    assert "2 results, expected 1" in difference([want, want], [want])
    assert "float32[2], expected float32[4]" in difference([want[:2]], [want])
    assert "float64[4], expected float32[4]" in difference([want.astype("float64")], [want])
    for i, other in enumerate((1.001, 0.0, -np.inf, np.nan)):
        got = want.copy()
        got[i] = other
        assert difference([got], [want]).startswith("1 of 4 values")


def _rewritten_cases() -> list[Case]:
    kinds = ("Resize", "MaxPool", "AveragePool", "LpPool")
    return [
        case
        for case, key in zip(onnx_cases(), page.keys("ONNX", onnx_cases()), strict=True)
        if case.code.startswith(kinds) and STATUSES.get(key) == RIGHT
    ]


def test_rewritten_onnx_nodes_compute_what_they_stand_for():
    for case in _rewritten_cases():
        model = onnx_model([case])
        original, rewritten = oracle(model), oracle(GraphEditor(model).rewrite())
        for sample in SAMPLES:
            arrays = sample_arrays(case, sample)
            assert difference(rewritten(arrays), original(arrays)) == "", case.code


def test_max_pool_with_same_lower_keeps_its_size():
    case = Case(
        "pooling",
        'MaxPool(x, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER")',
        {"x": "1,2,17,17"},
    )
    assert import_model(onnx_model([case])).outputs[0].shape == (1, 2, 9, 9)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"antialias": 1, "mode": "linear"}, "antialias=1; expected 0"),
        ({"coordinate_transformation_mode": "tf_crop_and_resize"}, "'tf_crop_and_resize'"),
        ({"keep_aspect_ratio_policy": "not_larger"}, "keep_aspect_ratio_policy"),
    ],
)
def test_resizes_that_are_refused(attributes, words):
    case = Case("Resize", 'Resize(x, "", "", [2, 4, 5, 7])', {"x": "2,4,9,11"})
    model = onnx_model([case])
    for name, value in attributes.items():
        model.graph.node[0].attribute.append(helper.make_attribute(name, value))
    with pytest.raises(ValueError, match=r"the ONNX operator Resize in node .* has ") as caught:
        import_model(model)
    assert words in str(caught.value)
