"""Errors of the Python API in the words of the command line."""

from __future__ import annotations

import re
from typing import Any

#: What the API calls an argument whose option has another name: argument -> option's own.
_OTHER_NAMES = {"example_inputs": "shape", "num_threads": "threads", "size": "image_size"}
#: Values of arguments that options without a value stand for.
_SWITCHES = {
    "verify=False": "--no-verify",
    "verify='graph'": "--verify-graph",
    "trust=True": "--trust",
}
# An argument, the sign before its value, and its option where the message names both.
_ARGUMENT = re.compile(
    r"(?<![\w./'-])(?P<name>[a-z]\w*)(?![\w/(])(?P<value>=(?=\S))?(?: \((?P<option>--[\w-]+)\))?"
)


def options_of(command: Any) -> dict[str, str]:
    """The option of each argument, such as ``num_threads`` -> ``--threads``.

    Parameters
    ----------
    command : click.Command
        A group has the options of all its commands.
    """
    found: dict[str, str] = {}
    for part in getattr(command, "commands", {}).values():
        found.update(options_of(part))
    for parameter in command.params:
        long = [flag for flag in parameter.opts if flag.startswith("--")]
        if long:
            found[parameter.name] = long[0]
    others = {name: found[own] for name, own in _OTHER_NAMES.items() if own in found}
    return {**others, **found}


def in_options(text: str, options: dict[str, str]) -> str:
    """An error's text with the options that a user typed in place of the API's arguments.

    ``num_threads=0: expected ...`` becomes ``--threads 0: expected ...``. Words that are no
    arguments beyond doubt (``repeat`` without a value, say) stay.

    Parameters
    ----------
    text : str
    options : dict of str to str
        See :func:`options_of`.
    """
    flags = set(options.values())
    for switch, flag in _SWITCHES.items():
        if flag in flags:
            text = re.sub(rf"{re.escape(switch)}(?: \({flag}\))?", flag, text)

    def option(found: re.Match[str]) -> str:
        name, value = found["name"], found["value"]
        if name not in options or not (value or "_" in name):
            return found[0]
        said = found["option"]
        rest = f" ({said})" if said and said != options[name] else ""
        return f"{options[name]}{' ' * bool(value)}{rest}"

    return _ARGUMENT.sub(option, text)
