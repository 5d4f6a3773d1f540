"""compile checks itself: wrong imports and wrong code are caught and named, right ones pass."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import tvm
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

import tvm_pattern as tp
from relay_passes.dataflow import op_name
from tvm_pattern import compiler
from tvm_pattern.frontend import import_model
from tvm_pattern.verification import VerificationError, onnx_oracle


class Net(nn.Module):
    """A padded convolution, a scale, a crop and a head, with a few outputs to choose from."""

    def __init__(self, give=lambda y: y) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(4, 5, 1)
        self.give = give

    def forward(self, image):
        y = self.stem(image) * 1.25
        return self.give(self.head(y[:, :, 1:, :]))


IMAGE = torch.randn(1, 3, 8, 9, generator=torch.Generator().manual_seed(1))


@mutator
class Rewriter(PyExprMutator):
    """Replaces the first call of an operator."""

    def __init__(self, mod, name, replace) -> None:
        super().__init__(mod)
        self._name, self._replace = name, replace

    def visit_call_(self, op):
        op = self.visit_expr_post_order(op)
        if op_name(op) != self._name or self._replace is None:
            return op
        replace, self._replace = self._replace, None
        return replace(op)


def rewritten(mod, name, replace):
    rewriter = Rewriter(mod, name, replace)
    gvar = mod.get_global_var("main")
    rewriter.builder_.update_func(gvar, rewriter.visit_expr(mod["main"]))
    assert rewriter._replace is None, f"no {name} in the module"
    return rewriter.builder_.get()


def without_scale(call):
    return call.args[0]


def shifted_crop(call):
    return relax.op.strided_slice(call.args[0], axes=[2], begin=[0], end=[7])


def other_padding(call):
    return relax.op.nn.conv2d(*call.args, padding=(2, 1, 0, 1))


def import_wrongly(monkeypatch, name, replace):
    def wrong(model, example_inputs=None, **options):
        imported = import_model(model, example_inputs, **options)
        mod = rewritten(imported.mod, name, replace)
        return type(imported)(mod, imported.inputs, imported.outputs, {})

    monkeypatch.setattr(compiler, "import_model", wrong)


def lower_wrongly(monkeypatch, name, replace):
    right = compiler.pipeline.lower

    def wrong(mod, *args, **options):
        names = [op_name(b.value) for block in mod["main"].body.blocks for b in block.bindings]
        return right(rewritten(mod, name, replace) if name in names else mod, *args, **options)

    monkeypatch.setattr(compiler.pipeline, "lower", wrong)


WRONG = [
    ("relax.multiply", without_scale, "aten.mul.Tensor", ""),
    ("relax.strided_slice", shifted_crop, "aten.slice.Tensor", ""),
    ("relax.nn.conv2d", other_padding, "aten.conv2d.default", "stem.0"),
]


def test_a_right_library_passes_and_says_how():
    library = tp.compile(Net().eval(), IMAGE, num_threads=1)
    found = library.manifest.verification
    assert found["status"] == "checked"
    assert found["subject"] == "library"
    assert found["oracle"] == f"torch {torch.__version__}"
    assert found["inputs"] == ["the example inputs", "random values (seed 0)"]
    assert 0 < found["max_error"] < found["tolerance"] == 1e-5
    # 27 products of the first convolution, its bias and the scale, 4 of the second, and so on.
    assert "8 x 2^-24 (float32)" in found["basis"]
    assert library.report.notes[0] == found["summary"]
    assert found["summary"] in str(library.report)


@pytest.mark.parametrize(("name", "replace", "operator", "layer"), WRONG)
def test_a_wrong_import_is_an_error_that_names_the_operator(
    monkeypatch, name, replace, operator, layer
):
    import_wrongly(monkeypatch, name, replace)
    with pytest.raises(VerificationError) as caught:
        tp.compile(Net().eval(), IMAGE, num_threads=1)
    error = caught.value
    assert (error.stage, error.operator, error.layer) == ("import", operator, layer)
    assert error.error > 1e-2 > error.tolerance
    text = str(error)
    assert "the library does not compute what the model computes" in text
    assert f"first operator that differs in the imported graph is {operator}" in text
    assert "verify=False" in text
    assert "test_verification.py, line" in text
    unchecked = tp.compile(Net().eval(), IMAGE, num_threads=1, verify=False)
    assert unchecked.manifest.verification["summary"] == "not checked: verify=False"


def test_a_lost_scale_is_found_although_the_example_is_zero(monkeypatch):
    model = Net().eval()
    nn.init.zeros_(model.stem[0].bias)
    import_wrongly(monkeypatch, "relax.multiply", without_scale)
    with pytest.raises(VerificationError, match=r"on random values \(seed 0\).*aten\.mul\.Tensor"):
        tp.compile(model, torch.zeros_like(IMAGE), num_threads=1)


def test_a_fault_of_the_compiler_names_the_imported_operator(monkeypatch):
    lower_wrongly(monkeypatch, "relax.multiply", without_scale)
    with pytest.raises(
        VerificationError, match=r"in the compiled code is relax\.multiply"
    ) as caught:
        tp.compile(Net().eval(), IMAGE, num_threads=1)
    assert (caught.value.stage, caught.value.operator) == ("compile", "relax.multiply")
    # An IRModule is held against its own dense run.
    mod = import_model(Net().eval(), IMAGE).mod
    with pytest.raises(VerificationError, match="expected: the module itself, dense"):
        tp.compile(mod, num_threads=1)


def test_a_target_that_does_not_run_here(monkeypatch):
    arm = "pattern/cortex-a76"
    library = tp.compile(Net().eval(), IMAGE, arm, num_threads=1)
    reason = library.manifest.verification["reason"]
    assert "does not run on this computer (it is built for aarch64" in reason
    assert "verify='graph'" in reason
    library = tp.compile(Net().eval(), IMAGE, arm, num_threads=1, verify="graph")
    assert library.manifest.verification["subject"] == "imported graph"
    mod = import_model(Net().eval(), IMAGE).mod
    library = tp.compile(mod, None, arm, num_threads=1, verify="graph")
    assert "nothing to hold it against" in library.manifest.verification["reason"]
    import_wrongly(monkeypatch, *WRONG[0][:2])
    with pytest.raises(VerificationError, match=r"the imported graph does not compute.*aten\.mul"):
        tp.compile(Net().eval(), IMAGE, arm, num_threads=1, verify="graph")


@pytest.mark.parametrize("verify", ["yes", None, 1])
def test_the_argument(verify):
    with pytest.raises(ValueError, match=r"verify=.*: expected True, False or 'graph'"):
        tp.compile(Net().eval(), IMAGE, verify=verify)


def test_half_precision(monkeypatch):
    model, image = Net().eval().half(), IMAGE.half()
    library = tp.compile(model, image, num_threads=1)
    found = library.manifest.verification
    assert found["status"] == "checked"
    # Rounded where torch rounds, so a step of float16 apart at most.
    assert found["max_error"] <= 2**-10 < found["tolerance"] < 0.02
    # The model stays the caller's: widening it for the importer is done on a copy.
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    import_wrongly(monkeypatch, *WRONG[0][:2])
    with pytest.raises(VerificationError, match=r"aten\.mul\.Tensor"):
        tp.compile(model, image, num_threads=1)


def test_indices_are_compared_before_the_discrete_step(monkeypatch):
    def give(y):
        return {"class": y.argmax(1), "top": y.flatten(1).topk(3)}

    library = tp.compile(Net(give).eval(), IMAGE, num_threads=1)
    notes = " ".join(library.manifest.verification["notes"])
    assert "aten.argmax.default (argmax) compared before it, in the library" in notes
    assert "aten.topk.default (topk) compared before it" in notes
    # The same class wins at any scale: only the operand tells.
    model = Net(lambda y: y.argmax(1)).eval()
    nn.init.zeros_(model.head.bias)
    import_wrongly(monkeypatch, "relax.multiply", without_scale)
    with pytest.raises(VerificationError, match=r"operand of aten\.argmax\.default") as caught:
        tp.compile(model, IMAGE, num_threads=1)
    assert caught.value.operator == "aten.mul.Tensor"


def test_what_chance_decides_is_not_checked():
    generator = np.random.default_rng(0)
    model = Net(lambda y: y + float(generator.random())).eval()
    reason = tp.compile(model, IMAGE, num_threads=1).manifest.verification["reason"]
    assert reason.startswith("the model itself is not deterministic: two of its runs")


def onnx_net() -> onnx.ModelProto:
    weights = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype("float32")
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="first", pads=[1, 1, 1, 1]),
            helper.make_node("Mul", ["c", "s"], ["m"], name="scale"),
            helper.make_node("Relu", ["m"], ["y"], name="last"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 7, 9))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4, 7, 9))],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.float32([1.25]), "s"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def without(monkeypatch, *runners):
    for runner in runners:
        reason = f"{runner.label} is not installed"
        monkeypatch.setattr(runner, "why_not", staticmethod(lambda reason=reason: reason))


@pytest.mark.parametrize("runtime", [True, False])
def test_onnx(monkeypatch, runtime, tmp_path):
    if runtime:
        pytest.importorskip("onnxruntime")
    else:
        without(monkeypatch, onnx_oracle._Runtime)
    onnx.save(onnx_net(), tmp_path / "net.onnx")
    library = tp.compile(tmp_path / "net.onnx", num_threads=1)
    found = library.manifest.verification
    assert found["status"] == "checked"
    assert found["oracle"].startswith("ONNX Runtime" if runtime else "the reference implementation")
    assert found["inputs"] == ["random values (seed 0)"]
    import_wrongly(monkeypatch, "relax.multiply", without_scale)
    with pytest.raises(VerificationError, match=r"in the imported graph is Mul \(scale\)"):
        tp.compile(onnx_net(), num_threads=1)


def test_onnx_without_anything_to_run_it(monkeypatch):
    without(monkeypatch, onnx_oracle._Runtime, onnx_oracle._Reference)
    library = tp.compile(onnx_net(), num_threads=1)
    assert library.report.notes[0] == (
        "not checked: ONNX Runtime is not installed and onnx's reference implementation is not"
        " installed"
    )


def test_relay_build_is_held_against_its_module():
    mod, params = tp.relay.frontend.from_pytorch(Net().eval(), [("image", tuple(IMAGE.shape))])
    built = tp.relay.build(mod, params=params, num_threads=1)
    oracle = built.library.manifest.verification["oracle"]
    assert oracle == f"the module itself, dense and operator by operator (TVM {tvm.__version__})"
    assert built.library.manifest.verification["status"] == "checked"
