"""``tvm-pattern compile``: arguments to :func:`tvm_pattern.compile`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from . import model_options as options
from .lanes import Lanes, LanesOption
from .terminal import Json, open_console, print_json, print_report

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


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
        typer.Option(
            help="Shape of an input, such as 1x3x224x224; once per input, in order. Again for each"
            " further size that the library shall take."
        ),
    ] = None,
    weights: options.Weights = None,
    target: options.Target = "pattern/native",
    host: options.Host = None,
    tuning_log: options.TuningLog = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of a run.")] = None,
    connectivity: options.Connectivity = None,
    connectivity_1x1: options.Connectivity1x1 = None,
    group: options.Group = None,
    lanes: LanesOption = Lanes.AUTO,
    no_winograd: Annotated[
        bool,
        typer.Option(
            "--no-winograd",
            help="Compute dense 3x3 layers by plain sums, not by Winograd's filtering.",
        ),
    ] = False,
    trust: options.Trust = False,
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
    host_operators: Annotated[
        bool,
        typer.Option(
            "--host-operators",
            help="Leave operators that nobody translates to torch, which the library then needs.",
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
    from .library import check_export_path
    from .sources import open_model, pruned_at_once, sizes_of

    if no_verify and verify_graph:
        raise typer.BadParameter("got --no-verify and --verify-graph, expected at most one")
    if bundles is not None:
        _check_bundles(target, host)
    check_export_path(output)
    with open_console(sys.stderr).status("compiling"):
        opened = open_model(model, weights, trust=trust)
        sizes = sizes_of(shape, opened)
        opened = pruned_at_once(opened, connectivity, connectivity_1x1, group)
        verify = "graph" if verify_graph else not no_verify
        library = compile_library(
            opened,
            None,
            target,
            tuning_log,
            threads,
            verify=verify,
            interleaved_lanes=lanes.choice,
            host=host,
            sizes=sizes,
            winograd=not no_winograd,
            host_operators=host_operators,
        )
        library.export(output)
        written = []
        if bundles is not None:
            first = None if sizes is None else sizes[0]
            written = _write_bundles(bundles, opened, first, target, host)
    files = [str(output), str(manifest_path(output)), *written]
    if json_output:
        rows = [asdict(row) for row in library.report.rows]
        facts = {"files": files, "size_bytes": output.stat().st_size, "report": rows}
        inputs = [[list(spec.shape) for spec in size.inputs] for size in library.sizes]
        print_json({**facts, "sizes": inputs, "verification": library.manifest.verification})
        return
    console = open_console()
    print_report(console, library.report)
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
