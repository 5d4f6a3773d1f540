"""Damaged files: bytes, JSON fields, and a reader's answer to them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: What a field may be replaced by; each is wrong for most fields.
WRONG: dict[str, Any] = {
    "null": None,
    "true": True,
    "minus-one": -1,
    "zero": 0,
    "huge": 2**63,
    "half": 0.5,
    "nan": float("nan"),
    "infinity": float("inf"),
    "empty-text": "",
    "text": "x",
    "long-text": "x" * 1000,
    "zero-byte": "a\0b",
    "empty-list": [],
    "list": [1, "x", None],
    "nested": [[[[]]]],
    "empty-object": {},
    "object": {"x": 1},
}


def _damage(rng: random.Random, data: bytearray) -> str:
    """Change ``data`` in place by one randomly chosen damage; returns what was done."""
    size = len(data)
    at = rng.randrange(size) if size else 0
    length = rng.choice([1, 2, 4, 16, 256, 4096])
    kind = rng.choice(
        ["flip", "byte", "cut", "remove", "insert", "zero", "repeat", "swap", "number"]
    )
    if kind == "flip" and size:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == "byte" and size:
        data[at] = rng.choice([0, 0x0A, 0x20, 0x22, 0x2D, 0x30, 0x39, 0x5B, 0x7B, 0x7F, 0x80, 0xFF])
    elif kind == "cut":
        del data[at:]
    elif kind == "remove":
        del data[at : at + length]
    elif kind == "insert":
        data[at:at] = rng.randbytes(length)
    elif kind == "zero":
        data[at : at + length] = bytes(min(length, size - at))
    elif kind == "repeat":
        data[at:at] = data[at : at + length]
    elif kind == "swap" and size:
        other = rng.randrange(size)
        data[at], data[other] = data[other], data[at]
    elif kind == "number":
        value = rng.choice([-1, 0, 2**31 - 1, 2**31, 2**63 - 1, -(2**63)])
        data[at : at + 8] = value.to_bytes(8, "little", signed=True)
    return f"{kind} at {at} of {size}"


def bytes_mutants(original: bytes, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """``count`` damaged copies, named; the same ones for the same seed."""
    yield "empty", b""
    yield "zeros", bytes(len(original))
    for number in range(count - 2):
        rng = random.Random(f"{seed} {number}")
        data = bytearray(original)
        done = [_damage(rng, data) for _ in range(rng.choice([1, 1, 1, 2, 4, 16]))]
        yield f"{number}: {', '.join(done)}", bytes(data)


def _places(document: Any, at: tuple = ()) -> Iterator[tuple]:
    if at:
        yield at
    items = document.items() if isinstance(document, dict) else ()
    if isinstance(document, list):
        items = enumerate(document)
    for key, value in items:
        yield from _places(value, (*at, key))


def json_mutants(document: Any) -> Iterator[tuple[str, Any]]:
    """Copies of ``document`` with every place missing, doubled in name, or wrong, named."""
    for name, value in WRONG.items():
        yield f"all = {name}", value
    for place in _places(document):
        where = "/".join(map(str, place))
        for name, value in WRONG.items():
            yield f"{where} = {name}", _with(document, place, value)
        yield f"{where} missing", _without(document, place)
        if isinstance(place[-1], str):
            renamed = (*place[:-1], place[-1] + "_")
            yield (
                f"{where} renamed",
                _with(_without(document, place), renamed, _at(document, place)),
            )


def _at(document: Any, place: tuple) -> Any:
    for key in place:
        document = document[key]
    return document


def _with(document: Any, place: tuple, value: Any) -> Any:
    changed = copy.deepcopy(document)
    _at(changed, place[:-1])[place[-1]] = value
    return changed


def _without(document: Any, place: tuple) -> Any:
    changed = copy.deepcopy(document)
    del _at(changed, place[:-1])[place[-1]]
    return changed


def sample(mutants: Iterator[tuple[str, Any]], count: int, seed: int = 0) -> list[tuple[str, Any]]:
    """At most ``count`` of the mutants, spread over all of them."""
    everything = list(mutants)
    if len(everything) <= count:
        return everything
    return random.Random(seed).sample(everything, count)


def write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")


def survey(
    mutants: Iterator[tuple[str, Any]] | list[tuple[str, Any]],
    write: Callable[[Any], None],
    read: Callable[[], Any],
    errors: type[Exception] | tuple[type[Exception], ...],
) -> dict[str, Any]:
    """Read every mutant; a reader reads it, or raises one of ``errors`` itself.

    Parameters
    ----------
    mutants : iterable of (name, content)
    write : callable
        Stores one content where ``read`` reads it.
    read : callable
    errors : exception type or tuple of them
        What the reader documents. An error's message has to be one that a person can use: not
        empty, and of at most 4,000 characters.

    Returns
    -------
    dict
        What was read from the mutants that could be read, by their names.

    Raises
    ------
    AssertionError
        With up to ten mutants that another error came out of.
    """
    readable: dict[str, Any] = {}
    raw: list[str] = []
    count = 0
    for name, content in mutants:
        count += 1
        write(content)
        try:
            readable[name] = read()
        except errors as error:
            if not 0 < len(str(error)) <= 4000:
                raw.append(f"{name}: a message of {len(str(error))} characters")
        except Exception as error:  # noqa: BLE001 - to find these is the purpose
            raw.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
    shown = "\n  ".join(raw[:10])
    assert not raw, f"{len(raw)} of {count} mutants give a raw error:\n  {shown}"
    return readable
