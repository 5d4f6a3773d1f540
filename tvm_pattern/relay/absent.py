"""Names of old scripts that are not here, each with what serves instead."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NoReturn


def absent(
    module: str,
    instead: Mapping[str, str],
    has: Sequence[str],
    modules: Collection[str] = (),
) -> Callable[[str], NoReturn]:
    """The ``__getattr__`` of a module.

    Parameters
    ----------
    module : str
        As scripts call it, such as ``relay``.
    instead : mapping
        Name -> what serves instead of it.
    has : sequence of str
        What the module has.
    modules : collection of str
        Those of ``instead`` that were modules. They raise ImportError, since ``from module import
        name`` drops the text of an AttributeError.
    """

    def get(name: str) -> NoReturn:
        if name in instead:
            error = ImportError if name in modules else AttributeError
            raise error(f"{module}.{name} is not here; instead serves {instead[name]}")
        raise AttributeError(f"{module} has no attribute {name!r}; it has {', '.join(has)}")

    return get
