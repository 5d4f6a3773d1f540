"""Level-0 choices beside the object files of the code cache: choosing is as long as packing.

One entry holds those of all devices that one version of ``topi_kernels`` made. Processes that
compile at the same time may each write it whole: what one of them chose is then chosen again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from typing import Any

from topi_kernels.schedules.choices import CHOICES, Choices, sources

from .code_cache import CodeCache

logger = logging.getLogger(__name__)

#: Part of the key; to be raised when the form of the entry changes.
_FORMAT = 1


@contextlib.contextmanager
def kept_choices(cache: CodeCache | None, choices: Choices = CHOICES) -> Iterator[None]:
    """Know what was chosen before, and keep what is chosen inside.

    Parameters
    ----------
    cache : CodeCache, optional
        None keeps nothing.
    choices : Choices
    """
    key = _key()
    if cache is None or key is None:
        yield
        return
    choices.add(_read(cache, key))
    yield
    known = _read(cache, key)
    choices.add({digest: plain for digest, plain in known.items() if digest not in choices})
    made = choices.as_plain()
    if any(known.get(digest) != plain for digest, plain in made.items()):
        cache.write({key: json.dumps(made).encode()})


def _key() -> str | None:
    """Name of the entry; None where the sources that decide choices cannot be read."""
    try:
        version = sources()
    except OSError as error:
        logger.info("level-0 choices are not kept: %s", error)
        return None
    if version is None:
        return None
    return f"choices-{hashlib.sha256(f'{_FORMAT} {version}'.encode()).hexdigest()}"


def _read(cache: CodeCache, key: str) -> dict[str, Any]:
    content = cache.read(key)
    if content is None:
        return {}
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}
