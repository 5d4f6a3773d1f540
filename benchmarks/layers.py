"""Single convolutions: ours at several groups and dense, against dense peers.

Run as ``python -m benchmarks.layers --json FILE``; ``--dtype int8`` is
:mod:`benchmarks.int8_layers`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from . import int8_layers
from .harness import OURS, Contender
from .ours import LayerEngine
from .session import (
    CoresOption,
    DtypeOption,
    JsonByDtypeOption,
    OnlyOption,
    QuickOption,
    SecondsOption,
    Session,
    ThreadsOption,
    budget_of,
    run_main,
)
from .workloads import LayerSpec, dense_weights, load_workloads, sparse_weights

DEFAULT_SECONDS = 12.0


def our_contenders(session: Session, spec: LayerSpec, example: torch.Tensor) -> list[Contender]:
    """Our operator at each group of ``spec`` and dense, as far as they are selected."""
    contenders = []
    for group in (*spec.groups, None):
        if not session.select(spec.name, OURS, group):
            continue
        weight, bias = dense_weights(spec) if group is None else sparse_weights(spec, group)
        with torch.inference_mode():
            reference = spec.model(weight, bias)(example).numpy()
        density = float(np.count_nonzero(weight) / weight.size)
        contender = Contender(
            spec.name,
            OURS,
            None,
            dense_flops=spec.dense_flops,
            effective_flops=round(spec.dense_flops * density),
            sparsity=1 - density,
            group=group,
        )
        build = partial(
            LayerEngine.build, weight, bias, example.numpy(), spec, num_threads=session.threads
        )
        session.add_ours(contender, build, reference)
        if isinstance(contender.runner, LayerEngine):
            contender.note = contender.runner.describe()
        contenders.append(contender)
    return contenders


def main(
    json_path: JsonByDtypeOption = None,
    quick: QuickOption = False,
    threads: ThreadsOption = 1,
    only: OnlyOption = None,
    cores: CoresOption = None,
    seconds: SecondsOption = None,
    dtype: DtypeOption = "float32",
) -> None:
    """Time single convolutions, ours and the peers', interleaved."""
    if dtype == "int8":
        if threads != 1 or cores or seconds:
            raise ValueError(
                "layers of bytes are timed on one thread; give --json, --quick, --only"
            )
        int8_layers.main(json_path or int8_layers.RESULTS, quick, only)
        return
    session = Session.start(
        "Layers: convolution, bias, ReLU",
        threads=threads,
        cores=cores,
        only=only,
        budget=budget_of(quick, seconds, DEFAULT_SECONDS),
        json_path=json_path or Path("benchmarks/results/layers.json"),
    )
    layers, _ = load_workloads()
    with session.workloads([spec.name for spec in layers]) as begin:
        for spec in layers:
            folder = begin(spec.name)
            example = spec.example()
            model = spec.model(*dense_weights(spec))
            contenders = session.add_peers(spec.name, model, example, folder, spec.dense_flops)
            contenders += our_contenders(session, spec, example)
            if contenders:
                session.run(contenders)
    session.finish()


if __name__ == "__main__":
    run_main(main)
