"""Commands without the seconds of their imports: one process imports, and forks for each of them.

As a program with the path of a socket, this file serves. With that path and arguments it is the
command line (or, of ``-``, Python with a script from standard input) in a fork of the server, in
its own folder, environment and files.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
import types


def serve(path: str) -> None:
    """Fork for each connection, one after the other."""
    import torch  # noqa: F401
    import tvm  # noqa: F401

    import tvm_pattern.compiler  # noqa: F401

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            with connection:
                message, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
                child = os.fork()
                if child == 0:
                    server.close()
                    run(json.loads(message), files)
                for file in files:
                    os.close(file)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                connection.sendall(str(code).encode())


def run(job: dict, files: list[int]) -> None:
    """What the process was started for; ends it."""
    code = 1
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.chdir(job["folder"])
        os.environ.clear()
        os.environ.update(job["environment"])
        sys.path[:0] = ["", *filter(None, job["environment"].get("PYTHONPATH", "").split(":"))]
        sys.argv = ["tvm-pattern", *job["arguments"]]
        if job["arguments"] == ["-"]:
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(sys.stdin.read(), "<stdin>", "exec"), main.__dict__)
        else:
            from tvm_pattern.cli import main as command_line

            command_line()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ask(path: str, arguments: list[str]) -> int:
    """Exit code of a fork with these arguments."""
    job = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [json.dumps(job).encode()], [0, 1, 2])
        return int(connection.recv(16))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    sys.exit(ask(sys.argv[1], sys.argv[2:]))
