"""A process for sessions: it answers, says what failed, and never leaves a question open."""

from __future__ import annotations

import importlib
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tvm_pattern.rpc.session_process import ProcessEndedError, SessionProcess

PATIENCE = 120.0


@pytest.fixture(scope="module")
def process():
    """Its service runs whatever callable it is given."""
    opened = SessionProcess(partial(ThreadPoolExecutor, 3), runtime_only=True)
    yield opened
    opened.close()


def test_it_answers_from_another_process(process):
    pids = [process.submit(os.getpid) for _ in range(3)]
    assert len({future.result(PATIENCE) for future in pids}) == 1
    assert pids[0].result() != os.getpid()


def test_calls_run_at_once_and_a_slow_one_holds_up_no_other(process):
    slow = process.submit(partial(time.sleep, 30.0))
    assert process.submit(partial(divmod, 7, 2)).result(PATIENCE) == (3, 1)
    assert not slow.done()


def test_errors_come_back_as_text(process):
    with pytest.raises(RuntimeError, match=r"ValueError: invalid literal for int.*'three'"):
        process.submit(partial(int, "three")).result(PATIENCE)
    with pytest.raises(RuntimeError, match=r"TypeError: cannot pickle"):
        process.submit(threading.Lock).result(PATIENCE)


def test_what_is_printed_there_is_no_answer(process):
    assert process.submit(partial(print, "a word", flush=True)).result(PATIENCE) is None
    assert process.submit(partial(os.write, 1, b"another\n")).result(PATIENCE) == 8


def test_it_does_without_torch_and_compiler(process):
    with pytest.raises(RuntimeError, match="import of torch halted"):
        process.submit(partial(importlib.import_module, "torch")).result(PATIENCE)
    assert process.submit(partial(os.getenv, "TVM_USE_RUNTIME_LIB")).result(PATIENCE) == "1"


def test_large_questions_and_answers_do_not_hold_up_each_other(process):
    """More than a pipe takes, both ways at once."""
    data = bytes(1 << 20)
    futures = [process.submit(partial(bytes.upper, data)) for _ in range(12)]
    assert all(future.result(PATIENCE) == data for future in futures)


def test_a_process_that_is_killed_leaves_no_question_open():
    process = SessionProcess(partial(ThreadPoolExecutor, 1), runtime_only=True)
    pid = process.submit(os.getpid).result(PATIENCE)
    waiting = [process.submit(partial(time.sleep, 600.0)) for _ in range(2)]
    os.kill(pid, signal.SIGKILL)
    for future in waiting:
        with pytest.raises(ProcessEndedError, match=r"exit code -9"):
            future.result(PATIENCE)
    assert process.ended
    with pytest.raises(ProcessEndedError):
        process.submit(os.getpid).result(PATIENCE)


def test_one_that_cannot_make_its_service_says_so():
    process = SessionProcess(partial(int, "no service"), runtime_only=True)
    with pytest.raises(ProcessEndedError, match=r"exit code 1"):
        process.submit(os.getpid).result(PATIENCE)
