"""Records of measurements: one JSON object per line, appended atomically.

A line is written by one ``write`` to a file opened for appending, so a process that is killed loses
at most the line it was writing, and several processes may append to one log. A line that is no
record is a damaged line: readers name it by number. One that was cut off is told apart, since the
lines around it are as good as ever.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..atomic import write_file

SCHEMA = "tvm-pattern/tuning-record"
SCHEMA_VERSION = 1

#: What can become of a trial; ``ok`` is the only one with times.
OK = "ok"
ERROR_KINDS = (
    OK,
    "build_error",
    "build_timeout",
    "run_error",
    "run_timeout",
    "crash",
    "wrong_result",
    "device_lost",
)


class LogError(ValueError):
    """A tuning log that cannot be read or written."""


class CutOffError(LogError):
    """A line that ends too early."""


@dataclass(frozen=True)
class Record:
    """One trial.

    Parameters
    ----------
    task_key : str
        Key of the :class:`topi_kernels.conv_task.ConvTask`.
    task : dict
        The task as plain data; it holds the facts on the structure of the weights.
    config : dict
        Knobs of the measured configuration.
    times : tuple of float
        Seconds of one call, one figure per repeat, each positive and finite; empty unless
        ``error_kind`` is ``ok``.
    error_kind : str
        One of :data:`ERROR_KINDS`.
    error : str
        First line of the error message.
    target : dict
        The target as plain data.
    device : str
        Tracker key of the device, or the processor name of this machine.
    num_threads : int
    versions : dict
        Tool versions.
    timestamp : float
        Seconds since the epoch.
    """

    task_key: str
    task: dict[str, Any]
    config: dict[str, Any]
    times: tuple[float, ...]
    error_kind: str = OK
    error: str = ""
    target: dict[str, Any] = field(default_factory=dict)
    device: str = ""
    num_threads: int = 1
    versions: dict[str, str] = field(default_factory=dict)
    timestamp: float = 0.0

    def __post_init__(self) -> None:
        if self.error_kind not in ERROR_KINDS:
            raise LogError(f"error_kind {self.error_kind!r}: expected one of {ERROR_KINDS}")
        if (self.error_kind == OK) != bool(self.times):
            raise LogError(
                f"a record of kind {self.error_kind!r} has {len(self.times)} times; only"
                f" {OK!r} records have times, and they have at least one"
            )

        impossible = [t for t in self.times if not 0 < t < math.inf]
        if impossible:
            raise LogError(
                f"times {impossible} of {len(self.times)}: expected positive, finite seconds; no"
                " call takes that long, remove the record"
            )

    @property
    def ok(self) -> bool:
        """Whether the trial ran and was right."""
        return self.error_kind == OK

    @property
    def seconds(self) -> float:
        """Time of one call in seconds: the lower quartile of the repeats, infinite if it failed.

        Whatever disturbs a measurement only ever adds time, so the lower quartile is steadier than
        the median, and less lucky than the minimum.
        """
        if not self.times:
            return float("inf")
        return sorted(self.times)[(len(self.times) - 1) // 4]

    @property
    def config_key(self) -> str:
        """The configuration as canonical text."""
        return config_key(self.config)

    def to_line(self) -> str:
        """The record as one line of JSON, newline included."""
        data = {"schema": SCHEMA, "version": SCHEMA_VERSION, **asdict(self)}
        return json.dumps(data, sort_keys=True, separators=(",", ":")) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Record:
        """Inverse of :meth:`to_line`.

        Raises
        ------
        LogError
            If the line is damaged, or of another schema or version.
        """
        try:
            data = json.loads(line)
        except json.JSONDecodeError as error:
            raise CutOffError(
                f"not JSON ({error.msg}); probably a write that was cut off"
            ) from error
        except (ValueError, RecursionError) as error:
            raise LogError(f"not a record: {error}") from error
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            got = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise LogError(f"schema {got!r}, expected {SCHEMA!r}; this is no tuning log")
        if data.get("version") != SCHEMA_VERSION:
            raise LogError(
                f"schema version {data.get('version')!r}, this program reads {SCHEMA_VERSION};"
                " tune again or use the program that wrote it"
            )
        fields = {k: v for k, v in data.items() if k not in ("schema", "version")}
        missing = sorted({"task_key", "task", "config", "times"} - set(fields))
        unknown = sorted(set(fields) - set(cls.__dataclass_fields__))
        if missing or unknown:
            raise LogError(f"fields missing: {missing}, unknown: {unknown}")
        for name, kinds in _FIELD_TYPES.items():
            if name in fields and not _is_a(fields[name], kinds):
                raise LogError(
                    f"field {name!r} is {str(fields[name])[:40]!r}, expected {kinds[0].__name__}"
                )
        try:
            fields["times"] = tuple(float(t) for t in fields["times"])
        except (TypeError, ValueError, OverflowError) as error:
            raise LogError(f"field 'times' holds no seconds: {error}") from error
        return cls(**fields)


_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "task_key": (str,),
    "task": (dict,),
    "config": (dict,),
    "times": (list,),
    "error_kind": (str,),
    "error": (str,),
    "target": (dict,),
    "device": (str,),
    "num_threads": (int,),
    "versions": (dict,),
    "timestamp": (float, int),
}


def _is_a(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def config_key(config: dict[str, Any]) -> str:
    """Canonical text of a configuration."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class BadLine:
    """A line that could not be read: its number (from 1), why, and whether it was cut off."""

    path: str
    number: int
    reason: str
    cut_off: bool = False

    def __str__(self) -> str:
        return f"{self.path}, line {self.number}: {self.reason}"


class TuningLog:
    """A file of records.

    Parameters
    ----------
    path : str or os.PathLike
        Need not exist before the first :meth:`append`.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)

    def append(self, record: Record) -> None:
        """Write one record durably.

        Raises
        ------
        LogError
            If it cannot be written; the file then holds what it held before.
        """
        data = record.to_line().encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise LogError(f"cannot open {self.path}: {error.strerror}") from error
        try:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) not in (b"\n", b""):
                # Someone was killed while writing: end that line, readers report it by number.
                data = b"\n" + data
            _write_whole(file, data, size, self.path)
        finally:
            os.close(file)

    def read(self) -> tuple[list[Record], list[BadLine]]:
        """All readable records, and the lines that are not.

        Raises
        ------
        LogError
            If the file does not exist or is no text.
        """
        if not self.path.is_file():
            raise LogError(
                f"tuning log {str(self.path)!r} does not exist; write one by `tvm-pattern tune`"
            )
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise LogError(f"cannot read {self.path}: {error.strerror}") from error
        records: list[Record] = []
        bad: list[BadLine] = []
        not_text: list[str] = []
        for number, line in enumerate(data.split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                records.append(Record.from_line(line.decode()))
            except UnicodeDecodeError as error:
                not_text.append(error.reason)
                bad.append(BadLine(str(self.path), number, f"no text: {error.reason}"))
            except LogError as error:
                cut_off = isinstance(error, CutOffError)
                bad.append(BadLine(str(self.path), number, str(error), cut_off))
        if not_text and len(not_text) == len(records) + len(bad):
            raise LogError(f"{self.path} is no text file: {not_text[0]}")
        return records, bad

    def usable(self) -> tuple[list[Record], list[BadLine]]:
        """The records, and the lines that a killed or full writer cut off, each lost by itself.

        Raises
        ------
        LogError
            If a line is damaged in another way; it names the line.
        """
        records, bad = self.read()
        self._refuse([line for line in bad if not line.cut_off])
        return records, bad

    def _refuse(self, bad: list[BadLine]) -> None:
        if bad:
            more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            raise LogError(
                f"{bad[0]}{more}; `tvm-pattern logs merge --skip-bad` writes a log without such"
                " lines"
            )

    def records(self, *, skip_bad: bool = False) -> list[Record]:
        """The records.

        Parameters
        ----------
        skip_bad : bool
            Leave out unreadable lines instead of refusing the log.

        Raises
        ------
        LogError
            If a line cannot be read and ``skip_bad`` is False; it names the line.
        """
        records, bad = self.read()
        if not skip_bad:
            self._refuse(bad)
        return records

    def write(self, records: Iterable[Record]) -> int:
        """Replace the file by ``records`` in one step; returns how many."""
        lines = [record.to_line() for record in records]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_file(self.path, "".join(lines).encode())
        except OSError as error:
            raise LogError(f"cannot write {self.path}: {error.strerror}") from error
        return len(lines)


def _write_whole(file: int, data: bytes, size: int, path: Path) -> None:
    """One ``write``; what a full disk cut off is taken back, so that no half line stays."""
    try:
        written = os.write(file, data)
        if written == len(data):
            # A device such as a pipe cannot be synchronised, and needs not.
            if os.path.isfile(path):
                os.fsync(file)
            return
        os.ftruncate(file, size)
        reason = f"only {written} of {len(data)} bytes fit"
    except OSError as error:
        reason = error.strerror or str(error)
    raise LogError(
        f"cannot append to {path}: {reason}; free some space and continue with --resume, the"
        " records written so far are kept"
    )


def merge(logs: Iterable[Iterable[Record]]) -> list[Record]:
    """All records in order of time, each once."""
    unique = {record.to_line(): record for records in logs for record in records}
    return sorted(unique.values(), key=lambda r: (r.timestamp, r.task_key, r.config_key))


def best_records(records: Iterable[Record], keep: int | None = 1) -> list[Record]:
    """The fastest ``keep`` right configurations per task, device and number of threads.

    All of them, fastest first, if ``keep`` is None.

    A configuration that was measured several times counts with its median record.
    """
    grouped: dict[tuple[str, str, int], dict[str, list[Record]]] = {}
    for record in records:
        if record.ok:
            where = (record.task_key, record.device, record.num_threads)
            grouped.setdefault(where, {}).setdefault(record.config_key, []).append(record)
    chosen = []
    for configs in grouped.values():
        middles = [_by_time(same)[len(same) // 2] for same in configs.values()]
        chosen += _by_time(middles)[:keep]
    return chosen


def _by_time(records: Iterable[Record]) -> list[Record]:
    return sorted(records, key=lambda r: r.seconds)
