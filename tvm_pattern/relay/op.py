"""``relay.op.get``: names of operators, for ``autotvm.task.extract_from_program(ops=...)``."""

from __future__ import annotations

_KNOWN = ("nn.conv2d", "nn.dense")


def get(name: str) -> str:
    """The operator of that name.

    Raises
    ------
    ValueError
        If the tuner knows no such operator.
    """
    if name not in _KNOWN:
        raise ValueError(f"got the operator {name!r}, expected one of {list(_KNOWN)}")
    return name
