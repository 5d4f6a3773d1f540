"""What goes wrong with OpenCL, in words, and which layer it was."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

# How each message of the runtime in native/ begins, whatever TVM and RPC put around it.
_MARK = "OpenCL: "
_KERNEL = re.compile(r"kernel (\w+)")
_SUFFIX = re.compile(r"_kernel(_\d+)?$")


class OpenCLError(RuntimeError):
    """OpenCL is not there, or a device cannot do what was asked."""


def message_of(text: str) -> str | None:
    """What the runtime said, out of an error's text; None if it said nothing."""
    _, mark, message = text.rpartition(_MARK)
    return mark + message.strip() if mark else None


def explain(text: str, steps: Sequence[Mapping[str, Any]]) -> OpenCLError | None:
    """The error that a library reports: what the runtime said, and the layer it is about.

    Parameters
    ----------
    text : str
        Of the error that TVM raised.
    steps : sequence of mapping
        The manifest's: which compiled function belongs to which layer.

    Returns
    -------
    OpenCLError or None
        None if the runtime in ``native/`` said nothing.
    """
    message = message_of(text)
    if message is None:
        return None
    kernel = _KERNEL.search(message)
    function = _SUFFIX.sub("", kernel.group(1)) if kernel else None
    layers = list(dict.fromkeys(step["layer"] for step in steps if step["op"] == function))
    named = f"in layer {', '.join(layers)}: " if layers else ""
    return OpenCLError(named + message)
