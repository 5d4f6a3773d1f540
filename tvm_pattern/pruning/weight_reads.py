"""Whether a module around a layer reads the layer's weight, told from byte code: nothing is run.

A parent that takes ``self.conv.weight`` may compute another weight of it, and zeros are lost. Only
a run shows what becomes of it; without example inputs such a layer is worth a word.
"""

from __future__ import annotations

import dis
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType

from torch import nn

from .modules import clean_name, unwrap

# What is asked of a weight without computing with it.
_FACTS = frozenset({"data_ptr", "device", "dim", "dtype", "is_cuda", "ndim", "shape", "size"})


def _functions(kind: type) -> Iterator[CodeType]:
    """The code of a class's forward and of the methods that it names, at any depth."""
    waiting, seen = ["forward"], set()
    while waiting:
        name = waiting.pop()
        function = getattr(kind, name, None)
        if name in seen or not isinstance(function, FunctionType):
            continue
        seen.add(name)
        # Methods of torch's own that every module has are not looked into.
        if getattr(nn.Module, name, None) is not function:
            yield function.__code__
            waiting += function.__code__.co_names


def _read_by(code: CodeType) -> Iterator[str]:
    """``a.b`` for every ``self.a.b.weight`` whose values the code may use."""
    own = code.co_varnames[:1]
    path: list[str] | None = None
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    for step, after in zip(steps, [*steps[1:], steps[-1]], strict=True):
        if step.opname.startswith("LOAD_FAST"):
            names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
            path = [] if names[-1:] == own else None
        elif step.opname == "LOAD_ATTR" and path is not None:
            is_fact = after.opname in ("LOAD_ATTR", "LOAD_METHOD") and after.argval in _FACTS
            if step.argval == "weight" and path and not is_fact:
                yield ".".join(path)
            path.append(step.argval)
        else:
            path = None


def layers_read_elsewhere(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Layers whose weight the forward of a module around them takes as ``self.layer.weight``.

    Parameters
    ----------
    model : nn.Module
    names : iterable of str
        Layers to look for, by their clean names.

    Returns
    -------
    dict
        Layer name to the class that reads its weight. Layers that are reached otherwise, such as in
        a loop over ``self.layers``, are not seen.
    """
    wanted = set(names)
    reads = {}
    for place, module in unwrap(model).named_modules():
        for code in _functions(type(module)):
            for path in _read_by(code):
                name = clean_name(f"{place}.{path}" if place else path)
                if name in wanted:
                    reads[name] = type(module).__name__
    return reads
