"""``run --emulate``: ARM code of one's own network, run here."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from tvm_pattern.cli import app
from tvm_pattern.kit import KitError, emulate

from .conftest import damage


def run(*arguments):
    result = CliRunner().invoke(app, ["run", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("tag", ["cortex-a76", "native"])
def test_right_answers(kits, tag):
    code, shown, error = run("--emulate", kits(tag), "--json")
    assert code == 0, error
    found = json.loads(shown)
    assert found["kit"]["target"] == f"pattern/{tag}"
    assert set(found["max_abs_error"]) == {"sparse", "dense"}
    assert max(found["max_abs_error"].values()) < 1e-4


def test_wrong_answers(copy_of):
    folder = copy_of("cortex-a76")
    damage(folder / "sparse" / "weights.bin", 3.0)
    code, _, error = run("--emulate", folder)
    assert code == 1
    assert "WRONG: sparse computes another" in error


def test_what_is_no_kit(tmp_path, kits, monkeypatch):
    code, _, error = run("--emulate", tmp_path)
    assert code == 1
    assert "is no kit: it has no runner" in error
    (tmp_path / "runner").write_text("no program")
    with pytest.raises(KitError, match="no little-endian ELF"):
        emulate.emulate(tmp_path)
    monkeypatch.setattr(emulate.shutil, "which", lambda _: None)
    with pytest.raises(KitError, match=r"no qemu-aarch64.*apt-get install qemu-user"):
        emulate.emulate(kits("cortex-a76"))


def test_a_kit_that_does_not_end(kits):
    with pytest.raises(KitError, match="did not end within 0 s"):
        emulate.emulate(kits("cortex-a76"), patience=0.001)


def test_options_without_effect(kits):
    code, _, error = run("--emulate", kits("cortex-a76"), "--threads", "2")
    assert code == 2
    assert "--threads: no effect with --emulate" in " ".join(error.replace("\u2502", " ").split())
