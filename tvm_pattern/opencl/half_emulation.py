"""float16 kernels on devices without float16: the type is emulated in the kernels' source.

Every OpenCL device can load and store ``half``; arithmetic in it is an extension (``cl_khr_fp16``).
:func:`without_half` rewrites what TVM emits so that numbers are kept in ``float`` and rounded to
the nearest ``half`` wherever a device with the extension would round: at every conversion and at
every assignment to a variable of the type. A product and its sum in one assignment are rounded
once, as a fused multiply-add is. Results are those of such a device; times are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tvm_ffi.registry import register_global_func, remove_global_func

from .errors import OpenCLError

#: What the runtime in ``native/`` asks for when a device lacks float16.
HOOK = "tvm_pattern.opencl.without_half"
_GUARD = re.compile(r"#ifdef cl_khr_fp16.*?#endif[^\n]*\n", re.DOTALL)
_PARAMETER = re.compile(r"(?:__global half\* restrict|texture_of\(half\)) (\w+)")
_TEXEL = re.compile(r"^#define texel_half8\(x, i\) (as_half8)?.*$", re.MULTILINE)
#: A texel of halfs from an image, or from the buffer that it is elsewhere.
_TEXELS = {
    True: """float8 texel_of_half(uint4 bits) {
  uint4 kept = bits;
  return vload_half8(0, (__private const half *)&kept);
}
#define texel_half8(x, i) texel_of_half(read_imageui(x, i))""",
    False: "#define texel_half8(x, i) vload_half8(i, x)",
}
_VECTOR_LOAD = re.compile(r"\*\(const __global half(\d+)\*\)\(|\bvload(\d+)\(0, ")
_STATEMENT = re.compile(r"^(\s*)(?:half(\d*) )?(\w+)(\[[^=]*\])? = (.*);$")
_ARRAY = re.compile(r"^\s*(?:__local )?half(\d*) (\w+)\[\d+\];$")
_POINTER = "__global half *"
_KEPT = "__global HALF *"


def _helper(width: str) -> str:
    """OpenCL C that rounds a vector of floats to what halfs can hold."""
    count = width or "1"
    return (
        f"float{width} round_half{width}(float{width} x) {{\n"
        f"  ushort bits[{count}];\n"
        f"  vstore_half{width}_rte(x, 0, (__private half *)bits);\n"
        f"  return vload_half{width}(0, (__private const half *)bits);\n"
        "}\n"
    )


_HELPERS = "".join(_helper(width) for width in ("", "2", "4", "8", "16"))


def without_half(source: str) -> str:
    """OpenCL C that does in ``float`` what ``source`` does in ``half``.

    Parameters
    ----------
    source : str
        As TVM writes it, one statement a line; buffers keep their ``half`` elements.

    Returns
    -------
    str
        ``source`` itself if it has no ``half``.

    Raises
    ------
    OpenCLError
        If something of the type is left that was not understood.
    """
    if not re.search(r"\bhalf\d*\b", source):
        return source
    text = _GUARD.sub("", source)
    buffers = set(_PARAMETER.findall(text))
    widths: dict[str, str] = {}
    lines = []
    for line in text.replace("texture_of(half)", "texture_of(HALF)").split("\n"):
        array = _ARRAY.match(line)
        if array:
            widths[array[2]] = array[1]
        lines.append(_line(line, buffers, widths))
    result = _HELPERS + _TEXEL.sub(lambda m: _TEXELS[m[1] is not None], "\n".join(lines))
    left = re.search(r"\bhalf\d+\b|\bhalf\b(?! ?\*)", result.replace(_HELPERS, ""))
    if left:
        number = result[: result.index(left[0])].count("\n")
        raise OpenCLError(
            f"float16 cannot be emulated in {result.splitlines()[number].strip()[:120]!r}; compile"
            " the model in float32"
        )
    return result.replace("HALF", "half")


def _line(line: str, buffers: set[str], widths: dict[str, str]) -> str:
    """One statement without the type."""
    if "__kernel" in line or line.startswith("#"):
        return line
    text = _vector_stores(line, buffers)
    statement = _STATEMENT.match(text)
    if statement and not text.lstrip().startswith("for "):
        indent, width, name, index, value = statement.groups()
        declared = re.match(r"^\s*half\d* ", text) is not None
        value = _expression(value, buffers)
        if declared:
            return f"{indent}float{width or ''} {name} = {_rounded(value, width or '')};"
        if name in buffers:
            inner = _expression(index[1:-1], buffers)
            return f"{indent}vstore_half_rte({value}, {inner}, {name});"
        if name in widths:
            value = _rounded(value, widths[name])
        return f"{indent}{name}{_expression(index or '', buffers)} = {value};"
    return _expression(text, buffers)


def _rounded(value: str, width: str) -> str:
    """``value``, rounded unless it is loaded as it is."""
    if value.startswith(("vload_half", "texel_half8")) and _end(value, value.index("(")) == len(
        value
    ):
        return value
    return f"round_half{width}({value})"


def _expression(text: str, buffers: set[str]) -> str:
    """An expression without the type: loads, conversions, constants."""
    text = text.replace(_POINTER, _KEPT)
    text = _vector_loads(text)
    for name in buffers:
        text = _scalar_loads(text, name)
    text = re.sub(r"\bconvert_half(\d*)\(", r"round_half\1(", text)
    return re.sub(r"\bhalf(\d*)\b(?! ?\*)", r"float\1", text)


def _end(text: str, start: int) -> int:
    """Just behind the bracket that closes the one at ``start``."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] in "([") - (text[place] in ")]")
        if depth == 0:
            return place + 1
    raise OpenCLError(f"brackets do not match in {text.strip()[:120]!r}")


def _vector_loads(text: str) -> str:
    """``*(const __global half4*)(p)`` and ``vload4(0, p)`` of halfs -> ``vload_half4(0, p)``."""
    at = 0
    while found := _VECTOR_LOAD.search(text, at):
        opening = text.index("(", found.end() - 1) if found[1] else text.index("(", found.start())
        end = _end(text, opening)
        inside = text[found.end() : end - 1]
        if found[2] and _KEPT not in inside:
            at = found.end()
            continue
        text = f"{text[: found.start()]}vload_HALF{found[1] or found[2]}(0, {inside}){text[end:]}"
        at = found.start() + 1
    return text.replace("vload_HALF", "vload_half")


def _scalar_loads(text: str, name: str) -> str:
    """``x[i]`` -> ``vload_half(i, x)``."""
    pattern = re.compile(rf"\b{name}\[")
    while found := pattern.search(text):
        end = _end(text, found.end() - 1)
        text = (
            f"{text[: found.start()]}vload_half({text[found.end() : end - 1]}, {name}){text[end:]}"
        )
    return text


def _vector_stores(line: str, buffers: set[str]) -> str:
    """``vstore4(v, 0, x + i)`` -> ``vstore_half4_rte(v, 0, x + i)`` where ``x`` holds halfs."""
    found = re.match(r"^\s*vstore(\d+)\(", line)
    if not found:
        return line
    pointer = _arguments(line, found.end() - 1)[-1]
    if buffers.isdisjoint(re.findall(r"\w+", pointer)):
        return line
    return line.replace(f"vstore{found[1]}(", f"vstore_half{found[1]}_rte(", 1)


def _arguments(text: str, start: int) -> list[str]:
    """What stands between the commas of the bracket at ``start``."""
    end, depth, first = _end(text, start), 0, start + 1
    found = []
    for place in range(start, end):
        depth += (text[place] in "([") - (text[place] in ")]")
        if depth == 0 or (depth == 1 and text[place] == ","):
            found.append(text[first:place])
            first = place + 1
    return found


@contextmanager
def emulated_float16() -> Iterator[None]:
    """Let the OpenCL devices of this process that lack float16 run float16 libraries, slowly.

    For checking what a float16 library computes; kernels that are built inside keep working
    afterwards.

    Examples
    --------
    >>> with tvm_pattern.opencl.emulated_float16():  # doctest: +SKIP
    ...     y = library(x)
    """
    register_global_func(HOOK, without_half, override=True)
    try:
        yield
    finally:
        remove_global_func(HOOK)
