"""What a GPU's driver may refuse, each in one line: by a driver that computes nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .conftest import start

SOURCE = Path(__file__).with_name("fake_opencl.c")


@pytest.fixture(scope="module")
def drivers(tmp_path_factory):
    """``(whole driver, one that lacks a function)``."""
    folder = tmp_path_factory.mktemp("drivers")
    made = []
    for name, option in (("whole", "-DWHOLE"), ("lacking", "-DLACKING")):
        made.append(folder / f"{name}.so")
        command = ["gcc", "-shared", "-fPIC", option, str(SOURCE), "-o", str(made[-1])]
        subprocess.run(command, check=True)
    return made


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("devices", "no OpenCL device 0, the driver has 0"),
        ("context", "the GPU is out of memory (a context, OpenCL error -6)"),
        ("queue", "a queue: OpenCL error -35"),
        ("buffer", "bytes, OpenCL error -4): this build has 0 bytes there, the GPU 1048576 in all"),
        ("buffer", "make the kit for a smaller batch, of a float16 network or of a smaller one"),
        ("program", ".cl: OpenCL error -30"),
        ("build", ".cl does not build on fake: line 3: no such word"),
        ("kernel", "_kernel: OpenCL error -46"),
        ("groups", "work_items, fake allows 2; make the kit for a target with a smaller"),
        ("argument", "_kernel: OpenCL error -50"),
        ("launch", "_kernel: OpenCL error -54"),
        ("write", "the GPU is out of memory (an input, OpenCL error -5)"),
        ("run", "a run: OpenCL error -36"),
        ("read", "the outputs are wrong on this device"),
        ("none", "the outputs are wrong on this device"),
    ],
)
def test_refused(kits, drivers, tmp_path, fault, told):
    out = tmp_path / "result.json"
    done = start(kits("mali"), "--json", str(out), PATTERN_OPENCL=str(drivers[0]), FAKE_FAULT=fault)
    assert done.returncode == 1
    assert told in done.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("QUALCOMM Adreno(TM) 640", "the kit is for mali, the device here is QUALCOMM Adreno"),
        ("Mali-G78", "the outputs are wrong"),  # it is the right one; it computes nothing
    ],
)
def test_the_other_gpu(kits, drivers, name, told):
    done = start(kits("mali"), PATTERN_OPENCL=str(drivers[0]), FAKE_NAME=name)
    assert done.returncode == 1
    assert told in done.stderr


def test_a_device_without_float16(copy_of, drivers):
    folder = copy_of("mali")
    plan = folder / "sparse" / "plan.txt"
    plan.write_text(plan.read_text().replace("half 0", "half 1", 1))
    done = start(folder, PATTERN_OPENCL=str(drivers[0]))
    assert done.returncode == 1
    assert "computes in float16, which fake lacks" in done.stderr


def test_a_driver_that_lacks_a_function(kits, drivers):
    done = start(kits("mali"), PATTERN_OPENCL=str(drivers[1]))
    assert done.returncode == 1
    assert "the OpenCL driver lacks clFinish" in done.stderr
