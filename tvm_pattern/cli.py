"""The command line: arguments to api calls, results to tables or JSON; no logic of its own."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand, TyperGroup

from .lanes import Lanes, LanesOption

# Commands that live in their own rooms: name -> module with a typer ``app``, and what the list of
# commands says of it: the module is imported when the command is used, since some bring torch.
MOUNTED: dict[str, tuple[str, str]] = {
    "prune": (
        "tvm_pattern.pruning.cli",
        "Train and prune a model by patterns and connectivity.",
    ),
    "posttrain": (
        "tvm_pattern.posttrain.cli",
        "Prune a trained model by some pictures: no labels, no training.",
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
        "tvm_pattern.opencl.cli",
        "List the OpenCL devices of this computer and what they can do.",
    ),
    "device": (
        "tvm_pattern.deploy.cli",
        "Run libraries on devices over RPC: the same as run and bench with --tracker.",
    ),
}


#: Exit code of a command that Ctrl-C ended, as shells have it.
INTERRUPTED = 130


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

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            _message("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except (ValueError, TypeError, KeyError, RuntimeError, OSError, ImportError) as error:
            if ctx.params.get("debug"):
                raise
            _message(f"[bold red]error:[/] {_escape(_first_line(error))}")
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Prune CNNs by patterns, compile them with TVM, and run them.\n\n"
    "Exit codes: 0 done, 1 the work failed, 2 wrong arguments, 130 interrupted.",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
LibraryArgument = Annotated[
    Path | None, typer.Argument(help="A library written by the command compile.")
]
LibraryOption = Annotated[Path | None, typer.Option("--lib", help="The library, as an option.")]
Host = Annotated[
    str | None,
    typer.Option(help="The CPU beside a GPU target: native, cortex-a76, ... Default: 64-bit ARM."),
]
Tracker = Annotated[str | None, typer.Option(help="HOST:PORT of an RPC tracker: use its devices.")]
Key = Annotated[str | None, typer.Option(help="Key of the devices; all of them are used.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Let code that a .pt2 file holds run while it is read.")
]
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
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show versions and exit."
        ),
    ] = False,
) -> None:
    del debug, version  # read by _Commands.invoke and _show_version


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
        _print_json(rows)
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
    _console().print(table)


@app.command("compile")
def compile_command(
    model: Annotated[
        str,
        typer.Argument(
            help="An .onnx or .pt2 file, a built-in network (resnet50, vgg16, vgg16_bn,"
            " mobilenet_v2), or package.module:factory."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Library: .so or .tar.")],
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Shape of an input, such as 1x3x224x224; once per input, in order."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Pruned weights (.safetensors) for the network.")
    ] = None,
    target: Annotated[str, typer.Option(help="See the command targets.")] = "pattern/native",
    host: Host = None,
    tuning_log: Annotated[Path | None, typer.Option(help="Records of the command tune.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of a run.")] = None,
    connectivity: Annotated[
        float | None,
        typer.Option(help="Prune the weights at once, without training: kernels / kept kernels."),
    ] = None,
    connectivity_1x1: Annotated[
        float | None, typer.Option(help="The same for 1x1 kernels; default 1, all of them stay.")
    ] = None,
    group: Annotated[
        int | None, typer.Option(help="Filters sharing kernels, with --connectivity; default 1.")
    ] = None,
    lanes: LanesOption = Lanes.AUTO,
    trust: Trust = False,
    bundles: Annotated[
        Path | None,
        typer.Option(
            help="For GPU targets: write each distinct convolution to this folder, as OpenCL that"
            " run_bundle.py (put there too) runs and times without TVM."
        ),
    ] = None,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not hold the library against the model.")
    ] = False,
    verify_graph: Annotated[
        bool,
        typer.Option(
            "--verify-graph",
            help="For a target that does not run here: hold the imported graph against the model.",
        ),
    ] = False,
    json_output: Json = False,
) -> None:
    """Compile a model into a library, with a report of what became of each convolution.

    The library is held against the model on random inputs before it is written.

    Example: tvm-pattern compile resnet50 --shape 1x3x224x224 --connectivity 3.6 --group 4 -o r.so
    """
    from .artifact import manifest_path
    from .compiler import compile as compile_library
    from .sources import examples_of, open_model, pruned_at_once

    if no_verify and verify_graph:
        raise typer.BadParameter("got --no-verify and --verify-graph, expected at most one")
    if bundles is not None:
        _check_bundles(target, host)
    examples = examples_of(shape)
    with _console(sys.stderr).status("compiling"):
        opened = open_model(model, weights, trust=trust)
        opened = pruned_at_once(opened, connectivity, connectivity_1x1, group)
        verify = "graph" if verify_graph else not no_verify
        library = compile_library(
            opened, examples, target, tuning_log, threads, verify, lanes.choice, host=host
        )
        library.export(output)
        written = [] if bundles is None else _write_bundles(bundles, opened, examples, target, host)
    files = [str(output), str(manifest_path(output)), *written]
    if json_output:
        rows = [asdict(row) for row in library.report.rows]
        facts = {"files": files, "size_bytes": output.stat().st_size, "report": rows}
        _print_json({**facts, "verification": library.manifest.verification})
        return
    console = _console()
    _print_report(console, library.report)
    console.print(f"wrote {' and '.join(files)} ({output.stat().st_size / 1e6:.1f} MB)")


def _check_bundles(target: str, host: str | None) -> None:
    from relay_passes.targets import resolve

    kind = resolve(target, host).kind.name
    if kind != "opencl":
        raise typer.BadParameter(
            f"--bundles holds OpenCL, the target {target} is of the kind {kind}; name a GPU, such"
            " as pattern/mali"
        )


def _write_bundles(
    folder: Path, model: Any, examples: Any, target: str, host: str | None
) -> list[str]:
    """The convolutions of a model as bundles."""
    from relay_passes.targets import resolve

    from .frontend import import_model
    from .opencl.bundle import write_bundles
    from .tuning.tasks import extract_tasks

    resolved = resolve(target, host)
    imported = import_model(model, examples)
    tasks = extract_tasks(imported.mod, resolved, 1, imported.structures)
    return [str(path) for path in write_bundles(folder, tasks, resolved)]


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
        int | None, typer.Option(help="Instead of the compiled number (here only).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    tracker: Tracker = None,
    key: Key = None,
    expected: Annotated[
        Path | None, typer.Option(help="Outputs to verify devices against (.npy or .npz).")
    ] = None,
    profile: ProfileOption = False,
    sort: Sort = False,
    json_output: Json = False,
) -> None:
    """Run a compiled library once and time it: here, or on every device of a tracker's key.

    Here its outputs are shown. With --tracker and --key there is one row per device.

    Example: tvm-pattern run --tracker 127.0.0.1:9190 --key pi5 --lib m.so --expected y.npy
    """
    from .deploy.cli import check_place, run_on_devices

    path = _only_library(library, lib)
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
    _run_here(path, inputs, output, repeat, threads, seed, profile, sort, json_output)


def _run_here(
    path: Path,
    inputs: list[Path] | None,
    output: Path | None,
    repeat: int,
    threads: int | None,
    seed: int,
    profile: bool,
    by_time: bool,
    json_output: bool,
) -> None:
    import numpy as np

    from .artifact import load
    from .profiling import profile_text
    from .timing import latency

    lib = load(path, num_threads=threads)
    arrays = [_read_array(path) for path in inputs or ()]
    if not arrays:
        rng = np.random.default_rng(seed)
        arrays = [rng.standard_normal(s.shape).astype(s.dtype) for s in lib.inputs]
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
        np.savez(output, **named)  # type: ignore[arg-type]
    if json_output:
        shown = {"outputs": rows, "timing": timing}
        _print_json({**shown, "profile": layers.as_dict()} if layers else shown)
        return
    _print_run(rows, timing)
    if layers is not None:
        width = _console().width
        _print_lines(profile_text({"here": layers}, width, by_time=by_time))


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
    profile: ProfileOption = False,
    json_output: Json = False,
) -> None:
    """Time a compiled library here, or on every device of a tracker's key; one row each.

    Example: tvm-pattern bench --tracker 127.0.0.1:9190 --key pi5 --lib m.so --cluster big
    """
    from .deploy.cli import bench_on_devices, check_place, print_results, time_here

    path = _only_library(library, lib)
    if check_place(tracker, key):
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
        )
        raise typer.Exit(1 if failed else 0)
    _refuse("a run on this machine", {"--cluster": cluster})
    row = time_here(path, repeat=repeat, cool_down=cool_down, threads=threads, profile=profile)
    print_results([row], json_output)


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


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A library written by the command compile.")],
    second: Annotated[Path, typer.Argument(help="Another one of the same model.")],
    repeat: Annotated[int, typer.Option(min=2, help="Rounds; each runs both once.")] = 30,
    threads: Annotated[int | None, typer.Option(help="Instead of the compiled numbers.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    json_output: Json = False,
) -> None:
    """Compare two libraries of one model: their outputs, and their times in turns.

    Example: tvm-pattern compare level0.so tuned.so --repeat 50
    """
    from .artifact import load
    from .comparison import compare as compare_libraries

    libraries = [load(path, num_threads=threads) for path in (first, second)]
    found = compare_libraries(*libraries, repeat=repeat, seed=seed)
    if json_output:
        _print_json({**asdict(found), "verdict": found.verdict})
        return
    table = Table(title=f"{repeat} rounds in turns")
    for name in ("library", "min ms", "p50", "p90", "p99"):
        table.add_column(name, justify="left" if name == "library" else "right")
    for path, row in ((first, found.first), (second, found.second)):
        figures = (row[name] for name in ("min_ms", "median_ms", "p90_ms", "p99_ms"))
        table.add_row(_escape(str(path)), *(f"{value:.3f}" for value in figures))
    _console().print(table)
    _print_lines(
        f"second / first: {found.ratio:.3f} (p10 {found.ratio_p10:.3f}, p90 {found.ratio_p90:.3f});"
        f" {found.verdict}\noutputs differ by at most {found.max_abs_error:.2e}, the largest is"
        f" {found.scale:.3g}"
    )


@app.command()
def inspect(
    library: Annotated[Path, typer.Argument(help="A library written by the command compile.")],
    by_cost: Annotated[bool, typer.Option("--sort", help="The dearest layers first.")] = False,
    source: Annotated[
        bool,
        typer.Option(
            "--source", help="Show the OpenCL C of a GPU's library, and what each kernel does."
        ),
    ] = False,
    json_output: Json = False,
) -> None:
    """Show what a library takes, gives and needs, and the report of its compilation.

    Works for libraries of other machines too, and for a manifest alone: no code runs.

    Example: tvm-pattern inspect resnet50.so --sort
    """
    from topi_kernels.report import RewriteReport

    from .machine import why_not_runnable
    from .manifest import Manifest, manifest_path
    from .publish import manifest_of

    if source:
        _show_sources(library, json_output)
        return
    is_here = library.is_file()
    manifest = manifest_of(library) if is_here else Manifest.read(manifest_path(library))
    reason = why_not_runnable(manifest.architecture, manifest.cpu_features)
    if json_output:
        _print_json({**asdict(manifest), "runs_here": reason is None})
        return
    console = _console()
    facts = Table(show_header=False, box=None)
    for name in ("inputs", "outputs"):
        specs = (f"{s['name']} {s['dtype']}{list(s['shape'])}" for s in getattr(manifest, name))
        facts.add_row(name, _escape(", ".join(specs)))
    facts.add_row("target", _escape(json.dumps(manifest.target)))
    facts.add_row("architecture", manifest.architecture)
    if manifest.abi:
        facts.add_row("ABI", f"{manifest.abi}, pages of up to {manifest.page_size} bytes")
    facts.add_row("cpu features", " ".join(manifest.cpu_features))
    facts.add_row("runs here", "yes" if reason is None else f"no: {reason}")
    facts.add_row("threads", str(manifest.num_threads))
    facts.add_row("versions", ", ".join(f"{k} {v}" for k, v in manifest.versions.items()))
    facts.add_row("verification", _escape(manifest.verification.get("summary", "not recorded")))
    facts.add_row("sha256", manifest.sha256)
    console.print(facts)
    report = RewriteReport.from_json(json.dumps(manifest.report))
    _print_report(console, report, by_cost)


def _show_sources(library: Path, json_output: bool) -> None:
    """The kernels of a library: buffers, launch, counts, OpenCL C."""
    from .opencl.inspection import kernels_of
    from .publish import manifest_of

    kernels = kernels_of(library, manifest_of(library).launches)
    if json_output:
        _print_json([asdict(kernel) for kernel in kernels])
        return
    for kernel in kernels:
        print(f"// {kernel.name}: {kernel.launch}")
        for line in kernel.described:
            print(f"//   {line}")
        print(kernel.source)


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
    console = _console()
    console.print(table)
    if timing:
        from .timing import latency_line

        _print_lines(f"{latency_line(timing)} on {timing['threads']} thread(s)")


def _print_report(console: Console, report: Any, by_cost: bool = False) -> None:
    console.print(report.table(console.width, by_cost=by_cost))
    _print_summary(console, report)
    _print_lines("\n".join(report.lines()))
    if report.warning:
        _message(f"[bold yellow]warning:[/] {_escape(report.warning)}")


def _print_lines(text: str) -> None:
    """Text as it is: no markup, no folding."""
    if text:
        print(text)


def _print_summary(console: Console, report: Any) -> None:
    dense = sum(row.dense_equivalent_gflop for row in report.rows)
    effective = sum(row.effective_gflop for row in report.rows)
    console.print(
        f"{len(report.taken)} of {len(report.rows)} convolutions taken;"
        f" {dense:.2f} dense-equivalent GFLOP, {effective:.2f} effective GFLOP"
    )


def _console(file: Any = None) -> Console:
    file = file or sys.stdout
    # Tables that are piped keep their columns instead of folding at 80.
    return Console(file=file, width=None if file.isatty() else 200)


def _message(text: str) -> None:
    Console(file=sys.stderr, soft_wrap=True).print(text, highlight=False)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def _first_line(error: BaseException) -> str:
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    return str(error).strip() or type(error).__name__


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=1))


def main() -> None:
    """Entry point of ``tvm-pattern``."""
    app(prog_name="tvm-pattern")


if __name__ == "__main__":
    main()
