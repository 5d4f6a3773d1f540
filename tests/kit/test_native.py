"""Parts of the runner in C by themselves: how outputs are compared, and indices that are none."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

NATIVE = Path(__file__).resolve().parents[2] / "tvm_pattern" / "kit" / "native"

COMPARE = r"""
#define main runner_main
#include "kit_main.c"
#undef main
__typeof__(pattern_builds[0]) pattern_builds[] = {{0, 0}};

static void show(int code, int bits, const void *got, const void *want) {
  pattern_spec spec = {code, bits, 1, {2}, (size_t)bits / 4};
  printf("%g\n", difference(&spec, got, want));
}

int main(void) {
  const int64_t far = 1LL << 53;
  show(0, 64, (int64_t[]){far, 5}, (int64_t[]){far + 1, 5});
  show(0, 64, (int64_t[]){-7, 5}, (int64_t[]){-7, 9});
  show(1, 8, (uint8_t[]){255, 1}, (uint8_t[]){0, 1});
  show(0, 8, (int8_t[]){-1, 1}, (int8_t[]){0, 1});
  show(2, 32, (float[]){NAN, 1}, (float[]){NAN, 1});
  show(2, 32, (float[]){NAN, 1}, (float[]){0, 1});
  show(2, 32, (float[]){0.0f, 1}, (float[]){-0.0f, 1.5f});
  show(2, 64, (double[]){INFINITY, 1}, (double[]){INFINITY, 1});
  show(2, 64, (double[]){INFINITY, 1}, (double[]){-INFINITY, 1});
  show(2, 16, (uint16_t[]){0x3c00, 0x0001}, (uint16_t[]){0xbc00, 0x0001});
  return 0;
}
"""

INDICES = r"""
#include <stdio.h>
#include "pattern_model.h"
extern const pattern_function pattern_functions_sparse[];

int main(int count, char **arguments) {
  pattern_model *model = pattern_open(arguments[count - 1], pattern_functions_sparse, 1);
  if (model == NULL) return 1;
  pattern_spec input = pattern_input(model, 1), output = pattern_output(model, -1);
  printf("%zu %d %zu: %s\n", input.bytes, input.ndim, output.bytes, pattern_error());
  printf("%zu %d\n", pattern_output(model, 1).bytes, pattern_get_output(model, 2, NULL, 0));
  printf("%s\n", pattern_error());
  pattern_close(model);
  return 0;
}
"""


def output_of(source: str, folder: Path, *files: Path, arguments: tuple[Path, ...] = ()) -> str:
    """Compile a program with sources of the runner, with what finds bad reads, and run it."""
    path, program = folder / "test.c", folder / "test"
    path.write_text(source)
    parts = [NATIVE / name for name in ("model.c", "cpu.c", "device_info.c")]
    command = ["gcc", "-std=gnu11", "-fsanitize=address,undefined", "-pthread", f"-I{NATIVE}"]
    linked = [*command, path, *parts, *files, "-lm", "-o", program]
    done = subprocess.run(linked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ran = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_how_outputs_differ(tmp_path):
    """Integers of 64 bits differ by less than a double tells; a NaN equals a NaN alone."""
    differences = output_of(COMPARE, tmp_path).split()
    assert differences == ["1", "4", "255", "1", "0", "inf", "0.5", "0", "inf", "2"]


def test_indices_that_are_none(kits, tmp_path):
    folder = kits("native") / "sparse"
    lines = output_of(INDICES, tmp_path, folder / "sparse.o", arguments=(folder,)).splitlines()
    assert lines[0] == "0 0 0: no output -1, there are 2"
    assert re.fullmatch(r"1152 -1", lines[1])
    assert lines[2] == "no output 2, there are 2"
