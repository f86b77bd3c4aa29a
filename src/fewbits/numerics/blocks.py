"""One view of every granularity, [outer, blocks, size, inner], and the tiles in which a large tensor is worked through.

With a few arrays of the size of a processor's cache instead of a few of the size of the tensor, memory beside input
and output is a constant, and time is that of the arithmetic and not that of the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import final

from fewbits._base.arrays import Array, device_of, namespace

# Elements of a tile: 512 KiB of float32, so that a few stay in a core's own cache (measured: bench_formats.py).
TILE = 1 << 17
Tile = tuple[slice, slice, slice, slice]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """How a tensor is seen.

    Args:
      flat: Whether the tensor is first laid out as one line.
      front: Axis that is moved to the front first, or None.
      padded: Shape (after that move) up to which the tensor is padded with zeros at the ends.
      split: The four axes of the view.
      axes: Which of the four share a scale.
    """

    flat: bool = False
    front: int | None = None
    padded: tuple[int, ...]
    split: tuple[int, int, int, int]
    axes: tuple[int, ...]

    @property
    def kept(self) -> tuple[int, int, int, int]:
        """Shape of what is known once per scale, in the view: 1 along the axes that share it."""
        a, b, c, d = (1 if i in self.axes else size for i, size in enumerate(self.split))
        return (a, b, c, d)

    def view(self, values: Array) -> Array:
        """Returns the tensor in this view; a copy only where it is padded or an axis is moved."""
        xp = namespace(values)
        if self.flat:
            values = xp.reshape(values, (-1,))
        if self.front is not None:
            values = xp.moveaxis(values, self.front, 0)
        for axis, size in enumerate(self.padded):
            missing = size - values.shape[axis]
            if missing:
                pad = tuple(missing if i == axis else s for i, s in enumerate(values.shape))
                zeros = xp.zeros(pad, dtype=values.dtype, device=device_of(values))
                values = xp.concat([values, zeros], axis=axis)
        return xp.reshape(values, self.split)

    def unview(self, viewed: Array, shape: tuple[int, ...]) -> Array:
        """Returns what stands in this view as a tensor of this shape, without the padding."""
        xp = namespace(viewed)
        moved = (prod(shape),) if self.flat else shape
        if self.front is not None:
            moved = (shape[self.front], *(size for i, size in enumerate(shape) if i != self.front))
        whole = xp.reshape(viewed, self.padded)
        if self.padded != moved:
            whole = whole[tuple(slice(0, size) for size in moved)]
        if self.flat:
            return xp.reshape(whole, shape)
        return whole if self.front is None else xp.moveaxis(whole, 0, self.front)

    def tiles(self) -> Iterator[Tile]:
        """Gives tiles of about TILE elements that cover the view, in the order of memory."""
        yield from _cut((), self.split)

    def scale_tile(self, tile: Tile) -> Tile:
        """Returns where the scales of a tile lie in an array of shape ``kept``."""
        a, b, c, d = (slice(0, 1) if i in self.axes else part for i, part in enumerate(tile))
        return (a, b, c, d)

    def whole(self, tile: Tile) -> bool:
        """Returns whether a tile holds its scales' elements completely."""
        return all(tile[axis] == slice(0, self.split[axis]) for axis in self.axes)


def _cut(done: tuple[slice, ...], rest: tuple[int, ...]) -> Iterator[Tile]:
    """Gives tiles: the first axis of the rest is cut where one index of it is small enough, else index by index."""
    one = prod(rest[1:])
    small = len(rest) == 1 or one <= TILE
    step = max(1, TILE // max(1, one)) if small else 1
    for start in range(0, rest[0], step):
        part = (*done, slice(start, min(rest[0], start + step)))
        if not small:
            yield from _cut(part, rest[1:])
            continue
        a, b, c, d = part + tuple(slice(0, size) for size in rest[1:])
        yield (a, b, c, d)
