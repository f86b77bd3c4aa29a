"""A format: a finite set of representable values, and the codes that stand for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache
from typing import final

import numpy as np

from fewbits._base.arrays import Array, bits_of, ignore_overflow, like, look_up, namespace, to_numpy, uniform
from fewbits._base.errors import NumericsError
from fewbits.numerics.rounding import round_half_even

# Formats of more bits have no table of their values: int32, for biases.
MAX_LISTED_BITS = 16
# One number of at least 0, or several.
Seed = int | tuple[int, ...]


class Format(ABC):
    """A set of representable values. ``decode(encode(v)) == v`` for every finite v of the set.

    A concrete format gives its data (name, bits, ends), ``nearest`` and ``decode``; all else follows from them.
    """

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
        """Smallest finite value of the set."""

    @property
    @abstractmethod
    def max_value(self) -> float:
        """Largest finite value of the set."""

    @property
    @abstractmethod
    def code_dtype(self) -> str:
        """Name of the array dtype that holds one code per element, e.g. ``int8``."""

    @property
    @abstractmethod
    def source(self) -> str:
        """The document that defines the format."""

    @property
    def ties(self) -> str:
        """Which of two neighbours a value half way between them becomes."""
        return "even"

    @property
    def nan_code(self) -> int | None:
        """The code that NaN becomes; None where the format has none, and NaN is refused."""
        return None

    @property
    def reach(self) -> float:
        """The largest magnitude that both signs have (of the one sign, where there is but one): what amax maps onto."""
        return min(self.max_value, -self.min_value) if self.min_value < 0 else self.max_value

    @abstractmethod
    def nearest(self, values: Array) -> Array:
        """Returns the codes of the nearest values of the set, saturating at both ends.

        Args:
          values: Floating point without NaN, any shape; float32 unless the format says more.
        """

    @abstractmethod
    def decode(self, codes: Array) -> Array:
        """Returns the float32 values that the codes stand for."""

    def codes(self) -> np.ndarray:
        """Returns every code, those of NaN and infinity too, in ``code_dtype``; for formats of up to 16 bits."""
        return np.arange(1 << _listed(self)).astype(self.code_dtype)

    @property
    def grid(self) -> np.ndarray:
        """The distinct finite values of the set in ascending order, float32; for formats of up to 16 bits."""
        return _grid(self)[0]

    @property
    def zero_code(self) -> int | None:
        """The code of exactly zero (the positive one), or None where the set has no zero."""
        codes = to_numpy(self.nearest(np.zeros(1, np.float32)))
        return int(codes[0]) if self.decode(codes)[0] == 0 else None

    def encode(self, values: Array, *, seed: Seed | None = None) -> Array:
        """Returns the codes of the nearest values of the set.

        Ties go as ``ties`` says. Infinities and all beyond the ends saturate. NaN becomes ``nan_code``, or is refused.

        Args:
          values: Floating point, any shape, any library of the array API. float16 and bfloat16 are widened exactly;
            float64 is rounded to float32 first, but for integer formats.
          seed: If given, a value between two neighbours becomes the upper one with the probability of its distance
            from the lower one in steps between them (stochastic rounding), drawn from this seed; for up to 16 bits.
        Raises: NumericsError(slug="array-not-float") for integers and objects; NumericsError(slug="nan-has-no-code").
        """
        xp = namespace(values)
        values = self._widened(refuse_other_dtypes(values))
        bad = xp.isnan(values)
        if not bool(xp.any(bad)):
            return self._rounded(values, seed)
        if self.nan_code is None:
            raise NumericsError(
                f"{self.name} has no code for NaN, and the array holds {int(xp.sum(xp.astype(bad, xp.int64)))}; "
                "repair the array, or use a format with NaN such as fp8_e4m3",
                slug="nan-has-no-code",
            )
        codes = xp.astype(self._rounded(xp.where(bad, xp.zeros_like(values), values), seed), xp.int32)
        return xp.astype(xp.where(bad, xp.full_like(codes, self.nan_code), codes), getattr(xp, self.code_dtype))

    def _widened(self, values: Array) -> Array:
        with ignore_overflow():  # what float32 cannot hold becomes infinite, and saturates
            return namespace(values).astype(values, namespace(values).float32)

    def _rounded(self, values: Array, seed: Seed | None) -> Array:
        return self.nearest(values) if seed is None else self.stochastic(values, seed=seed)

    def stochastic(self, values: Array, *, seed: Seed) -> Array:
        """Returns codes rounded up or down at random, so that their expectation is the value (inside the ends).

        Args:
          values: float32 without NaN, any shape.
          seed: The same seed and shape give the same codes in every library.
        """
        xp = namespace(values)
        grid, codes = _grid(self)
        drawn = uniform(tuple(values.shape), seed=(seed,) if isinstance(seed, int) else seed, like_array=values)
        flat = xp.clip(xp.reshape(values, (-1,)), float(grid[0]), float(grid[-1]))
        place = xp.searchsorted(like(grid, values), flat, side="right") - 1
        place = xp.clip(place, 0, len(grid) - 2)
        low, high = look_up(grid, place), look_up(grid, place + 1)
        with ignore_overflow():  # halved, since float32's own ends are further apart than float32 reaches
            share = (flat / 2 - low / 2) / (high / 2 - low / 2)
        place = place + xp.astype(xp.reshape(drawn, (-1,)) < share, place.dtype)
        chosen = look_up(codes.astype(np.int32), place)
        return xp.reshape(xp.astype(chosen, getattr(xp, self.code_dtype)), values.shape)


def refuse_other_dtypes(values: Array) -> Array:
    """Returns the array, or raises NumericsError(slug="array-not-float") unless it holds floating-point numbers."""
    if isinstance(values, np.ndarray | np.generic) and values.dtype.name == "bfloat16":
        return values.astype(np.float32)  # ml_dtypes' type, which NumPy itself does not call floating
    try:
        xp = namespace(values)
    except TypeError:
        raise NumericsError(
            f"expected an array of floating-point numbers, got a {type(values).__name__}; "
            "pass a NumPy array or a torch tensor",
            slug="array-not-float",
        ) from None
    if not xp.isdtype(values.dtype, "real floating"):
        raise NumericsError(
            f"expected floating-point numbers, got {values.dtype}; convert the array to float32 first",
            slug="array-not-float",
        )
    return values


def _listed(fmt: Format) -> int:
    if fmt.stored_bits > MAX_LISTED_BITS:
        raise NumericsError(
            f"{fmt.name} has {fmt.stored_bits} bits; only formats of up to {MAX_LISTED_BITS} list their values",
            slug="format-bits",
        )
    return fmt.stored_bits


@lru_cache(maxsize=64)
def _grid(fmt: Format) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct finite values, ascending float32, and the code of each (that of +0 for zero)."""
    _listed(fmt)
    codes = fmt.codes()
    values = np.asarray(fmt.decode(codes))
    finite = np.isfinite(values)
    grid = np.unique(values[finite]) + np.float32(0)  # + 0 turns -0 into 0
    found = np.asarray(fmt.nearest(grid))
    grid.flags.writeable = found.flags.writeable = False
    return grid, found


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

    @property
    def source(self) -> str:
        return "ONNX QuantizeLinear" if self.bits in (2, 4, 8, 16) else "two's complement"

    def codes(self) -> np.ndarray:
        _listed(self)
        return np.arange(self.min_code, self.max_code + 1).astype(self.code_dtype)

    def nearest(self, values: Array) -> Array:
        """Returns the nearest codes, ties to even, saturating.

        Args:
          values: Any shape. float64 is needed where the format has more bits than float32's 24 of precision.
        """
        xp = namespace(values)
        if self.bits > 24 and values.dtype != xp.float64:
            values = xp.astype(values, xp.float64)
        clipped = xp.clip(round_half_even(values), self.min_value, self.max_value)
        return xp.astype(clipped, getattr(xp, self.code_dtype))

    def decode(self, codes: Array) -> Array:
        xp = namespace(codes)
        return xp.astype(codes, xp.float32)

    def _widened(self, values: Array) -> Array:
        xp = namespace(values)
        return values if values.dtype == xp.float64 else xp.astype(values, xp.float32)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed(Format):
    """Fixed-point numbers: value = code / 2**fraction_bits, code a signed integer.

    Args:
      name: The name in catalogs.
      bits: Stored bits, 2 to 16.
      fraction_bits: Bits behind the point.
      source: The document that defines the format.
    """

    name: str = field()
    bits: int
    fraction_bits: int
    source: str = ""

    @property
    def stored_bits(self) -> int:
        return self.bits

    @property
    def _integers(self) -> Int:
        return Int(bits=self.bits, signed=True)

    @property
    def min_value(self) -> float:
        return self._integers.min_value * 2.0**-self.fraction_bits

    @property
    def max_value(self) -> float:
        return self._integers.max_value * 2.0**-self.fraction_bits

    @property
    def code_dtype(self) -> str:
        return self._integers.code_dtype

    def codes(self) -> np.ndarray:
        return self._integers.codes()

    def nearest(self, values: Array) -> Array:
        with ignore_overflow():  # what becomes infinite saturates
            return self._integers.nearest(values * 2.0**self.fraction_bits)

    def decode(self, codes: Array) -> Array:
        return self._integers.decode(codes) * 2.0**-self.fraction_bits


def sign_of(values: Array) -> Array:
    """Returns 1 where the sign bit of float32 values is set (that of -0 too), else 0; int32."""
    return (bits_of(values) >> 31) & 1
