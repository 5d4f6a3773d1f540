"""What a function for several threads holds between two uses lies in registers, not in the heap."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import tirx

from topi_kernels import plane_ops, row_ops
from topi_kernels.channelwise import ChannelTerms, channelwise
from topi_kernels.layout import PlaneLayout
from topi_kernels.matvec import matvec
from topi_kernels.plane_ops import PlaneTarget
from topi_kernels.sparse_matvec import SparseMatvecConfig, pack_matrix, sparse_matvec
from topi_kernels.structure import Structure
from topi_kernels.vector_math import ACTIVATIONS

TARGET = PlaneTarget("x86-avx2", num_threads=2)
LAYOUT = PlaneLayout.make(7, 7, 1)


def functions() -> dict[str, tirx.PrimFunc]:
    weight = np.ones((16, 24), np.float32)
    config = SparseMatvecConfig.fitting(8, 1, TARGET.lanes)
    packed = pack_matrix(weight, Structure.from_zeros(weight[:, :, None, None]), config)
    terms = ChannelTerms(slope=True, activation="relu6")
    return {
        **{
            f"plane_{name}": plane_ops.elementwise(1, 8, (LAYOUT,), LAYOUT, TARGET, activation=name)
            for name in ACTIVATIONS
        },
        "channelwise": channelwise(1, 8, LAYOUT, LAYOUT, terms, TARGET),
        "mean": plane_ops.global_avg_pool(1, 8, LAYOUT, TARGET),
        "row": row_ops.row_activation(4, 33, TARGET, "gelu"),
        "layer_norm": row_ops.layer_norm(4, 33, TARGET, 1e-5),
        "softmax": row_ops.softmax(4, 33, TARGET),
        "matvec": matvec(1, 24, 96, TARGET),
        "sparse_matvec": sparse_matvec(1, packed, TARGET, config),
    }


@pytest.fixture(scope="module")
def assembly() -> str:
    module = tvm.IRModule(
        {name: func.with_attr("global_symbol", name) for name, func in functions().items()}
    )
    target = tvm.target.Target({"kind": "llvm", "mcpu": "haswell"})
    return tvm.compile(module, target=target).mod.inspect_source("asm")


def test_no_workspace_of_the_heap(assembly: str) -> None:
    assert "ParallelLaunch" in assembly  # there are threads to hold it for
    assert "AllocWorkspace" not in assembly
