"""Whole networks: ours pruned and dense, against dense peers.

Run as ``python -m benchmarks.networks --json FILE``; ``--dtype int8`` quantises the networks and
hands the peers that read them ONNX files of QDQ pairs; ncnn and LiteRT quantise by their own rules.
With ``--keep FOLDER`` nothing is compiled or converted twice: ``--prepare`` does that alone, and a
later run measures at once.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from . import int8_networks, resident
from .harness import OURS, Contender
from .ours import TARGET, NetworkEngine, library_name, pruned
from .peers import PEERS, UNTUNED
from .peers.openvino_cpu import OpenVino
from .session import (
    REFUSALS,
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

#: Said of peers where our libraries are held to a target.
PEERS_ARE_FREE = "any instructions of this machine"
#: The environment's limit on the instructions of oneDNN, which OpenVINO computes by.
ONEDNN_LIMIT = "ONEDNN_MAX_CPU_ISA"

TargetOption = Annotated[str, typer.Option("--target", help="What our libraries are built for.")]
BatchOption = Annotated[int, typer.Option("--batch", min=1, help="Images a run; float32.")]
KeepOption = Annotated[
    Path | None, typer.Option("--keep", help="Folder of libraries and converted models.")
]
PrepareOption = Annotated[bool, typer.Option("--prepare", help="Fill --keep, measure nothing.")]
MemoryOption = Annotated[
    bool, typer.Option("--memory", help="Peak memory too, each engine in a process of its own.")
]
UntunedOption = Annotated[
    bool, typer.Option("--tvm", help="TVM's default pipeline too: seconds a run, untuned.")
]
BitsOption = Annotated[
    int, typer.Option("--weight-bits", min=7, max=8, help="Of the weights; int8.")
]
GroupsOption = Annotated[
    str | None, typer.Option("--groups", help="Filters that share kernels, e.g. 1,2,4,8.")
]


def our_contenders(
    session: Session,
    spec: NetworkSpec,
    dense: nn.Module,
    example: torch.Tensor,
    folder: Path,
    target: str = TARGET,
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
            batch=len(example),
        )
        path = folder / library_name(group, target, session.threads)
        build = partial(
            NetworkEngine.build, model, example, session.threads, target=target, path=path
        )
        contenders.append(session.add_ours(contender, build, reference))
    return contenders


def note_instructions(contenders: list[Contender], target: str) -> None:
    """Say of each engine what instructions it was held to, where ours were held to some."""
    if target == TARGET:
        return
    one_dnn = os.environ.get(ONEDNN_LIMIT)
    for contender in contenders:
        limit = PEERS_ARE_FREE
        if contender.engine == OURS:
            limit = target
        elif contender.engine == OpenVino.name and one_dnn:
            limit = f"{ONEDNN_LIMIT}={one_dnn}"
        contender.note = "; ".join(filter(None, [contender.note, limit]))


def add_memory(
    contenders: list[Contender], network: str, folder: Path, target: str, threads: int, batch: int
) -> None:
    """Measure what each engine that was right holds at most; a failure becomes a note."""
    for contender in contenders:
        if not contender.samples_ms:
            continue
        engine = contender.engine
        if engine == OURS:
            engine += f":{library_name(contender.group, target, threads)}"
        try:
            contender.peak_memory_mb = resident.peak_mb(engine, network, folder, threads, batch)
        except REFUSALS as error:
            contender.note = "; ".join(filter(None, [contender.note, f"memory: {error}"]))


def _networks(dtype: str, groups: str | None) -> list[NetworkSpec]:
    specs = [n for n in load_workloads()[1] if (n.groups_int8 if dtype == "int8" else n.groups)]
    if groups is None:
        return specs
    try:
        chosen = tuple(int(group) for group in groups.split(","))
    except ValueError:
        raise ValueError(f"--groups {groups!r}: expected numbers separated by commas") from None
    return [spec.with_groups(chosen) for spec in specs]


def main(
    json_path: JsonByDtypeOption = None,
    quick: QuickOption = False,
    threads: ThreadsOption = 1,
    only: OnlyOption = None,
    cores: CoresOption = None,
    seconds: SecondsOption = None,
    dtype: DtypeOption = "float32",
    target: TargetOption = TARGET,
    batch: BatchOption = 1,
    groups: GroupsOption = None,
    keep: KeepOption = None,
    prepare: PrepareOption = False,
    memory: MemoryOption = False,
    untuned: UntunedOption = False,
    weight_bits: BitsOption = 8,
) -> None:
    """Time whole networks, ours and the peers', interleaved."""
    if weight_bits != 8 and dtype != "int8":
        raise ValueError(f"--weight-bits {weight_bits} with --dtype {dtype}; expected int8")
    if prepare and keep is None:
        raise ValueError("--prepare without --keep FOLDER; expected the folder to fill")
    wanted = f"benchmarks/results/networks{'' if dtype == 'float32' else '_int8'}.json"
    networks = _networks(dtype, groups)
    session = Session.start(
        "Networks",
        threads=threads,
        cores=cores,
        only=only,
        budget=budget_of(quick, seconds, DEFAULT_SECONDS),
        json_path=json_path or Path(wanted),
        dtype=dtype,
    )
    peers = [*PEERS, UNTUNED] if untuned else PEERS
    with session.workloads([spec.name for spec in networks]) as begin:
        for plain in networks:
            spec, folder = plain.with_batch(batch), begin(plain.name)
            timed = spec.groups_int8 if dtype == "int8" else spec.groups
            if not session.selects_any(spec.name, timed, peers):
                continue
            if keep is not None:
                folder = keep.resolve() / spec.name
                folder.mkdir(parents=True, exist_ok=True)
            model, example = spec.build(), spec.example()
            if dtype == "int8":
                how = (folder, target, weight_bits)
                found = int8_networks.contenders(session, spec, model, example, *how)
                note_instructions(found, target)
                if not prepare:
                    session.run(found)
                continue
            flops, _, _ = network_flops(model, example)
            contenders = session.add_peers(spec.name, model, example, folder, flops, peers)
            contenders += our_contenders(session, spec, model, example, folder, target)
            note_instructions(contenders, target)
            if prepare:
                continue
            after = (
                partial(add_memory, contenders, plain.name, folder, target, threads, batch)
                if memory
                else None
            )
            session.run(contenders, after)
    if not prepare:
        session.finish()


if __name__ == "__main__":
    run_main(main)
