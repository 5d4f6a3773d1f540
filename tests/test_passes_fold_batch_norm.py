"""FoldBatchNorm: structure before and after, and what it must leave alone."""

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.fold_batch_norm import FoldBatchNorm, fold_constants

RNG = np.random.default_rng(0)
PARAMS = {
    "w": RNG.standard_normal((4, 3, 3, 3)).astype("float32"),
    "b": RNG.standard_normal((1, 4, 1, 1)).astype("float32"),
    "g": RNG.uniform(0.5, 2, 4).astype("float32"),
    "t": RNG.standard_normal(4).astype("float32"),
    "m": RNG.standard_normal(4).astype("float32"),
    "v": RNG.uniform(0.5, 2, 4).astype("float32"),
}
SCALE = PARAMS["g"] / np.sqrt(PARAMS["v"] + 1e-5)


def bind(mod, **params):
    return relax.transform.BindParams("main", params)(mod)


def folded_weights(bias):
    return {
        "w": (PARAMS["w"] * SCALE.reshape(-1, 1, 1, 1)).astype("float32"),
        "b": ((bias - PARAMS["m"]) * SCALE + PARAMS["t"]).reshape(1, 4, 1, 1).astype("float32"),
    }


def assert_same(got, expected):
    """Equal structure; constants within float32 rounding."""
    values = [[], []]
    for mod, found in zip((got, expected), values, strict=True):

        def visit(expr, found=found):
            if isinstance(expr, tvm.ir.GenericConst):
                found.append(expr.value.numpy())

        relax.analysis.post_order_visit(mod["main"], visit)
    assert len(values[0]) == len(values[1]) > 0
    for a, b in zip(*values, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    def blank(mod):
        def ones(expr):
            return relax.const(np.ones(expr.value.numpy().shape, "float32"))

        func = mod["main"]
        blocks = [
            type(block)(
                [
                    relax.VarBinding(
                        b.var,
                        tvm.ir.Call(
                            b.value.op,
                            [
                                ones(a) if isinstance(a, tvm.ir.GenericConst) else a
                                for a in b.value.args
                            ],
                            b.value.attrs,
                        ),
                    )
                    for b in block.bindings
                ]
            )
            for block in func.body.blocks
        ]
        body = relax.SeqExpr(blocks, func.body.body)
        return relax.Function(func.params, body, func.ret_ty)

    tvm.ir.assert_structural_equal(blank(got), blank(expected))


@I.ir_module
class Expected:
    @R.function
    def main(
        x: R.Tensor((1, 3, 8, 8), "float32"),
        w: R.Tensor((4, 3, 3, 3), "float32"),
        b: R.Tensor((1, 4, 1, 1), "float32"),
    ):
        with R.dataflow():
            c = R.nn.conv2d(x, w, padding=1)
            n = R.add(c, b)
            y = R.nn.relu(n)
            R.output(y)
        return y


def test_convolution_without_bias():
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 3, 8, 8), "float32"),
            w: R.Tensor((4, 3, 3, 3), "float32"),
            g: R.Tensor((4,), "float32"),
            t: R.Tensor((4,), "float32"),
            m: R.Tensor((4,), "float32"),
            v: R.Tensor((4,), "float32"),
        ):
            with R.dataflow():
                c = R.nn.conv2d(x, w, padding=1)
                s = R.nn.batch_norm(c, g, t, m, v, axis=1, training=False)
                n = s[0]
                y = R.nn.relu(n)
                R.output(y)
            return y

    before = bind(Before, **{k: PARAMS[k] for k in "wgtmv"})
    assert_same(FoldBatchNorm()(before), bind(Expected, **folded_weights(0.0)))


def test_convolution_with_bias_in_both_orders():
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 3, 8, 8), "float32"),
            w: R.Tensor((4, 3, 3, 3), "float32"),
            b: R.Tensor((1, 4, 1, 1), "float32"),
            g: R.Tensor((4,), "float32"),
            t: R.Tensor((4,), "float32"),
            m: R.Tensor((4,), "float32"),
            v: R.Tensor((4,), "float32"),
        ):
            with R.dataflow():
                c = R.nn.conv2d(x, w, padding=1)
                d = R.add(c, b)
                s = R.nn.batch_norm(d, g, t, m, v, axis=1, training=False)
                n = s[0]
                y = R.nn.relu(n)
                R.output(y)
            return y

    @I.ir_module
    class Swapped:
        @R.function
        def main(
            x: R.Tensor((1, 3, 8, 8), "float32"),
            w: R.Tensor((4, 3, 3, 3), "float32"),
            b: R.Tensor((1, 4, 1, 1), "float32"),
            g: R.Tensor((4,), "float32"),
            t: R.Tensor((4,), "float32"),
            m: R.Tensor((4,), "float32"),
            v: R.Tensor((4,), "float32"),
        ):
            with R.dataflow():
                c = R.nn.conv2d(x, w, padding=1)
                d = R.add(b, c)
                s = R.nn.batch_norm(d, g, t, m, v, axis=1, training=False)
                n = s[0]
                y = R.nn.relu(n)
                R.output(y)
            return y

    expected = bind(Expected, **folded_weights(PARAMS["b"].reshape(-1)))
    for before in (Before, Swapped):
        assert_same(FoldBatchNorm()(bind(before, **PARAMS)), expected)


def test_centre_and_scale_may_be_off():
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 3, 8, 8), "float32"),
            w: R.Tensor((4, 3, 3, 3), "float32"),
            g: R.Tensor((4,), "float32"),
            t: R.Tensor((4,), "float32"),
            m: R.Tensor((4,), "float32"),
            v: R.Tensor((4,), "float32"),
        ):
            with R.dataflow():
                c = R.nn.conv2d(x, w, padding=1)
                s = R.nn.batch_norm(
                    c, g, t, m, v, axis=1, center=False, scale=False, training=False
                )
                n = s[0]
                y = R.nn.relu(n)
                R.output(y)
            return y

    scale = 1 / np.sqrt(PARAMS["v"] + 1e-5)
    weights = {
        "w": (PARAMS["w"] * scale.reshape(-1, 1, 1, 1)).astype("float32"),
        "b": (-PARAMS["m"] * scale).reshape(1, 4, 1, 1).astype("float32"),
    }
    before = bind(Before, **{k: PARAMS[k] for k in "wgtmv"})
    assert_same(FoldBatchNorm()(before), bind(Expected, **weights))


@I.ir_module
class TwoUsers:
    @R.function
    def main(
        x: R.Tensor((1, 3, 8, 8), "float32"),
        w: R.Tensor((4, 3, 3, 3), "float32"),
        g: R.Tensor((4,), "float32"),
        t: R.Tensor((4,), "float32"),
        m: R.Tensor((4,), "float32"),
        v: R.Tensor((4,), "float32"),
    ):
        with R.dataflow():
            c = R.nn.conv2d(x, w, padding=1)
            s = R.nn.batch_norm(c, g, t, m, v, axis=1, training=False)
            n = s[0]
            y = R.multiply(n, c)
            R.output(y)
        return y


@I.ir_module
class Training:
    @R.function
    def main(
        x: R.Tensor((1, 3, 8, 8), "float32"),
        w: R.Tensor((4, 3, 3, 3), "float32"),
        g: R.Tensor((4,), "float32"),
        t: R.Tensor((4,), "float32"),
        m: R.Tensor((4,), "float32"),
        v: R.Tensor((4,), "float32"),
    ):
        with R.dataflow():
            c = R.nn.conv2d(x, w, padding=1)
            s = R.nn.batch_norm(c, g, t, m, v, axis=1, training=True)
            y = s[0]
            R.output(y)
        return y


@I.ir_module
class StatisticsUsed:
    @R.function
    def main(
        x: R.Tensor((1, 3, 8, 8), "float32"),
        w: R.Tensor((4, 3, 3, 3), "float32"),
        g: R.Tensor((4,), "float32"),
        t: R.Tensor((4,), "float32"),
        m: R.Tensor((4,), "float32"),
        v: R.Tensor((4,), "float32"),
    ):
        with R.dataflow():
            c = R.nn.conv2d(x, w, padding=1)
            s = R.nn.batch_norm(c, g, t, m, v, axis=1, training=False)
            n = s[0]
            k = s[1]
            z = (n, k)
            R.output(z)
        return z


def test_what_stays():
    for module in (TwoUsers, Training, StatisticsUsed):
        before = bind(module, **{k: PARAMS[k] for k in "wgtmv"})
        tvm.ir.assert_structural_equal(FoldBatchNorm()(before), before)


def test_parameters_that_are_not_bound():
    tvm.ir.assert_structural_equal(FoldBatchNorm()(TwoUsers), TwoUsers)


def test_tiny_variance():
    """float64 inside: a variance below epsilon does not lose the mean."""
    weight, bias = fold_constants(
        np.full((1, 1, 1, 1), 3.0, "float32"),
        None,
        *(np.array([v], "float32") for v in (1.0, 0.5, 2.0, 1e-12)),
        1e-5,
    )
    scale = 1 / np.sqrt(np.float64(np.float32(1e-12)) + 1e-5)
    np.testing.assert_allclose(weight, 3.0 * scale, rtol=1e-6)
    np.testing.assert_allclose(bias, 0.5 - 2.0 * scale, rtol=1e-6)


@pytest.mark.parametrize(("variance", "epsilon"), [(-1e-3, 1e-3), (-1.0, 1e-5), (0.0, 0.0)])
def test_variances_that_give_no_number_are_refused(variance, epsilon):
    @I.ir_module
    class Norm:
        @R.function
        def main(
            x: R.Tensor((1, 4, 6, 6), "float32"),
            g: R.Tensor((4,), "float32"),
            t: R.Tensor((4,), "float32"),
            m: R.Tensor((4,), "float32"),
            v: R.Tensor((4,), "float32"),
        ):
            with R.dataflow():
                n = R.nn.batch_norm(x, g, t, m, v, axis=1, epsilon=epsilon, training=False)
                y = n[0]
                R.output(y)
            return y

    values = {k: PARAMS[k] for k in "gtm"}
    FoldBatchNorm()(bind(Norm, v=PARAMS["v"], **values))
    bad = PARAMS["v"].copy()
    bad[2] = variance
    with pytest.raises(ValueError, match=r"batch norm 'n': 1 of 4 variances .*channel 2.*check"):
        FoldBatchNorm()(bind(Norm, v=bad, **values))
