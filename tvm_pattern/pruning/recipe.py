"""Recipes: one YAML or JSON file with patterns, method and training settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from .config import ConfigError, PatternConfig, Settings, explain, read_mapping
from .methods import Method, OneShot, read_method

RECIPE_VERSION = 1

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class TrainSettings(Settings):
    """How to train while and after pruning.

    Parameters
    ----------
    epochs : int
        Total.
    prune_fraction : float
        Part of the epochs before the freeze; the rest is masked retraining. Unused by one-shot,
        which freezes first.
    optimizer : {"sgd", "adamw"}
    lr : float
        Held while pruning, warmed up over ``warmup`` epochs, then cosine to zero from the freeze.
    batch_size : int
        Per process.
    accumulate : int
        Batches per optimizer step.
    bn_batches : int
        Training batches for batch norm recalibration at the freeze.
    ema : float
        Decay of an average of the weights, which is then evaluated and saved; 0 for none.
    distill : float
        Share of the loss that is the divergence from the network's own outputs before the run
        (Hinton et al., 2015), at ``temperature`` and times its square; the labels have the rest.
        Needs weights to start from.
    clip : float
        Largest norm of the gradient, all parameters together; 0 for no limit.
    mixup, cutmix : float
        Alpha of the Beta distribution that pictures and labels of a batch are mixed by (Zhang et
        al., 2018), or by which one takes a rectangle of another (Yun et al., 2019); 0 for none.
        With both, each batch draws one. By torchvision's transforms, which then is needed.
    """

    epochs: Annotated[int, Field(ge=1)] = 60
    prune_fraction: Fraction = 0.5
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    warmup: Annotated[int, Field(ge=0)] = 0
    label_smoothing: Fraction = 0.0
    batch_size: Annotated[int, Field(ge=1)] = 64
    accumulate: Annotated[int, Field(ge=1)] = 1
    workers: Annotated[int, Field(ge=0)] = 2
    image_size: Annotated[int, Field(ge=8)] | None = None
    bn_batches: Annotated[int, Field(ge=1)] = 50
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    distill: Fraction = 0.0
    temperature: Positive = 2.0
    clip: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    mixup: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    cutmix: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    amp: bool = False
    seed: int = 0


class Recipe(Settings):
    """Everything ``tvm-pattern prune`` needs besides model and data.

    ``method.steps`` is set to the epochs before the freeze unless the recipe gives it.
    """

    version: Literal[1] = 1
    patterns: PatternConfig = PatternConfig()
    method: Method = Field(default_factory=lambda: read_method("gradual"))
    train: TrainSettings = TrainSettings()

    @classmethod
    def from_dict(cls, data: Any, epochs: int | None = None) -> Recipe:
        """Validate a parsed recipe; ``epochs`` overrides the one it holds.

        Raises
        ------
        ConfigError
            Unknown keys, an unknown version or values out of range.
        """
        if not isinstance(data, dict):
            raise ConfigError(f"a recipe is a mapping, got {type(data).__name__}")
        unknown = sorted(set(data) - set(cls.model_fields))
        if unknown or data.get("version", RECIPE_VERSION) != RECIPE_VERSION:
            raise ConfigError(
                f"a recipe has the keys {sorted(cls.model_fields)} and version {RECIPE_VERSION};"
                f" got unknown keys {unknown}, version {data.get('version')!r}"
            )
        raw_train = data.get("train") or {}
        raw_method = data.get("method") or "gradual"
        try:
            train = TrainSettings.model_validate(
                raw_train if epochs is None else {**raw_train, "epochs": epochs}
            )
        except (ValidationError, TypeError) as error:
            message = explain(error) if isinstance(error, ValidationError) else str(error)
            raise ConfigError(f"invalid train settings: {message}") from error
        method = read_method(raw_method)
        given = isinstance(raw_method, dict) and "steps" in raw_method
        if not given and not isinstance(method, OneShot):
            method = method.model_copy(update={"steps": max(1, _prune_epochs(train) - 1)})
        elif not isinstance(method, OneShot) and method.steps > _prune_epochs(train):
            raise ConfigError(
                f"method {method.name!r} has {method.steps} steps, but only {_prune_epochs(train)}"
                " epochs before the freeze (epochs x prune_fraction), one step each; give fewer"
                " steps, more epochs or a larger prune_fraction"
            )
        patterns = PatternConfig.from_dict(data.get("patterns") or {})
        return cls(patterns=patterns, method=method, train=train)

    @classmethod
    def from_file(cls, path: str | Path | None, epochs: int | None = None) -> Recipe:
        """Read a recipe; without a path every setting has its default."""
        return cls.from_dict({} if path is None else read_mapping(path), epochs)

    def is_same(self, text: str) -> bool:
        """Whether :meth:`to_json` of an earlier release or of this one gave ``text`` for it.

        Settings that the earlier release did not have count as their defaults.
        """
        try:
            return Recipe.from_dict(json.loads(text)).to_json() == self.to_json()
        except ValueError:
            return False

    @property
    def prune_epochs(self) -> int:
        """Epochs before the freeze."""
        return 0 if isinstance(self.method, OneShot) else _prune_epochs(self.train)

    def to_json(self) -> str:
        """Canonical text, to recognise a resumed run by."""
        return json.dumps(
            {
                "version": self.version,
                "patterns": self.patterns.to_dict(),
                "method": self.method.model_dump(mode="json"),
                "train": self.train.model_dump(mode="json"),
            },
            sort_keys=True,
        )


def _prune_epochs(train: TrainSettings) -> int:
    return min(train.epochs, max(1, round(train.epochs * train.prune_fraction)))
