"""Training and pruning on images: what ``tvm-pattern prune`` runs, alone or under torchrun."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import nn

from ..atomic import write_file
from .batchnorm import norms_at_rest
from .checkpoint import CheckpointError, load_training, save_pruned, save_training
from .data import IGNORED, DataError, DataSets, EpochSampler, make_loader
from .ema import MaskedEma
from .modules import clean_name
from .optimisation import distillation, learning_rate, make_mix, make_optimizer
from .plots import save_plots
from .pruner import Pruner
from .recipe import Recipe
from .report import PruneReport

CHECKPOINT = "checkpoint.pt"
_CHECKPOINT_KEYS = {"recipe", "epoch", "model", "optimizer", "scaler", "pruner", "ema", "epochs"}


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite; the last good state is on disk."""


@dataclass(frozen=True)
class Process:
    """This process among those of torchrun."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes files."""
        return self.rank == 0


@contextmanager
def distributed(device: str) -> Iterator[Process]:
    """Join the process group that torchrun describes in the environment, if there is one."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Process()
        return
    process = Process(
        int(os.environ["RANK"]),
        int(os.environ["WORLD_SIZE"]),
        int(os.environ.get("LOCAL_RANK", "0")),
    )
    if device.startswith("cuda"):
        torch.cuda.set_device(process.local_rank)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield process
    finally:
        dist.destroy_process_group()


class Trainer:
    """One run: training, pruning, checkpoints after every epoch, results at the end.

    Parameters
    ----------
    model : nn.Module
        On ``device`` already; not wrapped.
    data : DataSets
    recipe : Recipe
    output : Path
        Folder for ``checkpoint.pt`` and the results.
    device : str
    process : Process
    console : Console, optional
        Where progress is shown; only rank 0 shows any.
    """

    def __init__(
        self,
        model: nn.Module,
        data: DataSets,
        recipe: Recipe,
        output: Path,
        device: str = "cpu",
        process: Process | None = None,
        console: Console | None = None,
    ) -> None:
        self.process = process or Process()
        self.recipe, self.output, self.device = recipe, output, device
        self.console = console or Console(quiet=not self.process.is_main)
        self.data = data
        self.model = model
        self.mix = make_mix(recipe.train, len(data.classes))
        self.teacher = copy.deepcopy(model).eval() if recipe.train.distill else None
        # Baking may replace parameters, so the optimizer comes after the pruner.
        example = torch.zeros_like(data.train[0, 0][0])[None].to(device)
        self.pruner = Pruner(model, recipe.patterns, recipe.method, example)
        self.optimizer = make_optimizer(model, recipe.train)
        self.pruner.attach(self.optimizer)
        self.ema = MaskedEma(self.pruner, recipe.train.ema) if recipe.train.ema else None
        self.scaler = torch.amp.GradScaler(device.split(":")[0], enabled=recipe.train.amp)
        self.epoch = 0
        self.epochs: list[dict[str, Any]] = []
        self.unreadable: set[str] = set()
        self._samplers = {
            name: EpochSampler(
                len(dataset),  # type: ignore[arg-type]
                train=name == "train",
                seed=recipe.train.seed,
                rank=self.process.rank,
                world=self.process.world,
            )
            for name, dataset in (("train", data.train), ("validation", data.validation))
        }
        self._loaders = {
            "train": self._loader("train", data.train),
            "validation": self._loader("validation", data.validation),
        }
        self.wrapped: nn.Module = model
        if self.process.world > 1:
            self.wrapped = nn.parallel.DistributedDataParallel(model)

    def _loader(self, name: str, dataset: Any) -> Any:
        train = self.recipe.train
        return make_loader(dataset, self._samplers[name], train.batch_size, train.workers)

    # One run ------------------------------------------------------------------------------------

    def run(self, *, resume: bool = True) -> PruneReport:
        """Train to the end and write the results; continues from a checkpoint if there is one.

        Raises
        ------
        TrainingDiverged
            When the loss is not finite. The checkpoint of the last finished epoch stays.
        CheckpointError
            When the checkpoint is damaged or of another recipe.
        SparsityError
            When the achieved sparsity is not the asked one.
        """
        checkpoint = self.output / CHECKPOINT
        if resume and checkpoint.is_file():
            self._load(checkpoint)
            self.console.print(f"resumed after epoch {self.epoch} from {checkpoint}")
        else:
            self._save(checkpoint)
        total = self.recipe.train.epochs
        with self._progress() as progress:
            task = progress.add_task("prune", total=total * len(self._loaders["train"]))
            progress.update(task, completed=self.epoch * len(self._loaders["train"]))
            while self.epoch < total:
                if self.epoch >= self.recipe.prune_epochs and self.pruner.phase == "training":
                    self._freeze()
                figures = self._train_epoch(progress, task)
                if self.pruner.phase == "training":
                    figures |= self.pruner.step()
                self.epoch += 1
                if self.epoch == total and self.pruner.phase == "training":
                    self._freeze()
                self._record(figures)
                self._save(checkpoint)
        return self._finish()

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.process.is_main,
        )

    def _freeze(self) -> None:
        self.pruner.freeze()
        self._samplers["train"].epoch = self.epoch  # the same images after a resume
        batches = (
            images.to(self.device)
            for images, labels, _ in self._loaders["train"]
            if bool((labels != IGNORED).any())
        )
        self.pruner.recalibrate_bn(batches, self.recipe.train.bn_batches)

    def _train_epoch(self, progress: Progress, task: Any) -> dict[str, Any]:
        train = self.recipe.train
        # Dropout repeats after a resume because every epoch starts from its own seed.
        torch.manual_seed(train.seed * 1_000_003 + self.epoch * 1009 + self.process.rank)
        self._samplers["train"].epoch = self.epoch
        self.wrapped.train()
        loader = self._loaders["train"]
        total, count, known = 0.0, 0, 0
        for step, (images, labels, indices) in enumerate(loader):
            rate = learning_rate(self.recipe, self.epoch + step / len(loader))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self._note_unreadable(self.data.train, labels, indices)
            known += int((labels != IGNORED).sum())
            loss = self._backward(images.to(self.device), labels.to(self.device))
            self._stop_if_diverged(loss)
            if (step + 1) % train.accumulate == 0 or step + 1 == len(loader):
                if train.clip:
                    self.scaler.unscale_(self.optimizer)
                    nn.utils.clip_grad_norm_(self.model.parameters(), train.clip)
                self.scaler.step(self.optimizer)
                self.scaler.update()
                self.optimizer.zero_grad()
                if self.ema is not None:
                    self.ema.update()
            total += float(loss)
            count += 1
            progress.update(
                task,
                advance=1,
                description=f"epoch {self.epoch + 1}/{train.epochs} {self.pruner.phase}"
                f" loss {total / count:.3f}",
            )
        if not known:
            raise DataError("no training image could be read; repair the data folder")
        return {"loss": total / max(1, count)}

    def _checked(self, outputs: Any) -> torch.Tensor:
        """A network's outputs, which have to have a place for each class of the pictures."""
        classes = len(self.data.classes)
        shape = list(outputs.shape) if isinstance(outputs, torch.Tensor) else None
        if shape is None or len(shape) != 2 or shape[1] < classes:
            raise DataError(
                f"the pictures are of {classes} classes, the network gives"
                f" {shape if shape is not None else type(outputs).__name__} for a batch; expected"
                f" one output for each class: build it with num_classes={classes}"
            )
        return outputs

    def _backward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        train = self.recipe.train
        kind = self.device.split(":")[0]
        known = labels != IGNORED
        if self.mix is not None and bool(known.any()):
            images, labels = self.mix(images[known], labels[known])
            known = known[known]
        # A batch in which nothing could be read is zeros: no statistics for batch norms.
        at_rest = nullcontext() if bool(known.any()) else norms_at_rest(self.model)
        with torch.autocast(kind, enabled=train.amp), at_rest:
            outputs = self._checked(self.wrapped(images))
            summed = F.cross_entropy(
                outputs.float(),
                labels,
                ignore_index=IGNORED,
                reduction="sum",
                label_smoothing=train.label_smoothing,
            )
        loss = summed / max(1, int(known.sum()))
        if self.teacher is not None:
            with torch.no_grad(), torch.autocast(kind, enabled=train.amp):
                wanted = self.teacher(images)
            divergence = distillation(outputs[known], wanted[known], train.temperature)
            loss = (1 - train.distill) * loss + train.distill * divergence
        self.scaler.scale(loss / train.accumulate).backward()
        return loss.detach()

    def _stop_if_diverged(self, loss: torch.Tensor) -> None:
        finite = torch.isfinite(loss).to(torch.uint8)
        if self.process.world > 1:
            dist.all_reduce(finite, op=dist.ReduceOp.MIN)  # all processes stop together
        if not bool(finite):
            raise TrainingDiverged(
                f"the loss became {float(loss)} in epoch {self.epoch + 1}; the state after epoch"
                f" {self.epoch} is kept in {self.output / CHECKPOINT}. Lower the learning rate"
                f" ({learning_rate(self.recipe, self.epoch):g}) or check the data, then resume"
            )

    def _note_unreadable(self, dataset: Any, labels: torch.Tensor, indices: torch.Tensor) -> None:
        for index in indices[labels == IGNORED].tolist():
            name = dataset.name(index)
            if name not in self.unreadable:
                self.unreadable.add(name)
                self.console.print(f"unreadable image left out: {name}", markup=False)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Validation accuracies in percent, of the average of weights if there is one.

        ``accuracy`` is top-1; ``top5`` is there for more than five classes.
        """
        model = self.ema.model if self.ema is not None else self.model
        mode = model.training
        model.eval()
        counts = torch.zeros(3, dtype=torch.float64, device=self.device)
        best = min(5, len(self.data.classes))
        for images, labels, indices in self._loaders["validation"]:
            self._note_unreadable(self.data.validation, labels, indices)
            labels = labels.to(self.device)
            known = labels != IGNORED
            answers = model(images.to(self.device)).topk(best).indices
            right = (answers == labels[:, None]) & known[:, None]
            counts += torch.stack([right[:, 0].sum(), right.sum(), known.sum()]).to(counts)
        model.train(mode)
        if self.process.world > 1:
            dist.all_reduce(counts)
        if float(counts[2]) == 0:
            raise DataError("no validation image could be read; repair the data folder")
        first, several = (float(100 * c / counts[2]) for c in counts[:2])
        return {"accuracy": first} | ({"top5": several} if len(self.data.classes) > 5 else {})

    def _record(self, figures: dict[str, Any]) -> None:
        row = {
            "epoch": self.epoch,
            "phase": self.pruner.phase,
            "loss": figures["loss"],
            **self.evaluate(),
        }
        row |= {k: v for k, v in figures.items() if k in ("rho", "residual", "kernels_kept")}
        self.epochs.append(row)
        details = "  ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
        )
        self.console.print(details, highlight=False)

    # Files --------------------------------------------------------------------------------------

    def _save(self, path: Path) -> None:
        if not self.process.is_main:
            return
        save_training(
            path,
            {
                "recipe": self.recipe.to_json(),
                "epoch": self.epoch,
                "model": {clean_name(k): v for k, v in self.model.state_dict().items()},
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "pruner": self.pruner.state_dict(),
                "ema": self.ema.state_dict() if self.ema is not None else {},
                "epochs": json.dumps(self.epochs),
            },
        )

    def _load(self, path: Path) -> None:
        state = load_training(path, _CHECKPOINT_KEYS)
        if not self.recipe.is_same(state["recipe"]):
            raise CheckpointError(
                f"{path} belongs to another recipe: {state['recipe']}. Give that one, another"
                " output folder, or start afresh without resuming"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} does not fit this model: {error}") from error
        self.scaler.load_state_dict(state["scaler"])
        self.pruner.load_state_dict(state["pruner"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.epoch = state["epoch"]
        self.epochs = json.loads(state["epochs"])

    def _finish(self) -> PruneReport:
        """Check the sparsity and write weights, reports and plots."""
        report = self.pruner.finalize()
        if not self.process.is_main:
            return report
        result = self.ema.model if self.ema is not None else self.model
        save_pruned(self.output / "model.safetensors", result, report.assignment)
        for suffix in (".json", ".md", ".html"):
            report.save(self.output / f"report{suffix}")
        write_file(self.output / "history.csv", _as_csv(self.epochs).encode())
        history = {"epochs": self.epochs, "unreadable": sorted(self.unreadable)}
        write_file(self.output / "history.json", json.dumps(history, indent=2).encode())
        save_plots(report, self.output / "plots", self.epochs)
        if self.unreadable:
            self.console.print(f"{len(self.unreadable)} unreadable images were left out")
        return report


def _as_csv(epochs: list[dict[str, Any]]) -> str:
    """One line for each epoch; a figure that an epoch has not is left empty."""
    stream = io.StringIO()
    names = list(dict.fromkeys(name for row in epochs for name in row))
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(epochs)
    return stream.getvalue()
