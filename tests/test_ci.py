"""What ``.ci/run`` and the Makefile promise."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CLOSING = "1 failed, 41 passed, 2 skipped in 753.12s (0:12:33)"
MAKE = f"""#!/bin/sh
echo "make $*" >> "$CALLS"
if [ "$1" = lint ]; then echo "Found 1 error."; exit "$LINT"; fi
echo '{CLOSING}'
echo "make: *** [Makefile:41: test] Error 1" >&2
exit "$TESTS"
"""


@pytest.mark.parametrize(
    ("lint", "tests", "expected"), [(0, 0, 0), (2, 0, 2), (0, 1, 1), (2, 1, 1)]
)
def test_ci_fails_if_lint_or_tests_fail(tmp_path: Path, lint: int, tests: int, expected: int):
    make = tmp_path / "make"
    make.write_text(MAKE)
    make.chmod(0o755)
    calls = tmp_path / "calls"
    changes = {"CALLS": str(calls), "LINT": str(lint), "TESTS": str(tests)}
    done = subprocess.run(
        [ROOT / ".ci" / "run"],
        env={**os.environ, **changes, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == expected
    assert done.stdout.splitlines()[-1] == CLOSING
    assert ("make lint failed" in done.stderr) == bool(lint)
    assert calls.read_text().splitlines() == ["make lint", "make test"]


def make_test(*arguments: str, goal: str = "test") -> str:
    """The commands that ``make test``, or another goal, would run."""
    command = ["make", "--dry-run", goal, *arguments]
    # A make that runs these tests must not hand them its own variables.
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "WORKERS")
    environment = {k: v for k, v in os.environ.items() if k not in outer}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_test_runs_on_all_cores_unless_told_otherwise():
    cores = len(os.sched_getaffinity(0))
    # One more, since tests wait for a third of the time.
    assert f"pytest -q -n {cores + 1} --dist loadfile" in make_test()
    assert "pytest -q -n 1 --dist loadfile" in make_test("WORKERS=1")
    assert make_test("TEST_ARGS=tests/test_ci.py").count("tests/test_ci.py") == 1


def test_coverage_counts_branches_of_the_whole_suite():
    commands = make_test(goal="coverage")
    assert "--cov --cov-branch" in commands
    assert "pytest -q -n" in commands
