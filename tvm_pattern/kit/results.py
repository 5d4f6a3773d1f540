"""Results of kits: what a device wrote, checked, and a table of many devices."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from ..atomic import write_file
from .errors import KitError

FORMAT = 1
#: Larger files are no results.
MAX_BYTES = 64 << 20
_STRICT = ConfigDict(strict=True, extra="forbid")
_Text = Annotated[str, Field(max_length=256)]
_Name = Annotated[str, Field(min_length=1, max_length=256)]
_Count = Annotated[int, Field(ge=0)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


class CpuData(TypedDict):
    """One core; 0 and empty text: its system does not say."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    part: _Text
    governor: _Text
    used: bool
    max_khz: _Count
    khz_before: _Count
    khz_after: _Count


class GpuData(TypedDict):
    """The OpenCL device; ``images`` are those that the sparse build reads."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    name: _Name
    vendor: _Text
    driver: _Text
    compute_units: _Count
    images: NotRequired[_Count]


class DeviceData(TypedDict):
    """What the device says of itself."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    name: _Name
    hardware: _Text
    machine: _Text
    system: _Text
    release: _Text
    celsius_before: _Number
    celsius_after: _Number
    cpus: Annotated[list[CpuData], Field(min_length=1)]
    gpu: GpuData | None


class KitData(TypedDict):
    """Which kit ran."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    name: _Name
    target: _Name
    version: _Name
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class RowData(TypedDict):
    """One build of the network; milliseconds, in the order taken."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    engine: _Name
    max_abs_error: _NotNegative
    samples_ms: Annotated[list[_Positive], Field(min_length=1)]
    median_ms: _Positive
    p10_ms: _Positive
    p90_ms: _Positive


@dataclass(frozen=True)
class KitResult:
    """What one run of a kit wrote: ``result.json``."""

    __pydantic_config__ = _STRICT

    kit: KitData
    threads: Annotated[int, Field(ge=1)]
    runs: Annotated[int, Field(ge=1)]
    warm_up: _Count
    cool_down_s: _NotNegative
    time: _Count
    device: DeviceData
    rows: Annotated[list[RowData], Field(min_length=2)]
    format: Annotated[int, Field(ge=FORMAT, le=FORMAT)] = FORMAT

    @property
    def key(self) -> tuple[Any, ...]:
        """What a later run of the same replaces."""
        used = tuple(number for number, cpu in enumerate(self.device["cpus"]) if cpu["used"])
        return (self.device["name"], *self.kit.values(), self.threads, used)

    @property
    def speedup(self) -> float:
        """Median of the dense build over that of the sparse one."""
        medians = {row["engine"]: row["median_ms"] for row in self.rows}
        return medians["dense"] / medians["sparse"]


_RESULT = TypeAdapter(KitResult)


def read_result(path: Path) -> KitResult:
    """The result that a device wrote.

    Raises
    ------
    KitError
        If the file is none, is cut off, has fields of something else, or its figures do not fit
        its samples.
    """
    return _checked(_json_of(path), str(path))


def _json_of(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise KitError(f"{path} has more than {MAX_BYTES >> 20} MB, which no kit writes")
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise KitError(
            f"{path} is no whole JSON ({error}); expected the result.json that a kit's run.sh"
            " wrote: pull it again"
        ) from None
    except OSError as error:
        raise KitError(f"cannot read {path}: {error.strerror}") from None


def _checked(data: Any, origin: str) -> KitResult:
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise KitError(
            f"{origin} is no result of a kit (its format is {str(found)[:40]!r}, expected"
            f" {FORMAT}); pull the result.json that run.sh wrote"
        )
    try:
        result = _RESULT.validate_json(json.dumps(data))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))[:200]
        raise KitError(
            f"{origin}: the field {place!r}: {problem['msg'].lower()}; was it edited? Pull it again"
        ) from None
    _check_rows(result, origin)
    return result


def _check_rows(result: KitResult, origin: str) -> None:
    engines = [row["engine"] for row in result.rows]
    if sorted(engines) != ["dense", "sparse"]:
        raise KitError(f"{origin} has rows of {', '.join(engines)}; expected sparse and dense")
    for row in result.rows:
        figures = np.percentile(row["samples_ms"], (10, 50, 90))
        told = (row["p10_ms"], row["median_ms"], row["p90_ms"])
        if len(row["samples_ms"]) != result.runs or not np.allclose(figures, told, rtol=1e-3):
            raise KitError(
                f"{origin}: the figures of {row['engine']} are not those of its samples; was it"
                " edited? Pull it again"
            )


def add_results(path: Path, results: Iterable[KitResult]) -> list[KitResult]:
    """Add results to a file of many, and draw its table beside it (``.md``).

    A later run of the same kit on the same device, threads and cores replaces the earlier one.

    Raises
    ------
    KitError
        If the file is there and is no such file.
    """
    together = {result.key: result for result in _read_many(path)}
    for result in results:
        known = together.get(result.key)
        if known is None or known.time <= result.time:
            together[result.key] = result
    every = sorted(together.values(), key=lambda result: result.key)
    data = {"format": FORMAT, "results": [asdict(result) for result in every]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, (json.dumps(data, indent=1) + "\n").encode())
    write_file(path.with_suffix(".md"), markdown(every).encode())
    return every


def _read_many(path: Path) -> list[KitResult]:
    if not path.exists():
        return []
    data = _json_of(path)
    if not isinstance(data, dict) or set(data) != {"format", "results"}:
        raise KitError(f"{path} is no file of kits' results; name another by --output")
    return [_checked(item, str(path)) for item in data["results"]]


COLUMNS = (
    "device",
    "processor",
    "network",
    "target",
    "threads",
    "sparse ms",
    "dense ms",
    "dense / sparse",
    "governor",
    "°C",
)


def table_rows(results: Sequence[KitResult]) -> list[tuple[str, ...]]:
    """One row for each result under :data:`COLUMNS`; medians, with p10 and p90 in brackets."""
    return [_row(result) for result in results]


def _row(result: KitResult) -> tuple[str, ...]:
    device, rows = result.device, {row["engine"]: row for row in result.rows}
    used = [cpu for cpu in device["cpus"] if cpu["used"]]
    gpu = device["gpu"]
    parts = list(dict.fromkeys(cpu["part"] for cpu in used if cpu["part"]))
    governors = dict.fromkeys(cpu["governor"] for cpu in used if cpu["governor"])
    warm = (device["celsius_before"], device["celsius_after"])
    return (
        device["name"],
        gpu["name"] if gpu else ", ".join(parts),
        result.kit["name"],
        result.kit["target"],
        str(result.threads),
        _time(rows["sparse"]),
        _time(rows["dense"]),
        f"{result.speedup:.2f}x",
        ", ".join(governors),
        f"{warm[0]:.0f} to {warm[1]:.0f}" if max(warm) > 0 else "",
    )


def _time(row: RowData) -> str:
    return f"{row['median_ms']:.3g} [{row['p10_ms']:.3g}, {row['p90_ms']:.3g}]"


def markdown(results: Sequence[KitResult]) -> str:
    """The table of a file of results."""
    lines = [
        "# Networks on phones and boards",
        "",
        "Written by `tvm-pattern kit read`. Medians with [p10, p90]; both builds in turns in one"
        " process, outputs checked before. The dense build computes every weight by the same"
        " operator.",
        "",
        _markdown_row(COLUMNS),
        _markdown_row(["---"] * len(COLUMNS)),
    ]
    return "\n".join([*lines, *map(_markdown_row, table_rows(results))]) + "\n"


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
