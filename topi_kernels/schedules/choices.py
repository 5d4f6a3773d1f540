"""Level-0 configurations that were chosen before: in this process, or in an earlier one.

A choice follows from a convolution, the facts of a device and the sources of this package alone. It
is kept as plain data under a digest of the first two; :func:`sources` stands for the third, so that
who keeps choices on a disk (:mod:`tvm_pattern.choice_cache`) drops them when any of the package's
files changes.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

#: Choices that are held at most; a ResNet-50 makes about a hundred.
MOST = 4096

#: Knobs by name, or the text of the error that said why there is no configuration.
Plain = dict[str, Any] | str


class Choices:
    """What :meth:`remembered` functions chose, by digest, oldest first."""

    def __init__(self) -> None:
        self._plain: dict[str, Plain] = {}

    def add(self, plain: Mapping[str, Any]) -> None:
        """Take what an earlier process chose; entries of another form are left out."""
        for digest, choice in plain.items():
            self._put(digest, choice)

    def __contains__(self, digest: object) -> bool:
        return digest in self._plain

    def as_plain(self) -> dict[str, Plain]:
        """A copy, ready for JSON."""
        return dict(self._plain)

    def _put(self, digest: str, choice: Any) -> None:
        if not isinstance(choice, str) and not _is_knobs(choice):
            return
        self._plain[digest] = choice
        while len(self._plain) > MOST:
            del self._plain[next(iter(self._plain))]

    def remembered(self, config: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorate ``choose(*facts) -> config``, whose arguments are frozen dataclasses.

        Parameters
        ----------
        config : type
            Dataclass of the knobs, with ``as_dict`` and ``from_dict``.
        """

        def decorate(choose: Callable[..., Any]) -> Callable[..., Any]:
            @functools.lru_cache(maxsize=MOST)
            @functools.wraps(choose)
            def chosen(*facts: Any) -> Any:
                digest = _digest(choose, facts)
                known = self._plain.get(digest)
                if isinstance(known, str):
                    raise ValueError(known)
                if known is not None and (found := _config(config, known)) is not None:
                    return found
                try:
                    made = choose(*facts)
                except ValueError as error:
                    self._put(digest, str(error))
                    raise
                self._put(digest, made.as_dict())
                return made

            return chosen

        return decorate


#: Of all devices of this process.
CHOICES = Choices()


def _digest(choose: Callable[..., Any], facts: tuple[Any, ...]) -> str:
    """Of the text of frozen dataclasses, which names every field and its value."""
    text = f"{choose.__module__}.{choose.__qualname__}{facts!r}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _is_knobs(choice: Any) -> bool:
    """Whether something is what JSON keeps as it is: knobs by name."""
    return isinstance(choice, dict) and all(type(v) in (int, str, bool) for v in choice.values())


def _config(config: Any, plain: dict[str, Any]) -> Any:
    """The configuration of plain data, None where these are those of none."""
    try:
        return config.from_dict(plain)
    except (ValueError, TypeError):
        return None


@functools.cache
def sources(folder: Path = Path(__file__).parent.parent) -> str | None:
    """A digest of the sources in a folder, by default of this package; None if it has none.

    Raises
    ------
    OSError
        If one cannot be read.
    """
    digest, found = hashlib.sha256(), False
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode())
        digest.update(content)
        found = True
    return digest.hexdigest() if found else None
