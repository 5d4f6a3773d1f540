"""``tvm-pattern inspect``: a manifest, or the kernels of a GPU's library, without TVM and torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .terminal import Json, escape, message, open_console, print_json, print_lines, print_report

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command("inspect")
def inspect(
    library: Annotated[Path, typer.Argument(help="A library written by the command compile.")],
    by_cost: Annotated[bool, typer.Option("--sort", help="The dearest layers first.")] = False,
    source: Annotated[
        str | None,
        typer.Option(
            help="Show what computes a LAYER: TIR, and assembly or OpenCL C; 'all' for all layers"
            " (of a GPU's library: all kernels, and what each does)."
        ),
    ] = None,
    graph: Annotated[
        Path | None,
        typer.Option(help="Write the compiled graph as an ONNX file, to be looked at in Netron."),
    ] = None,
    json_output: Json = False,
) -> None:
    """Show what a library takes, gives and needs, and the report of its compilation.

    Works for libraries of other machines too, and for a manifest alone: no code runs.

    Example: tvm-pattern inspect resnet50.so --sort

    Example: tvm-pattern inspect resnet50.so --source layer1.0.conv2
    """
    from topi_kernels.report import RewriteReport

    from .machine import why_not_runnable
    from .manifest import Manifest, manifest_path
    from .publish import manifest_of

    if graph is not None:
        _write_graph(library, graph)
    if source is not None:
        _show_sources(library, source, json_output)
    if source is not None or graph is not None:
        return
    is_here = library.is_file()
    manifest = manifest_of(library) if is_here else Manifest.read(manifest_path(library))
    reason = why_not_runnable(manifest.architecture, manifest.cpu_features)
    if json_output:
        print_json({**asdict(manifest), "runs_here": reason is None})
        return
    console = open_console()
    facts = Table(show_header=False, box=None)
    for name in ("inputs", "outputs"):
        specs = (f"{s['name']} {s['dtype']}{list(s['shape'])}" for s in getattr(manifest, name))
        facts.add_row(name, escape(", ".join(specs)))
    for number, size in enumerate(manifest.sizes, 1):
        specs = (f"{s['name']} {s['dtype']}{list(s['shape'])}" for s in size["inputs"])
        facts.add_row(f"size {number}", escape(", ".join(specs)))
    facts.add_row("target", escape(json.dumps(manifest.target)))
    facts.add_row("architecture", manifest.architecture)
    if manifest.abi:
        facts.add_row("ABI", f"{manifest.abi}, pages of up to {manifest.page_size} bytes")
    facts.add_row("cpu features", " ".join(manifest.cpu_features))
    facts.add_row("runs here", "yes" if reason is None else f"no: {reason}")
    facts.add_row("threads", str(manifest.num_threads))
    facts.add_row("versions", ", ".join(f"{k} {v}" for k, v in manifest.versions.items()))
    facts.add_row("verification", escape(manifest.verification.get("summary", "not recorded")))
    facts.add_row("sha256", manifest.sha256)
    console.print(facts)
    report = RewriteReport.from_json(json.dumps(manifest.report))
    print_report(console, report, by_cost=by_cost)


def _write_graph(library: Path, path: Path) -> None:
    from .compiled_graph import write_onnx
    from .layer_source import Sources
    from .publish import manifest_of

    manifest = manifest_of(library)
    write_onnx(path, Sources.read(library).graph, manifest)
    message(f"wrote {escape(str(path))}: the compiled graph, for Netron; it does not run")


def _show_sources(library: Path, layer: str, json_output: bool) -> None:
    """One layer's source, or everything."""
    from .manifest import ArtifactError
    from .publish import manifest_of

    manifest = manifest_of(library)
    if layer == "all" and manifest.target.get("kind") != "llvm":
        _show_kernels(library, manifest.launches, json_output)
        return
    import tvm

    from .description import target_of
    from .layer_source import Sources

    compiled_by = manifest.versions.get("tvm")
    if compiled_by != tvm.__version__:
        raise ArtifactError(
            f"{library} was compiled by TVM {compiled_by}, this is {tvm.__version__}; expected the"
            " same, since sources are made anew"
        )
    sources, target = Sources.read(library), target_of(manifest, str(library))
    layers = sources.layers(manifest.steps) if layer == "all" else [layer]
    found = [sources.of_layer(name, manifest.steps, target) for name in layers]
    if json_output:
        print_json([asdict(item) for item in found])
        return
    for item in found:
        print_lines(str(item))


def _show_kernels(library: Path, launches: dict[str, list[list[int]]], json_output: bool) -> None:
    """The kernels of a GPU's library: buffers, launch, counts, OpenCL C."""
    from .opencl.inspection import kernels_of

    kernels = kernels_of(library, launches)
    if json_output:
        print_json([asdict(kernel) for kernel in kernels])
        return
    for kernel in kernels:
        print(f"// {kernel.name}: {kernel.launch}")
        for line in kernel.described:
            print(f"//   {line}")
        print(kernel.source)
