"""Ctrl-C and termination while commands work: an exit code, words, and no half files."""

from __future__ import annotations

import signal
import time

import pytest

from . import processes
from .conftest import LONG

MOMENTS = (0.5, 2.0, 4.0, 8.0, 12.0, 16.0) if LONG else (4.0,)


@pytest.mark.parametrize("after", MOMENTS)
def test_interrupted_compile(tmp_path, after):
    """Whenever it comes, however far the work is."""
    output = tmp_path / "net.so"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from tvm_pattern.cli import main\nmain()"
    )
    command = [*processes.python(code), "compile", "resnet50", "--shape", "1x3x224x224"]
    process = processes.start(
        [*command, "-o", str(output), "--threads", "1"],
        env=processes.environment(TMPDIR=str(temporary)),
    )
    try:
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=processes.PATIENCE)
    finally:
        processes.end(process)
    result = processes.Result(process.returncode, out, err)
    if after < 2:
        # Python is still importing; what it says then is its own.
        assert result.code != 0
        return
    assert result.code == 130, result
    assert not result.is_raw, result
    assert "interrupted" in result.err
    assert not output.exists()
    assert not list(tmp_path.glob("net.so*"))
    assert not [p.name for p in temporary.iterdir() if "tvm-pattern" in p.name]
