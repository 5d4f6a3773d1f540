"""Python's garbage collector while a network is compiled."""

import gc
import os

import numpy as np
import pytest
import torch

import tvm_pattern as tp
from tvm_pattern.garbage import collector_paused


@pytest.fixture(autouse=True)
def _collector_as_before():
    was_on = gc.isenabled()
    yield
    (gc.enable if was_on else gc.disable)()


@pytest.mark.parametrize("on", [True, False])
def test_inside_it_is_off_and_afterwards_as_before(on):
    (gc.enable if on else gc.disable)()
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled() is on


def test_an_error_leaves_it_as_it_was():
    gc.enable()
    with pytest.raises(ValueError, match="training mode"):
        tp.compile(torch.nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 4, 4))
    assert gc.isenabled()


def test_it_is_paused_for_the_whole_of_compile():
    gc.enable()
    seen = []

    class Looks(torch.nn.Conv2d):
        def forward(self, x):
            seen.append(gc.isenabled())
            return super().forward(x)

    model = Looks(2, 4, 3).eval()
    x = torch.rand(1, 2, 8, 8)
    library = tp.compile(model, x, target="pattern/native", num_threads=1)
    assert seen
    assert not any(seen)
    assert gc.isenabled()
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(library(x.numpy()), expected, rtol=1e-5, atol=1e-5)


def test_a_warning_of_compile_names_the_line_that_called_it():
    model = torch.nn.Conv2d(1, 4, 3).eval()
    more = (os.cpu_count() or 1) + 1
    with pytest.warns(UserWarning, match="threads") as caught:
        tp.compile(model, torch.zeros(1, 1, 8, 8), num_threads=more, verify=False)
    assert [w.filename for w in caught if "threads" in str(w.message)] == [__file__]
