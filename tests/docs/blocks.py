"""Pages into blocks, and blocks into scripts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
#: Languages that are run or read; the others only show something.
RUN = ("python", "sh", "yaml")
SHOWN = ("text", "json", "dot", "c")

_PART = re.compile(
    r"^<!-- setup\n(?P<setup>.*?)^-->$"
    r"|^<!-- shorten: (?P<shorten>.*?) -->$"
    r"|^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```$",
    re.S | re.M,
)


@dataclass(frozen=True)
class Block:
    """A fenced block with the marks that belong to it."""

    page: Path
    line: int
    language: str
    marks: tuple[str, ...]
    code: str
    setup: str = ""

    @property
    def skip(self) -> str:
        """Why it is not run; empty if it is."""
        return next((m.removeprefix("skip=") for m in self.marks if m.startswith("skip=")), "")

    @property
    def is_long(self) -> bool:
        return "long" in self.marks


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, in order.

    Raises
    ------
    ValueError
        If a shortening is misspelt or no longer finds what it replaces.
    """
    text = page.read_text()
    found: list[Block] = []
    setup, pairs = "", []
    for part in _PART.finditer(text):
        if part["setup"] is not None:
            setup += part["setup"]
        elif part["shorten"] is not None:
            pairs = [_pair(words, page) for words in part["shorten"].split(";")]
        else:
            line = text.count("\n", 0, part.start()) + 1
            language, *marks = part["info"].split() or [""]
            code = _shortened(part["code"], pairs, f"{page.name}:{line}")
            found.append(Block(page, line, language, tuple(marks), code, setup))
            setup, pairs = "", []
    return found


def _pair(text: str, page: Path) -> tuple[str, str]:
    old, arrow, new = text.strip().partition(" -> ")
    if not arrow:
        raise ValueError(f"{page.name}: shorten: got {text!r}, expected 'this -> that; ...'")
    return old, new


def _shortened(code: str, pairs: list[tuple[str, str]], place: str) -> str:
    for old, new in pairs:
        if old not in code:
            raise ValueError(f"{place}: shorten: there is no {old!r} in the block")
        code = code.replace(old, new)
    return code
