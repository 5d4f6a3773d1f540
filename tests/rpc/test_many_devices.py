"""Six simulated devices of one tracker, some of which misbehave: nothing is lost or mixed up."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from .conftest import ROOT

DEVICES, SCRIPT = 6, "hang,vanish,throttle,lie"
#: Milliseconds that a good device tells, with a hundredth of noise.
TRUE_MS = 1.0


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows of ``bench`` and ``tune`` by command; forked from a process of its own."""
    path = tmp_path_factory.mktemp("farm") / "farm.json"
    options = ["--devices", str(DEVICES), "--script", SCRIPT, "--seconds", "0.2", "--repeat", "2"]
    command = [sys.executable, "-m", "benchmarks.farm", *options, "--rounds", "1"]
    done = subprocess.run(
        [*command, "--timeout", "12", "--json", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {row["command"]: row for row in json.loads(path.read_text())["rows"]}


def test_bench_keeps_figures_of_devices_apart(rows):
    """Two are good, one gets slower from result to result, one lies, two do not answer."""
    row = rows["bench"]
    assert (row["results"], row["failed"], row["lost"]) == (DEVICES - 2, 2, 0)
    liar, *good, slower = sorted(row["told_ms"])
    assert liar == pytest.approx(1e-6 * TRUE_MS, rel=0.02)
    assert good == pytest.approx([TRUE_MS] * 2, rel=0.02)
    assert slower == pytest.approx(1.5 * TRUE_MS, rel=0.02)
    assert sum("disappeared" in error or "session" in error for error in row["errors"]) == 2


def test_tune_answers_every_trial(rows):
    """The trial of the device that hangs ends with its session; that of the one that vanishes is
    repeated elsewhere."""
    row = rows["tune"]
    assert row["lost"] == 0
    assert row["results"] + row["failed"] == DEVICES
    assert row["errors"] == ["run_timeout"]
