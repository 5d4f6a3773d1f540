"""The texts of a kit: what its runner reads, how it is started, and ten lines for people."""

from __future__ import annotations

from collections.abc import Sequence

FORMAT = 1


def kit_text(
    *,
    name: str,
    target: str,
    version: str,
    digest: str,
    threads: int,
    builds: Sequence[str],
    inputs: int,
    outputs: Sequence[tuple[str, float]],
) -> str:
    """``kit.txt``, as ``native/kit_main.c`` reads it."""
    lines = [f"kit {FORMAT}", f"name {name}", f"target {target}", f"version {version}"]
    lines += [f"digest {digest}", f"threads {threads}"]
    lines += [f"build {build}" for build in builds]
    lines += [f"input input{number}.bin" for number in range(inputs)]
    for number, (output, tolerance) in enumerate(outputs):
        lines.append(f"output {output} {tolerance:.9g} expected{number}.bin")
    return "\n".join([*lines, "end"]) + "\n"


def run_text() -> str:
    """``run.sh``."""
    return """#!/bin/sh
# Checks this kit's outputs, then times its builds; arguments go to the runner, see README.txt.
cd "$(dirname "$0")" || exit 1
[ -x runner ] || chmod +x runner
name=$(getprop ro.product.model 2>/dev/null)
exec $KIT_EMULATOR ./runner --name "$name" "$@"
"""


def readme_text(name: str, target: str, abi: str, *, gpu: bool, static: bool) -> str:
    """``README.txt``."""
    if abi == "android":
        where = "It is linked for Android by the NDK."
    elif gpu:
        where = "It is linked for Linux with glibc. Android: see the last line."
    elif static:
        where = "It needs no library: any Linux kernel of that processor runs it, Android's too."
    else:
        where = "It is linked for Linux with glibc."
    rebuild = "src/*.c -o runner -lm -ldl" if gpu else "src/*.c sparse/*.o dense/*.o -o runner -lm"
    return f"""{name} for {target}: pruned (sparse/) and with every weight computed (dense/).
Copy this folder to the device and start run.sh there:
  adb push {name} /data/local/tmp/ && adb shell sh /data/local/tmp/{name}/run.sh
  adb pull /data/local/tmp/{name}/result.json && tvm-pattern kit read result.json
It checks both outputs against expected*.bin, warms up, times both in turns, prints a table and
writes result.json. Options: --runs 50 --warm-up 5 --cool-down 0 (seconds before each round)
--cores big|little|all --threads N (at most the compiled number) --name DEVICE --json FILE.
{where}
Exit code 0: done; 1: a wrong output or a failure, in words; 2: wrong arguments.
Another runner, by a compiler on the device or the NDK: cc -O2 -pthread {rebuild}
"""
