#!/usr/bin/env python3
"""Run and time bundles of OpenCL kernels; needs numpy and pyopencl, neither TVM nor this project.

    python run_bundle.py BUNDLE [BUNDLE ...] [--runs 50] [--json results.json]
    oclgrind --inst-counts python run_bundle.py BUNDLE --once

A bundle is a folder that ``tvm-pattern compile --bundles FOLDER`` writes for each layer:
``bundle.json`` (what is computed, and one or more kernels that compute it), their sources, and
``arrays.npz`` (inputs and the expected output). Times are those of the device's own clock (events),
of the kernel alone. The peak is what a small kernel of independent multiply-adds reaches on the
same device in the same run. With ``--once`` each kernel is launched once and only its output is
looked at, which is what a simulator that counts instructions wants.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyopencl as cl

FORMAT = 1
# Kernels that can read inputs as images do so where they are built with this option.
IMAGES = "-DTVM_PATTERN_IMAGES"
TEXEL_BYTES = 16
PEAK_ITERATIONS = 512
PEAK_CHAINS = 8
PEAK_SOURCE = """
__kernel void peak(__global float* out, float seed) {
  float4 m = (float4)(seed), a = (float4)(0.001f);
  float4 s[%(chains)d];
  #pragma unroll
  for (int c = 0; c < %(chains)d; ++c) s[c] = (float4)(get_global_id(0) + c);
  for (int i = 0; i < %(iterations)d; ++i) {
    #pragma unroll
    for (int c = 0; c < %(chains)d; ++c) s[c] = fma(s[c], m, a);
  }
  float4 total = (float4)(0.0f);
  #pragma unroll
  for (int c = 0; c < %(chains)d; ++c) total += s[c];
  out[get_global_id(0)] = total.x + total.y + total.z + total.w;
}
"""


def percentile_ms(times: list[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile of seconds, in ms."""
    p10, median, p90 = np.percentile(np.array(times) * 1e3, (10, 50, 90))
    return {"median_ms": float(median), "p10_ms": float(p10), "p90_ms": float(p90)}


class Device:
    """One OpenCL device with a queue that records times."""

    def __init__(self, number: int) -> None:
        devices = [d for p in cl.get_platforms() for d in p.get_devices()]
        if not 0 <= number < len(devices):
            raise SystemExit(
                f"there is no OpenCL device {number}; found {[d.name for d in devices]}"
            )
        self.device = devices[number]
        self.context = cl.Context([self.device])
        flags = cl.command_queue_properties.PROFILING_ENABLE
        self.queue = cl.CommandQueue(self.context, properties=flags)

    def facts(self) -> dict:
        """What results say of the device."""
        d = self.device
        return {
            "name": d.name.strip(),
            "vendor": d.vendor.strip(),
            "driver": d.driver_version,
            "version": d.version.strip(),
            "compute_units": d.max_compute_units,
            "clock_mhz": d.max_clock_frequency,
            "max_work_group": d.max_work_group_size,
            "local_memory_bytes": d.local_mem_size,
            "float16": "cl_khr_fp16" in d.extensions,
        }

    def build(self, source: str, name: str, options: tuple[str, ...] = ()) -> cl.Program:
        """A program, or an error with the compiler's log."""
        try:
            return cl.Program(self.context, source).build(list(options))
        except cl.RuntimeError as error:
            raise SystemExit(f"{name} does not build on {self.device.name}:\n{error}") from None

    def images(self, buffers: list[cl.Buffer]) -> list[cl.Image] | None:
        """Images of the memory of buffers, or None where the device has no such images."""
        texels = [buffer.size // TEXEL_BYTES for buffer in buffers]
        d = self.device
        if not d.image_support or max(texels, default=0) > d.image_max_buffer_size:
            return None
        kind = cl.ImageFormat(cl.channel_order.RGBA, cl.channel_type.UNSIGNED_INT32)
        return [
            cl.create_image(
                self.context, cl.mem_flags.READ_ONLY, kind, shape=(count,), buffer=buffer
            )
            for count, buffer in zip(texels, buffers, strict=True)
        ]

    def times(self, launch: Callable[[], cl.Event], runs: int, warm_up: int = 3) -> list[float]:
        """Seconds of ``runs`` launches by the device's clock."""
        for _ in range(warm_up):
            launch().wait()
        events = [launch() for _ in range(runs)]
        self.queue.finish()
        return [(e.profile.end - e.profile.start) * 1e-9 for e in events]

    def peak_gflops(self) -> float:
        """Multiply-adds of private variables: two operations each."""
        source = PEAK_SOURCE % {"chains": PEAK_CHAINS, "iterations": PEAK_ITERATIONS}
        kernel = cl.Kernel(self.build(source, "the peak kernel"), "peak")
        items = 256 * 32 * self.device.max_compute_units
        out = cl.Buffer(self.context, cl.mem_flags.WRITE_ONLY, 4 * items)
        kernel.set_args(out, np.float32(0.5))
        times = self.times(
            lambda: cl.enqueue_nd_range_kernel(self.queue, kernel, (items,), (256,)), 10
        )
        return 2.0 * 4 * PEAK_CHAINS * PEAK_ITERATIONS * items / min(times) / 1e9


def load(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Description and arrays of a bundle."""
    try:
        described = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        with np.load(folder / "arrays.npz") as stored:
            arrays = {name: stored[name] for name in stored.files}
    except OSError as error:
        raise SystemExit(f"{folder} is no bundle: {error}") from None
    if described.get("format") != FORMAT:
        raise SystemExit(
            f"{folder}: format {described.get('format')!r}, this script reads {FORMAT}; use the"
            " script that came with the bundle"
        )
    return described, arrays


def run(device: Device, folder: Path, runs: int) -> Iterator[dict]:
    """Run the kernels of a bundle: times, and how far each output is from the expected one."""
    described, arrays = load(folder)
    expected = arrays.pop("expected")
    flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
    buffers = {
        name: cl.Buffer(device.context, flags, hostbuf=np.ascontiguousarray(value))
        for name, value in arrays.items()
    }
    dtype = described["output_dtype"]
    for kernel in described["kernels"]:
        # The output starts as NaN: what is not written shows.
        nothing = np.full(expected.shape, np.nan, dtype)
        buffers[described["output"]] = cl.Buffer(device.context, flags, hostbuf=nothing)
        row = {"bundle": described["name"], "kernel": kernel["name"], "runs": runs}
        row |= run_kernel(device, folder, kernel, buffers, runs)
        got = np.empty(expected.shape, dtype)
        cl.enqueue_copy(device.queue, got, buffers[described["output"]]).wait()
        error = float(np.abs(got.astype(np.float64) - expected).max())
        yield {
            **row,
            "facts": {**described["facts"], **kernel["facts"]},
            "max_abs_error": error if np.isfinite(error) else None,
            "max_abs_expected": float(np.abs(expected).max()),
            "is_right": bool(error <= described["tolerance"]),
        }


def run_kernel(device: Device, folder: Path, kernel: dict, buffers: dict, runs: int) -> dict:
    """Build and time one kernel; without runs it is launched once and there are no times."""
    limit = device.device.max_work_group_size
    if np.prod(kernel["work_items"]) > limit:
        raise SystemExit(
            f"{folder}, {kernel['name']}: work_groups of {np.prod(kernel['work_items'])}"
            f" work_items, {device.device.name} allows {limit}; export it with smaller ones"
        )
    source = (folder / kernel["source"]).read_text(encoding="utf-8")
    textures = kernel.get("textures", [])
    images = device.images([buffers[name] for name in textures]) if textures else []
    if images is None:
        print(f"{kernel['name']}: {device.device.name} lacks images of that size; reads buffers")
    given = {**buffers, **dict(zip(textures, images or [], strict=False))}
    options = (IMAGES,) if images else ()
    program = device.build(source, f"{folder}/{kernel['source']}", options)
    function = cl.Kernel(program, kernel["function"])
    function.set_args(*(given[name] for name in kernel["arguments"]))
    items = kernel["work_items"]
    size = [g * i for g, i in zip(kernel["work_groups"], items, strict=True)]

    def launch() -> cl.Event:
        return cl.enqueue_nd_range_kernel(device.queue, function, size, items)

    read = {"reads_images": bool(options)} if textures else {}
    if not runs:
        launch().wait()
        return read
    return {**percentile_ms(device.times(launch, runs)), **read}


def rates(row: dict, peak: float) -> dict:
    """Rates of a row; effective counts kept weights only, dense-equivalent all of them."""
    seconds = row["median_ms"] / 1e3
    effective = row["facts"]["effective_gflop"] / seconds
    return {
        "effective_gflops": effective,
        "dense_equivalent_gflops": row["facts"]["dense_equivalent_gflop"] / seconds,
        "peak_fraction": effective / peak,
    }


def checked(device: Device, bundles: list[Path]) -> Iterator[dict]:
    """Launch the kernels once, and print how far their outputs are from the expected ones."""
    for folder in bundles:
        for row in run(device, folder, 0):
            print(f"{row['bundle']} {row['kernel']}: {row['max_abs_error']}{verdict(row)}")
            yield row


def timed(device: Device, bundles: list[Path], runs: int, peak: float) -> Iterator[dict]:
    """Time the kernels, and print a line for each."""
    print(f"{device.device.name.strip()}: {peak:.0f} GFLOPS of multiply-adds")
    print("kernel, median ms, p10, p90, effective GFLOPS (share of peak), dense-equivalent, error")
    for folder in bundles:
        for row in run(device, folder, runs):
            row |= rates(row, peak)
            print(
                f"{row['bundle']} {row['kernel']}: {row['median_ms']:.4f} [{row['p10_ms']:.4f},"
                f" {row['p90_ms']:.4f}], {row['effective_gflops']:.0f}"
                f" ({row['peak_fraction']:.0%}), {row['dense_equivalent_gflops']:.0f},"
                f" {row['max_abs_error']}{verdict(row)}",
                flush=True,
            )
            yield row


def verdict(row: dict) -> str:
    """What to say loudly of a wrong output."""
    return "" if row["is_right"] else "  WRONG"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("bundles", nargs="+", type=Path, help="folders of bundles")
    parser.add_argument("--runs", type=int, default=50, help="timed launches of each (50)")
    parser.add_argument("--once", action="store_true", help="launch each once; no times, no peak")
    parser.add_argument("--device", type=int, default=0, help="number of the OpenCL device (0)")
    parser.add_argument("--json", type=Path, help="where to write the results")
    arguments = parser.parse_args()
    device = Device(arguments.device)
    if arguments.once:
        rows, peak = list(checked(device, arguments.bundles)), None
    else:
        peak = device.peak_gflops()
        rows = list(timed(device, arguments.bundles, arguments.runs, peak))
    if arguments.json:
        result = {"device": device.facts(), "fma_peak_gflops": peak, "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["is_right"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
