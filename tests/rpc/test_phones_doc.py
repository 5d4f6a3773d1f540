"""The guide to phones says what the program does; its commands are parsed by ``tests/docs``."""

from __future__ import annotations

import ast
import re

import tvm_pattern.deploy
from tvm_pattern.deploy import Device
from tvm_pattern.deploy.device import RemoteLibrary
from tvm_pattern.profiling import StepTime
from tvm_pattern.rpc.server import phone_commands

from .conftest import ROOT

GUIDE = (ROOT / "docs" / "phones.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}[^\n]*\n(.*?)```", GUIDE, re.S)


def test_servers_are_started_as_the_tracker_says():
    """The page's commands, by the words that the tracker's hints have."""
    python, cpp = (c.split() for c in phone_commands("COMPUTER:9190", "pi5"))
    page = GUIDE.replace("\\\n", " ").split()
    assert set(python) <= set(page)
    assert {"server", "--host=0.0.0.0", "--port=9090", "--port-end=9099"} <= set(cpp) & set(page)


def test_python():
    """Everything that the snippet calls exists."""
    (snippet,) = blocks("python")
    tree = ast.parse(snippet)
    names = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    fields = {"layer", "op", "ms", "share", "steps", "median_ms"}
    assert fields - {"steps", "median_ms"} <= set(StepTime.__dataclass_fields__)
    for name in names - fields:
        assert hasattr(Device, name) or hasattr(RemoteLibrary, name), name
    imports = [a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names]
    assert all(hasattr(tvm_pattern.deploy, name) for name in imports)
