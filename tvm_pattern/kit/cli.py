"""``tvm-pattern kit``: arguments to :mod:`tvm_pattern.kit`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from .. import model_options as options
from ..lanes import Lanes, LanesOption
from ..terminal import Json, open_console, print_json, print_report

MAKE = "make"


class _MakeByDefault(TyperGroup):
    """``kit MODEL ...`` means ``kit make MODEL ...``.

    So every word that names no command names the one that makes a kit.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [MAKE, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_MakeByDefault,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make a folder that a phone runs and times without RPC; read what it wrote.\n\n"
    "kit MODEL is short for kit make MODEL.",
)


@app.command()
def make(
    model: Annotated[
        str, typer.Argument(help="As the command compile takes it.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the kit.")],
    shape: Annotated[
        list[str] | None, typer.Option(help="Shape of an input, such as 1x3x224x224.")
    ] = None,
    weights: options.Weights = None,
    target: options.Target = "pattern/native",
    host: options.Host = None,
    tuning_log: options.TuningLog = None,
    threads: Annotated[int, typer.Option(min=1, help="Most threads of a run.")] = 1,
    connectivity: options.Connectivity = None,
    connectivity_1x1: options.Connectivity1x1 = None,
    group: options.Group = None,
    lanes: LanesOption = Lanes.AUTO,
    trust: options.Trust = False,
    json_output: Json = False,
) -> None:
    """Write a network, its dense build, an input, the expected output and a runner as one folder.

    Push it to a phone or board and start run.sh there.

    Example: tvm-pattern kit make resnet50 --shape 1x3x224x224 --target pattern/cortex-a76 -o kit
    """
    from ..sources import examples_of, open_model, pruned_at_once
    from .write import write_kit

    with open_console(sys.stderr).status("compiling"):
        opened = open_model(model, weights, trust=trust)
        examples = examples_of(shape, opened)
        opened = pruned_at_once(opened, connectivity, connectivity_1x1, group)
        kit = write_kit(
            output,
            opened,
            examples,
            target=target,
            host=host,
            tuning_log=tuning_log,
            num_threads=threads,
            interleaved_lanes=lanes.choice,
            name=Path(model).stem if model.endswith((".onnx", ".pt2")) else model,
        )
    if json_output:
        rows = [asdict(row) for row in kit.report.rows]
        files = [str(path) for path in kit.files]
        print_json({"files": files, "size_bytes": kit.size_bytes, "report": rows})
        return
    console = open_console()
    print_report(console, kit.report)
    console.print(
        f"wrote {output} ({kit.size_bytes / 1e6:.1f} MB): push it to the device and start run.sh"
        " there, see README.txt in it"
    )


@app.command()
def read(
    files: Annotated[
        list[Path], typer.Argument(help="The result.json of each run, pulled from the devices.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File of all results; a table beside it.")
    ] = Path("phones.json"),
    name: Annotated[
        str | None, typer.Option(help="The device's name instead of what it says.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Check what devices wrote and add it to a file of results, with a table (.md) beside it.

    Example: tvm-pattern kit read result.json --name "Pixel 6" -o benchmarks/results/phones.json
    """
    from dataclasses import replace

    from .results import COLUMNS, add_results, read_result, table_rows

    if name is not None and len(files) != 1:
        raise typer.BadParameter(f"got --name and {len(files)} files; expected one file")
    results = [read_result(path) for path in files]
    if name is not None:
        device = {**results[0].device, "name": name}
        results = [replace(results[0], device=device)]  # type: ignore[arg-type]
    every = add_results(output, results)
    if json_output:
        print_json([{**asdict(result), "speedup": result.speedup} for result in every])
        return
    table = Table(title=str(output))
    for column in COLUMNS:
        table.add_column(column)
    for row in table_rows(every):
        table.add_row(*row)
    console = open_console()
    console.print(table)
    console.print(f"wrote {output} and {output.with_suffix('.md')}")
