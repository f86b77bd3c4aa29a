"""How many elements share one scale: the whole tensor, one channel, or a group along an axis.

A scale array has the rank of its tensor, so that it broadcasts without further rules:
per-tensor [1, 1, …], per-channel [1, …, C, …, 1], per-group [d0, …, ceil(d_axis / size), …, dn].
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import final

from fewbits._base.arrays import Array, namespace
from fewbits._base.errors import NumericsError

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
    raise NumericsError(
        f"unknown granularity {text!r}; one of: per-tensor, per-channel(AXIS), per-group(AXIS, SIZE)",
        slug="granularity",
    )
