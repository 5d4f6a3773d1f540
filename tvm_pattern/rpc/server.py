"""Start a tracker, and a server that is restarted should it die.

A session that crashes does not end the server (:mod:`tvm_pattern.rpc.listener`); what kills its
process does. :func:`supervise` starts it again, and takes orphaned sessions with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from .client import parse_address

logger = logging.getLogger(__name__)

FIRST_SERVER_PORT = 9090
_PORTS = 10
_RESTART_PAUSE = 0.2
# A server that dies this soon again and again has another problem than a crashed session.
_SHORT_LIFE = 3.0
_MAX_SHORT_LIVES = 5


@dataclass(frozen=True)
class ServerOptions:
    """One RPC server.

    Parameters
    ----------
    tracker : str
        ``HOST:PORT``.
    key : str
        Name of the kind of device.
    host : str, optional
        Address to listen at; default: this machine's own on the way to the tracker, which is
        loopback for a tracker that runs here.
    port : int
        First port to try.
    custom_address : str, optional
        Address the tracker shall tell clients, behind port forwarding.
    cpu : int, optional
        Core that the server and its sessions stay on.
    opencl : bool
        Whether sessions get the OpenCL devices of this machine.
    """

    tracker: str
    key: str
    host: str | None = None
    port: int = FIRST_SERVER_PORT
    custom_address: str | None = None
    cpu: int | None = None
    opencl: bool = False

    def __post_init__(self) -> None:
        parse_address(self.tracker)
        if not self.key or any(c.isspace() or c == ":" for c in self.key):
            raise ValueError(f"key {self.key!r}: expected a word without spaces and colons")
        if not 0 < self.port < 65536:
            raise ValueError(f"port {self.port}: expected 1 to 65535")
        if self.cpu is not None and self.cpu not in os.sched_getaffinity(0):
            raise ValueError(
                f"core {self.cpu} is not among those this process may use:"
                f" {sorted(os.sched_getaffinity(0))}"
            )

    @property
    def listen_address(self) -> str:
        """Where the server listens.

        Raises
        ------
        RuntimeError
            If no host is given and there is no way to the tracker.
        """
        return address_towards(*parse_address(self.tracker)) if self.host is None else self.host

    def command(self) -> list[str]:
        """The command of the process that :func:`supervise` keeps alive."""
        command = [sys.executable, "-m", "tvm_pattern.rpc.serve"]
        command += ["--tracker", self.tracker, "--key", self.key]
        command += ["--host", self.listen_address, "--port", str(self.port)]
        if self.custom_address is not None:
            command += ["--custom-address", self.custom_address]
        if self.cpu is not None:
            command += ["--cpu", str(self.cpu)]
        if self.opencl:
            command += ["--opencl"]
        return command


def supervise(
    options: ServerOptions,
    stop: threading.Event,
    tell: Callable[[str], None] = logger.warning,
) -> int:
    """Keep a server running until ``stop`` is set; returns how often it was restarted.

    Raises
    ------
    RuntimeError
        If the server dies at once several times in a row.
    """
    restarts = short_lives = 0
    while True:
        started = time.monotonic()
        process = subprocess.Popen(options.command(), start_new_session=True)
        try:
            while process.poll() is None and not stop.wait(0.1):
                pass
        finally:
            end_group(process)
        if stop.is_set():
            return restarts
        short_lives = short_lives + 1 if time.monotonic() - started < _SHORT_LIFE else 0
        if short_lives >= _MAX_SHORT_LIVES:
            raise RuntimeError(
                f"the server for {options.key!r} died {short_lives} times right after its start"
                f" (last exit code {process.returncode}); run `{' '.join(options.command())}` to"
                " see why"
            )
        restarts += 1
        tell(
            f"the server for {options.key!r} died (exit code {process.returncode}); restarted"
            f" ({restarts})"
        )
        stop.wait(_RESTART_PAUSE)


def end_group(process: subprocess.Popen) -> None:
    """Kill a process that leads a session, with everything it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


def address_towards(host: str, port: int) -> str:
    """This machine's own address on the way to another, by its routing table; nothing is sent.

    Raises
    ------
    RuntimeError
        If there is no way.
    """
    try:
        with socket.socket(address_family(host), socket.SOCK_DGRAM) as sock:
            sock.connect((host, port))
            return str(sock.getsockname()[0])
    except OSError as error:
        raise RuntimeError(
            f"no way to the tracker at {host}:{port} ({error}); compare the address with what the"
            " tracker printed, or say by --host where to listen"
        ) from error


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address."""
    return address == "localhost" or address.startswith("127.") or address == "::1"


def lan_address() -> str:
    """Address of this machine in its network; loopback where it has none."""
    try:
        return address_towards("10.255.255.255", 1)
    except RuntimeError:
        return "127.0.0.1"


def phone_commands(tracker: str, key: str) -> list[str]:
    """What to run on a device so that it serves under ``key``, one command per way to serve."""
    first, last = FIRST_SERVER_PORT, FIRST_SERVER_PORT + _PORTS - 1
    return [
        f"TVM_USE_RUNTIME_LIB=1 python -m tvm.exec.rpc_server --host 0.0.0.0 --port {first}"
        f" --port-end {last} --tracker {tracker} --key {key}",
        f"./tvm_rpc server --host=0.0.0.0 --port={first} --port-end={last}"
        f" --tracker={tracker} --key={key}",
    ]


def run_tracker(host: str, port: int, ready: Callable[[int], None]) -> None:
    """Run a tracker in this process until it is interrupted.

    Parameters
    ----------
    host : str
    port : int
        0 chooses a free one.
    ready : callable
        Called with the port once the tracker listens.

    Raises
    ------
    RuntimeError
        If the port cannot be bound.
    """
    from .tracker import serve

    with socket.socket(address_family(host), socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
            sock.listen(128)
        except OSError as error:
            raise RuntimeError(
                f"cannot listen at {host}:{port}: {error}; another tracker may run there already,"
                f" see `tvm-pattern rpc status --tracker {host}:{port}`"
            ) from error
        ready(int(sock.getsockname()[1]))
        serve(sock)


def address_family(host: str) -> socket.AddressFamily:
    """IPv4 or IPv6, as ``host`` resolves."""
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
