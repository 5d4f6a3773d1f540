"""Networks of bytes: quantised by random images, since only their time is measured."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tvm_pattern import quantization
from tvm_pattern.quantization import QuantizedModel

from .harness import OURS, Contender
from .ours import NetworkEngine, library_name, pruned
from .session import Session
from .workloads import NetworkSpec, network_flops

#: Images by which ranges are set.
CALIBRATION = 4
#: 1x1 kernels of so many in_channels are one dot product.
BLOCK_1X1 = 4
#: The dense network as the peers read it.
QDQ_FILE = "model.onnx"


def batches_of(spec: NetworkSpec) -> list[torch.Tensor]:
    """Images by which ranges are set."""
    return [spec.example(seed) for seed in range(CALIBRATION)]


def quantised(model: nn.Module, spec: NetworkSpec, weight_bits: int = 8) -> QuantizedModel:
    """The network in bytes."""
    images = batches_of(spec)
    return quantization.quantize(model, images, weight_bits=weight_bits, progress=False)


@dataclass(frozen=True)
class Prepared:
    """What is known of a network of bytes beside its library.

    Parameters
    ----------
    dense_flops, effective_flops : int
    sparsity : float
    """

    dense_flops: int
    effective_flops: int
    sparsity: float


def _files(library: Path) -> tuple[Path, Path]:
    """The facts and torch's result of the network of a library."""
    return library.with_suffix(".json"), library.with_suffix(".npy")


def of_bits(name: str, weight_bits: int) -> str:
    """A file's name, which says weights of other than 8 bits."""
    stem, _, ending = name.rpartition(".")
    return name if weight_bits == 8 else f"{stem}-w{weight_bits}.{ending}"


def qdq_file(library: Path, weight_bits: int) -> Path:
    """The dense network as the peers read it, beside a library."""
    return library.with_name(of_bits(QDQ_FILE, weight_bits))


def prepare(
    spec: NetworkSpec,
    dense: nn.Module,
    group: int | None,
    library: Path,
    threads: int,
    target: str,
    *,
    weight_bits: int = 8,
    compiled: bool = True,
) -> None:
    """Prune, quantise and compile a network, unless the folder of ``library`` has it already.

    The dense one is written as an ONNX file of QDQ pairs too; not ``compiled``, it is for peers.
    """
    facts, reference = _files(library)
    if facts.exists() and (library.exists() or not compiled):
        return
    example = spec.example()
    block = BLOCK_1X1 if spec.connectivity_1x1 > 1 else 1
    model = dense if group is None else pruned(dense, spec, group, block)
    network = quantised(model, spec, weight_bits)
    if group is None:
        network.save(qdq_file(library, weight_bits))
    np.save(reference, network(example).numpy())
    if compiled:
        NetworkEngine.build(network, example, threads, target=target, path=library)
    facts.write_text(json.dumps(asdict(Prepared(*network_flops(model, example)))))


def contenders(
    session: Session,
    spec: NetworkSpec,
    dense: nn.Module,
    example: torch.Tensor,
    folder: Path,
    target: str,
    weight_bits: int = 8,
) -> list[Contender]:
    """The peers on the dense network of bytes; our library dense and at each group of ``spec``.

    Every engine is held against torch's run of the network that it was given.
    """
    found = []
    for group in (None, *spec.groups_int8):
        ours = session.select(spec.name, OURS, group)
        if group is not None and not ours:
            continue
        library = folder / of_bits(library_name(group, target, session.threads), weight_bits)
        where = (library, session.threads, target)
        prepare(spec, dense, group, *where, weight_bits=weight_bits, compiled=ours)
        facts, saved = _files(library)
        known, reference = Prepared(**json.loads(facts.read_text())), np.load(saved)
        if group is None:
            path, flops = qdq_file(library, weight_bits), known.dense_flops
            given = (dense, batches_of(spec))
            found += session.add_int8_peers(spec.name, path, example, reference, flops, given)
        if ours:
            contender = Contender(spec.name, OURS, None, **asdict(known), group=group, dtype="int8")
            load = partial(NetworkEngine.load, library, example, session.threads)
            found.append(session.add_ours(contender, load, reference))
    if weight_bits != 8:
        for contender in found:
            contender.note = "; ".join(filter(None, [f"{weight_bits}-bit weights", contender.note]))
    return found
