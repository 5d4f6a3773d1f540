"""Weights as part of an ELF file: a relocatable object, or a segment behind a linked library.

A compiler or linker that is given half a gigabyte of weights copies it several times. So a library
is linked with a slot alone, which says how far away the weights are; then they are written behind
it, and an entry of its table of segments, which was a note of ours, has the system map them. For a
``.tar``, which somebody else links, slot and weights are one object file.

Free of TVM.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

#: Of the slot: the distance of the weights from it, in bytes, as a 64-bit integer.
SYMBOL = "tvm_pattern_weights"
#: At the start of the weights.
MARK = b"tvmpweig"
#: Bytes that each weight's place is a multiple of.
ALIGNMENT = 64

_SECTION = ".tvm_pattern_weights"
# Behind the distance, to find the slot in a linked library.
_TAG = b"tvm-pattern: distance of the weights from here\0\0"
_SLOT = struct.Struct(f"<q{len(_TAG)}s")
_PT_LOAD, _PT_NOTE = 1, 4
_READABLE = 4
_PROGBITS, _SYMTAB, _STRTAB, _NOTE = 1, 2, 3, 7
_ALLOCATED = 2
# Fields of a file's header: where its tables of segments and sections are.
_SEGMENTS, _SECTIONS = 5, 6
# Machine number of ELF, bits and flags by architecture. ARM's flags are version 5 of its ABI.
_MACHINES = {"x86_64": (62, 64, 0), "aarch64": (183, 64, 0), "arm": (40, 32, 0x05000000)}
_NO_ELF = ("windows", "darwin", "macos", "ios", "apple", "win32", "wasm")


class SegmentError(ValueError):
    """A library that no segment can be added to."""


@dataclass(frozen=True)
class _Layout:
    """The structures of one class of ELF: headers of the file, a section and a segment."""

    bits: int
    header: struct.Struct
    section: struct.Struct
    segment: struct.Struct


_LAYOUTS = {
    bits: _Layout(bits, *map(struct.Struct, formats))
    for bits, formats in {
        64: ("<16sHHIQQQIHHHHHH", "<IIQQQQIIQQ", "<IIQQQQQQ"),
        32: ("<16sHHIIIIIHHHHHH", "<IIIIIIIIII", "<IIIIIIII"),
    }.items()
}


@dataclass(frozen=True)
class _Segment:
    """One entry of the table of segments, the same for both classes."""

    kind: int
    flags: int
    offset: int
    address: int
    file_size: int
    memory_size: int
    align: int

    @classmethod
    def parse(cls, bits: int, fields: tuple[int, ...]) -> _Segment:
        if bits == 64:
            kind, flags, offset, address, _, file_size, memory_size, align = fields
        else:
            kind, offset, address, _, file_size, memory_size, flags, align = fields
        return cls(kind, flags, offset, address, file_size, memory_size, align)

    def fields(self, bits: int) -> tuple[int, ...]:
        places = (self.offset, self.address, self.address, self.file_size, self.memory_size)
        if bits == 64:
            return (self.kind, self.flags, *places, self.align)
        return (self.kind, *places, self.flags, self.align)


def aligned(size: int, to: int = ALIGNMENT) -> int:
    """The next multiple of ``to``."""
    return -(-size // to) * to


def takes_weights(triple: str, architecture: str) -> bool:
    """Whether libraries for an LLVM triple can have weights of their own."""
    return architecture in _MACHINES and not any(word in triple.lower() for word in _NO_ELF)


def write_object(
    file: BinaryIO, architecture: str, size: int, write: Callable[[BinaryIO], None]
) -> None:
    """Write the weights and their slot as a relocatable object.

    Parameters
    ----------
    file : binary file
        Empty.
    architecture : str
        One that :func:`takes_weights`.
    size : int
        Bytes that ``write`` writes.
    write : callable
        Writes the weights to the file that it is given.
    """
    slot = _SLOT.pack(aligned(_SLOT.size), _TAG)
    start = slot.ljust(aligned(_SLOT.size), b"\0")

    def content(target: BinaryIO) -> None:
        target.write(start)
        write(target)

    _write_object(file, architecture, len(start) + size, content)


def slot_object(architecture: str) -> bytes:
    """A relocatable object with the slot alone, and a note whose entry :func:`append` takes."""
    file = io.BytesIO()
    slot = _SLOT.pack(0, _TAG)
    _write_object(file, architecture, len(slot), lambda target: target.write(slot), with_note=True)
    return file.getvalue()


def append(file: BinaryIO, size: int, write: Callable[[BinaryIO], None]) -> int:
    """Put weights behind a library that was linked with :func:`slot_object`.

    Parameters
    ----------
    file : binary file
        The library, open for reading and writing.
    size : int
        Bytes that ``write`` writes.
    write : callable
        Writes the weights to the file that it is given.

    Returns
    -------
    int
        Where they begin in the file.

    Raises
    ------
    SegmentError
        If it is no library that a segment can be added to; it is not changed then.
    """
    layout, header, segments = _segments_of(file)
    loads = [segment for segment in segments if segment.kind == _PT_LOAD]
    notes = [number for number, segment in enumerate(segments) if segment.kind == _PT_NOTE]
    if not loads or not notes:
        raise SegmentError("the linker left no segment of notes")
    slot = _find_slot(file)
    page = max(segment.align for segment in loads)
    offset = aligned(_end_of(file), page)
    address = aligned(max(s.address + s.memory_size for s in loads), page)
    distance = address - _address_of(slot, loads)
    if address + size >= 1 << (layout.bits - 1):
        raise SegmentError(f"{size} bytes are too many for {layout.bits} bits")
    file.seek(0, os.SEEK_END)
    file.write(bytes(offset - file.tell()))
    write(file)
    _add_section(file, layout, header, slot, (address, offset, size))
    # The entries of what is loaded must go by address, and this comes last.
    new = _Segment(_PT_LOAD, _READABLE, offset, address, size, size, page)
    del segments[notes[-1]]
    last = max(n for n, segment in enumerate(segments) if segment.kind == _PT_LOAD)
    segments.insert(last + 1, new)
    file.seek(header[_SEGMENTS])
    file.write(b"".join(layout.segment.pack(*s.fields(layout.bits)) for s in segments))
    file.seek(slot)
    file.write(_SLOT.pack(distance, _TAG))
    file.flush()
    return offset


def _add_section(
    file: BinaryIO,
    layout: _Layout,
    header: tuple[Any, ...],
    slot: int,
    place: tuple[int, int, int],
) -> None:
    """Name the segment in the table of sections too: tools that strip files go by that."""
    table, size, count = header[_SECTIONS], header[11], header[12]
    if not table or size != layout.section.size:
        return
    file.seek(table)
    sections = file.read(size * count)
    name = 0
    for fields in layout.section.iter_unpack(sections):
        if fields[1] == _PROGBITS and fields[4] <= slot < fields[4] + fields[5]:
            name = fields[0]
    new = layout.section.pack(name, _PROGBITS, _ALLOCATED, *place, 0, 0, ALIGNMENT, 0)
    file.seek(0, os.SEEK_END)
    file.write(bytes(aligned(file.tell(), 8) - file.tell()))
    changed = list(header)
    changed[_SECTIONS], changed[12] = file.tell(), count + 1
    file.write(sections + new)
    file.seek(0)
    file.write(layout.header.pack(*changed))


def _segments_of(file: BinaryIO) -> tuple[_Layout, tuple[Any, ...], list[_Segment]]:
    """Class, header of the file, and its table of segments."""
    file.seek(0)
    head = file.read(64)
    if len(head) < 64 or head[:4] != b"\x7fELF" or head[4] not in (1, 2) or head[5] != 1:
        raise SegmentError("no little-endian ELF file")
    layout = _LAYOUTS[32 * head[4]]
    fields = layout.header.unpack_from(head)
    table, entry_size, count = fields[_SEGMENTS], fields[9], fields[10]
    if entry_size != layout.segment.size:
        raise SegmentError(f"segments of {entry_size} bytes")
    file.seek(table)
    content = file.read(entry_size * count)
    if len(content) < entry_size * count:
        raise SegmentError("its table of segments is cut off")
    segments = [_Segment.parse(layout.bits, entry) for entry in layout.segment.iter_unpack(content)]
    return layout, fields, segments


def _find_slot(file: BinaryIO) -> int:
    """Where the slot is in a file, which is small as long as its weights are not there."""
    file.seek(0)
    content = file.read()
    if content.count(_TAG) != 1:
        raise SegmentError(f"{content.count(_TAG)} slots for the place of its weights")
    return content.index(_TAG) - (_SLOT.size - len(_TAG))


def _address_of(place: int, loads: list[_Segment]) -> int:
    """The address at which a byte of the file is loaded."""
    for segment in loads:
        if segment.offset <= place < segment.offset + segment.file_size:
            return segment.address + place - segment.offset
    raise SegmentError("the slot for the place of its weights is not loaded")


def _end_of(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


@dataclass(frozen=True)
class _Section:
    """One section of an object file."""

    name: str
    kind: int = 0
    flags: int = 0
    size: int = 0
    align: int = 1
    offset: int = 0
    link: int = 0
    info: int = 0
    entry_size: int = 0


def _write_object(
    file: BinaryIO,
    architecture: str,
    size: int,
    write: Callable[[BinaryIO], object],
    *,
    with_note: bool = False,
) -> None:
    """An object file with one section, at whose start :data:`SYMBOL` is."""
    machine, bits, flags = _MACHINES[architecture]
    layout = _LAYOUTS[bits]
    symbols, names = _symbols(bits), f"\0{SYMBOL}\0".encode()
    note = struct.pack("<III4s", 4, 0, 1, b"tvm\0") if with_note else b""
    sections = [
        _Section(""),
        _Section(_SECTION, _PROGBITS, _ALLOCATED, size, ALIGNMENT),
        _Section(".note.GNU-stack", _PROGBITS),
        _Section(
            ".symtab", _SYMTAB, 0, len(symbols), 8, link=4, info=1, entry_size=len(symbols) // 2
        ),
        _Section(".strtab", _STRTAB, 0, len(names)),
    ]
    if with_note:
        sections.append(_Section(".note.tvm_pattern", _NOTE, _ALLOCATED, len(note), 4))
    section_names = "\0".join([*(s.name for s in sections), ".shstrtab", ""]).encode()
    sections.append(_Section(".shstrtab", _STRTAB, 0, len(section_names)))
    contents: list[Callable[[BinaryIO], object]] = [
        lambda _: None,
        write,
        lambda _: None,
        lambda target: target.write(symbols),
        lambda target: target.write(names),
        *([lambda target: target.write(note)] if with_note else []),
        lambda target: target.write(section_names),
    ]
    offset = layout.header.size
    for number, section in enumerate(sections):
        offset = aligned(offset, section.align)
        sections[number] = replace(section, offset=offset)
        offset += section.size
    table = aligned(offset, 8)
    file.write(_header(layout, machine, flags, table, len(sections)))
    for section, fill in zip(sections, contents, strict=True):
        file.write(bytes(section.offset - file.tell()))
        fill(file)
    file.write(bytes(table - file.tell()))
    for section in sections:
        file.write(_section_header(layout, section, section_names))


def _header(layout: _Layout, machine: int, flags: int, table: int, count: int) -> bytes:
    identity = b"\x7fELF" + bytes([layout.bits // 32, 1, 1]) + bytes(9)
    sizes = (layout.header.size, 0, 0, layout.section.size, count, count - 1)
    return layout.header.pack(identity, 1, machine, 1, 0, 0, table, flags, *sizes)


def _section_header(layout: _Layout, section: _Section, names: bytes) -> bytes:
    name = names.index(section.name.encode() + b"\0")
    align = section.align if section.kind else 0
    places = (section.flags, 0, section.offset if section.kind else 0, section.size)
    ends = (section.link, section.info, align, section.entry_size)
    return layout.section.pack(name, section.kind, *places, *ends)


def _symbols(bits: int) -> bytes:
    """The empty symbol and ours: an object, global, hidden, at the start of section 1."""
    kind, hidden, section = 0x11, 2, 1
    if bits == 64:
        return bytes(24) + struct.pack("<IBBHQQ", 1, kind, hidden, section, 0, _SLOT.size)
    return bytes(16) + struct.pack("<IIIBBH", 1, 0, _SLOT.size, kind, hidden, section)
