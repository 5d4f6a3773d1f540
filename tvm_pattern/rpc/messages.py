"""What TVM's messages mean: over RPC it tells failures apart by their text alone.

The one table of these texts; each is known from a failure that a test brings about.
"""

from __future__ import annotations

#: Meaning -> texts of which one is in the message.
SIGNS: dict[str, tuple[str, ...]] = {
    "other_runtime": ("protocol version mismatch", "Invalid VM file format"),
    "other_architecture": ("cannot open shared object", "wrong ELF class"),
    "time_over": ("SessionTimeout", "TimeoutError", "Timeout, killed"),
    "process_died": ("Subprocess terminated",),
    "lost": (
        "kShutdown",
        "is false: code=1)",  # the same by its number: the line ended before the answer
        "Connect",  # refused, reset, aborted; also as the name of an exception
        "Broken pipe",
        "EOF",
        "closed",
        "NoDeviceError",
        "TrackerUnreachableError",
    ),
    # A server refuses who has not the key that its tracker gave.
    "other_key": ("cannot find server that matches key",),
    "no_space": ("No space left", "ENOSPC", "Disk quota", "File too large"),
    "no_room": ("maximum number of RPC session",),
    # TVM's client puts it before what the server reports.
    "said_by_device": ("Error caught from RPC call",),
}


def means(message: str, meaning: str) -> bool:
    """Whether a message of TVM has this meaning, one of :data:`SIGNS`."""
    return any(sign in message for sign in SIGNS[meaning])
