"""The blocks of all pages."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import click
import pytest
import typer

from tvm_pattern.cli import app
from tvm_pattern.pruning import PatternConfig

from .blocks import PAGES, ROOT, RUN, SHOWN, Block, blocks_of
from .conftest import LONG

BLOCKS = {page: blocks_of(page) for page in PAGES}


def name_of(value: object) -> str:
    if isinstance(value, Block):
        return f"{value.page.relative_to(ROOT)}:{value.line}"
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else " ".join(map(str, value))


def runnable(page: Path) -> list[Block]:
    """What runs today: without ``long`` blocks, and without those that build on one."""
    wanted = [b for b in BLOCKS[page] if b.language in ("python", "sh") and not b.skip]
    return [b for b in wanted if LONG or not b.is_long]


@pytest.mark.parametrize("page", [p for p in PAGES if runnable(p)], ids=name_of)
def test_blocks_run(page, run):
    python: list[list[Block]] = [[]]
    for block in runnable(page):
        if block.language == "sh":
            if block.setup:
                run(["python", "-"], block.setup)
            run(["bash", "-e"], block.code)
        elif "fresh" in block.marks:
            python.append([block])
        else:
            python[-1].append(block)
    for blocks in filter(None, python):
        fresh = "fresh" in blocks[0].marks
        script = "\n".join(b.setup + b.code for b in blocks)
        run([sys.executable if fresh else "python", "-"], script)


@pytest.mark.parametrize(
    "block", [b for blocks in BLOCKS.values() for b in blocks if b.language == "yaml"], ids=name_of
)
def test_configurations_are_read(block, tmp_path):
    path = tmp_path / "patterns.yaml"
    path.write_text(block.code)
    assert PatternConfig.from_file(path)


def test_nothing_is_left_out():
    unknown = [
        name_of(block)
        for blocks in BLOCKS.values()
        for block in blocks
        if block.language not in (*RUN, *SHOWN)
        or any(
            mark not in ("long", "fresh") and not mark.startswith("skip=") for mark in block.marks
        )
    ]
    assert unknown == []


#: Where a command's own words end.
SHELL = (">", ">>", "2>", "|", "&", "&&", ";")


def commands() -> list[tuple[str, ...]]:
    """Commands of this program in all blocks, those that are not run included."""
    found = []
    for block in (b for blocks in BLOCKS.values() for b in blocks if b.language == "sh"):
        for line in block.code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            end = next((n for n, word in enumerate(words) if word in SHELL), len(words))
            if words[:1] == ["tvm-pattern"]:
                found.append(tuple(words[1:end]))
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("words", commands(), ids=name_of)
def test_commands_have_options_that_exist(words):
    command: click.Command = typer.main.get_command(app)
    context = click.Context(command, info_name="tvm-pattern")
    rest = list(words)
    while hasattr(command, "get_command") and not rest[0].startswith("-"):
        name, *rest = rest
        inner = command.get_command(context, name)
        assert inner is not None, f"no command {name!r}"
        command, context = inner, click.Context(inner, info_name=name, parent=context)
    if "--help" in rest or "--version" in rest:
        return
    # Wrong options and missing arguments raise click.UsageError; nothing is run.
    assert command.make_context(str(command.name), rest, parent=context) is not None


def test_links_inside_the_repository_lead_somewhere():
    gone = []
    for page in [*PAGES, *(ROOT / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md"))]:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in target and not (page.parent / target).exists():
                gone.append(f"{page.relative_to(ROOT)}: {target}")
    assert gone == []
