"""Whole networks: ours pruned and dense, against dense peers.

Run as ``python -m benchmarks.networks --json FILE``; ``--dtype int8`` quantises the networks and
hands the peers that read them ONNX files of QDQ pairs.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn

from . import int8_networks
from .harness import OURS, Contender
from .ours import NetworkEngine, pruned
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
from .workloads import NetworkSpec, load_workloads, network_flops

DEFAULT_SECONDS = 30.0


def our_contenders(
    session: Session, spec: NetworkSpec, dense: nn.Module, example: torch.Tensor
) -> list[Contender]:
    """Our library at each group of ``spec`` and dense, as far as they are selected."""
    contenders = []
    for group in (*spec.groups, None):
        if not session.select(spec.name, OURS, group):
            continue
        model = dense if group is None else pruned(dense, spec, group)
        with torch.inference_mode():
            reference = model(example).numpy()
        dense_flops, effective_flops, sparsity = network_flops(model, example)
        contender = Contender(
            spec.name,
            OURS,
            None,
            dense_flops=dense_flops,
            effective_flops=effective_flops,
            sparsity=sparsity,
            group=group,
        )
        build = partial(NetworkEngine.build, model, example, num_threads=session.threads)
        contenders.append(session.add_ours(contender, build, reference))
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
    """Time whole networks, ours and the peers', interleaved."""
    wanted = f"benchmarks/results/networks{'' if dtype == 'float32' else '_int8'}.json"
    session = Session.start(
        "Networks",
        threads=threads,
        cores=cores,
        only=only,
        budget=budget_of(quick, seconds, DEFAULT_SECONDS),
        json_path=json_path or Path(wanted),
        dtype=dtype,
    )
    networks = [n for n in load_workloads()[1] if (n.groups_int8 if dtype == "int8" else n.groups)]
    with session.workloads([spec.name for spec in networks]) as begin:
        for spec in networks:
            folder = begin(spec.name)
            model, example = spec.build(), spec.example()
            if dtype == "int8":
                session.run(int8_networks.contenders(session, spec, model, example, folder))
                continue
            flops, _, _ = network_flops(model, example)
            contenders = session.add_peers(spec.name, model, example, folder, flops)
            contenders += our_contenders(session, spec, model, example)
            if contenders:
                session.run(contenders)
    session.finish()


if __name__ == "__main__":
    run_main(main)
