"""A format: a finite set of representable values, and the codes that stand for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from fewbits._base.arrays import Array, namespace
from fewbits._base.errors import NumericsError
from fewbits.numerics.rounding import round_half_even


class Format(ABC):
    """A set of representable values. ``decode(encode(v)) == v`` for every v of the set; encode saturates."""

    __slots__ = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """The name in catalogs, plans and reports, e.g. ``int8``."""

    @property
    @abstractmethod
    def stored_bits(self) -> int:
        """Stored bits per element."""

    @property
    @abstractmethod
    def min_value(self) -> float:
        """Smallest value of the set."""

    @property
    @abstractmethod
    def max_value(self) -> float:
        """Largest value of the set."""

    @property
    @abstractmethod
    def code_dtype(self) -> str:
        """Name of the array dtype that holds one code per element, e.g. ``int8``."""

    @abstractmethod
    def encode(self, values: Array) -> Array:
        """Returns the codes of the nearest values of the set, ties to even, saturating at both ends."""

    @abstractmethod
    def decode(self, codes: Array) -> Array:
        """Returns the float32 values that the codes stand for."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Int(Format):
    """Two's complement or unsigned integers; decode is the identity.

    Args:
      bits: Stored bits, 2 to 32.
      signed: [-2**(bits-1), 2**(bits-1) - 1] if true, else [0, 2**bits - 1].
    """

    bits: int
    signed: bool

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 32:
            raise NumericsError(f"an integer format has 2 to 32 bits, got {self.bits}", slug="format-bits")

    @property
    def name(self) -> str:
        return f"{'int' if self.signed else 'uint'}{self.bits}"

    @property
    def stored_bits(self) -> int:
        return self.bits

    @property
    def min_code(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def max_code(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def min_value(self) -> float:
        return float(self.min_code)

    @property
    def max_value(self) -> float:
        return float(self.max_code)

    @property
    def code_dtype(self) -> str:
        width = 8 if self.bits <= 8 else 16 if self.bits <= 16 else 32
        return f"{'int' if self.signed else 'uint'}{width}"

    def encode(self, values: Array) -> Array:
        """Returns the nearest codes, ties to even, saturating; infinities saturate, NaN is refused before (quantize).

        Args:
          values: Any shape. float64 is needed where the format has more bits than float32's 24 of precision.
        """
        xp = namespace(values)
        if self.bits > 24 and values.dtype != xp.float64:
            values = xp.astype(values, xp.float64)
        rounded = round_half_even(values)
        clipped = xp.clip(rounded, self.min_value, self.max_value)
        return xp.astype(clipped, getattr(xp, self.code_dtype))

    def decode(self, codes: Array) -> Array:
        xp = namespace(codes)
        return xp.astype(codes, xp.float32)
