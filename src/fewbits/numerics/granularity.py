"""How many elements share one scale: the whole tensor, one channel, or a group along an axis.

A scale array has the rank of its tensor, so that it broadcasts without further rules:
per-tensor [1, 1, …], per-channel [1, …, C, …, 1], per-token [d0, …, 1, …, dn],
per-group [d0, …, ceil(d_axis / size), …, dn], per-block [d0, …, ceil(rows / r), ceil(columns / c)].
Only per-flat, whose groups run on over the ends of rows, cannot: [ceil(elements / size), 1, …].
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import final

from fewbits._base.arrays import Array, namespace
from fewbits._base.errors import NumericsError
from fewbits.numerics.blocks import Blocks

_PATTERN = re.compile(r"(?P<kind>per-[a-z]+)(?:\((?P<numbers>-?[0-9]+(?:, ?-?[0-9]+)*)\))?")


class Granularity(ABC):
    """Which elements share one scale."""

    __slots__ = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """E.g. ``per-channel(0)``."""

    @abstractmethod
    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the scale array of a tensor of this shape."""

    @abstractmethod
    def blocks(self, shape: tuple[int, ...]) -> Blocks:
        """Returns the view of a tensor of this shape in which its scales lie along whole axes."""

    @abstractmethod
    def to_groups(self, values: Array) -> Array:
        """Returns [groups, elements]: one row for each scale, in the order of the scale array, padded with zeros."""

    @abstractmethod
    def expand(self, scale: Array, shape: tuple[int, ...]) -> Array:
        """Returns the scale array in a shape that broadcasts against the tensor."""


def _axis(axis: int, shape: tuple[int, ...]) -> int:
    if not -len(shape) <= axis < len(shape):
        raise NumericsError(f"axis {axis} does not exist in shape {list(shape)}", slug="axis-out-of-range")
    return axis % len(shape)


@final
@dataclass(frozen=True, slots=True)
class PerTensor(Granularity):
    """One scale for the whole tensor."""

    @property
    def name(self) -> str:
        return "per-tensor"

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (1,) * len(shape)

    def blocks(self, shape: tuple[int, ...]) -> Blocks:
        count = prod(shape)
        return Blocks(padded=shape, split=(1, 1, count, 1), axes=(0, 1, 2, 3))

    def to_groups(self, values: Array) -> Array:
        return namespace(values).reshape(values, (1, -1))

    def expand(self, scale: Array, shape: tuple[int, ...]) -> Array:
        return scale


@final
@dataclass(frozen=True, slots=True)
class PerChannel(Granularity):
    """One scale for each index of one axis.

    Args:
      axis: The channel axis; negative counts from the end.
    """

    axis: int

    @property
    def name(self) -> str:
        return f"per-channel({self.axis})"

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        axis = _axis(self.axis, shape)
        return tuple(size if i == axis else 1 for i, size in enumerate(shape))

    def blocks(self, shape: tuple[int, ...]) -> Blocks:
        axis = _axis(self.axis, shape)
        size, before, after = shape[axis], prod(shape[:axis]), prod(shape[axis + 1 :])
        if after == 1:
            return Blocks(padded=shape, split=(1, 1, before, size), axes=(2,))
        if before == 1:
            return Blocks(padded=shape, split=(size, 1, after, 1), axes=(2,))
        moved = (size, *(s for i, s in enumerate(shape) if i != axis))
        return Blocks(front=axis, padded=moved, split=(size, 1, before * after, 1), axes=(2,))

    def to_groups(self, values: Array) -> Array:
        xp = namespace(values)
        axis = _axis(self.axis, values.shape)
        rest = prod(size for i, size in enumerate(values.shape) if i != axis)
        return xp.reshape(xp.moveaxis(values, axis, 0), (values.shape[axis], rest))

    def expand(self, scale: Array, shape: tuple[int, ...]) -> Array:
        return scale


@final
@dataclass(frozen=True, slots=True)
class PerGroup(Granularity):
    """One scale for each run of ``size`` elements along one axis; the last run of a line may be shorter.

    Args:
      axis: The axis along which groups lie (the reduction axis of a matrix product).
      size: Elements per group, >= 1.
    """

    axis: int
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise NumericsError(f"a group has at least 1 element, got {self.size}", slug="group-size")

    @property
    def name(self) -> str:
        return f"per-group({self.axis}, {self.size})"

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        axis = _axis(self.axis, shape)
        return tuple(-(-size // self.size) if i == axis else size for i, size in enumerate(shape))

    def blocks(self, shape: tuple[int, ...]) -> Blocks:
        axis = _axis(self.axis, shape)
        groups = -(-shape[axis] // self.size)
        padded = (*shape[:axis], groups * self.size, *shape[axis + 1 :])
        split = (prod(shape[:axis]), groups, self.size, prod(shape[axis + 1 :]))
        return Blocks(padded=padded, split=split, axes=(2,))

    def to_groups(self, values: Array) -> Array:
        xp = namespace(values)
        axis = _axis(self.axis, values.shape)
        groups = -(-values.shape[axis] // self.size)
        missing = groups * self.size - values.shape[axis]
        if missing:
            pad = xp.zeros(tuple(missing if i == axis else s for i, s in enumerate(values.shape)), dtype=values.dtype)
            values = xp.concat([values, pad], axis=axis)
        split = xp.reshape(values, (*values.shape[:axis], groups, self.size, *values.shape[axis + 1 :]))
        return xp.reshape(xp.moveaxis(split, axis + 1, -1), (-1, self.size))

    def expand(self, scale: Array, shape: tuple[int, ...]) -> Array:
        xp = namespace(scale)
        axis = _axis(self.axis, shape)
        repeated = xp.repeat(scale, self.size, axis=axis)
        take = tuple(slice(0, shape[axis]) if i == axis else slice(None) for i in range(len(shape)))
        return repeated[take]


@final
@dataclass(frozen=True, slots=True)
class PerToken(Granularity):
    """One scale for each line along one axis: for activations [..., features], one a token.

    Args:
      axis: The axis that shares a scale (the reduction axis).
    """

    axis: int

    @property
    def name(self) -> str:
        return f"per-token({self.axis})"

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        axis = _axis(self.axis, shape)
        return tuple(1 if i == axis else size for i, size in enumerate(shape))

    def blocks(self, shape: tuple[int, ...]) -> Blocks:
        axis = _axis(self.axis, shape)
        split = (prod(shape[:axis]), 1, shape[axis], prod(shape[axis + 1 :]))
        return Blocks(padded=shape, split=split, axes=(2,))

    def to_groups(self, values: Array) -> Array:
        xp = namespace(values)
        axis = _axis(self.axis, values.shape)
        return xp.reshape(xp.moveaxis(values, axis, -1), (-1, values.shape[axis]))

    def expand(self, scale: Array, shape: tuple[int, ...]) -> Array:
        return scale


@final
@dataclass(frozen=True, slots=True)
class PerBlock(Granularity):
    """One scale for each rectangle of the last two axes; the last of a line or column may be smaller.

    Args:
      rows: Extent along the last axis but one, >= 1.
      columns: Extent along the last axis, >= 1.
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise NumericsError(
                f"a block has at least 1 row and column, got {self.rows} x {self.columns}", slug="group-size"
            )

    @property
    def name(self) -> str:
        return f"per-block({self.rows}, {self.columns})"

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) < 2:
            raise NumericsError(
                f"a {self.rows} x {self.columns} block needs two axes, got shape {list(shape)}",
                slug="axis-out-of-range",
            )
        return (*shape[:-2], -(-shape[-2] // self.rows), -(-shape[-1] // self.columns))

    def blocks(self, shape: tuple[int, ...]) -> Blocks:
        *outer, down, across = self.scale_shape(shape)
        padded = (*outer, down * self.rows, across * self.columns)
        split = (prod(outer) * down, self.rows, across, self.columns)
        return Blocks(padded=padded, split=split, axes=(1, 3))

    def to_groups(self, values: Array) -> Array:
        xp = namespace(values)
        viewed = self.blocks(tuple(values.shape)).view(values)
        return xp.reshape(xp.moveaxis(viewed, 1, 2), (-1, self.rows * self.columns))

    def expand(self, scale: Array, shape: tuple[int, ...]) -> Array:
        xp = namespace(scale)
        repeated = xp.repeat(xp.repeat(scale, self.rows, axis=-2), self.columns, axis=-1)
        return repeated[(..., slice(0, shape[-2]), slice(0, shape[-1]))]


@final
@dataclass(frozen=True, slots=True)
class PerFlat(Granularity):
    """One scale for each run of ``size`` elements in the order of memory (C), over the ends of rows.

    Args:
      size: Elements per group, >= 1.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise NumericsError(f"a group has at least 1 element, got {self.size}", slug="group-size")

    @property
    def name(self) -> str:
        return f"per-flat({self.size})"

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (-(-prod(shape) // self.size), *(1,) * (len(shape) - 1))

    def blocks(self, shape: tuple[int, ...]) -> Blocks:
        groups = -(-prod(shape) // self.size)
        return Blocks(flat=True, padded=(groups * self.size,), split=(1, groups, self.size, 1), axes=(2,))

    def to_groups(self, values: Array) -> Array:
        xp = namespace(values)
        return xp.reshape(self.blocks(tuple(values.shape)).view(values), (-1, self.size))

    def expand(self, scale: Array, shape: tuple[int, ...]) -> Array:
        xp = namespace(scale)
        repeated = xp.repeat(xp.reshape(scale, (-1,)), self.size)
        return xp.reshape(repeated[: prod(shape)], shape)


def parse_granularity(text: str) -> Granularity:
    """Returns the granularity that ``Granularity.name`` printed.

    Raises: NumericsError(slug="granularity") for other words, NumericsError(slug="group-size") for an empty group.

    >>> parse_granularity("per-group(1, 32)")
    PerGroup(axis=1, size=32)
    """
    match = _PATTERN.fullmatch(text)
    kind = match["kind"] if match else None
    numbers = [int(part) for part in match["numbers"].split(",")] if match and match["numbers"] else []
    if kind == "per-tensor" and not numbers:
        return PerTensor()
    if kind == "per-channel" and len(numbers) == 1:
        return PerChannel(numbers[0])
    if kind == "per-group" and len(numbers) == 2:
        return PerGroup(*numbers)
    if kind == "per-token" and len(numbers) == 1:
        return PerToken(numbers[0])
    if kind == "per-block" and len(numbers) == 2:
        return PerBlock(*numbers)
    if kind == "per-flat" and len(numbers) == 1:
        return PerFlat(numbers[0])
    raise NumericsError(
        f"unknown granularity {text!r}; one of: per-tensor, per-channel(AXIS), per-token(AXIS), per-group(AXIS, SIZE), "
        "per-block(ROWS, COLUMNS), per-flat(SIZE)",
        slug="granularity",
    )
