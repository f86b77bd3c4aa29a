"""Schemes with a name: what ``int4-g128`` means for an array, and ``w8a8`` for weights and activations of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import final

from fewbits._base.arrays import Array
from fewbits._base.errors import NumericsError
from fewbits.numerics.format import Format
from fewbits.numerics.granularity import Granularity, PerChannel, PerGroup, PerToken
from fewbits.numerics.qtensor import QTensor
from fewbits.numerics.scaling import FullRange, ScaleRule
from fewbits.numerics.scheme import Scheme

FULL_RANGE = FullRange()


class Solver(ABC):
    """How codes and scales of a block are chosen together, where statistics of the block are not enough."""

    __slots__ = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """The method in a few words, for tables."""

    @abstractmethod
    def solve(self, rows: Array, scheme: Scheme) -> QTensor:
        """Returns some rows quantized.

        Args:
          rows: [rows, columns] finite float32; blocks lie along the columns, and each row is quantized by itself.
          scheme: Written for axis -1.
        """


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayScheme:
    """How one array is quantized by itself.

    Args:
      name: The shorthand, e.g. ``int4-g128``.
      scheme: How it is stored, written for the reduction axis -1: groups and tokens lie along it, channels across it.
      rule: How its scales are chosen, or scales and codes together.
      scale_rule: How the scales of scales are chosen, where the scheme quantizes scales again.
      divides: Whether the reduction axis must be a multiple of this many elements (a block that its file format cannot
        cut short); 1 where a short last group is fine.
      source: The document that defines it.
    """

    name: str
    scheme: Scheme
    rule: ScaleRule | Solver = FULL_RANGE
    scale_rule: ScaleRule = FULL_RANGE
    divides: int = 1
    source: str = ""

    def at(self, axis: int, shape: tuple[int, ...]) -> Scheme:
        """Returns the scheme for an array of this shape whose reduction axis is ``axis``.

        Raises: NumericsError(slug="axis-out-of-range"); NumericsError(slug="group-size") where a block does not divide.
        """
        rank = len(shape)
        if not -rank <= axis < rank:
            raise NumericsError(f"axis {axis} does not exist in shape {list(shape)}", slug="axis-out-of-range")
        if shape[axis] % self.divides:
            raise NumericsError(
                f"{self.name} has blocks of {self.divides}, which do not divide axis {axis} of shape {list(shape)}; "
                f"pad it to {-(-shape[axis] // self.divides) * self.divides}, or use a scheme with shorter blocks",
                slug="group-size",
            )
        return _at(self.scheme, axis, rank)


def lined_up(scheme: Scheme) -> Scheme:
    """Returns the scheme with its groups along the last axis of a matrix."""
    return _at(scheme, -1, 2)


def _at(scheme: Scheme, axis: int, rank: int) -> Scheme:
    def stored(how: Format | Scheme | None) -> Format | Scheme | None:
        return _at(how, axis, rank) if isinstance(how, Scheme) else how

    return replace(
        scheme,
        granularity=_moved(scheme.granularity, axis, rank),
        scale=stored(scheme.scale),
        minimum=stored(scheme.minimum),
    )


def _moved(granularity: Granularity, axis: int, rank: int) -> Granularity:
    match granularity:
        case PerGroup(size=size):
            return PerGroup(axis=axis, size=size)
        case PerToken():
            return PerToken(axis)
        case PerChannel():
            if rank < 2:
                raise NumericsError(
                    f"an array of rank {rank} has no channels beside its axis", slug="axis-out-of-range"
                )
            return PerChannel(axis=0 if axis % rank else 1)
    return granularity


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NamedScheme:
    """What a shorthand asks of a model.

    Args:
      name: The shorthand, e.g. ``w8a8``.
      weight: How each weight is quantized.
      activation: How each activation is; None: activations stay as they are.
      dynamic: Whether activation scales are computed at run time instead of calibrated.
    """

    name: str
    weight: ArrayScheme
    activation: ArrayScheme | None = None
    dynamic: bool = False

    @property
    def weight_bits(self) -> int:
        """Bits of the weights' codes."""
        return self.weight.scheme.format.stored_bits

    @property
    def activation_bits(self) -> int:
        """Bits of the activations' codes; 16 where they stay as they are."""
        return 16 if self.activation is None else self.activation.scheme.format.stored_bits

    @property
    def weights_only(self) -> bool:
        """Whether activations stay as they are: nothing is calibrated, and no data are needed."""
        return self.activation is None
