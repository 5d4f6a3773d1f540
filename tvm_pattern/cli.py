"""The command line: arguments to api calls, results to tables or JSON; no logic of its own."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperCommand, TyperGroup

from .terminal import (
    QUIET,
    VERBOSE,
    Json,
    error_text,
    escape,
    message,
    open_console,
    print_json,
    print_lines,
    set_volume,
    take_volume,
    warnings_as_messages,
)

# Commands that live in their own rooms: name -> module with a typer ``app``, and what the list of
# commands says of it: the module is imported when the command is used, since some bring torch.
MOUNTED: dict[str, tuple[str, str]] = {
    "compile": (
        "tvm_pattern.compile_cli",
        "Compile a model into a library, with a report of what became of each convolution.",
    ),
    "kit": (
        "tvm_pattern.kit.cli",
        "Make a folder that a phone runs and times without RPC; read what it wrote.",
    ),
    "inspect": (
        "tvm_pattern.inspect_cli",
        "Show what a library takes, gives and needs, and the report of its compilation.",
    ),
    "compare": (
        "tvm_pattern.compare_cli",
        "Compare two libraries of one model: their outputs, and their times in turns.",
    ),
    "report": (
        "tvm_pattern.report_cli",
        "Write one HTML page with tables and plots of pruning, compilation and profile.",
    ),
    "prune": (
        "tvm_pattern.prune_cli",
        "Train and prune a model by patterns and connectivity.",
    ),
    "posttrain": (
        "tvm_pattern.posttrain_cli",
        "Prune a trained model by some pictures: no labels, no training.",
    ),
    "evaluate": (
        "tvm_pattern.evaluate_cli",
        "Compare the accuracy of a network before pruning, after it and compiled.",
    ),
    "quantize": (
        "tvm_pattern.quantize_cli",
        "Quantise a trained network to int8 by some pictures: no labels, no training.",
    ),
    "tune": (
        "tvm_pattern.tuning.cli",
        "Tune a model's convolutions by measuring, here or on devices over RPC.",
    ),
    "logs": (
        "tvm_pattern.tuning.logs_cli",
        "Work with tuning logs.",
    ),
    "rpc": (
        "tvm_pattern.rpc.cli",
        "Serve and inspect devices over RPC.",
    ),
    "opencl": (
        "tvm_pattern.opencl_cli",
        "List the OpenCL devices of this computer and what they can do.",
    ),
}


#: Exit code of a command that Ctrl-C ended, as shells have it.
INTERRUPTED = 130


# What a user can mend; anything else is a fault of ours, with its traceback.
_TOLD = (ValueError, TypeError, KeyError, RuntimeError, OSError, ImportError, MemoryError)


def _as_posttrain(words: list[str]) -> list[str]:
    """``prune --posttrain DIR ...`` is the command ``posttrain --images DIR ...``."""
    if words[:1] != ["prune"]:
        return words
    images = [re.sub(r"^--posttrain(?==|$)", "--images", word) for word in words[1:]]
    return words if images == words[1:] else ["posttrain", *images]


class _Commands(TyperGroup):
    """Loads mounted commands late and turns errors into messages and exit codes."""

    _is_listing = False

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._is_listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._is_listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *MOUNTED]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in MOUNTED:
            module, summary = MOUNTED[cmd_name]
            if self._is_listing:
                return TyperCommand(cmd_name, help=summary)
            command = typer.main.get_command(importlib.import_module(module).app)
            command.name = cmd_name
            return command
        return super().get_command(ctx, cmd_name)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            volume, rest = take_volume(args)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        set_volume(volume)
        return super().parse_args(ctx, _as_posttrain(rest))

    def invoke(self, ctx: Any) -> Any:

        def command() -> Any:
            return self.get_command(ctx, ctx.invoked_subcommand or "") or self

        try:
            with warnings_as_messages(command):
                return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            message("interrupted", is_error=True)
            raise typer.Exit(INTERRUPTED) from None
        except _TOLD as error:
            if ctx.params.get("debug"):
                raise
            text = error_text(error, command())
            message(f"[bold red]error:[/] {escape(text)}", is_error=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Prune CNNs by patterns, compile them with TVM, and run them.\n\n"
    "Exit codes: 0 done, 1 the work failed, 2 wrong arguments, 130 interrupted.",
)

LibraryArgument = Annotated[
    Path | None, typer.Argument(help="A library written by the command compile.")
]
LibraryOption = Annotated[Path | None, typer.Option("--lib", help="The library, as an option.")]
Tracker = Annotated[str | None, typer.Option(help="HOST:PORT of an RPC tracker: use its devices.")]
Key = Annotated[str | None, typer.Option(help="Key of the devices; all of them are used.")]
Sort = Annotated[
    bool, typer.Option("--sort", help="The slowest layers first, not the network's order.")
]
ProfileOption = Annotated[bool, typer.Option("--profile", help="Time each layer by itself too.")]


def _show_version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib import metadata

    from . import __version__

    print(f"tvm-pattern {__version__}")
    for package in ("apache-tvm", "torch", "numpy"):
        try:
            print(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            print(f"{package}: not installed")
    raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    verbose: Annotated[
        bool,
        typer.Option(*VERBOSE, help="Say what is being done, -vv all of it; anywhere on the line."),
    ] = False,
    quiet: Annotated[
        bool, typer.Option(*QUIET, help="Results and errors only; anywhere on the line.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show versions and exit."
        ),
    ] = False,
) -> None:
    # Read by _Commands.invoke, _Commands.parse_args and _show_version.
    del debug, verbose, quiet, version


@app.command()
def targets(json_output: Json = False) -> None:
    """List the targets to compile for, and which of them this machine can run.

    Example: tvm-pattern targets --json
    """
    from relay_passes import targets as target_tags

    from .machine import required_features, target_architecture, why_not_runnable

    rows = []
    for tag in target_tags.targets():
        target = target_tags.resolve(tag)
        architecture = target_architecture(target)
        reason = why_not_runnable(architecture, required_features(target))
        rows.append(
            {
                "target": tag,
                "kind": target.kind.name,
                "architecture": architecture,
                "mcpu": str(target.attrs.get("mcpu", "")),
                "runs_here": reason is None and target.kind.name == "llvm",
                "reason": reason or "",
            }
        )
    if json_output:
        print_json(rows)
        return
    table = Table(title="Targets")
    for name in ("target", "kind", "architecture", "cpu", "runs here"):
        table.add_column(name)
    for row in rows:
        table.add_row(
            row["target"],
            row["kind"],
            row["architecture"],
            row["mcpu"],
            "yes" if row["runs_here"] else "no",
        )
    open_console().print(table)


@app.command()
def run(
    library: LibraryArgument = None,
    lib: LibraryOption = None,
    inputs: Annotated[
        list[Path] | None,
        typer.Option("--input", "-i", help="An .npy file; once per input. Default: random."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Save the outputs as .npz (here only).")
    ] = None,
    repeat: Annotated[int, typer.Option(min=0, help="Timed runs after a warm-up; 0: none.")] = 10,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Instead of the compiled number (here only).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    size: Annotated[
        int, typer.Option(min=0, help="Of the random inputs: which of the library's, from 0.")
    ] = 0,
    tracker: Tracker = None,
    key: Key = None,
    expected: Annotated[
        Path | None, typer.Option(help="Outputs to verify devices against (.npy or .npz).")
    ] = None,
    profile: ProfileOption = False,
    sort: Sort = False,
    emulate: Annotated[
        bool,
        typer.Option(
            "--emulate", help="Run a kit (tvm-pattern kit) of another processor here, by QEMU."
        ),
    ] = False,
    json_output: Json = False,
) -> None:
    """Run a compiled library once and time it: here, or on every device of a tracker's key.

    Here its outputs are shown. With --tracker and --key there is one row per device. With
    --emulate a kit for another processor is run once, its outputs held against the model's.

    Example: tvm-pattern run --tracker 127.0.0.1:9190 --key pi5 --lib m.so --expected y.npy
    """
    from .deploy.cli import check_place, run_on_devices

    path = _only_library(library, lib)
    if emulate:
        given = {"--tracker": tracker, "--output": output, "--expected": expected}
        _refuse("--emulate", {**given, "--input": inputs or None, "--threads": threads})
        _run_emulated(path, json_output)
        return
    if check_place(tracker, key):
        _refuse("--tracker", {"--output": output, "--threads": threads})
        failed = run_on_devices(
            path,
            str(tracker),
            str(key),
            inputs=inputs,
            expected=expected,
            json_output=json_output,
            seed=seed,
            repeat=max(repeat, 1),
            profile=profile,
        )
        raise typer.Exit(1 if failed else 0)
    _refuse("a run on this machine", {"--expected": expected})
    _run_here(path, inputs, output, repeat, threads, seed, size, profile, sort, json_output)


def _run_emulated(kit: Path, json_output: bool) -> None:
    from .kit.emulate import emulate

    result = emulate(kit)
    rows = {row["engine"]: row["max_abs_error"] for row in result.rows}
    if json_output:
        print_json({"kit": result.kit, "max_abs_error": rows})
        return
    for engine, error in rows.items():
        print_lines(f"{engine}: right, the largest error is {error:.3g}")
    print_lines("under emulation; how long it takes there says nothing")


def _run_here(
    path: Path,
    inputs: list[Path] | None,
    output: Path | None,
    repeat: int,
    threads: int | None,
    seed: int,
    number: int,
    profile: bool,
    by_time: bool,
    json_output: bool,
) -> None:
    import numpy as np

    from .artifact import load
    from .atomic import write_arrays
    from .profiling import profile_text
    from .random_inputs import random_array
    from .timing import latency

    lib = load(path, num_threads=threads)
    arrays = [_read_array(path) for path in inputs or ()]
    if not arrays:
        if number >= len(lib.sizes):
            raise ValueError(f"--size {number}: {path} has {len(lib.sizes)} sizes, from 0")
        rng = np.random.default_rng(seed)
        wanted = lib.sizes[number].inputs
        arrays = [random_array(rng, s.shape, s.dtype) for s in wanted]
    lib = lib.at(*arrays)
    result = lib(*arrays)
    outputs = result if isinstance(result, tuple) else (result,)
    rows = [_describe_output(s.name, a) for s, a in zip(lib.outputs, outputs, strict=True)]
    timing = None
    if repeat:
        figures = latency(lib.benchmark(*arrays, repeat=repeat).results)
        timing = {"threads": lib.num_threads, **figures}
    layers = lib.profile() if profile else None
    if output is not None:
        named = {s.name: a for s, a in zip(lib.outputs, outputs, strict=True)}
        write_arrays(output, named)
    if json_output:
        shown = {"outputs": rows, "timing": timing}
        print_json({**shown, "profile": layers.as_dict()} if layers else shown)
        return
    _print_run(rows, timing)
    if layers is not None:
        width = open_console().width
        print_lines(profile_text({"here": layers}, width, by_time=by_time))


@app.command()
def bench(
    library: LibraryArgument = None,
    lib: LibraryOption = None,
    tracker: Tracker = None,
    key: Key = None,
    repeat: Annotated[int, typer.Option(min=1, help="Results per device.")] = 10,
    cool_down: Annotated[float, typer.Option(min=0, help="Seconds of rest before each.")] = 1.0,
    cluster: Annotated[
        str | None, typer.Option(help="Bind devices to their big or little cores.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Here: of a run. On devices: with --cluster.")
    ] = None,
    session_timeout: Annotated[
        float | None,
        typer.Option(help="Seconds that a device may take for a session. Default: 120."),
    ] = None,
    profile: ProfileOption = False,
    json_output: Json = False,
) -> None:
    """Time a compiled library here, or on every device of a tracker's key; one row each.

    A library of several sizes has a row for each of them.

    Example: tvm-pattern bench --tracker 127.0.0.1:9190 --key pi5 --lib m.so --cluster big
    """
    from .deploy.cli import bench_on_devices, check_place, print_results, time_here

    path = _only_library(library, lib)
    if check_place(tracker, key):
        limit = {} if session_timeout is None else {"session_timeout": session_timeout}
        failed = bench_on_devices(
            path,
            str(tracker),
            str(key),
            repeat=repeat,
            cool_down=cool_down,
            cluster=cluster,
            threads=threads,
            profile=profile,
            json_output=json_output,
            **limit,
        )
        raise typer.Exit(1 if failed else 0)
    _refuse("a run on this machine", {"--cluster": cluster, "--session-timeout": session_timeout})
    rows = time_here(path, repeat=repeat, cool_down=cool_down, threads=threads, profile=profile)
    print_results(rows, json_output)


def _only_library(argument: Path | None, option: Path | None) -> Path:
    """The library that was named, either way."""
    given = [path for path in (argument, option) if path is not None]
    if len(given) != 1:
        raise typer.BadParameter(
            f"got {len(given)} libraries, expected one: the argument, or --lib"
        )
    return given[0]


def _refuse(where: str, options: dict[str, Any]) -> None:
    """Refuse options that would have no effect."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise typer.BadParameter(f"{' and '.join(given)}: no effect with {where}; leave it out")


def _read_array(path: Path) -> Any:
    import numpy as np

    if not path.is_file():
        raise ValueError(f"no such file: {path}; expected an array saved by numpy.save")
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not an .npy file: {error}") from error


def _describe_output(name: str, array: Any) -> dict[str, Any]:
    return {
        "name": name,
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "min": float(array.min()),
        "max": float(array.max()),
        "argmax": int(array[0].argmax()),
    }


def _print_run(rows: list[dict[str, Any]], timing: dict[str, Any] | None) -> None:
    table = Table(title="Outputs")
    for name in ("name", "shape", "dtype", "min", "max", "argmax of the first"):
        table.add_column(name)
    for row in rows:
        shape = "x".join(map(str, row["shape"]))
        ends = (f"{row['min']:.4g}", f"{row['max']:.4g}")
        table.add_row(row["name"], shape, row["dtype"], *ends, str(row["argmax"]))
    console = open_console()
    console.print(table)
    if timing:
        from .timing import latency_line

        print_lines(f"{latency_line(timing)} on {timing['threads']} thread(s)")


def main() -> None:
    """Entry point of ``tvm-pattern``."""
    app(prog_name="tvm-pattern")


if __name__ == "__main__":
    main()
