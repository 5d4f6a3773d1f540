"""RecognizeActivations: each spelling becomes its marker, lookalikes stay."""

import numpy as np
import pytest
import tvm
from relax_oracle import text
from tvm import relax, topi
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.markers import parse
from relay_passes.recognize_activations import RecognizeActivations

INF = float("inf")


def const(value):
    return relax.const(value, "float32")


def build(emit, shape=(1, 4, 5, 6), dtype="float32"):
    """Module of one function whose body is ``emit(builder, x)``."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_output(emit(builder, x))
        builder.emit_func_output(y)
    return builder.get()


def recognized(emit, **kwargs):
    """Markers of the function as ``(activation, bounds)``, and the names of the other operators."""
    mod = RecognizeActivations()(build(emit, **kwargs))
    relax.analysis.well_formed(mod)
    markers, others = [], []
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            marker = parse(binding.value)
            if marker is None:
                others.append(binding.value.op.name)
            else:
                markers.append((marker.params["activation"], tuple(marker.params["bounds"])))
    return markers, others


def torch_hardsigmoid(b, x):
    low = b.emit(relax.op.clip(b.emit(relax.op.add(x, const(3.0))), 0, INF))
    high = b.emit(relax.op.clip(low, -INF, 6))
    return relax.op.divide(high, const(6.0))


def torch_hardswish(b, x):
    low = b.emit(relax.op.clip(b.emit(relax.op.add(x, const(3.0))), 0, INF))
    high = b.emit(relax.op.clip(low, -INF, 6))
    return relax.op.divide(b.emit(relax.op.multiply(x, high)), const(6.0))


def onnx_hardswish(b, x):
    gate = b.emit(relax.op.clip(b.emit(relax.op.add(x, const(3.0))), 0, 6))
    return relax.op.multiply(x, b.emit(relax.op.divide(gate, const(6.0))))


def onnx_hardsigmoid(b, x):
    line = b.emit(relax.op.add(b.emit(relax.op.multiply(const(1 / 6), x)), const(0.5)))
    return relax.op.clip(line, 0, 1)


def swish_of_hardsigmoid(b, x):
    return relax.op.multiply(b.emit(onnx_hardsigmoid(b, x)), x)


def onnx_clip(b, x):
    low = b.emit_te(topi.maximum, x, const(0.0))
    return b.call_te(topi.minimum, low, const(6.0))


def chain(*steps):
    """Operators one after the other, each of the value before it and of ``x``."""

    def emit(b, x):
        value = x
        for step in steps[:-1]:
            value = b.emit(step(value, x))
        return steps[-1](value, x)

    return emit


op = relax.op
_CHAIN_OF_GELU = (
    lambda v, _: op.divide(v, const(1.4142135381698608)),
    lambda v, _: op.erf(v),
    lambda v, _: op.add(const(1.0), v),
    lambda v, x: op.multiply(x, v),
    lambda v, _: op.multiply(v, const(0.5)),
)
ONNX_GELU = chain(*_CHAIN_OF_GELU)
GELU_HALF_FIRST = chain(
    lambda v, _: op.multiply(const(0.70710677), v),
    lambda v, _: op.erf(v),
    lambda v, _: op.multiply(const(0.5), v),
    lambda v, _: op.add(v, const(0.5)),
    lambda v, x: op.multiply(v, x),
)
ONNX_GELU_TANH = chain(
    lambda v, _: op.power(v, const(3.0)),
    lambda v, _: op.multiply(const(0.044715), v),
    lambda v, x: op.add(x, v),
    lambda v, _: op.multiply(const(0.7978846), v),
    lambda v, _: op.tanh(v),
    lambda v, _: op.add(v, const(1.0)),
    lambda v, x: op.multiply(x, v),
    lambda v, _: op.multiply(v, const(0.5)),
)
_LOG = (
    lambda v, _: op.exp(v),
    lambda v, _: op.add(v, const(1.0)),
    lambda v, _: op.log(v),
)
ONNX_ABS = (lambda v, _: op.abs(v), lambda v, _: op.negative(v), *_LOG)


def torch_softplus(b, x):
    log = b.emit(chain(*_LOG)(b, x))
    return op.where(b.emit(op.greater(x, const(20.0))), x, log)


def onnx_softplus(b, x):
    return op.add(b.emit(op.maximum(x, const(0.0))), b.emit(chain(*ONNX_ABS)(b, x)))


def mish(softplus):
    return lambda b, x: op.multiply(x, b.emit(op.tanh(b.emit(softplus(b, x)))))


def torch_elu(b, x):
    below = b.emit(chain(_LOG[0], lambda v, _: op.subtract(v, const(1.0)))(b, x))
    below = b.emit(op.multiply(b.emit(op.minimum(below, const(0.0))), const(0.5)))
    return op.add(b.emit(op.nn.relu(x)), below)


def onnx_elu(b, x):
    below = b.emit(op.nn.relu(b.emit(op.subtract(const(1.0), b.emit(op.exp(x))))))
    return op.add(b.emit(op.multiply(const(-0.5), below)), b.emit(op.nn.relu(x)))


RECOGNIZED = {
    "gelu": (lambda b, x: op.nn.gelu(x), ("gelu", (0.0, 0.0))),
    "gelu by tanh": (lambda b, x: op.nn.gelu_tanh(x), ("gelu_tanh", (0.0, 0.0))),
    "gelu of ONNX": (ONNX_GELU, ("gelu", (0.0, 0.0))),
    "gelu, half first": (GELU_HALF_FIRST, ("gelu", (0.0, 0.0))),
    "gelu by tanh of ONNX": (ONNX_GELU_TANH, ("gelu_tanh", (0.0, 0.0))),
    "softplus of torch": (torch_softplus, ("softplus", (0.0, 0.0))),
    "softplus of ONNX": (onnx_softplus, ("softplus", (0.0, 0.0))),
    "mish of torch": (mish(torch_softplus), ("mish", (0.0, 0.0))),
    "mish of ONNX": (mish(onnx_softplus), ("mish", (0.0, 0.0))),
    "elu of torch": (torch_elu, ("elu", (0.5, 0.0))),
    "elu of ONNX": (onnx_elu, ("elu", (0.5, 0.0))),
    "relu": (lambda b, x: relax.op.nn.relu(x), ("relu", (0.0, INF))),
    "relu6": (lambda b, x: relax.op.nn.relu6(x), ("relu6", (0.0, 6.0))),
    "clip as relu6": (lambda b, x: relax.op.clip(x, 0.0, 6.0), ("relu6", (0.0, 6.0))),
    "general clip": (lambda b, x: relax.op.clip(x, -1.0, 2.0), ("clip", (-1.0, 2.0))),
    "maximum": (lambda b, x: relax.op.maximum(const(0.0), x), ("relu", (0.0, INF))),
    "minimum": (lambda b, x: relax.op.minimum(x, const(3.0)), ("clip", (-INF, 3.0))),
    "maximum and minimum of ONNX": (onnx_clip, ("relu6", (0.0, 6.0))),
    "relu of relu": (
        lambda b, x: relax.op.nn.relu(b.emit(relax.op.nn.relu(x))),
        ("relu", (0.0, INF)),
    ),
    "silu operator": (lambda b, x: relax.op.nn.silu(x), ("silu", (0.0, 0.0))),
    "silu": (
        lambda b, x: relax.op.multiply(x, b.emit(relax.op.sigmoid(x))),
        ("silu", (0.0, 0.0)),
    ),
    "silu, other order": (
        lambda b, x: relax.op.multiply(b.emit(relax.op.sigmoid(x)), x),
        ("silu", (0.0, 0.0)),
    ),
    "sigmoid": (lambda b, x: relax.op.sigmoid(x), ("sigmoid", (0.0, 0.0))),
    "tanh": (lambda b, x: relax.op.tanh(x), ("tanh", (0.0, 0.0))),
    "leaky_relu": (lambda b, x: relax.op.nn.leakyrelu(x, 0.25), ("leaky_relu", (0.25, 0.0))),
    "hardsigmoid of torch": (torch_hardsigmoid, ("hardsigmoid", (0.0, 0.0))),
    "hardsigmoid of ONNX": (onnx_hardsigmoid, ("hardsigmoid", (0.0, 0.0))),
    "hardswish of torch": (torch_hardswish, ("hardswish", (0.0, 0.0))),
    "hardswish of ONNX": (onnx_hardswish, ("hardswish", (0.0, 0.0))),
    "x * hardsigmoid(x)": (swish_of_hardsigmoid, ("hardswish", (0.0, 0.0))),
}


@pytest.mark.parametrize(("emit", "expected"), RECOGNIZED.values(), ids=RECOGNIZED.keys())
def test_spellings(emit, expected):
    assert recognized(emit) == ([expected], [])


def almost_hardswish(b, x):
    gate = b.emit(relax.op.clip(b.emit(relax.op.add(x, const(2.9))), 0, 6))
    return relax.op.divide(b.emit(relax.op.multiply(x, gate)), const(6.0))


def silu_of_two_values(b, x):
    return relax.op.multiply(x, b.emit(relax.op.sigmoid(b.emit(relax.op.exp(x)))))


def negative_scale(b, x):
    return relax.op.multiply(b.emit(relax.op.clip(x, 0, 6)), const(-1.0))


def gelu_by_sigmoid(b, x):
    return op.multiply(x, b.emit(op.sigmoid(b.emit(op.multiply(x, const(1.702))))))


def softplus_cut_off(b, x):
    return op.minimum(b.emit(onnx_softplus(b, x)), const(150.0))


def steeper_softplus(b, x):
    return torch_softplus(b, b.emit(op.multiply(x, const(2.0))))


def gelu_of_two_images(b, x):
    y = b.emit(op.divide(x, const(1.4142135)))
    y = b.emit(op.add(b.emit(op.erf(y)), const(1.0)))
    return op.multiply(b.emit(op.multiply(b.emit(op.permute_dims(x, [0, 1, 3, 2])), y)), const(0.5))


def test_lookalikes_of_smooth_activations():
    """Nothing is renamed that differs somewhere: near a constant, far away, or in a factor."""
    assert "gelu_tanh" not in {name for name, _ in recognized(gelu_by_sigmoid)[0]}
    names = [name for name, _ in recognized(softplus_cut_off)[0]]
    assert names == ["softplus", "clip"]
    # Of another variable it is one.
    markers, others = recognized(steeper_softplus)
    assert markers == [("softplus", (0.0, 0.0))]
    assert others == ["relax.multiply"]
    wrong = chain(*_CHAIN_OF_GELU[:-1], lambda v, _: op.multiply(v, const(0.4999)))
    assert recognized(wrong)[0] == []
    assert recognized(gelu_of_two_images, shape=(1, 4, 5, 5))[0] == []


def test_lookalikes():
    assert recognized(almost_hardswish)[0] == [("relu6", (0.0, 6.0))]
    assert recognized(silu_of_two_values)[0] == [("sigmoid", (0.0, 0.0))]
    assert recognized(negative_scale)[0] == [("relu6", (0.0, 6.0))]


def test_clip_with_another_user_is_not_merged():
    def emit(b, x):
        inner = b.emit(relax.op.clip(x, 0, 6))
        return relax.op.add(inner, b.emit(relax.op.clip(inner, 1, 2)))

    markers, others = recognized(emit)
    assert markers == [("relu6", (0.0, 6.0)), ("clip", (1.0, 2.0))]
    assert others == ["relax.add"]


@pytest.mark.parametrize(("shape", "dtype"), [((1, 4), "float32"), ((1, 4, 5, 6), "float64")])
def test_other_tensors_are_left_alone(shape, dtype):
    before = build(lambda b, x: relax.op.nn.relu(x), shape=shape, dtype=dtype)
    tvm.ir.assert_structural_equal(RecognizeActivations()(before), before)


def test_another_primfunc_with_two_arguments():
    def emit(b, x):
        return b.call_te(topi.add, x, const(1.0))

    before = build(emit)
    tvm.ir.assert_structural_equal(RecognizeActivations()(before), before)


def test_before_and_expected():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 5, 6), "float32")):
            with R.dataflow():
                s = R.sigmoid(x)
                m = R.multiply(x, s)
                y = R.nn.relu(m)
                R.output(y)
            return y

    silu = text(activation="silu", bounds=[0.0, 0.0])
    relu = text(activation="relu", bounds=[0.0, INF])

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 4, 5, 6), "float32")):
            with R.dataflow():
                m = R.call_pure_packed(
                    "pattern_sparse.activation",
                    x,
                    R.str(silu),
                    ty_args=R.Tensor((1, 4, 5, 6), "float32"),
                )
                y = R.call_pure_packed(
                    "pattern_sparse.activation",
                    m,
                    R.str(relu),
                    ty_args=R.Tensor((1, 4, 5, 6), "float32"),
                )
                R.output(y)
            return y

    tvm.ir.assert_structural_equal(RecognizeActivations()(Before), Expected)


def test_constants_of_float32_precision():
    """1/6 as exported, rounded to float32, still counts."""

    def emit(b, x):
        sixth = const(float(np.float32(1) / np.float32(6)))
        gate = b.emit(relax.op.clip(b.emit(relax.op.add(x, const(3.0))), 0, 6))
        return relax.op.multiply(b.emit(relax.op.multiply(gate, x)), sixth)

    assert recognized(emit)[0] == [("hardswish", (0.0, 0.0))]
