"""Inputs read as images (textures), in programs that read them as buffers where there are none.

TVM's code generator has images for tensors that live in them. Activations here live in buffers,
and OpenCL 1.2 makes an image of a buffer without copying it (``image1d_buffer_t``): 128 bits of
the buffer are a texel. What is emitted is :func:`texel` of a buffer; :func:`with_textures` declares
the parameter as what :data:`SWITCH`, an option of the program's build, says. Without it a program
reads buffers, so that it runs wherever one without textures does.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm_ffi.registry import register_global_func

#: What programs are built with (``-D``) where their textures are images.
SWITCH = "TVM_PATTERN_IMAGES"
#: Before the names of the parameters that are textures, in a comment of the program.
MARK = "// Textures:"
TEXEL_BYTES = 16
#: Element type -> what a texel holds of it.
_TEXELS = {"float32": "float4", "float16": "half8"}
_ELEMENTS = {"float4": "float", "half8": "half"}
_HOOK = "tvm_callback_opencl_postproc"
_TEXEL = re.compile(r"\btexel_(\w+)\((\w+), ")
_MARKED = re.compile(rf"^{MARK}((?: \w+)+)$", re.MULTILINE)


def texel(buffer: Any, number: Any) -> Any:
    """The elements of texel ``number`` of a parameter, as a vector."""
    dtype = str(buffer.dtype)
    lanes = TEXEL_BYTES // np.dtype(dtype).itemsize
    name = f"texel_{_TEXELS[dtype]}"
    # Not pure, so that TVM reads it once and keeps it in a variable.
    return tirx.call_extern(f"{dtype}x{lanes}", name, buffer.data, number)


def with_textures(source: str) -> str:
    """A program of one kernel whose textures are declared; ``source`` itself if it has none."""
    kinds = dict.fromkeys(kind for kind, _ in _TEXEL.findall(source))
    names = dict.fromkeys(name for _, name in _TEXEL.findall(source))
    if not names:
        return source
    for name in names:
        pattern = rf"__global (\w+)\* restrict {name}\b"
        source = re.sub(pattern, rf"texture_of(\1) {name}", source)
    lines = [f"{MARK} {' '.join(names)}", f"#ifdef {SWITCH}"]
    lines.append("#define texture_of(T) __read_only image1d_buffer_t")
    lines += [f"#define texel_{kind}(x, i) as_{kind}(read_imageui(x, i))" for kind in kinds]
    lines += ["#else", "#define texture_of(T) __global const T* restrict"]
    lines += [
        f"#define texel_{kind}(x, i) (*(__global const {kind}*)((x) + {kind[-1]} * (i)))"
        for kind in kinds
    ]
    return "\n".join([*lines, "#endif", source])


def textures_of(source: str) -> tuple[str, ...]:
    """Names of a program's parameters that are textures."""
    found = _MARKED.search(source)
    return tuple(found[1].split()) if found else ()


def _declare_textures() -> None:
    """Let TVM's code generator hand its programs to :func:`with_textures`."""
    before = tvm.get_global_func(_HOOK, allow_missing=True)

    def finish(source: str, *target: Any) -> str:
        return with_textures(source if before is None else str(before(source, *target)))

    register_global_func(_HOOK, finish, override=True)


_declare_textures()
