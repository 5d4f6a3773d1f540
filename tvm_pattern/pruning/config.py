"""What to prune, and how much: `PatternConfig` and its per-layer `Rule` list."""

from __future__ import annotations

import fnmatch
import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from topi_kernels.pattern import PatternSet, builtin_pattern_set

from ..atomic import write_file
from .sharing import Sharing

LayerType = Literal["conv", "pointwise", "depthwise", "linear", "first"]
LINEAR_RATE = 4.0
"""Connectivity of linear layers whose rule names none."""


_SHOWN = 600


class ConfigError(ValueError):
    """A recipe or configuration that cannot be used; the message says what to change."""


class Settings(BaseModel):
    """What users write: an unknown field or a value out of range is a :class:`ConfigError`."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise ConfigError(f"{type(self).__name__}: {explain(error)}") from error

    @model_validator(mode="before")
    @classmethod
    def _check_fields(cls, data: Any) -> Any:
        if isinstance(data, dict) and (unknown := set(data) - set(cls.model_fields)):
            raise ValueError(
                f"unknown {', '.join(sorted(map(repr, unknown)))}; expected some of"
                f" {', '.join(cls.model_fields)}"
            )
        return data


class LibrarySpec(Settings):
    """Where a layer's pattern set comes from when it is not a built-in one.

    Parameters
    ----------
    source : {"natural", "greedy", "phased"}
        ``natural``: the most frequent natural patterns (PatDNN, section 4.1). ``greedy``: patterns
        added one at a time, each the one that adds most kept energy. ``phased``: start with all
        natural patterns and shrink while training (ECCV'20, pattern library extraction).
    size : int
        Patterns in the set, 1 to 255; the last phase for ``phased``.
    taps : int
        Taps of each pattern, the centre included.
    phases : tuple of int
        Sizes of a ``phased`` extraction, falling, ending with ``size``.
    """

    source: Literal["natural", "greedy", "phased"] = "natural"
    size: Annotated[int, Field(ge=1, le=255)] = 8
    taps: Annotated[int, Field(ge=1)] = 4
    phases: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _check_phases(self) -> LibrarySpec:
        if self.source != "phased":
            if self.phases:
                raise ValueError(f"phases belong to source 'phased', got source {self.source!r}")
            return self
        phases = self.sizes
        falling = all(a > b for a, b in itertools.pairwise(phases))
        if not falling or phases[-1] != self.size or phases[0] > 255:
            raise ValueError(
                f"phases must fall from at most 255 and end with size {self.size}, got {phases}"
            )
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """Library size of each phase."""
        if self.source != "phased":
            return (self.size,)
        return self.phases or tuple(s for s in (56, 32, 16, 8, 4) if s > self.size) + (self.size,)


Library = str | int | LibrarySpec | dict[str, Any]


def normalise_library(value: Library | PatternSet) -> str | LibrarySpec | PatternSet:
    """A library as written by a user: built-in name, number, specification or pattern set.

    Raises
    ------
    ConfigError
        If the name is unknown or the description is not valid.
    """
    try:
        if isinstance(value, PatternSet | LibrarySpec):
            return value
        if isinstance(value, bool):
            raise ValueError(f"got {value!r}")
        if isinstance(value, int):
            return LibrarySpec(size=value)
        if isinstance(value, str):
            builtin_pattern_set(value)
            return value
        if isinstance(value, dict) and "patterns" in value:
            return PatternSet.from_dict(value)
        if isinstance(value, dict):
            return LibrarySpec.model_validate(value)
    except (ValueError, ValidationError) as error:
        raise ConfigError(f"not a usable pattern library: {explain(error)}") from error
    raise ConfigError(
        f"a library is a built-in name, a number of natural patterns, a specification or a"
        f" PatternSet; got {type(value).__name__}"
    )


def explain(error: ValueError) -> str:
    """One line per fault of a validation error, with what was given."""
    if isinstance(error, ValidationError):
        return "; ".join(map(_line, error.errors()))
    return str(error)


def _line(fault: Any) -> str:
    cause = fault.get("ctx", {}).get("error")
    message = fault["msg"].removeprefix("Value error, ")
    if not isinstance(cause, ConfigError):  # which says itself what was given
        message += f" (got {fault['input']!r})"
    where = ".".join(map(str, fault["loc"]))
    return f"{where}: {message}" if where else message


class _WithLibrary(Settings):
    @model_validator(mode="before")
    @classmethod
    def _read_library(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("library") is not None:
            return {**data, "library": normalise_library(data["library"])}
        return data


Connectivity = Annotated[float, Field(ge=1.0, allow_inf_nan=False)]
Group = Annotated[int, Field(ge=1, strict=True)]
_OMITTED_DEFAULTS = {
    "frozen": "skip",
    "connectivity_linear": 1.0,
    "group_linear": 8,
    "block_1x1": 1,
}


class Rule(_WithLibrary):
    """Settings for the layers it matches; what it leaves out is inherited.

    A rule needs at least one of ``name`` (glob), ``regex`` (of the whole name), ``type`` and
    ``kernel_size``; all given ones must match. Rules apply in order, later ones win. A rule that
    matches no layer is an error, since it is most often a misspelt name. Linear layers are pruned
    only by rules with ``type="linear"`` or by ``connectivity_linear``; other rules with ``skip``
    reach them too.

    Parameters
    ----------
    name, regex : str
        Layer name as in ``model.named_modules()``, without ``module.`` or ``_orig_mod.``.
    type : {"conv", "pointwise", "depthwise", "linear", "first"}
        ``conv``: more than one tap and not depthwise. ``linear``: fully connected layers, at 4x
        unless the rule or ``connectivity_linear`` says otherwise.
    kernel_size : (int, int)
    library : str, int, LibrarySpec or PatternSet
        Pattern set of the layers; see :class:`PatternConfig`.
    connectivity : float
        Kernels before / after, >= 1.
    group : int
        Filters that share kernels and patterns.
    block : int
        Neighbouring in_channels of a 1x1 layer whose kernels survive together.
    sharing : {"similar", "neighbours"}
        Which filters do.
    balance : {"layer", "filter"}
        Choose kernels over the whole layer or evenly per filter.
    skip : bool
        Leave the layers dense.
    """

    name: str | None = None
    regex: str | None = None
    type: LayerType | None = None
    kernel_size: tuple[int, int] | None = None
    library: str | LibrarySpec | PatternSet | None = None
    connectivity: Connectivity | None = None
    group: Group | None = None
    block: Group | None = None
    sharing: Sharing | None = None
    balance: Literal["layer", "filter"] | None = None
    skip: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> Rule:
        if not any((self.name, self.regex, self.type, self.kernel_size)):
            raise ValueError("a rule needs name, regex, type or kernel_size to match layers by")
        if self.regex is not None:
            try:
                re.compile(self.regex)
            except re.error as error:
                raise ValueError(f"regex {self.regex!r} is not valid: {error}") from error
        return self

    def matches(self, name: str, types: tuple[str, ...], kernel_size: tuple[int, int]) -> bool:
        """Whether the rule applies to a layer of that name, those types and kernel size."""
        if self.name is not None and not fnmatch.fnmatchcase(name, self.name):
            return False
        if self.regex is not None and re.fullmatch(self.regex, name) is None:
            return False
        if self.type is not None and self.type not in types:
            return False
        return self.kernel_size is None or self.kernel_size == kernel_size

    def describe(self) -> str:
        """What the rule matches by, for messages."""
        given = {k: getattr(self, k) for k in ("name", "regex", "type", "kernel_size")}
        return ", ".join(f"{k}={v!r}" for k, v in given.items() if v is not None)


class PatternConfig(_WithLibrary):
    """Pattern and connectivity settings of a whole model.

    Parameters
    ----------
    version : int
        Version of this format; 1.
    library : str, int, LibrarySpec or PatternSet
        Built-in name (``fixed8``, ``pconv4``, ``natural56``), a number k for the k most frequent
        natural patterns of the model, or a full description.
    connectivity : float
        Kernels before / after for convolutions with more than one tap. 3.6 with 4-of-9 patterns
        is PatDNN's 8.1x.
    connectivity_1x1 : float
        The same for 1x1 convolutions, which have no patterns; 1.0 keeps them dense.
    block_1x1 : int
        Neighbouring in_channels of a 1x1 convolution whose kernels survive or fall together. 4
        makes a block one dot product of bytes. A layer whose in_channels it does not divide gets
        the largest smaller size that does.
    connectivity_linear : float
        The same for the inputs of linear layers; 1.0 keeps them dense.
    group : int
        Filters that share kernels and patterns. Costs accuracy on narrow layers. A layer whose
        filters it does not divide gets the largest smaller size that does.
    group_linear : int
        The same for linear layers: neighbouring outputs that read the same inputs, which makes
        1xN blocks of the weight. 4 and more are read at the speed of the memory.
    sharing : {"similar", "neighbours"}
        Which filters do: those whose kernels have like energies (more of it stays, and the compiled
        layer is as fast), or neighbours.
    balance : {"layer", "filter"}
        Choose kernels over the whole layer or evenly per filter.
    first : {"pattern", "skip", "prune"}
        The first convolution: patterns only, dense, or like any other.
    frozen : {"skip", "prune"}
        Layers whose weight does not train (``requires_grad`` is False): left alone, or pruned too.
    rules : tuple of Rule
        Per-layer exceptions, in order.
    """

    version: Literal[1] = 1
    library: str | LibrarySpec | PatternSet = "fixed8"
    connectivity: Connectivity = 3.6
    connectivity_1x1: Connectivity = 1.0
    block_1x1: Group = 1
    connectivity_linear: Connectivity = 1.0
    group: Group = 1
    group_linear: Group = 8
    sharing: Sharing = "similar"
    balance: Literal["layer", "filter"] = "layer"
    first: Literal["pattern", "skip", "prune"] = "pattern"
    frozen: Literal["skip", "prune"] = "skip"
    rules: tuple[Rule, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready dictionary; defaults of rules are left out."""
        data = {k: _plain(getattr(self, k)) for k in type(self).model_fields if k != "rules"}
        for key, default in _OMITTED_DEFAULTS.items():
            if data[key] == default:
                del data[key]  # so that states of before this setting still resume
        data["rules"] = [
            {
                k: _plain(getattr(rule, k))
                for k in type(rule).model_fields
                if getattr(rule, k) is not None
            }
            for rule in self.rules
        ]
        return data

    def to_json(self) -> str:
        """JSON text of :meth:`to_dict`."""
        return json.dumps(self.to_dict(), indent=2)

    def to_yaml(self) -> str:
        """YAML text of :meth:`to_dict`."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_dict(cls, data: Any) -> PatternConfig:
        """Validate a parsed configuration.

        Raises
        ------
        ConfigError
            On unknown keys, an unknown version, or values out of range.
        """
        if not isinstance(data, dict):
            raise ConfigError(f"a pattern configuration is a mapping, got {type(data).__name__}")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ConfigError(f"invalid pattern configuration: {explain(error)}") from error

    @classmethod
    def of(
        cls, *, skip: Iterable[str] = (), rules: Iterable[Rule] = (), **settings: Any
    ) -> PatternConfig:
        """From keyword arguments; ``skip`` are globs of layers left dense, or one. Errors as
        :meth:`from_dict`."""
        globs = [skip] if isinstance(skip, str) else skip
        skips = (Rule(name=glob, skip=True) for glob in globs)
        return cls.from_dict({**settings, "rules": (*rules, *skips)})

    @classmethod
    def from_json(cls, text: str) -> PatternConfig:
        """Inverse of :meth:`to_json`; errors as :meth:`from_dict`."""
        return cls.from_dict(parse_text(text, "json"))

    @classmethod
    def from_yaml(cls, text: str) -> PatternConfig:
        """Inverse of :meth:`to_yaml`; errors as :meth:`from_dict`."""
        return cls.from_dict(parse_text(text, "yaml"))

    @classmethod
    def from_file(cls, path: str | Path) -> PatternConfig:
        """Read a ``.json``, ``.yaml`` or ``.yml`` file."""
        return cls.from_dict(read_mapping(path))

    def save(self, path: str | Path) -> None:
        """Write ``.json``, ``.yaml`` or ``.yml``."""
        path = Path(path)
        text = self.to_json() if _format_of(path) == "json" else self.to_yaml()
        write_file(path, text.encode())


def _plain(value: Any) -> Any:
    if isinstance(value, PatternSet):
        return value.to_dict()
    if isinstance(value, LibrarySpec):
        return value.model_dump(mode="json", exclude_defaults=True) | {"source": value.source}
    return list(value) if isinstance(value, tuple) else value


def _format_of(path: Path) -> str:
    kinds = {".json": "json", ".yaml": "yaml", ".yml": "yaml"}
    if path.suffix not in kinds:
        raise ConfigError(f"{path}: expected a .yaml, .yml or .json file, got {path.suffix!r}")
    return kinds[path.suffix]


def parse_text(text: str, kind: str) -> Any:
    """Parse JSON or YAML text; a syntax error becomes a :class:`ConfigError`."""
    try:
        return json.loads(text) if kind == "json" else yaml.safe_load(text)
    except RecursionError as error:
        raise ConfigError(f"not valid {kind.upper()}: it is nested too deeply") from error
    except (ValueError, AttributeError, yaml.YAMLError) as error:
        # Values that only look like one, such as the date 2020-13-01, are a ValueError in YAML; an
        # alias in a merge key is an AttributeError.
        raise ConfigError(f"not valid {kind.upper()}: {str(error)[:_SHOWN]}") from error


def read_mapping(path: str | Path) -> Any:
    """Parsed content of a ``.json``, ``.yaml`` or ``.yml`` file."""
    path = Path(path)
    kind = _format_of(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; give an existing recipe")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text file ({error.reason}); give a recipe") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    return parse_text(text, kind)
