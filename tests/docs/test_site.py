"""The documentation site: every page is listed, every name of the reference is there, it builds."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys

import pytest

from .blocks import ROOT

DOCS = ROOT / "docs"
SPHINX = ("sphinx", "myst_parser", "furo")


def test_every_page_is_listed():
    index = (DOCS / "index.rst").read_text()
    listed = set(re.findall(r"^   ([\w-]+)$", index, re.MULTILINE))
    assert listed == {p.stem for p in DOCS.iterdir() if p.suffix in (".md", ".rst")} - {"index"}


def documented():
    return re.findall(r"^\.\. auto(\w+):: (\S+)$", (DOCS / "api.rst").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("kind", "name"), documented())
def test_the_reference_names_what_is_there(kind, name):
    if kind == "module":
        found = importlib.import_module(name)
    else:
        module, _, attribute = name.rpartition(".")
        found = getattr(importlib.import_module(module), attribute)
        assert isinstance(found, type) == (kind == "class")
    assert len((found.__doc__ or "").split()) >= 5


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in SPHINX),
    reason="not installed: sphinx, myst-parser and furo (make docs-site)",
)
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "oneshot" in (tmp_path / "api.html").read_text()
