"""Hands everything on to and from a server, and on request spoils what the server says next.

A program: TVM's client may keep every other Python thread of its process from running.

``relay.py PORT`` prints the port that it listens at; a line of standard input, in hexadecimal, is
said to the client in place of the next answer.
"""

from __future__ import annotations

import select
import socket
import sys


def main(port: int) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    client, _ = listener.accept()
    server = socket.create_connection(("127.0.0.1", port))
    there = {client: server, server: client}
    spoiled = b""
    while True:
        for ready in select.select([*there, sys.stdin], [], [])[0]:
            if ready is sys.stdin:
                spoiled = bytes.fromhex(sys.stdin.readline())
                print("ready", flush=True)
                continue
            data = ready.recv(1 << 16)
            if not data:
                return
            there[ready].sendall(spoiled if ready is server and spoiled else data)


if __name__ == "__main__":
    main(int(sys.argv[1]))
