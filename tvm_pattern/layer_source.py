"""What became of a layer: its PrimFuncs, and the machine code or OpenCL C that TVM makes of them.

A library carries its PrimFuncs, packed: in memory, and as a zip archive behind the machine code in
its file, which no loader of libraries reads. Code is made anew from them when it is asked for, for
the library's own target, so that libraries of other machines can be read too.
"""

from __future__ import annotations

import difflib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .manifest import ArtifactError

_LEVEL = 3
_PRIMFUNCS = "primfuncs/"
_PROGRAM = "program.cl"
_GRAPH = "graph.json"
# The same sources give the same bytes, whenever they are written.
_DATE = (1980, 1, 1, 0, 0, 0)
#: What debuggers read, between the instructions.
_FOR_DEBUGGERS = re.compile(r"\s*\.(loc|cfi_\w+|file)\b|\.L(tmp|func_begin|func_end)\d+:")
_SECTION = re.compile(r'\s*\.(text|data|bss|section\s+"?(?P<name>[^\s,"]+))')
# What is no code of the function: TVM's conversions of float16 are in every object file.
_NO_CODE = (".debug", ".note", ".text.tvm.fp16.conv")
# Texts of the errors by which arguments are checked, up to the next blank line.
_TEXT = re.compile(r"\s*\.type\s+\.L\.str")


@dataclass(frozen=True)
class FunctionSource:
    """One compiled function.

    Parameters
    ----------
    name : str
        Of the PrimFunc.
    tir : str
        The PrimFunc in TVMScript, as it was scheduled.
    language : str
        ``assembly`` or ``OpenCL C``.
    code : str
        What TVM makes of it for the library's target.
    """

    name: str
    tir: str
    language: str
    code: str


@dataclass(frozen=True)
class LayerSource:
    """The functions that compute a layer; as a text, all of them.

    Parameters
    ----------
    layer : str
    functions : tuple of FunctionSource
    """

    layer: str
    functions: tuple[FunctionSource, ...]

    def __str__(self) -> str:
        parts = []
        for function in self.functions:
            parts.append(f"# {self.layer}: {function.name}, TIR\n{function.tir.strip()}\n")
            comment = "//" if function.language == "OpenCL C" else "#"
            head = f"{comment} {self.layer}: {function.name}, {function.language}"
            parts.append(f"{head}\n{function.code.strip()}\n")
        return "\n".join(parts)


class Sources:
    """PrimFuncs of a library by name, packed, and its OpenCL C where it has some.

    Parameters
    ----------
    packed : mapping
        Name -> compressed JSON of the PrimFunc.
    program : str
        OpenCL C of the whole library.
    graph : mapping
        How its functions are connected, see :func:`tvm_pattern.compiled_graph.graph_of`.
    """

    def __init__(
        self,
        packed: Mapping[str, bytes],
        program: str = "",
        graph: Mapping[str, Any] | None = None,
    ) -> None:
        self._packed = dict(packed)
        self.program = program
        self.graph = dict(graph or {})

    @classmethod
    def of(
        cls, primfuncs: Mapping[str, str], graph: Mapping[str, Any], program: str = ""
    ) -> Sources:
        """Pack PrimFuncs, which come as TVM's JSON."""
        packed = {name: zlib.compress(text.encode(), _LEVEL) for name, text in primfuncs.items()}
        return cls(packed, program, graph)

    @classmethod
    def read(cls, path: Path) -> Sources:
        """The sources in a library's file; none if it was written without.

        Raises
        ------
        ArtifactError
            If they are damaged.
        """
        if not zipfile.is_zipfile(path):
            return cls({})
        try:
            with zipfile.ZipFile(path) as archive:
                names = set(archive.namelist())
                program = archive.read(_PROGRAM).decode() if _PROGRAM in names else ""
                graph = json.loads(archive.read(_GRAPH)) if _GRAPH in names else {}
                packed = {
                    name.removeprefix(_PRIMFUNCS): archive.read(name)
                    for name in sorted(names)
                    if name.startswith(_PRIMFUNCS)
                }
        except (zipfile.BadZipFile, OSError, ValueError, zlib.error, EOFError) as error:
            raise ArtifactError(
                f"the sources in {path} are damaged ({error}); export the library again"
            ) from None
        return cls(packed, program, graph)

    def append_to(self, file: BinaryIO) -> None:
        """Write the sources behind what a file holds."""
        memory = io.BytesIO()
        with zipfile.ZipFile(memory, "w") as archive:
            for name, data in sorted(self._packed.items()):
                archive.writestr(zipfile.ZipInfo(_PRIMFUNCS + name, _DATE), data)
            for name, text in ((_PROGRAM, self.program), (_GRAPH, json.dumps(self.graph))):
                archive.writestr(zipfile.ZipInfo(name, _DATE), text, zipfile.ZIP_DEFLATED)
        file.seek(0, io.SEEK_END)
        file.write(memory.getvalue())

    def functions_of(self, layer: str, steps: Sequence[Mapping[str, Any]]) -> list[str]:
        """Names of the functions that compute a layer, or of the one with that name.

        Raises
        ------
        ArtifactError
            If the library holds no sources.
        ValueError
            If there is no such layer; what there is instead is named.
        """
        if not self._packed:
            raise ArtifactError("the library holds no sources; compile and export it again")
        ops = list(dict.fromkeys(step["op"] for step in steps if step["layer"] == layer))
        found = [name for name in ops or [layer] if name in self._packed]
        if found:
            return found
        names = self.layers(steps)
        near = difflib.get_close_matches(layer, names, 3, 0.4) or names[:6]
        raise ValueError(
            f"no layer {layer!r} in this library; expected one of its {len(names)} layers and"
            f" functions, such as {', '.join(map(repr, near))}"
        )

    def layers(self, steps: Sequence[Mapping[str, Any]]) -> list[str]:
        """All layers, and the functions that belong to none."""
        ops = {step["op"] for step in steps}
        names = [*(step["layer"] for step in steps), *sorted(set(self._packed) - ops)]
        return list(dict.fromkeys(names))

    def primfunc(self, name: str) -> Any:
        """The PrimFunc of that name."""
        import tvm

        return tvm.ir.load_json(zlib.decompress(self._packed[name]).decode())

    def of_layer(self, layer: str, steps: Sequence[Mapping[str, Any]], target: Any) -> LayerSource:
        """The sources of a layer.

        Parameters
        ----------
        layer : str
            As reports and profiles name it; or the name of a compiled function.
        steps : sequence of mapping
            Of the library's manifest.
        target : tvm.target.Target

        Raises
        ------
        ArtifactError, ValueError
            As :meth:`functions_of`.
        """
        names = self.functions_of(layer, steps)
        return LayerSource(layer, tuple(self._function(name, target) for name in names))

    def _function(self, name: str, target: Any) -> FunctionSource:
        func = self.primfunc(name)
        if target.kind.name == "llvm":
            language, code = "assembly", self._assembly(name, func, target)
        else:
            language, code = "OpenCL C", kernels_in(self.program, name)
        return FunctionSource(name, func.script(), language, code)

    def _assembly(self, name: str, func: Any, target: Any) -> str:
        from .building import assembly

        calls = b'"ir.GlobalVar"' in zlib.decompress(self._packed[name])
        functions = {other: self.primfunc(other) for other in self._packed} if calls else {}
        return readable_assembly(assembly({**functions, name: func}, target))


def readable_assembly(text: str) -> str:
    """Instructions and constants, without what only debuggers read and without texts of errors."""
    lines = []
    is_code, is_text = True, False
    for line in text.splitlines():
        section = _SECTION.match(line)
        if section is not None:
            is_code = not (section["name"] or "").startswith(_NO_CODE)
        is_text = bool(_TEXT.match(line)) or (is_text and bool(line.strip()))
        if is_code and not is_text and not _FOR_DEBUGGERS.match(line):
            lines.append(line)
    return "\n".join(lines) + "\n"


def kernels_in(program: str, function: str) -> str:
    """The kernels of one compiled function, out of the OpenCL C of a whole library."""
    parts = re.split(r"(?m)^(?=// Function: )", program)
    head = re.compile(rf"// Function: {re.escape(function)}_kernel(_\d+)?\s")
    return "".join(part for part in parts if head.match(part))


def gpu_sources(lowered: Any, executable: Any, graph: Mapping[str, Any]) -> Sources:
    """The sources of a library for a GPU.

    Parameters
    ----------
    lowered : tvm.IRModule
        What it was compiled from.
    executable : tvm.runtime.Executable
        Whose OpenCL C is kept as it is.
    graph : mapping
        Of :func:`tvm_pattern.compiled_graph.graph_of`.
    """
    import tvm

    primfuncs = {
        var.name_hint: tvm.ir.save_json(func)
        for var, func in lowered.functions_items()
        if isinstance(func, tvm.tirx.PrimFunc)
    }
    return Sources.of(primfuncs, graph, "\n".join(_opencl_programs(executable.mod)))


def _opencl_programs(module: Any) -> list[str]:
    own = [module.inspect_source()] if module.kind == "opencl" else []
    return own + [text for part in module.imports for text in _opencl_programs(part)]
