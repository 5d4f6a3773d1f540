"""From records to the configurations that ``compile`` uses."""

from __future__ import annotations

import logging
import os
import platform
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from tvm.target import Target

import tuning_logs
from topi_kernels.device import architecture
from topi_kernels.devices import DEVICES
from topi_kernels.schedules.choose import Config
from topi_kernels.task import Task, recorded_schedules, task_from_dict

from .environment import device_name, target_dict
from .records import BadLine, LogError, Record, TuningLog, best_records

logger = logging.getLogger(__name__)

#: How far the number of kept weights may differ for a record of another layer of the same shape.
DENSITY_TOLERANCE = 0.25
#: Level 0 must be expected to take this share of the time of another device's record.
LEAST_GAIN = 0.97


def config_of(record: Record) -> Config:
    """The configuration that a record measured.

    Knobs that came later have the value that the code had without them.

    Raises
    ------
    LogError
        On knobs this program does not know, or missing ones without a default.
    """
    try:
        schedules, before = recorded_schedules(record.task)
        return schedules.config.from_dict({**before, **record.config})
    except ValueError as error:
        raise LogError(f"a recorded {error}; tune again with this version") from error


def later_knobs(record: Record) -> list[str]:
    """Knobs that came after a record: its search could not vary them."""
    kind = type(config_of(record))
    return sorted({f.name for f in fields(kind)} - set(record.config))


def log_folder() -> Path:
    """Folder of the shipped logs."""
    return Path(next(iter(tuning_logs.__path__)))


def shipped_logs(family: str) -> list[Path]:
    """The logs that ship for a processor family, sorted; those of the device that it takes after.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    names = [family, DEVICES.named(family).records_of]
    return sorted(path for n in names if n for path in (log_folder() / n).glob("*.jsonl"))


@dataclass(frozen=True)
class Found:
    """What the records say on a task.

    Parameters
    ----------
    config : ConvConfig or GpuConfig or None
        None if no record helps.
    exact : bool
        Whether the record is of this very task, not of one like it.
    skipped : tuple of str
        Why records that would have been preferred cannot be used.
    later_knobs : tuple of str
        Knobs that came after the record.
    device, family : str
        Device of the record, and its kind.
    """

    config: Config | None = None
    exact: bool = False
    skipped: tuple[str, ...] = ()
    later_knobs: tuple[str, ...] = ()
    device: str = ""
    family: str = ""


#: What reading a task or a configuration of a foreign or damaged record may raise.
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError)


class ConfigLookup:
    """Finds the best known configuration of a task.

    Times of two devices are never compared, nor their configurations mixed: records of the device
    that is compiled for come first. For what they leave open one other device serves, of the same
    target if there is one, else of the same family; :meth:`notes` says so.

    Of a device's records one of the same task wins, preferably of as many threads; those that were
    filed under the kind of device that this one takes after (``Device.records_of``) come last.
    Otherwise one serves that was measured on the same shape with about as many weights, which is
    what retraining or pruning the same network again gives. A record that this version cannot use,
    because knobs or what is legal changed since, is passed over with a warning that says why. So is
    another device's that came before a knob of which the level-0 choice makes use, or is of another
    kind of device, where the model expects a gain.

    Parameters
    ----------
    records : iterable of Record
    num_threads : int
    device : str, optional
        Name of the device that is compiled for, as in its records.
    target : dict, optional
        Its target as plain data, see :func:`.environment.target_dict`.
    """

    def __init__(
        self,
        records: Iterable[Record],
        num_threads: int = 1,
        device: str | None = None,
        target: dict[str, Any] | None = None,
    ) -> None:
        self.num_threads = num_threads
        self.device = device
        self.lost: tuple[BadLine, ...] = ()
        self._borrowed: Counter[str] = Counter()
        self._outdated: Counter[str] = Counter()
        by_device: dict[str, list[Record]] = {}
        # All of them: the fastest may be one that cannot be used any more.
        for record in best_records(records, keep=None):
            by_device.setdefault(record.device, []).append(record)
        own = [device] if device in by_device else []
        others = sorted(
            (name for name in by_device if name != device),
            key=lambda name: (
                not _same_target(by_device[name], target),
                -len({r.task_key for r in by_device[name]}),
                name,
            ),
        )
        self._sources = [(name, _Index(by_device[name])) for name in [*own, *others[:1]]]
        self._left_out = tuple(others[1:])

    def __len__(self) -> int:
        return len({key for _, index in self._sources for key in index.exact})

    def __call__(self, task: Task) -> Config | None:
        """The configuration for ``task``, or None if no record helps."""
        found = self.find(task)
        for reason, count in Counter(found.skipped).items():
            logger.warning("%d records of %s are not usable: %s", count, task.label, reason)
        if found.config is not None and self.device is not None and found.device != self.device:
            if _is_outdated(task, found):
                self._outdated[found.device] += 1
                return None
            self._borrowed[found.device] += 1
        return found.config

    def notes(self) -> tuple[str, ...]:
        """Lines for the report: lost lines of the log, and what was taken from another device."""
        lines = [f"tuning log: {line}; the other lines are used" for line in self.lost]
        for device, count in self._borrowed.items():
            lines.append(
                f"tuning: {count} convolutions use records of {device or 'an unnamed device'}, not"
                f" of this device ({self.device}); tune here for its own"
            )
        for device, count in self._outdated.items():
            lines.append(
                f"tuning: {count} convolutions do without records of"
                f" {device or 'an unnamed device'}, which came before a knob that is expected to be"
                " faster here, or are of another kind of device; tune here to measure it"
            )
        if self._borrowed and self._left_out:
            lines.append(
                f"tuning: records of other devices are not used: {', '.join(self._left_out)}"
            )
        return tuple(lines)

    def find(self, task: Task) -> Found:
        """Like a call, with what led to the answer."""
        skipped: list[str] = []
        for record in self._ranked(task):
            config = usable_config(task, record)
            if not isinstance(config, str):
                family = str(record.task["family"])
                exact = record.task_key == replace(task, family=family).key
                later = tuple(later_knobs(record))
                return Found(config, exact, tuple(skipped), later, record.device, family)
            skipped.append(config)
        return Found(skipped=tuple(skipped))

    def _ranked(self, task: Task) -> list[Record]:
        tasks = [task]
        if task.family and (kin := DEVICES.named(task.family).records_of):
            tasks.append(replace(task, family=kin))
        return [
            record
            for _, index in self._sources
            for same in tasks
            for record in index.ranked(same, self.num_threads)
        ]


def _is_outdated(task: Task, found: Found) -> bool:
    """Whether level 0 is expected to be faster than another device's record.

    By a knob that the record's search did not know, or because it was of another kind of device.
    """
    if found.config is None or not (found.later_knobs or found.family != task.family):
        return False
    level_0 = task.default_config()
    gains = found.family != task.family
    gains |= any(getattr(level_0, k) != getattr(found.config, k) for k in found.later_knobs)
    return gains and task.cost(level_0) < LEAST_GAIN * task.cost(found.config)


def _same_target(records: list[Record], target: dict[str, Any] | None) -> bool:
    """Whether records are of the same processor and features."""

    def facts(data: dict[str, Any]) -> tuple[str, str, str]:
        return (str(data.get("kind")), str(data.get("mcpu")), str(data.get("mattr")))

    return target is not None and any(facts(r.target) == facts(target) for r in records)


class _Index:
    """The records of one device, by task and by what is like it."""

    def __init__(self, records: list[Record]) -> None:
        self.exact: dict[str, list[Record]] = {}
        self.similar: dict[str, list[tuple[Task, list[Record]]]] = {}
        for record in records:
            self.exact.setdefault(record.task_key, []).append(record)
        for same in self.exact.values():
            try:
                task = task_from_dict(same[0].task)
                self.similar.setdefault(task.similarity_key, []).append((task, same))
            except _UNREADABLE as error:
                logger.warning("records of task %s fit no other: %s", same[0].task_key, error)

    def ranked(self, task: Task, num_threads: int) -> list[Record]:
        """Records that may serve ``task``, the best first."""

        def speed(record: Record) -> tuple[bool, float]:
            return (record.num_threads != num_threads, record.seconds)

        exact = sorted(self.exact.get(task.key, ()), key=speed)
        near: list[tuple[int, bool, list[Record]]] = []
        for other, records in self.similar.get(task.similarity_key, ()):
            difference = abs(other.kept_weights - task.kept_weights)
            tolerable = difference <= DENSITY_TOLERANCE * max(1, task.kept_weights)
            if other.key != task.key and tolerable:
                near.append((difference, other.epilogue != task.epilogue, records))
        near.sort(key=lambda entry: entry[:2])
        likes = [record for _, _, records in near for record in sorted(records, key=speed)]
        likes.sort(key=lambda record: record.num_threads != num_threads)
        return [*exact, *likes]


def why_unusable(record: Record) -> str | None:
    """Why this version cannot use a record for its own task, or None when it can."""
    try:
        task = task_from_dict(record.task)
    except _UNREADABLE as error:
        return str(error)
    config = usable_config(task, record)
    return config if isinstance(config, str) else None


def usable_config(task: Task, record: Record) -> Config | str:
    """The configuration of a record for ``task``, or why this version cannot use it."""
    try:
        config = config_of(record)
    except LogError as error:
        return str(error)
    try:
        reason = task.illegal_reason(config)
    except ArithmeticError as error:
        reason = f"a knob of {config} is out of range ({error})"
    return config if reason is None else f"{reason}; tune again with this version"


def own_device(target: Target) -> str | None:
    """Name of this machine, if ``target`` is of its architecture, else None."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    return device_name() if architecture(target) == machine else None


def config_lookup(
    tuning_log: str | os.PathLike | None,
    target: Target,
    num_threads: int = 1,
    device: str | None = None,
) -> ConfigLookup:
    """The lookup that ``compile`` uses.

    Parameters
    ----------
    tuning_log : str or os.PathLike, optional
        A log to use instead of the ones that ship with the project.
    target : tvm.target.Target
    num_threads : int
    device : str, optional
        Device that is compiled for; by default this machine, if the target is of its kind.

    Raises
    ------
    LogError
        If the log is missing or holds lines of another schema version or damaged ones. A line that
        a killed writer left half is passed over and named in the report.
    """
    paths = shipped_logs(DEVICES.of(target).name) if tuning_log is None else [Path(tuning_log)]
    logs = [TuningLog(path).usable() for path in paths]
    records = [record for found, _ in logs for record in found]
    device = own_device(target) if device is None else device
    lookup = ConfigLookup(records, num_threads, device, target_dict(target))
    lookup.lost = tuple(line for _, lost in logs for line in lost)
    for line in lookup.lost:
        logger.warning("skipped: %s", line)
    return lookup
