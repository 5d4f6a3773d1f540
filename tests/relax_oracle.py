"""Helpers of the pass tests: torch model -> Relax, run a lowered module, markers as text."""

from __future__ import annotations

import json
import warnings

import numpy as np
import torch
import tvm
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

from relay_passes import pipeline
from relay_passes.targets import resolve

warnings.filterwarnings("ignore", category=FutureWarning)


def import_torch(model, *inputs, dynamic_shapes=None):
    """Relax module of a torch model, parameters bound."""
    with torch.no_grad():
        program = torch.export.export(model.eval(), inputs, dynamic_shapes=dynamic_shapes)
    return from_exported_program(program, keep_params_as_input=False, unwrap_unit_return_tuple=True)


def execute(executable, *inputs):
    """Run ``main`` and return a list of arrays."""
    machine = relax.VirtualMachine(executable, tvm.cpu())
    result = machine["main"](*[tvm.runtime.tensor(np.asarray(x)) for x in inputs])
    return [r.numpy() for r in ([result] if hasattr(result, "numpy") else result)]


def check_against_torch(model, *inputs, target="pattern/native", num_threads=1, tolerance=1e-5):
    """Lower, build, run; outputs within ``tolerance`` of torch's scale. Returns the report."""
    with torch.no_grad():
        want = model.eval()(*inputs)
    want = want if isinstance(want, tuple) else (want,)
    mod, report = pipeline.lower(import_torch(model, *inputs), target, num_threads=num_threads)
    relax.analysis.well_formed(mod)
    got = execute(tvm.compile(mod, resolve(target)), *[x.numpy() for x in inputs])
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.shape == tuple(w.shape)
        scale = max(1e-3, float(w.abs().max()))
        np.testing.assert_allclose(g, w.numpy(), atol=tolerance * scale, rtol=0)
    return report


def text(**params):
    """Parameters of a marker as they stand in the module."""
    return json.dumps(params, sort_keys=True)


def conv_text(layer, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), **changes):
    """Parameters of a convolution marker with 3x3 kernels."""
    epilogue = {"activation": "none", "bias": False, "residual": False}
    layouts = {"in_layout": None, "out_layout": None, "residual_layout": None}
    return text(
        layer=layer,
        geometry={
            "kernel_size": (3, 3),
            "stride": stride,
            "padding": padding[:2],
            "dilation": dilation,
        },
        end_padding=padding[2:],
        epilogue={name: changes.pop(name, value) for name, value in epilogue.items()},
        structure=changes.pop("structure", ""),
        **{**layouts, **changes},
    )
