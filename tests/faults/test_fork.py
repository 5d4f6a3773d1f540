"""Forked and spawned children of a process that runs a library on several threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tvm_pattern as tp

from .conftest import amount
from .processes import python, run

_PARENT = """
import multiprocessing, os, sys, threading
import numpy as np
import tvm_pattern as tp

path, count = sys.argv[1], int(sys.argv[2])
x, want = np.load(path + ".x.npy"), np.load(path + ".y.npy")
library = tp.load(path)

def check(lib=None):
    for threads in (2, 1, 2):
        lib = lib or library
        lib.num_threads = threads
        np.testing.assert_allclose(lib(x), want, rtol=0, atol=1e-5)

check()
"""

_ENDINGS = {
    # The child ends in each way that there is; an ordinary end joins TVM's threads.
    "fork": """
for ending in (os._exit, sys.exit):
    pid = os.fork()
    if pid == 0:
        check()
        ending(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
check()
""",
    "dataloader": """
import torch
class Answers(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return library(x)
loader = torch.utils.data.DataLoader(Answers(), num_workers=2, batch_size=2)
for batch in loader:
    assert all(np.abs(y.numpy() - want).max() <= 1e-5 for y in batch)
check()
""",
    "multiprocessing": """
context = multiprocessing.get_context("fork")
with context.Pool(3) as pool:
    pool.apply(check)
    pool.apply(check)
check()
""",
    "while-others-call": """
stop = threading.Event()
def caller():
    while not stop.is_set():
        library(x)
callers = [threading.Thread(target=caller) for _ in range(3)]
for thread in callers:
    thread.start()
for _ in range(count):
    pid = os.fork()
    if pid == 0:
        check()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
stop.set()
for thread in callers:
    thread.join()
check()
""",
    "fork-in-a-fork": """
pid = os.fork()
if pid == 0:
    check()
    inner = os.fork()
    if inner == 0:
        check()
        check(tp.load(path))
        os._exit(0)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]))
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
""",
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A library of two threads, an input and torch's answer beside it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval()
    x = np.random.default_rng(0).standard_normal((1, 3, 12, 14), "f4")
    path = tmp_path_factory.mktemp("fork") / "net.so"
    tp.compile(model, x, num_threads=2).export(path)
    np.save(f"{path}.x.npy", x)
    with torch.no_grad():
        np.save(f"{path}.y.npy", model(torch.from_numpy(x)).numpy())
    return path


@pytest.mark.parametrize("name", _ENDINGS)
def test_a_forked_child_runs_the_library(exported, name):
    result = run(python(_PARENT + _ENDINGS[name], exported, amount(5, 200)))
    assert result.code == 0, result
    assert not result.is_raw, result


def test_a_spawned_child_loads_it_by_its_path(exported, tmp_path):
    """A library itself does not travel; its path does."""
    script = tmp_path / "server.py"
    body = _PARENT.replace("\n", "\n    ")
    script.write_text(
        "import multiprocessing, sys\n"
        "def answer(path, x):\n"
        "    import tvm_pattern as tp\n"
        "    return tp.load(path)(x)\n"
        "if __name__ == '__main__':"
        f"{body}\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        assert abs(pool.apply(answer, (path, x)) - want).max() <= 1e-5\n"
        "        try:\n"
        "            pool.apply(answer, (library, x))\n"
        "        except TypeError as error:\n"
        "            print('refused:', error)\n"
    )
    result = run([*python("")[:1], str(script), str(exported), "1"])
    assert result.code == 0, result
    assert "refused: a Library holds machine code" in result.out
