"""The server process: ``python -m tvm_pattern.rpc.serve``."""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_MORE_PORTS = 100


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies (Linux; elsewhere nothing)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(arguments: list[str] | None = None) -> int:
    """Serve until the process is ended; the exit code 1 tells that it could not start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tracker", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9090)
    parser.add_argument("--custom-address")
    parser.add_argument("--cpu", type=int)
    parser.add_argument("--opencl", action="store_true")
    options = parser.parse_args(arguments)
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})
    die_with_parent()

    if options.opencl:
        from ..opencl import load_runtime

        load_runtime()  # touches no driver: each session, which is forked, does that for itself

    from .listener import Listener, bind
    from .registration import Registration

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # A session that outlives its server computes on, and its client waits for it.
    os.register_at_fork(after_in_child=die_with_parent)
    host, port = options.tracker.rsplit(":", 1)
    try:
        sock = bind(options.host, options.port, min(65535, options.port + _MORE_PORTS))
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    bound = int(sock.getsockname()[1])
    registration = Registration((host, int(port)), options.key, bound, options.custom_address)
    listener = Listener(sock, registration)
    try:
        listener.run()
    except KeyboardInterrupt:
        listener.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
