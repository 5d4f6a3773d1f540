"""``tvm-pattern rpc``: tracker, server, status, doctor."""

from __future__ import annotations

import json
import signal
import sys
import threading
from dataclasses import asdict, replace
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Serve and inspect devices over RPC."
)

Tracker = Annotated[str, typer.Option(help="HOST:PORT of the tracker.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
LOOPBACK = "127.0.0.1"


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


@app.command()
def tracker(
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")
    ] = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 9190,
    key: Annotated[str, typer.Option(help="Key in the printed commands.")] = "phone",
) -> None:
    """Run a tracker, and print what to run on the devices.

    Whoever reaches a tracker or server may run code on the devices: use networks you trust.

    Example: tvm-pattern rpc tracker --host 0.0.0.0 --port 9190 --key pi5
    """
    from .server import lan_address, phone_commands, run_tracker

    console = _console()

    def ready(bound: int) -> None:
        shown = lan_address() if host == "0.0.0.0" else host
        address = f"{shown}:{bound}"
        console.print(f"tracker at {address}", soft_wrap=True)
        console.print("on a device with Python, or with TVM's C++ server:", soft_wrap=True)
        for command in phone_commands(address, key):
            console.print(f"  {command}", soft_wrap=True)
        console.print("on this machine:", soft_wrap=True)
        console.print(f"  tvm-pattern rpc server --tracker {address} --key {key}", soft_wrap=True)
        if host == LOOPBACK:
            console.print(
                f"over USB, first: adb reverse tcp:{bound} tcp:{bound}; adb forward tcp:9090"
                " tcp:9090",
                soft_wrap=True,
            )

    try:
        run_tracker(host, port, ready)
    except KeyboardInterrupt:
        console.print("tracker stopped")


@app.command()
def server(
    tracker: Tracker,
    key: Annotated[str, typer.Option(help="Name of the kind of device.")],
    host: Annotated[
        str | None,
        typer.Option(
            help="Address to listen at. Default: the one that the tracker's way leads to."
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="First port to try.")] = 9090,
    custom_address: Annotated[
        str | None, typer.Option(help="Address that clients shall use instead.")
    ] = None,
    cpu: Annotated[int | None, typer.Option(help="Core to stay on.")] = None,
    opencl: Annotated[
        bool, typer.Option("--opencl", help="Serve the OpenCL devices of this machine too.")
    ] = False,
) -> None:
    """Serve this machine to a tracker; a server that dies is restarted.

    With a tracker on another computer it listens where that computer reaches it.

    Example: tvm-pattern rpc server --tracker 192.168.1.5:9190 --key pi5
    """
    from .server import ServerOptions, is_loopback, supervise

    options = ServerOptions(tracker, key, host, port, custom_address, cpu, opencl)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    console = _console()
    address = options.listen_address
    options = replace(options, host=address)
    gpu = f" with {_opencl_device()}" if opencl else ""
    console.print(f"serving {key} to {tracker}, at {address}{gpu}; Ctrl-C stops", soft_wrap=True)
    if not is_loopback(address):
        console.print(
            f"warning: whoever reaches {address} may run code here; use a network you trust",
            soft_wrap=True,
        )
    restarts = supervise(options, stop, lambda text: console.print(text, soft_wrap=True))
    console.print(f"server stopped after {restarts} restarts")


def _opencl_device() -> str:
    """The device that clients get as ``cl(0)``; the server would say too late that it has none."""
    from ..opencl import OpenCLError, devices
    from ..opencl.facts import why_none

    found = devices()
    if not found:
        raise OpenCLError(why_none())
    return found[0].name


@app.command()
def status(tracker: Tracker = f"{LOOPBACK}:9190", json_output: Json = False) -> None:
    """Show the devices a tracker knows, where they are, and the requests that wait.

    Example: tvm-pattern rpc status --tracker 192.168.1.5:9190
    """
    from .client import TrackerClient, parse_address

    rows = TrackerClient(*parse_address(tracker)).status()
    if json_output:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    table = Table(title=f"Tracker {tracker}")
    for name in ("key", "devices", "free", "waiting requests", "addresses"):
        table.add_column(name)
    for row in rows:
        table.add_row(
            row.key, str(row.devices), str(row.free), str(row.pending), " ".join(row.addresses)
        )
    _console().print(table)


@app.command()
def doctor(
    tracker: Tracker = f"{LOOPBACK}:9190",
    key: Annotated[str | None, typer.Option(help="Device to check.")] = None,
    target: Annotated[str | None, typer.Option(help="Target to check on the device.")] = None,
    cpu_host: Annotated[
        str | None, typer.Option("--host", help="The CPU beside a GPU target, as for compile.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Find out why a device cannot be used. Exit code 1 if something is wrong.

    Example: tvm-pattern rpc doctor --tracker 192.168.1.5:9190 --key pi5
    """
    from relay_passes.targets import resolve

    from ..crosscompile import linker_for
    from .client import TrackerClient, parse_address
    from .doctor import diagnose

    resolved = resolve(target, cpu_host) if target is not None else None
    linker = linker_for(resolved) if resolved is not None else None
    findings = diagnose(TrackerClient(*parse_address(tracker)), key, resolved, linker)
    if json_output:
        print(json.dumps([asdict(f) for f in findings], indent=1))
    else:
        console = _console()
        for f in findings:
            console.print(f"{'ok  ' if f.ok else 'FAIL'} {f.check}: {f.detail}", soft_wrap=True)
    if not all(f.ok for f in findings):
        raise typer.Exit(1)
