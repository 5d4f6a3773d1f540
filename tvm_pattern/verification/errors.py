"""What a check found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

#: What TVM and torch raise for a graph that they do not build or run.
LOCATING_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)

CHECKED = "checked"
NOT_CHECKED = "not checked"


class VerificationError(ValueError):
    """A compiled library, or an imported graph, that does not compute what its model computes.

    Parameters
    ----------
    message : str
    operator, layer : str
        The first operator that differs and the layer it belongs to; empty if not located.
    stage : str
        ``import`` if the imported graph differs already, ``compile`` if only the library does.
    error, tolerance : float
        Of the worst output, as fractions of its scale.
    """

    def __init__(
        self,
        message: str,
        *,
        operator: str = "",
        layer: str = "",
        stage: str = "",
        error: float = 0.0,
        tolerance: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.operator = operator
        self.layer = layer
        self.stage = stage
        self.error = error
        self.tolerance = tolerance


class OracleError(RuntimeError):
    """The model's own framework cannot run it; the text says why."""


@dataclass(frozen=True)
class Verification:
    """Result of a check, as it stands in a manifest.

    Parameters
    ----------
    status : str
        ``checked``, or ``not checked``: then ``reason`` says why.
    subject : str
        What was run: ``library`` or ``imported graph``.
    oracle : str
        What it was held against, with its version.
    tolerance, max_error : float
        Fractions of an output's scale.
    basis : str
        How the tolerance follows from dtype and depth.
    inputs : list of str
        What it was run on.
    notes : list of str
        What was compared in another way, such as discrete outputs.
    reason : str
        Why it was not checked.
    """

    status: str
    subject: str = ""
    oracle: str = ""
    tolerance: float = 0.0
    max_error: float = 0.0
    basis: str = ""
    inputs: Sequence[str] = ()
    notes: Sequence[str] = field(default=())
    reason: str = ""

    @property
    def summary(self) -> str:
        """One line for people."""
        if self.status != CHECKED:
            return f"not checked: {self.reason}"
        notes = "".join(f"; {note}" for note in self.notes)
        return (
            f"checked: the {self.subject} agrees with {self.oracle} on {' and '.join(self.inputs)};"
            f" largest error {self.max_error:.2g} of an output's scale, tolerance"
            f" {self.tolerance:.2g}{notes}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data, with the summary."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {**plain, "summary": self.summary}


def first_line(error: BaseException) -> str:
    """First line of what an error says, its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def not_checked(reason: str) -> Verification:
    """The result where there was no check."""
    return Verification(NOT_CHECKED, reason=reason)
