"""Whole networks: ours pruned and dense, against dense peers.

Run as ``python -m benchmarks.networks --json FILE``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn

from .harness import OURS, Contender
from .ours import NetworkEngine, pruned
from .session import (
    CoresOption,
    JsonOption,
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
    json_path: JsonOption = Path("benchmarks/results/networks.json"),
    quick: QuickOption = False,
    threads: ThreadsOption = 1,
    only: OnlyOption = None,
    cores: CoresOption = None,
    seconds: SecondsOption = None,
) -> None:
    """Time whole networks, ours and the peers', interleaved."""
    session = Session.start(
        "Networks",
        threads=threads,
        cores=cores,
        only=only,
        budget=budget_of(quick, seconds, DEFAULT_SECONDS),
        json_path=json_path,
    )
    _, networks = load_workloads()
    with session.workloads([spec.name for spec in networks]) as begin:
        for spec in networks:
            folder = begin(spec.name)
            model, example = spec.build(), spec.example()
            flops, _, _ = network_flops(model, example)
            contenders = session.add_peers(spec.name, model, example, folder, flops)
            contenders += our_contenders(session, spec, model, example)
            if contenders:
                session.run(contenders)
    session.finish()


if __name__ == "__main__":
    run_main(main)
