"""Networks of bytes: quantised by random images, since only their time is measured."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn

from tvm_pattern import quantization
from tvm_pattern.quantization import QuantizedModel

from .harness import OURS, Contender
from .ours import NetworkEngine, pruned
from .session import Session
from .workloads import NetworkSpec, network_flops

#: Images by which ranges are set.
CALIBRATION = 4
#: 1x1 kernels of so many in_channels are one dot product.
BLOCK_1X1 = 4


def quantised(model: nn.Module, spec: NetworkSpec) -> QuantizedModel:
    """The network in bytes."""
    batches = [spec.example(seed) for seed in range(CALIBRATION)]
    return quantization.quantize(model, batches, progress=False)


def contenders(
    session: Session, spec: NetworkSpec, dense: nn.Module, example: torch.Tensor, folder: Path
) -> list[Contender]:
    """The peers on the dense network of bytes; our library dense and at each group of ``spec``.

    Every engine is held against torch's run of the network that it was given.
    """
    found = []
    for group in (None, *spec.groups_int8):
        if group is not None and not session.select(spec.name, OURS, group):
            continue
        block = BLOCK_1X1 if spec.connectivity_1x1 > 1 else 1
        model = dense if group is None else pruned(dense, spec, group, block)
        flops, effective, sparsity = network_flops(model, example)
        network = quantised(model, spec)
        reference = network(example).numpy()
        if group is None:
            path = folder / "model.onnx"
            network.save(path)
            found += session.add_int8_peers(spec.name, path, example, reference, flops)
        if session.select(spec.name, OURS, group):
            contender = Contender(
                spec.name, OURS, None, flops, effective, sparsity, group, dtype="int8"
            )
            build = partial(NetworkEngine.build, network, example, num_threads=session.threads)
            found.append(session.add_ours(contender, build, reference))
    return found
