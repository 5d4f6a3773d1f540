"""From records to the configurations that ``compile`` uses."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from tvm.target import Target

import tuning_logs
from relay_passes.conv_task import ConvTask
from topi_kernels.schedules.config import ConvConfig
from topi_kernels.target_family import target_family

from .records import LogError, Record, TuningLog, best_records

logger = logging.getLogger(__name__)

#: How far the number of kept weights may differ for a record of another layer of the same shape.
DENSITY_TOLERANCE = 0.25


def config_from_dict(data: dict[str, Any]) -> ConvConfig:
    """A recorded configuration; knobs that came later take their default.

    Raises
    ------
    LogError
        On knobs this program does not know, or missing ones without a default.
    """
    known = {f.name: f for f in fields(ConvConfig)}
    unknown = sorted(set(data) - set(known))
    missing = sorted(name for name, f in known.items() if name not in data and f.default is MISSING)
    if unknown or missing:
        raise LogError(
            f"a recorded config has unknown knobs {unknown} and lacks {missing}; tune again with"
            " this version"
        )
    return ConvConfig(**data)


def later_knobs(record: Record) -> list[str]:
    """Knobs that came after a record: its search could not vary them."""
    return sorted({f.name for f in fields(ConvConfig)} - set(record.config))


def log_folder() -> Path:
    """Folder of the shipped logs."""
    return Path(next(iter(tuning_logs.__path__)))


def shipped_logs(family: str) -> list[Path]:
    """The logs that ship for a processor family, sorted."""
    return sorted((log_folder() / family).glob("*.jsonl"))


@dataclass(frozen=True)
class Found:
    """What the records say on a task.

    Parameters
    ----------
    config : ConvConfig or None
        None if no record helps.
    exact : bool
        Whether the record is of this very task, not of one like it.
    skipped : tuple of str
        Why records that would have been preferred cannot be used.
    later_knobs : tuple of str
        Knobs that came after the record.
    """

    config: ConvConfig | None = None
    exact: bool = False
    skipped: tuple[str, ...] = ()
    later_knobs: tuple[str, ...] = ()


class ConfigLookup:
    """Finds the best known configuration of a task.

    A record of the same task wins, preferably of as many threads. Otherwise one serves that was
    measured on the same shape with about as many weights, which is what retraining or pruning the
    same network again gives. A record that this version cannot use, because knobs or what is legal
    changed since, is passed over with a warning that says why.

    Parameters
    ----------
    records : iterable of Record
    num_threads : int
    """

    def __init__(self, records: Iterable[Record], num_threads: int = 1) -> None:
        self.num_threads = num_threads
        self._exact: dict[str, list[Record]] = {}
        self._similar: dict[str, list[tuple[ConvTask, list[Record]]]] = {}
        # All of them: the fastest may be one that cannot be used any more.
        for record in best_records(records, keep=None):
            self._exact.setdefault(record.task_key, []).append(record)
        for same in self._exact.values():
            try:
                task = ConvTask.from_dict(same[0].task)
            except (ValueError, TypeError, KeyError) as error:
                logger.warning("records of task %s fit no other: %s", same[0].task_key, error)
                continue
            self._similar.setdefault(task.similarity_key, []).append((task, same))

    def __len__(self) -> int:
        return len(self._exact)

    def __call__(self, task: ConvTask) -> ConvConfig | None:
        """The configuration for ``task``, or None if no record helps."""
        found = self.find(task)
        for reason, count in Counter(found.skipped).items():
            logger.warning("%d records of %s are not usable: %s", count, task.label, reason)
        return found.config

    def find(self, task: ConvTask) -> Found:
        """Like a call, with what led to the answer."""
        skipped: list[str] = []
        for record in self._ranked(task):
            config = usable_config(task, record)
            if isinstance(config, ConvConfig):
                exact, later = record.task_key == task.key, tuple(later_knobs(record))
                return Found(config, exact, tuple(skipped), later)
            skipped.append(config)
        return Found(skipped=tuple(skipped))

    def _ranked(self, task: ConvTask) -> list[Record]:
        def speed(record: Record) -> tuple[bool, float]:
            return (record.num_threads != self.num_threads, record.seconds)

        exact = sorted(self._exact.get(task.key, ()), key=speed)
        near: list[tuple[int, bool, list[Record]]] = []
        for other, records in self._similar.get(task.similarity_key, ()):
            difference = abs(other.kept_weights - task.kept_weights)
            tolerable = difference <= DENSITY_TOLERANCE * max(1, task.kept_weights)
            if other.key != task.key and tolerable:
                near.append((difference, other.epilogue != task.epilogue, records))
        near.sort(key=lambda entry: entry[:2])
        likes = [record for _, _, records in near for record in sorted(records, key=speed)]
        likes.sort(key=lambda record: record.num_threads != self.num_threads)
        return [*exact, *likes]


def why_unusable(record: Record) -> str | None:
    """Why this version cannot use a record for its own task, or None when it can."""
    try:
        task = ConvTask.from_dict(record.task)
    except (ValueError, TypeError, KeyError) as error:
        return str(error)
    config = usable_config(task, record)
    return config if isinstance(config, str) else None


def usable_config(task: ConvTask, record: Record) -> ConvConfig | str:
    """The configuration of a record for ``task``, or why this version cannot use it."""
    try:
        config = config_from_dict(record.config)
    except LogError as error:
        return str(error)
    reason = task.illegal_reason(config)
    return config if reason is None else f"{reason}; tune again with this version"


def config_lookup(
    tuning_log: str | os.PathLike | None, target: Target, num_threads: int = 1
) -> ConfigLookup:
    """The lookup that ``compile`` uses.

    Parameters
    ----------
    tuning_log : str or os.PathLike, optional
        A log to use instead of the ones that ship with the project.
    target : tvm.target.Target
    num_threads : int

    Raises
    ------
    LogError
        If the log is missing or holds lines of another schema version or damaged ones.
    """
    paths = shipped_logs(target_family(target)) if tuning_log is None else [Path(tuning_log)]
    records = [record for path in paths for record in TuningLog(path).records()]
    return ConfigLookup(records, num_threads)
