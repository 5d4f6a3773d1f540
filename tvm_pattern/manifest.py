"""What has to be known about a library to use it: the manifest, a JSON file beside it.

Free of TVM, so that a manifest can be read where TVM is not.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from .atomic import write_file
from .memory import Footprint

MANIFEST_SCHEMA = 5


class ArtifactError(ValueError):
    """A library file that cannot be written, read or run here."""


_STRICT = ConfigDict(strict=True, extra="forbid")
_Dtype = Annotated[str, Field(pattern=r"^(bool|(float|bfloat|int|uint)\d{1,3}\w*)$")]
_Name = Annotated[str, Field(min_length=1)]
_Word = Annotated[str, Field(min_length=1, max_length=64)]
_Bytes = Annotated[int, Field(ge=0)]
_Shape = list[Annotated[int, Field(ge=0)]]


class TensorData(TypedDict):
    """An input or output as plain data."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    name: _Name
    shape: _Shape
    dtype: _Dtype


class StepInput(TypedDict):
    """An activation that a step takes."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    shape: _Shape
    dtype: _Dtype


class StepData(TypedDict):
    """A :class:`tvm_pattern.profiling.Step` as plain data."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    function: _Name
    layer: str
    op: str
    inputs: list[StepInput]


class SizeData(TypedDict):
    """A further size of the inputs that a library is compiled for, with what depends on it."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    function: _Name
    inputs: list[TensorData]
    outputs: Annotated[list[TensorData], Field(min_length=1)]
    report: list[dict[str, Any]]
    steps: list[StepData]
    verification: dict[str, Any]
    activation_bytes: _Bytes


@dataclass(frozen=True)
class Manifest:
    """What has to be known about a library to use it.

    Parameters
    ----------
    target : dict
        The TVM target, as ``Target`` takes it.
    architecture : str
        ``x86_64``, ``aarch64`` or ``arm``.
    cpu_features : list of str
        LLVM names of the CPU features that the code may use.
    inputs, outputs : list of dict
        Name, shape and dtype of each.
    num_threads : int
        Threads of a run, the caller included.
    versions : dict
        Of this package, TVM and Python at compile time.
    report : list of dict
        One row per convolution.
    steps : list of dict
        The functions that :mod:`tvm_pattern.profiling` times.
    abi : str
        ``gnu``, ``gnueabihf`` or ``android``; empty for a ``.tar`` and before export.
    page_size : int
        Alignment in bytes of the library's segments; the device's pages may not be larger.
    sha256 : str
        Of the library file that this manifest belongs to; empty before export.
    verification : dict
        What the check against the model itself found, see
        :class:`tvm_pattern.verification.Verification`; empty if nobody has checked.
    notes : list of str
        Lines of the report about the whole library, such as whose tuning records it uses.
    launches : dict
        GPU's kernel -> work_groups and work_items ``[x, y, z]`` of a launch, of the kernels that
        this project scheduled.
    sizes : list of dict
        The sizes beyond the first, whose inputs, outputs, report, steps and verification stand
        above: the same of each, and the function that computes it.
    function : str
        What computes the first size.
    weight_bytes, activation_bytes : int
        Of the packed weights, and what one run has planned for its activations; see
        :class:`tvm_pattern.memory.Footprint`.
    host_operators : list of str
        What the library leaves to torch where it runs; a file without any does not say so.
    """

    __pydantic_config__ = _STRICT

    target: Annotated[dict[str, Any], Field(min_length=1)]
    architecture: _Word
    cpu_features: list[_Word]
    inputs: list[TensorData]
    outputs: Annotated[list[TensorData], Field(min_length=1)]
    num_threads: Annotated[int, Field(ge=1, le=1024)]
    versions: dict[str, str]
    report: list[dict[str, Any]]
    steps: list[StepData]
    abi: Annotated[str, Field(pattern="^(gnu|gnueabihf|android)?$")] = ""
    page_size: Annotated[int, Field(ge=0)] = 0
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    verification: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    launches: dict[str, list[list[int]]] = field(default_factory=dict)
    sizes: list[SizeData] = field(default_factory=list)
    function: _Name = "main"
    weight_bytes: _Bytes = 0
    activation_bytes: _Bytes = 0
    host_operators: list[_Name] = field(default_factory=list)
    schema: Annotated[int, Field(ge=MANIFEST_SCHEMA, le=MANIFEST_SCHEMA)] = MANIFEST_SCHEMA

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Parse a manifest file.

        Raises
        ------
        ArtifactError
            If it is missing, no JSON, of an unknown schema, or lacks fields; the message names the
            field that is wrong.
        """
        if not path.is_file():
            raise ArtifactError(
                f"no manifest {path}; expected the file that export() wrote beside the library:"
                " copy both"
            )
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ArtifactError(f"{path} is not JSON ({error}); export the library again") from None
        except OSError as error:
            raise ArtifactError(f"cannot read {path}: {error.strerror}") from None
        return cls.from_data(data, str(path))

    @classmethod
    def from_data(cls, data: Any, origin: str) -> Manifest:
        """A manifest from plain data; ``origin`` names where it is from.

        Raises
        ------
        ArtifactError
            As :meth:`read`.
        """
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != MANIFEST_SCHEMA or not isinstance(schema, int):
            raise ArtifactError(
                f"{origin} has the schema {_short(schema)}, expected {MANIFEST_SCHEMA}; export the"
                " library again with this version"
            )
        names = {item.name for item in fields(cls)}
        data = {"host_operators": [], **data}
        if set(data) != names:
            raise ArtifactError(
                f"{origin}: missing fields {sorted(names - set(data))}, unknown fields"
                f" {_short(sorted(set(data) - names))}; export the library again"
            )
        try:
            # Of JSON text, because pydantic's strict mode takes no dict for a dataclass.
            return _ADAPTER.validate_json(json.dumps(data))
        except ValidationError as error:
            raise ArtifactError(f"{origin}: {_first_problem(error)}") from None

    @property
    def footprint(self) -> Footprint:
        """What a run of the largest size needs of memory."""
        activations = [self.activation_bytes, *(size["activation_bytes"] for size in self.sizes)]
        return Footprint(self.weight_bytes, max(activations))

    @property
    def by_size(self) -> list[Manifest]:
        """A manifest for each size, as if the library had that size alone."""
        first = replace(self, sizes=[])
        further: list[dict[str, Any]] = [dict(size) for size in self.sizes]
        return [first, *(replace(first, **size) for size in further)]

    def with_verification(self, number: int, verification: dict[str, Any]) -> Manifest:
        """The manifest with what a check of one size found."""
        if number == 0:
            return replace(self, verification=verification)
        sizes = list(self.sizes)
        sizes[number - 1] = {**sizes[number - 1], "verification": verification}
        return replace(self, sizes=sizes)

    def write(self, path: Path) -> None:
        """Replace ``path`` by this manifest, whole or not at all."""
        write_file(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """The manifest as a JSON file."""
        data = asdict(self)
        if not self.host_operators:  # so that older versions read what has none
            del data["host_operators"]
        return (json.dumps(data, indent=1) + "\n").encode()


_ADAPTER = TypeAdapter(Manifest)


def bad_field(origin: str, name: str, problem: str) -> ArtifactError:
    """The error for a field whose value has the right type and makes no sense."""
    problem = problem if len(problem) <= 300 else problem[:297] + "..."
    return ArtifactError(f"{origin}: the field {name!r}: {problem}; export the library again")


def manifest_path(library: str | os.PathLike) -> Path:
    """Where the manifest of a library file lies: beside it, ``.json`` appended."""
    library = Path(library)
    return library.with_name(library.name + ".json")


def pending_path(library: str | os.PathLike) -> Path:
    """The manifest of a library file that export is just about to put in its place."""
    library = Path(library)
    return library.with_name(library.name + ".json.pending")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    place = ".".join(map(str, problem["loc"]))
    return (
        f"the field {_short(place)} is {_short(problem['input'])}: {problem['msg'].lower()}; was it"
        " edited? Export the library again"
    )
