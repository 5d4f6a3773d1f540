"""What `make` installs is pinned, extras included."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent


def names_of(lines):
    """Packages of requirements, spelt alike."""
    found = (re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line) for line in lines)
    return {re.sub(r"[-_.]+", "-", name.group()).lower() for name in found if name}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_requirement_has_an_exact_version(extra):
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    exact = names_of(line for line in pins if "==" in line)
    assert names_of(EXTRAS[extra]) <= exact


def test_versions_of_one_package_are_for_different_pythons():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in pins if "==" in line and not line.startswith("#")]
    for name in names_of(pins):
        same = [line for line in pins if names_of([line]) == {name}]
        assert len(same) == 1 or all(";" in line for line in same), name
