"""Where a register_tile's inputs come from: buffers, textures, or a copy in local memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from tvm import tirx
from tvm.tirx.script import builder as T

from ...layout import PlaneLayout
from ...row_writer import when
from .local_tile import LocalTile
from .reuse import Chunks
from .textures import texel
from .vectors import load_aligned, load_any, vector_type


class Inputs(Protocol):
    """Chunks of the planes of the in_channels."""

    @property
    def chunks(self) -> Chunks:
        """The loads."""

    def origin(self, image: Any, pixel: Any) -> Any:
        """Where a tile begins in an image, for :meth:`at`.

        Parameters
        ----------
        image : expression
            Element where the image begins.
        pixel : expression
            Element of a plane that is the tile's first pixel.
        """

    def at(self, channel: Any, origin: Any) -> Any:
        """Where a tile begins in the plane of an in_channel, for :meth:`load`."""

    def load(self, at: Any, offset: int) -> Any:
        """The chunk that begins ``offset`` elements behind a tile's first pixel."""


@dataclass(frozen=True)
class BufferInputs:
    """Loads of ``chunks`` from a buffer of planes."""

    buffer: Any
    layout: PlaneLayout
    chunks: Chunks

    def origin(self, image: Any, pixel: Any) -> Any:
        return T.Bind(image + pixel)

    def at(self, channel: Any, origin: Any) -> Any:
        return T.Bind(channel * self.layout.size + origin)

    def load(self, at: Any, offset: int) -> Any:
        load = load_aligned if self.chunks.is_aligned else load_any
        return load(self.buffer, at, self.chunks.width, offset)

    def chunk(self, number: Any) -> Any:
        """An aligned chunk by its number in the buffer."""
        return load_aligned(self.buffer, number * self.chunks.width, self.chunks.width)


@dataclass(frozen=True)
class TextureInputs:
    """Reads of texels from the same memory as an image; a chunk is a texel."""

    buffer: Any
    layout: PlaneLayout
    chunks: Chunks

    def origin(self, image: Any, pixel: Any) -> Any:
        return T.Bind((image + pixel - self.chunks.phase) // self.chunks.width)

    def at(self, channel: Any, origin: Any) -> Any:
        return T.Bind(channel * (self.layout.size // self.chunks.width) + origin)

    def load(self, at: Any, offset: int) -> Any:
        return self.chunk(at + self.chunks.number_at(offset))

    def chunk(self, number: Any) -> Any:
        """A texel by its number in the image."""
        return texel(self.buffer, number)


class LocalInputs:
    """Copies in local memory of what a work_group reads of each in_channel.

    Parameters
    ----------
    source : BufferInputs or TextureInputs
        With aligned chunks.
    tile : LocalTile
    row : expression
        Output row where the first tiles of the work_group begin.
    item : expression
        Number of the work_item in its work_group.
    items : int
    """

    def __init__(
        self, source: BufferInputs | TextureInputs, tile: LocalTile, row: Any, item: Any, items: int
    ) -> None:
        self.source, self.chunks, self.tile = source, source.chunks, tile
        self.item, self.items = item, items
        dtype = vector_type(str(source.buffer.dtype), self.chunks.width)
        self.copy = T.alloc_buffer((tile.chunks,), dtype, scope="shared")
        self.first = T.Bind(T.min(row * tile.row_step + tile.first, tile.last))
        self.image: Any = 0

    def origin(self, image: Any, pixel: Any) -> Any:
        self.image = T.Bind(image // self.chunks.width + self.first)
        return T.Bind((pixel - self.chunks.phase) // self.chunks.width - self.first)

    def at(self, channel: Any, origin: Any) -> Any:
        """Copies the in_channel; every work_item of the work_group gets here."""
        start = T.Bind(channel * (self.source.layout.size // self.chunks.width) + self.image)
        _barrier()
        for i in range(self.tile.copies):
            number = self.item + i * self.items
            is_sure = (i + 1) * self.items <= self.tile.chunks
            when(is_sure or number < self.tile.chunks, partial(self._fetch, start, number))
        _barrier()
        return origin

    def _fetch(self, start: Any, number: Any) -> None:
        T.buffer_store(self.copy, self.source.chunk(start + number), [number])

    def load(self, at: Any, offset: int) -> Any:
        return self.copy[at + self.chunks.number_at(offset)]


def _barrier() -> None:
    T.evaluate(tirx.call_intrin("int32", "tirx.tvm_storage_sync", "shared"))
