"""A GPU whose memory is short, by a driver that computes nothing."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

import tvm_pattern as tp

SOURCE = Path(__file__).parents[1] / "kit" / "fake_opencl.c"

# One process, because importing takes long: fault, after how many calls, error -> what is said.
CODE = """
import os
import numpy as np
import tvm_pattern as tp
from tvm_pattern.opencl import OpenCLError

library = tp.load(PATH)
image = np.zeros((1, 3, 9, 9), "float32")
library(image)
for fault, after, code in FAULTS:
    os.environ.update(FAKE_FAULT=fault, FAKE_AFTER=str(after), FAKE_CODE=str(code))
    try:
        library(image)
        print("ran")
    except OpenCLError as error:
        print(error)
    os.environ["FAKE_FAULT"] = ""
    library(image)
"""
#: A driver may find out when it makes a buffer, copies an input, runs a kernel or waits for all.
FAULTS = [
    ("buffer", 0, -4),
    ("write", 0, -5),
    ("launch", 1, -4),
    ("launch", 0, -61),
    ("run", 0, -5),
    ("read", 0, -6),
    ("launch", 0, -54),
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory, in_process):
    folder = tmp_path_factory.mktemp("short")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    library = tp.compile(
        model, torch.zeros(1, 3, 9, 9), target="pattern/mali", host="native", verify=False
    )
    path = library.export(folder / "m.so")
    driver = folder / "driver.so"
    subprocess.run(["gcc", "-shared", "-fPIC", str(SOURCE), "-o", str(driver)], check=True)
    code = CODE.replace("PATH", repr(str(path))).replace("FAULTS", repr(FAULTS))
    done = in_process(code, TVM_PATTERN_LIBOPENCL=str(driver), FAKE_NAME="Mali-G76")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(FAULTS), done.stdout
    return dict(zip(FAULTS, lines, strict=True))


@pytest.mark.parametrize("fault", FAULTS[:-1])
def test_it_is_said_what_is_held_and_what_to_do(answers, fault):
    """And the library runs again as soon as there is memory."""
    told = answers[fault]
    held, buffers = map(int, re.search(r"has (\d+) bytes in (\d+) buffers", told).groups())
    assert held > 4 * (3 * 81 + 8 * 3 * 9 + 4 * 8 * 9)  # input and weights, at least
    assert buffers >= 4
    assert "Mali-G76 holds 1048576 bytes, at most 262144 in one buffer" in told
    assert "Use a smaller batch, float16 or a smaller network" in told


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (FAULTS[0], r"Mali-G76 has no buffer of \d+ bytes \(CL_MEM_OBJECT_ALLOCATION_FAILURE"),
        (FAULTS[1], r"writing 972 bytes to the device: CL_OUT_OF_RESOURCES"),
        (FAULTS[2], r"in layer \w+: .*launching the kernel \w+ .*buffers of \d+(, \d+)+ bytes\)"),
        (FAULTS[5], r"reading 400 bytes from the device: CL_OUT_OF_HOST_MEMORY"),
    ],
)
def test_where_it_was_is_named(answers, fault, told):
    assert re.search(told, answers[fault])


def test_other_errors_say_nothing_of_memory(answers):
    told = answers[FAULTS[-1]]
    assert told.endswith("OpenCL error -54")
    assert "smaller batch" not in told
