"""The study's rows: what is missing, in which batches, saved line by line."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .model import Members
from .networks import NETWORKS, Layout, PlainNetwork, to_plain
from .posttraining import accuracy, prune
from .pruning import Pruning
from .rows import UNTRAINED, Row, as_fields, from_fields, stages
from .training import OutOfTime, Settings, Trainer, copies, fresh, save_atomically

SAFETY = 1.05
"""Time a batch of rows may take, over what the last epochs let expect."""


class ResultsError(RuntimeError):
    """The results file belongs to another study or is damaged."""


@dataclass
class Results:
    """A JSON lines file: a line ``{"settings": ...}`` per run and a line per finished row."""

    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] | None = None

    @classmethod
    def read(cls, path: Path) -> Results:
        """What is there; a last line that a kill cut short is dropped.

        Raises
        ------
        ResultsError
            A damaged line before the last one.
        """
        found = cls(path)
        if not path.is_file():
            return found
        text = path.read_text()
        lines = text.splitlines()
        if text and not text.endswith("\n"):
            lines.pop()
            path.write_text("".join(line + "\n" for line in lines))
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise ResultsError(
                    f"{path} line {number} is no JSON ({error}); remove that line or the file"
                ) from error
            if "settings" in value:
                found.settings = value["settings"]
            else:
                found.rows.append(value)
        return found

    def require(self, settings: dict[str, Any]) -> None:
        """Refuse to mix settings."""
        if self.settings is not None and self.settings != settings:
            changed = {
                key: (self.settings.get(key), settings.get(key))
                for key in sorted({*self.settings, *settings})
                if self.settings.get(key) != settings.get(key)
            }
            raise ResultsError(
                f"{self.path} was measured with other settings (there, here): {changed}; give the"
                " same ones or another --json file"
            )

    def append(self, *values: dict[str, Any]) -> None:
        """Add lines and make sure that they are on the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as stream:
            stream.writelines(json.dumps(value) + "\n" for value in values)
            stream.flush()
            os.fsync(stream.fileno())
        self.rows += [value for value in values if "settings" not in value]
        for value in values:
            self.settings = value.get("settings", self.settings)

    def done(self) -> set[tuple[Row, int]]:
        """Finished rows and their seeds."""
        return {(from_fields(row), row["seed"]) for row in self.rows}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def device_facts(device: torch.device) -> dict[str, Any]:
    """What the rows were trained on."""
    facts: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
    if device.type == "cuda":
        return facts | {"device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return facts | {"device": platform.processor() or platform.machine()}


@dataclass
class Study:
    """Runs what is missing in the order of :func:`stages`, ``members`` rows at once.

    A batch starts only if it is expected to end ``reserve`` seconds before the deadline.
    """

    trainer: Trainer
    results: Results
    rows: list[Row]
    seeds: int
    members: int
    latency: dict[str, Any] | None = None
    say: Callable[[str], None] = print
    folder: Path | None = None
    reserve: float = 0.0

    @property
    def settings(self) -> Settings:
        return self.trainer.settings

    @property
    def work(self) -> Path:
        """Checkpoints and dense networks."""
        return self.folder or self.results.path.with_suffix(".work")

    @property
    def device(self) -> torch.device:
        return self.trainer.data.device

    def run(self) -> bool:
        """Train everything that is missing; False when the time ran out before.

        Raises
        ------
        ResultsError
            The file has rows of other settings.
        """
        known = json.loads(json.dumps(asdict(self.settings)))
        known |= {"images": len(self.trainer.data), "dtype": str(self.trainer.data.dtype)}
        self.results.require(known)
        self.results.append({"settings": known, **device_facts(self.device)})
        try:
            for seed, rows in stages(self.rows, self.seeds):
                self._stage(seed, rows)
        except OutOfTime:
            return False
        return True

    # Batches ------------------------------------------------------------------------------------

    def _stage(self, seed: int, rows: list[Row]) -> None:
        """Rows of a seed in their order, the networks in turns; those without training last."""
        done = self.results.done()
        missing = [row for row in rows if (row, seed) not in done]
        untrained = [row for row in missing if row.method in UNTRAINED]
        self._train_all(seed, [row for row in missing if row not in untrained])
        for row in untrained:
            self._prune_finished(row, seed)

    def _train_all(self, seed: int, missing: list[Row]) -> None:
        while missing:
            batch = self._resumable(missing, seed)
            if batch is None:
                network = missing[0].network
                dense = self._dense(network, seed)
                same = [row for row in missing if row.network == network]
                others = {row.network for row in missing} - {network}
                batch = same[: self._affordable(network, min(self.members, len(same)), others)]
                # The rest of this network waits until the others had their turn.
                missing = [r for r in missing if r not in same] + same
            else:
                dense = self._dense(batch[0].network, seed)
            self._train(batch, seed, dense)
            missing = [row for row in missing if row not in batch]

    def _expected(self, network: str, count: int) -> float:
        """Seconds that a batch will take; small ones do not fill a GPU and take the least time."""
        trainer = self.trainer
        epoch = max(trainer.seconds[network] * count, trainer.shortest[network])
        return epoch * self.settings.epochs * SAFETY

    def _affordable(self, network: str, wanted: int, others: set[str]) -> int:
        """How many members the time left is enough for; networks share what is too little.

        Raises
        ------
        OutOfTime
            Not even for one.
        """
        left = self.trainer.deadline - self.reserve - self.trainer.clock()
        if math.isinf(left) or network not in self.trainer.seconds:
            return wanted
        known = [other for other in others if other in self.trainer.seconds]
        needed = sum(self._expected(name, wanted) for name in (network, *known))
        share = left
        if needed > left and self._expected(network, 1) <= left / (1 + len(known)):
            share = left / (1 + len(known))
        fitting = [n for n in range(1, wanted + 1) if self._expected(network, n) <= share]
        if not fitting:
            raise OutOfTime
        return max(fitting)

    def _checkpoint(self, rows: list[Row], seed: int) -> Path:
        text = json.dumps([seed, self.results.settings, *map(as_fields, rows)])
        return self.work / f"rows-{_digest(text)}.pt"

    def _resumable(self, missing: list[Row], seed: int) -> list[Row] | None:
        """Rows of an interrupted batch, if all of them are still wanted."""
        for path in sorted(self.work.glob("rows-*.json")):
            known = json.loads(path.read_text())
            rows = [from_fields(fields) for fields in known["rows"]]
            checkpoint = self._checkpoint(rows, seed)
            if known["seed"] == seed and checkpoint.is_file() and set(rows) <= set(missing):
                return rows
        return None

    def _dense(self, network: str, seed: int) -> Members:
        """The trained dense network of a seed; those of all seeds are trained together."""
        layout = Layout(NETWORKS[network]())
        if not self._dense_file(network, seed).is_file():
            wanted = [s for s in range(self.seeds) if not self._dense_file(network, s).is_file()]
            # Batches gain nothing on a CPU, and one seed at a time is of use earlier.
            self._pretrain(layout, [seed] if self.device.type == "cpu" else wanted)
        state = torch.load(
            self._dense_file(network, seed), map_location=self.device, weights_only=True
        )
        members = Members.start(layout, state["parameters"][None])
        members.mean, members.variance = state["mean"][None], state["variance"][None]
        return members

    def _dense_file(self, network: str, seed: int) -> Path:
        key = json.dumps([self.results.settings, network, seed])
        return self.work / f"dense-{network}-{seed}-{_digest(key)}.pt"

    def _finished_file(self, network: str, seed: int) -> Path:
        """The dense row's network after all of its epochs."""
        return self._dense_file(network, seed).with_suffix(".finished.pt")

    def _pretrain(self, layout: Layout, seeds: list[int]) -> None:
        epochs, name = self.settings.pretrain_epochs, layout.network.name
        self.say(f"{name}: {epochs} dense epochs of seeds {seeds}")
        members = fresh(layout, seeds, self.device)
        path = self._dense_file(name, seeds[0]).with_suffix(f".training-{len(seeds)}")
        self.trainer.run(members, seeds, epochs, checkpoint=path)
        for index, percent in enumerate(self.trainer.accuracy(members)):
            self.say(f"  {percent:.2f} after them, seed {seeds[index]}")
            save_atomically(state_of(members, index), self._dense_file(name, seeds[index]))

    def _train(self, rows: list[Row], seed: int, dense: Members) -> None:
        members = copies(dense, [0] * len(rows))
        pruning = Pruning(rows, members, self.settings.prune(), self.latency)
        checkpoint = self._checkpoint(rows, seed)
        fields = {"seed": seed, "rows": [as_fields(row) for row in rows]}
        self.work.mkdir(parents=True, exist_ok=True)
        checkpoint.with_suffix(".json").write_text(json.dumps(fields))
        name = rows[0].network
        self.say(f"{name}: seed {seed}, {len(rows)} rows of {self.settings.epochs} epochs")
        started = self.trainer.clock()
        self.trainer.run(
            members,
            [seed] * len(rows),
            self.settings.epochs,
            pruning,
            checkpoint,
            offset=self.settings.pretrain_epochs,
        )
        seconds = (self.trainer.clock() - started) / len(rows)
        accuracies = self.trainer.accuracy(members)
        done, finished = self.results.done(), []
        for index, (row, percent) in enumerate(zip(rows, accuracies, strict=True)):
            if row.method == "dense":
                save_atomically(state_of(members, index), self._finished_file(name, seed))
            if (row, seed) in done:  # a dense network that was trained anew
                continue
            fraction = pruning.fraction(row) if row.method.startswith("filter") else None
            rate = dense_weights(members) / kept_weights(members, index)
            finished.append(as_line(row, seed, percent, rate, seconds, fraction))
        self._add(finished)
        checkpoint.with_suffix(".json").unlink(missing_ok=True)

    def _add(self, lines: list[dict[str, Any]]) -> None:
        self.results.append(*lines)
        for line in lines:
            label = from_fields(line).label
            self.say(f"  {line['test']} {label} ({line['compression_rate']:.2f}x)")

    # Without training ---------------------------------------------------------------------------

    def _finished(self, network: str, seed: int) -> PlainNetwork:
        """The dense row's network as a module; trained anew where it was not kept."""
        path = self._finished_file(network, seed)
        if not path.is_file():
            self._train([Row(network, "dense")], seed, self._dense(network, seed))
        state = torch.load(path, map_location=self.device, weights_only=True)
        layout = Layout(NETWORKS[network]())
        module = to_plain(layout, state["parameters"], state["mean"], state["variance"])
        return module.to(self.device)

    def _prune_finished(self, row: Row, seed: int) -> None:
        """One row of :data:`UNTRAINED`.

        Raises
        ------
        OutOfTime
            The deadline has passed; what is under way is done to its end.
        """
        if self.trainer.clock() > self.trainer.deadline:
            raise OutOfTime
        module = self._finished(row.network, seed)
        started = self.trainer.clock()
        rate = prune(module, row, self.trainer.data)
        seconds = self.trainer.clock() - started
        percent = accuracy(module, self.trainer.data)
        self._add([as_line(row, seed, percent, rate, seconds, None)])


def as_line(
    row: Row, seed: int, percent: float, rate: float, seconds: float, fraction: float | None
) -> dict[str, Any]:
    """What the results file holds of a finished row."""
    return {
        **as_fields(row),
        "seed": seed,
        "test": None if math.isnan(percent) else percent,
        "compression_rate": rate,
        "fraction": fraction,
        "seconds": round(seconds, 2),
    }


def state_of(members: Members, index: int) -> dict[str, torch.Tensor]:
    """Vectors of one member: parameters and running statistics."""
    return {
        "parameters": members.parameters[index].clone(),
        "mean": members.mean[index].clone(),
        "variance": members.variance[index].clone(),
    }


def dense_weights(members: Members) -> int:
    """Convolution weights of one member before pruning."""
    return members.layout.network.conv_weights()


def kept_weights(members: Members, index: int) -> int:
    """Convolution weights of one member that its mask keeps."""
    flat = members.mask[index : index + 1]
    slots = members.layout.slots
    return sum(
        int(torch.count_nonzero(slots[c.name].of(flat))) for c in members.layout.network.convs
    )
