"""What commands print: tables, lines, messages and JSON, and how much of them."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from rich.console import Console

from .option_words import in_options, options_of

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


VERBOSE = ("-v", "--verbose")
QUIET = ("-q", "--quiet")
#: Packages whose log lines ``--verbose`` shows.
_PACKAGES = ("topi_kernels", "relay_passes", "tvm_pattern")
_volume = 0


def take_volume(arguments: list[str]) -> tuple[int, list[str]]:
    """How much to say, wherever on a command line that stands: each ``-v`` is one more, ``-q`` -1.

    Returns
    -------
    tuple of (int, list of str)
        The volume and the other arguments. What follows ``--`` is left alone.

    Raises
    ------
    ValueError
        If both are given.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    head = arguments[:end]
    verbose = sum(head.count(word) for word in VERBOSE) + 2 * head.count("-vv")
    quiet = any(word in head for word in QUIET)
    if verbose and quiet:
        raise ValueError("got --verbose and --quiet, expected at most one of them")
    others = [word for word in head if word not in (*VERBOSE, *QUIET, "-vv")]
    return (-1 if quiet else verbose), others + arguments[end:]


def set_volume(volume: int) -> None:
    """Say less (-1), as usual (0), what is done (1) or all of it (2), in this process."""
    global _volume
    _volume = volume
    if volume == 0:
        return
    level = logging.ERROR if volume < 0 else logging.INFO if volume == 1 else logging.DEBUG
    logging.basicConfig(format="%(message)s", stream=sys.stderr, force=True)
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(level)
    if volume < 0:
        warnings.simplefilter("ignore")


def is_quiet() -> bool:
    """Whether progress, notes and warnings are not wanted."""
    return _volume < 0


def print_report(console: Console, report: Any, *, by_cost: bool = False) -> None:
    """Table, sums, notes and warning of a report of what became of each convolution."""
    console.print(report.table(console.width, by_cost=by_cost))
    _print_summary(console, report)
    print_lines("\n".join(report.lines()))
    if report.warning:
        message(f"[bold yellow]warning:[/] {escape(report.warning)}")


def print_lines(text: str) -> None:
    """Text as it is: no markup, no folding."""
    if text:
        print(text)


def _print_summary(console: Console, report: Any) -> None:
    from topi_kernels.report_table import flop_text

    dense = flop_text(sum(row.dense_equivalent_gflop for row in report.rows))
    effective = flop_text(sum(row.effective_gflop for row in report.rows))
    console.print(
        f"{len(report.taken)} of {len(report.rows)} convolutions taken;"
        f" {dense} FLOP dense-equivalent, {effective} FLOP effective"
    )


def open_console(file: Any = None) -> Console:
    """For tables, on standard output by default."""
    file = file or sys.stdout
    # Tables that are piped keep their columns instead of folding at 80.
    quiet = is_quiet() and file is sys.stderr
    return Console(file=file, width=None if file.isatty() else 200, quiet=quiet)


def message(text: str, *, is_error: bool = False) -> None:
    """A line of markup on standard error; with ``--quiet``, only if it is an error."""
    if is_error or not is_quiet():
        Console(file=sys.stderr, soft_wrap=True).print(text, highlight=False)


@contextlib.contextmanager
def warnings_as_messages(command: Callable[[], Any]) -> Iterator[None]:
    """Warnings in a line of the command's own words, without the place in the code.

    Parameters
    ----------
    command : callable
        Gives the command that runs.
    """

    def show(warning: Warning | str, *_: Any) -> None:
        text = in_options(str(warning), options_of(command()))
        message(f"[bold yellow]warning:[/] {escape(text)}")

    as_python_calls_it: Any = show  # the place in the code is not wanted
    with warnings.catch_warnings():
        warnings.showwarning = as_python_calls_it
        yield


def escape(text: str) -> str:
    """Text that is no markup."""
    return text.replace("[", r"\[")


def error_text(error: BaseException, command: Any = None) -> str:
    """What an error says, or its kind; arguments of the API as the options of ``command``."""
    said = error.args[0] if isinstance(error, KeyError) and error.args else error
    text = str(said).strip() or type(error).__name__
    return text if command is None else in_options(text, options_of(command))


def print_json(data: Any) -> None:
    """Data on standard output."""
    print(json.dumps(data, indent=1))
