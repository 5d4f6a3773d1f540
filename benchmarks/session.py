"""One benchmark run: pin, go through the workloads, keep the results safe on the way."""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from . import device as device_info
from .device import package_version
from .dot_peak import DotPeak
from .harness import OURS, Budget, Contender, Row, Selection, measure
from .peak import PeakMeter
from .peers import PEERS, Peer
from .results import variant_name, write_all, write_samples

# What an engine may raise when it refuses a model; anything else is a fault of the benchmark.
REFUSALS = (RuntimeError, ValueError, OSError, subprocess.SubprocessError)

QuickOption = Annotated[bool, typer.Option("--quick", help="Short runs: rough figures.")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="Threads of every engine.")]
OnlyOption = Annotated[
    str | None,
    typer.Option("--only", metavar="REGEX", help="Searched in 'workload/engine', ours '.../F4'."),
]
JsonOption = Annotated[
    Path, typer.Option("--json", help="Result file; .md, .png and .samples.jsonl go beside it.")
]
JsonByDtypeOption = Annotated[
    Path | None, typer.Option("--json", help="Result file; default: one for each dtype.")
]
CoresOption = Annotated[
    str | None, typer.Option("--cores", help="Cores to run on, e.g. 2,3; default: the last ones.")
]
DtypeOption = Annotated[
    Literal["float32", "int8"], typer.Option("--dtype", help="What layers are computed in.")
]
SecondsOption = Annotated[
    float | None, typer.Option("--seconds", min=0.1, help="Seconds per workload, all engines.")
]


@dataclass
class Session:
    """State of a run. ``contenders`` grows workload by workload."""

    title: str
    threads: int
    cores: list[int]
    select: Selection
    budget: Budget
    json_path: Path
    peak: PeakMeter | DotPeak
    dtype: str = "float32"
    console: Console = field(default_factory=lambda: Console(stderr=True))
    contenders: list[Contender] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        title: str,
        *,
        threads: int,
        cores: str | None,
        only: str | None,
        budget: Budget,
        json_path: Path,
        dtype: str = "float32",
    ) -> Session:
        """Pin the process and measure a first peak sample.

        Raises
        ------
        ValueError, RuntimeError
            On cores, an expression or a machine that cannot be used.
        """
        try:
            wanted = [int(c) for c in cores.split(",")] if cores else None
        except ValueError:
            raise ValueError(f"--cores {cores!r}: expected numbers separated by commas") from None
        select = Selection(only)
        pinned = device_info.pin(threads, wanted)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        peak = DotPeak() if dtype == "int8" else PeakMeter()
        return cls(title, threads, pinned, select, budget, json_path, peak, dtype)

    def add_peers(
        self,
        workload: str,
        model: nn.Module,
        example: torch.Tensor,
        folder: Path,
        flops: int,
        peers: Sequence[Peer] | None = None,
    ) -> list[Contender]:
        """Every selected peer on a dense workload, in a fixed order; refusals become notes."""
        with torch.inference_mode():
            reference = model(example).numpy()
        contenders = []
        for peer in PEERS if peers is None else peers:
            if not self.select(workload, peer.name):
                continue
            contender = Contender(workload, peer.name, None, reference=reference)
            contender.batch = len(example)
            contender.dense_flops = contender.effective_flops = flops
            reason = peer.unavailable()
            if reason is None:
                try:
                    contender.runner = peer.build(model, example, self.threads, folder)
                except REFUSALS as error:
                    reason = f"cannot build: {_one_line(error)}"
            contender.note = "" if reason is None else f"unavailable: {reason}"
            contenders.append(contender)
        return contenders

    def add_int8_peers(
        self,
        workload: str,
        path: Path,
        example: torch.Tensor,
        reference: np.ndarray,
        flops: int,
        dense: tuple[nn.Module, Sequence[torch.Tensor]] | None = None,
    ) -> list[Contender]:
        """Every selected peer that reads networks of bytes, on a QDQ file.

        Others that quantise by their own rules get the network of floats, ``dense``, with images.
        """
        contenders = []
        for peer in PEERS:
            own = peer.quantises and dense is not None
            if not (peer.reads_qdq or own) or not self.select(workload, peer.name):
                continue
            contender = Contender(workload, peer.name, None, flops, flops, dtype="int8")
            contender.reference = reference
            reason = peer.unavailable()
            if reason is None:
                try:
                    if dense is not None and own:
                        model, batches = dense
                        folder = path.parent
                        contender.runner = peer.quantised(
                            model, batches, example, self.threads, folder
                        )
                    else:
                        contender.runner = peer.open(path, example, self.threads)
                except REFUSALS as error:
                    reason = f"cannot read: {_one_line(error)}"
            contender.note = "" if reason is None else f"unavailable: {reason}"
            contenders.append(contender)
        return contenders

    def add_ours(
        self, contender: Contender, build: Callable[[], Any], reference: np.ndarray
    ) -> Contender:
        """Our engine; a refusal becomes a note here too, and is printed."""
        contender.reference = reference
        try:
            contender.runner = build()
        except REFUSALS as error:
            contender.note = f"failed: {_one_line(error)}"
            self.console.print(f"[red]{contender.workload}: {contender.note}", markup=True)
        return contender

    def selects_any(self, workload: str, groups: Sequence[int], peers: Sequence[Peer]) -> bool:
        """Whether any engine on a workload is selected: else it need not be built."""
        ours = any(self.select(workload, OURS, group) for group in (*groups, None))
        return ours or any(self.select(workload, peer.name) for peer in peers)

    def run(self, contenders: Sequence[Contender], after: Callable[[], None] | None = None) -> None:
        """Time one workload, print a line per engine, and write the results so far.

        ``after`` is called when the engines' times are taken and their memory is free.
        """
        measure(contenders, self.budget, each_round=self.peak.sample)
        for contender in contenders:
            contender.runner = None  # frees the engine's memory
            contender.reference = None
        if after is not None:
            after()
        self.contenders += contenders
        for contender in contenders:
            row = contender.row(self.threads, self.peak.gflops)
            self.console.print(_line(row), highlight=False, markup=False)
        self.write()

    def rows(self) -> list[Row]:
        return [c.row(self.threads, self.peak.gflops) for c in self.contenders]

    def write(self) -> list[Path]:
        engines = {p.name: p.version() for p in PEERS}
        engines[OURS] = package_version("tvm-pattern") or "from the source tree"
        device = device_info.describe(self.threads, self.cores, engines)
        device["peak_p10_p90" if self.dtype == "int8" else "fma_peak_p10_p90"] = [
            round(float(v), 2) for v in np.percentile(self.peak.samples, (10, 90))
        ]
        device["peak_samples" if self.dtype == "int8" else "fma_peak_samples"] = len(
            self.peak.samples
        )
        written = write_all(self.json_path, self.title, device, self.peak.gflops, self.rows())
        log = self.json_path.with_suffix(".samples.jsonl")
        write_samples(log, self.contenders, self.peak.samples)
        return [*written, log]

    @contextmanager
    def workloads(self, names: Sequence[str]) -> Iterator[Callable[[str], Path]]:
        """Progress over ``names``; the yielded call begins one and returns a folder for files."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with (
            Progress(*columns, console=self.console) as progress,
            tempfile.TemporaryDirectory() as root,
        ):
            task = progress.add_task("starting", total=len(names))

            def begin(name: str) -> Path:
                progress.update(task, description=name, completed=names.index(name))
                folder = Path(root) / str(names.index(name))
                folder.mkdir()
                return folder

            yield begin
            progress.update(task, description="done", completed=len(names))

    def finish(self) -> None:
        """Say where the results are.

        Raises
        ------
        ValueError
            If nothing was selected.
        """
        if not self.contenders:
            raise ValueError("--only selects nothing; it is searched in 'workload/engine'")
        contended = sorted({c.workload for c in self.contenders if c.contended})
        if contended:
            self.console.print(
                f"warning: other programs used the cores during {', '.join(contended)};"
                " free them and measure again",
                style="red",
            )
        for path in self.write():
            self.console.print(f"wrote {path}", highlight=False)


def budget_of(quick: bool, seconds: float | None, default_seconds: float) -> Budget:
    """Budget from the command line."""
    if quick:
        budget = Budget.quick()
        return budget if seconds is None else Budget(seconds, budget.min_rounds)
    return Budget(seconds if seconds is not None else default_seconds)


def run_main(command: Callable[..., None]) -> None:
    """Run a typer command; what the user can mend is one line, not a traceback."""

    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (ValueError, RuntimeError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None

    guarded.__doc__ = command.__doc__
    guarded.__wrapped__ = command  # type: ignore[attr-defined]
    guarded.__annotations__ = command.__annotations__
    typer.run(guarded)


def _one_line(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, subprocess.CalledProcessError) and error.stderr:
        text += " " + bytes(error.stderr).decode("utf-8", "replace")
    return f"{type(error).__name__}: {' '.join(text.split())[:300]}"


def _line(row: Row) -> str:
    if row.median_ms is None:
        return f"{row.workload:22} {variant_name(row):18} {row.note}"
    return (
        f"{row.workload:22} {variant_name(row):18} {row.median_ms:9.3f} ms"
        f"  ({row.p10_ms:.3f}-{row.p90_ms:.3f}, {row.runs} runs)  {row.peak_fraction:4.0%} of peak"
    )
