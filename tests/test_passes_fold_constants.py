"""FoldConstants: moved elements in numpy, the rest by Relax."""

import numpy as np
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.fold_constants import FoldConstants

VALUE = np.arange(6, dtype="float32").reshape(2, 3)


def bind(mod, **params):
    return relax.transform.BindParams("main", params)(mod)


@I.ir_module
class Expected:
    @R.function
    def main(x: R.Tensor((3, 2), "float32"), c: R.Tensor((3, 2), "float32")):
        with R.dataflow():
            y = R.add(x, c)
            R.output(y)
        return y


def test_chain_of_views():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((3, 2), "float32"), w: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                a = R.expand_dims(w, 0)
                b = R.squeeze(a)
                c = R.permute_dims(b)
                y = R.add(x, c)
                R.output(y)
            return y

    got = FoldConstants()(bind(Before, w=VALUE))
    tvm.ir.assert_structural_equal(got, bind(Expected, c=np.ascontiguousarray(VALUE.T)))


def test_arithmetic_is_left_to_relax():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((3, 2), "float32"), w: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                a = R.multiply(w, w)
                c = R.reshape(a, (3, 2))
                y = R.add(x, c)
                R.output(y)
            return y

    got = FoldConstants()(bind(Before, w=VALUE))
    tvm.ir.assert_structural_equal(got, bind(Expected, c=(VALUE * VALUE).reshape(3, 2)))


def test_nothing_to_fold():
    tvm.ir.assert_structural_equal(FoldConstants()(Expected), Expected)
