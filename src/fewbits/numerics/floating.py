"""Formats that are small floating-point numbers, and the one that is an exponent alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import final

import numpy as np

from fewbits._base.arrays import Array, bits_of, clip_in_place, floats_of, ignore_overflow, look_up, namespace
from fewbits._base.errors import NumericsError
from fewbits.numerics.format import MAX_LISTED_BITS, Format, sign_of
from fewbits.numerics.nearest import places, thresholds

# float32: 23 stored bits of mantissa, exponents biased by 127.
_MANTISSA = 23
_BIAS = 127
_MAGNITUDE = 0x7FFFFFFF
_INFINITY = 0x7F800000
# Formats of up to this many bits decode through a table of their values.
_TABLE_BITS = 8
# Formats of up to this many bits without the sign encode by comparison (measured: bench_formats.py).
_FEW_BITS = 3


class Specials(Enum):
    """What the largest exponent of a floating-point format stands for."""

    NONE = "none"
    """Numbers only: no NaN, no infinity (OCP fp6 and fp4)."""
    NAN = "nan"
    """Numbers, but for all ones, which is NaN; no infinity (the "fn" of fp8_e4m3)."""
    IEEE = "ieee"
    """Infinity where the mantissa is zero, else NaN (IEEE 754)."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Float(Format):
    """Sign, exponent, mantissa; exponent 0 holds zero and the denormals, as in IEEE 754.

    value = (-1)**sign * 2**(max(exponent, 1) - bias) * ((exponent > 0) + mantissa / 2**mantissa_bits)

    A code is the bit pattern, the sign on top. Encoding rounds to nearest, ties to the even code, keeps denormals and
    the sign of zero, and saturates: beyond the largest finite value, and at infinity, it gives the largest finite one.

    Args:
      name: The name in catalogs.
      exponent_bits: 2 to 8.
      mantissa_bits: 1 to 10; 16 bits in all, the sign counted.
      bias: Of the exponent.
      specials: What the largest exponent stands for.
      signed: Whether there is a sign bit; without one the byte's top bit is unused, and negative values become 0.
      source: The document that defines the format.
    """

    name: str = field()
    exponent_bits: int
    mantissa_bits: int
    bias: int
    specials: Specials
    signed: bool = True
    source: str = ""

    def __post_init__(self) -> None:
        lowest = 1 - self.bias - self.mantissa_bits
        if not (
            2 <= self.exponent_bits <= 8
            and 1 <= self.mantissa_bits <= 10
            and self.stored_bits <= MAX_LISTED_BITS  # a code is 16 bits at most
            and lowest >= -149 + 16
            and self.bias <= _BIAS  # normal values are normal in float32
            and 1 - self.bias + _MANTISSA - self.mantissa_bits <= _BIAS  # and so is what rounds the denormals
            and self.max_exponent <= 127
        ):
            raise NumericsError(
                f"{self.name}: a float format has 2 to 8 bits of exponent, 1 to 10 of mantissa, at most 16 in all, "
                f"and lies inside float32; got e{self.exponent_bits}m{self.mantissa_bits}, bias {self.bias}",
                slug="format-bits",
            )

    @property
    def stored_bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def code_dtype(self) -> str:
        return "uint8" if self.stored_bits <= 8 else "uint16"

    @property
    def max_exponent(self) -> int:
        """The exponent of the largest finite value (emax)."""
        return (1 << self.exponent_bits) - 1 - (self.specials is Specials.IEEE) - self.bias

    @property
    def max_code(self) -> int:
        """The code of the largest finite value."""
        every = (1 << (self.exponent_bits + self.mantissa_bits)) - 1
        if self.specials is Specials.IEEE:
            return every - (1 << self.mantissa_bits)
        return every - (self.specials is Specials.NAN)

    @property
    def max_value(self) -> float:
        return self.value(self.max_code)

    @property
    def min_value(self) -> float:
        return -self.max_value if self.signed else 0.0

    @property
    def nan_code(self) -> int | None:
        every = (1 << (self.exponent_bits + self.mantissa_bits)) - 1
        if self.specials is Specials.IEEE:  # the quiet NaN without payload: the top bit of the mantissa
            return every - (1 << (self.mantissa_bits - 1)) + 1
        return every if self.specials is Specials.NAN else None

    def codes(self) -> np.ndarray:
        bits = self.exponent_bits + self.mantissa_bits + self.signed
        return np.arange(1 << bits).astype(self.code_dtype)

    def value(self, code: int) -> float:
        """Returns what one code stands for: the equation of this class, on one number."""
        mantissa = code & ((1 << self.mantissa_bits) - 1)
        exponent = (code >> self.mantissa_bits) & ((1 << self.exponent_bits) - 1)
        sign = -1.0 if self.signed and code >> (self.mantissa_bits + self.exponent_bits) else 1.0
        if exponent == (1 << self.exponent_bits) - 1:
            if self.specials is Specials.IEEE:
                return sign * float("inf") if mantissa == 0 else float("nan")
            if self.specials is Specials.NAN and mantissa == (1 << self.mantissa_bits) - 1:
                return float("nan")
        fraction = (exponent > 0) + mantissa / (1 << self.mantissa_bits)
        return sign * fraction * 2.0 ** (max(exponent, 1) - self.bias)

    def nearest(self, values: Array) -> Array:
        xp = namespace(values)
        top = self.exponent_bits + self.mantissa_bits
        code = self._place(values) if top <= _FEW_BITS else self._rounded_pattern(values)
        if not self.signed:
            code = xp.where(values < 0, xp.zeros_like(code), code)
        else:
            sign = xp.astype(bits_of(values) >> 31, code.dtype)  # 0, or all ones
            sign &= 1 << top
            code |= sign
        return xp.astype(code, getattr(xp, self.code_dtype), copy=False)

    def _place(self, values: Array) -> Array:
        """Returns the codes of the magnitudes by comparison with every threshold, uint8."""
        return places(namespace(values).abs(values), _limits(self))

    def _rounded_pattern(self, values: Array) -> Array:
        """Returns the codes of the magnitudes by rounding float32's own bit patterns, int32."""
        xp = namespace(values)
        size = bits_of(values) & _MAGNITUDE
        drop = _MANTISSA - self.mantissa_bits
        # Round half to even on the pattern: a carry out of the mantissa raises the exponent, as it should.
        code = size >> drop
        code &= 1
        code += size
        code += (1 << (drop - 1)) - 1
        code >>= drop
        code -= (_BIAS - self.bias) << self.mantissa_bits
        if self.bias != _BIAS:
            # Below the smallest normal the step is constant. Adding a power of two whose own last bit is that step
            # makes the processor round there, to nearest even; the difference of the patterns counts the steps.
            lowest = 2.0 ** (1 - self.bias)
            magic = lowest * 2.0**drop
            small = size < _pattern(lowest)
            if bool(xp.any(small)):
                with ignore_overflow():  # of large values, whose steps nobody takes
                    steps = bits_of(floats_of(size) + magic)
                steps -= _pattern(magic)
                code = xp.where(small, steps, code)
        return clip_in_place(code, 0, self.max_code)

    def decode(self, codes: Array) -> Array:
        if self.stored_bits <= _TABLE_BITS:
            return look_up(_table(self), codes)
        xp = namespace(codes)
        codes = xp.astype(codes, xp.int32)
        top = self.exponent_bits + self.mantissa_bits
        size = codes & ((1 << top) - 1)
        drop = _MANTISSA - self.mantissa_bits
        bits = (size << drop) + ((_BIAS - self.bias) << _MANTISSA)
        if self.specials is Specials.IEEE:
            bits = xp.where(size > self.max_code, (size << drop) | _INFINITY, bits)
        if self.specials is Specials.NAN:
            bits = xp.where(size == (1 << top) - 1, _INFINITY | (1 << (_MANTISSA - 1)), bits)
        if self.bias != _BIAS:
            denormal = xp.astype(size, xp.float32) * 2.0 ** (1 - self.bias - self.mantissa_bits)
            bits = xp.where(size < (1 << self.mantissa_bits), bits_of(denormal), bits)
        return floats_of(bits | ((codes >> top) << 31))


def _pattern(value: float) -> int:
    return int(np.float32(value).view(np.int32))


@lru_cache(maxsize=64)
def _limits(fmt: Float) -> np.ndarray:
    """Returns the thresholds between the magnitudes; a tie goes to the even code."""
    grid = np.array([fmt.value(code) for code in range(fmt.max_code + 1)])
    return thresholds(grid, ties_up=np.arange(fmt.max_code) % 2 == 1)


@lru_cache(maxsize=64)
def _table(fmt: Float) -> np.ndarray:
    table = np.array([fmt.value(int(code)) for code in fmt.codes()], dtype=np.float32)
    table = np.pad(table, (0, (1 << _TABLE_BITS) - len(table)), constant_values=np.nan)
    table.flags.writeable = False
    return table


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Exponent(Format):
    """Powers of two without a sign: value = 2**(code - bias); the last code is NaN; there is no zero.

    Encoding takes the nearest power, a tie (1.5 * 2**k) the even code; zero and all below give the smallest power.
    A rule that chooses a scale rounds by itself (see ``PowerOfTwo`` in scaling.py); this is the cast.

    Args:
      name: The name in catalogs.
      source: The document that defines the format.
    """

    name: str = field()
    source: str = ""

    @property
    def stored_bits(self) -> int:
        return 8

    @property
    def code_dtype(self) -> str:
        return "uint8"

    @property
    def min_value(self) -> float:
        return 2.0**-_BIAS

    @property
    def max_value(self) -> float:
        return 2.0**_BIAS

    @property
    def nan_code(self) -> int | None:
        return 255

    def nearest(self, values: Array) -> Array:
        xp = namespace(values)
        size = bits_of(values) & _MAGNITUDE
        rest, code = size & ((1 << _MANTISSA) - 1), size >> _MANTISSA
        half = 1 << (_MANTISSA - 1)
        up = (rest > half) | ((rest == half) & ((code & 1) == 1))
        # 2**-127 and 1.5 * 2**-127 are denormal in float32: patterns half and 1.5 half, with exponent field 0.
        up = xp.where(code == 0, rest > half + half // 2, up)
        code = xp.clip((code + xp.astype(up, xp.int32)) * (1 - sign_of(values)), 0, 254)
        return xp.astype(code, xp.uint8)

    def decode(self, codes: Array) -> Array:
        return look_up(_POWERS, codes)


_POWERS = np.array([2.0 ** (code - _BIAS) for code in range(255)] + [np.nan], dtype=np.float32)
_POWERS.flags.writeable = False


@final
@dataclass(frozen=True, slots=True)
class Single(Format):
    """float32 itself, for scales and minimums that are stored in full; a code is the bit pattern, as int32."""

    @property
    def name(self) -> str:
        return "fp32"

    @property
    def stored_bits(self) -> int:
        return 32

    @property
    def min_value(self) -> float:
        return -self.max_value

    @property
    def max_value(self) -> float:
        return float(np.finfo(np.float32).max)

    @property
    def code_dtype(self) -> str:
        return "int32"

    @property
    def source(self) -> str:
        return "IEEE 754-2019, binary32"

    @property
    def nan_code(self) -> int | None:
        return 0x7FC00000

    def nearest(self, values: Array) -> Array:
        xp = namespace(values)
        return bits_of(xp.clip(xp.astype(values, xp.float32), self.min_value, self.max_value))

    def decode(self, codes: Array) -> Array:
        return floats_of(codes)
