"""Scales, zero points and minimums from what was seen of the values that share one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, final

import numpy as np

from fewbits._base.arrays import Array, bits_of, namespace
from fewbits._base.errors import NumericsError
from fewbits.numerics.floating import Float
from fewbits.numerics.format import Fixed, Format, Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.scheme import Scheme

# Smallest normal float32. A smaller scale would be denormal: some kernels flush it to zero and then divide by it.
MIN_SCALE = 1.1754943508222875e-38
# Largest finite float32.
MAX_SCALE = 3.4028234663852886e38
# Ranges end a little inside float32: a scale rounded up to float32 (2**-24 relative), times the largest code, would
# else be infinite.
_INSIDE = 1.0 - 2.0**-22


def _refuse_nonfinite(xp: object, *arrays: Array) -> None:
    for array in arrays:
        if not bool(xp.all(xp.isfinite(array))):  # type: ignore[attr-defined]
            raise NumericsError(
                "a range holds NaN or infinity; check the tensor that it was taken from", slug="nonfinite-amax"
            )


def choose_scale(amax: Array, fmt: Format) -> Array:
    """Returns the scale that maps amax onto the largest magnitude that both signs of fmt have.

    scale = amax / fmt.reach, raised to the smallest normal float32, and lowered where scale * fmt.reach would not be
    finite.  Where amax is 0 the scale is 1, so that the codes are 0 and not NaN.

    Args:
      amax: Largest magnitude per group, any shape, in units of the tensor, >= 0.
      fmt: Element format; only ``reach`` is used.
    Returns: float32, the shape of amax, > 0 and normal.
    Raises: NumericsError(slug="nonfinite-amax") if any amax is NaN or infinite.

    >>> import numpy as np
    >>> choose_scale(np.array([0.0, 254.0]), Int(bits=8, signed=True)).tolist()
    [1.0, 2.0]
    """
    xp = namespace(amax)
    amax = xp.astype(amax, xp.float64)
    _refuse_nonfinite(xp, amax)
    scale = xp.clip(amax / fmt.reach, MIN_SCALE, MAX_SCALE * _INSIDE / max(1.0, fmt.reach))
    return xp.astype(xp.where(amax == 0, xp.ones_like(scale), scale), xp.float32)


def choose_affine(low: Array, high: Array, fmt: Int) -> tuple[Array, Array]:
    """Returns the scale and the zero point that map [low, high], widened to hold 0, onto all codes of fmt.

    scale = (high - low) / (max_code - min_code),  zero_point = round(min_code - low / scale), clipped to the codes.
    Zero is exact: it has the code zero_point.  Ends beyond MAX_SCALE * steps / (steps + 1) are drawn in, because
    rounding the zero point moves the grid by up to half a step, and no code may stand for infinity.

    Args:
      low: Lower end per group, any shape, in units of the tensor.
      high: Upper end per group, the same shape, >= low.
      fmt: Integer format of the codes.
    Returns: (scale, float32 > 0 and normal; zero_point, float32 integers in [min_code, max_code]).
    Raises: NumericsError(slug="nonfinite-amax") for NaN or infinite ends.
    Source: Jacob et al. 2018 (arXiv 1712.05877), section 2.1 and equation 1.

    >>> import numpy as np
    >>> choose_affine(np.array(0.0), np.array(510.0), Int(bits=8, signed=False))
    (array(2., dtype=float32), array(0., dtype=float32))
    """
    xp = namespace(low, high)
    low, high = xp.astype(low, xp.float64), xp.astype(high, xp.float64)
    _refuse_nonfinite(xp, low, high)
    steps = fmt.max_code - fmt.min_code
    furthest = MAX_SCALE * _INSIDE * steps / (steps + 1)
    low, high = xp.clip(low, -furthest, 0.0), xp.clip(high, 0.0, furthest)
    wide = xp.clip((high - low) / steps, MIN_SCALE, None)
    scale = xp.astype(xp.where(high == low, xp.ones_like(wide), wide), xp.float32)
    zero = xp.round(fmt.min_code - low / xp.astype(scale, xp.float64))
    return xp.asarray(scale), xp.asarray(xp.astype(xp.clip(zero, fmt.min_value, fmt.max_value), xp.float32) + 0.0)


def affine_from_amax(amax: Array, fmt: Int) -> tuple[Array, Array]:
    """Returns scale and zero point of a symmetric range; an unsigned format has its zero point in the middle.

    For unsigned codes of b bits the zero point is 2**(b-1) and the scale amax / (2**(b-1) - 1), so that codes 1 to
    2**b - 1 are used and both signs have the same grid.
    """
    xp = namespace(amax)
    half = Int(bits=fmt.bits, signed=True)
    scale = choose_scale(amax, half)
    return scale, xp.full_like(scale, 0.0 if fmt.signed else float(1 << (fmt.bits - 1)))


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """What was seen of the values that share a scale; arrays of one shape, one element a scale.

    Args:
      low: Smallest value, float32; for symmetric schemes the negated largest magnitude.
      high: Largest value, float32; for symmetric schemes the largest magnitude.
      total: Sum of magnitudes, float64; None where the rule has no use for it.
      count: How many values share the scale, float64; padding not counted.
    """

    low: Array
    high: Array
    total: Array | None
    count: Array | None

    @property
    def amax(self) -> Array:
        """The largest magnitude."""
        xp = namespace(self.low, self.high)
        return xp.maximum(-self.low, self.high)


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chosen:
    """Scales as they were chosen, before they are stored in the scheme's way; float32 of the shape of what was seen.

    Args:
      scale: > 0.
      zero_point: Zeros where there is none.
      offset: The negated minimum, for schemes with minimums.
    """

    scale: Array
    zero_point: Array
    offset: Array | None = None


class ScaleRule(ABC):
    """How scales are chosen from statistics."""

    __slots__ = ()

    needs_total: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str:
        """The rule in a few words, for tables."""

    @abstractmethod
    def choose(self, seen: Seen, scheme: Scheme) -> Chosen:
        """Returns scale and zero point or minimum for each group."""


@final
@dataclass(frozen=True, slots=True)
class FullRange(ScaleRule):
    """Nothing saturates: the largest magnitude, or both ends of an asymmetric scheme, map onto the codes' ends."""

    @property
    def name(self) -> str:
        return "full range"

    def choose(self, seen: Seen, scheme: Scheme) -> Chosen:
        fmt = scheme.format
        xp = namespace(seen.low)
        if scheme.symmetric:
            scale, zero = (
                affine_from_amax(seen.amax, fmt) if isinstance(fmt, Int) else (choose_scale(seen.amax, fmt), None)
            )
            return Chosen(scale=scale, zero_point=xp.zeros_like(scale) if zero is None else zero)
        if scheme.minimum is not None:
            return _with_minimum(seen, fmt)
        if not isinstance(fmt, Int):
            raise NumericsError(f"{fmt.name} has no zero points: they are for integers", slug="scheme")
        if scheme.zero_point is not None and not isinstance(scheme.zero_point, Int):
            chosen = _with_minimum(seen, fmt)
            zero = fmt.min_value + _quotient(chosen.offset, chosen.scale)
            return Chosen(scale=chosen.scale, zero_point=zero)
        scale, zero = choose_affine(seen.low, seen.high, fmt)
        return Chosen(scale=scale, zero_point=zero)


@final
@dataclass(frozen=True, slots=True)
class Invertible(ScaleRule):
    """The full range, its scale moved to the nearest 1/x of a float32 x: for readers that store a divisor (NVFP4)."""

    @property
    def name(self) -> str:
        return "full range, invertible"

    def choose(self, seen: Seen, scheme: Scheme) -> Chosen:
        chosen = FullRange().choose(seen, scheme)
        xp = namespace(chosen.scale)
        one = xp.ones_like(chosen.scale)
        return Chosen(scale=one / (one / chosen.scale), zero_point=chosen.zero_point)


def _quotient(offset: Array, scale: Array) -> Array:
    xp = namespace(offset)
    return xp.astype(xp.astype(offset, xp.float64) / xp.astype(scale, xp.float64), xp.float32)


def _with_minimum(seen: Seen, fmt: Format) -> Chosen:
    """Returns scale = (high - low) / (max_value - min_value) and the offset that puts low on the smallest value."""
    xp = namespace(seen.low)
    low, high = xp.astype(seen.low, xp.float64), xp.astype(seen.high, xp.float64)
    _refuse_nonfinite(xp, low, high)
    steps = fmt.max_value - fmt.min_value
    furthest = MAX_SCALE * _INSIDE * steps / (steps + 1) / 2
    low, high = xp.clip(low, -furthest, furthest), xp.clip(high, -furthest, furthest)
    scale = xp.clip((high - low) / steps, MIN_SCALE, None)
    scale = xp.astype(xp.where(high == low, xp.ones_like(scale), scale), xp.float32)
    offset = xp.astype(fmt.min_value * xp.astype(scale, xp.float64) - low, xp.float32)
    return Chosen(scale=scale, zero_point=xp.zeros_like(scale), offset=offset)


@final
@dataclass(frozen=True, slots=True)
class MeanMagnitude(ScaleRule):
    """scale = mean(|v|): for {-1, +1} the least squared error there is; for {-1, 0, +1} the rule of BitNet b1.58.

    Source: XNOR-Net (arXiv 1603.05279), equation 6; The Era of 1-bit LLMs (arXiv 2402.17764), equation 3.
    """

    needs_total: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return "mean magnitude"

    def choose(self, seen: Seen, scheme: Scheme) -> Chosen:
        xp = namespace(seen.low)
        assert seen.total is not None, "the rule asks for it"
        mean = seen.total / seen.count
        _refuse_nonfinite(xp, mean)
        scale = xp.astype(xp.where(mean == 0, xp.ones_like(mean), xp.clip(mean, MIN_SCALE, None)), xp.float32)
        return Chosen(scale=scale, zero_point=xp.zeros_like(scale))


class Exponents(Enum):
    """How a power-of-two scale of a block is chosen: 2**(floor(log2(amax)) - emax), or one more in some cases.

    emax is the exponent of the largest value of the element format, 0 for MXINT8.
    """

    FLOOR = "floor"
    """Never one more: the largest values of a block may saturate (OCP MX 1.0, 6.3)."""
    EVEN = "even"
    """One more where amax, rounded to the element's mantissa, is the next power of two."""
    CEIL = "ceil"
    """One more unless amax is a power of two."""
    RCEIL = "rceil"
    """One more where amax would saturate: the smallest power of two under which nothing does."""


@final
@dataclass(frozen=True, slots=True)
class PowerOfTwo(ScaleRule):
    """Scales that are powers of two, for the microscaling formats; 1 for a block of zeros.

    Args:
      policy: In which cases the exponent is raised.
    Source: OCP Microscaling Formats (MX) 1.0, 6.3; the names of the policies are torchao's (ScaleCalculationMode).
    """

    policy: Exponents

    @property
    def name(self) -> str:
        return f"power of two, {self.policy.value}"

    def choose(self, seen: Seen, scheme: Scheme) -> Chosen:
        xp = namespace(seen.low)
        amax = xp.astype(seen.amax, xp.float32)
        _refuse_nonfinite(xp, amax)
        # A denormal amax is read from 2**24 times it, which is normal.
        denormal = amax < MIN_SCALE
        bits = bits_of(xp.where(denormal, xp.where(denormal, amax, xp.zeros_like(amax)) * 2.0**24, amax))
        exponent = (bits >> 23) - 24 * xp.astype(denormal, xp.int32)
        raised = xp.astype((bits & 0x7FFFFF) > self._highest_mantissa(scheme.format), xp.int32)
        # The furthest element under the largest scale is still a float32; MXINT8 has -2, beyond its reach of 127 / 64.
        fmt = scheme.format
        furthest = int(_bits_of_one(max(fmt.max_value, -fmt.min_value)) >> 23) - 127
        code = xp.clip(exponent + raised - _emax(fmt), 0, 254 - furthest)
        one = xp.full_like(code, 127)
        scale = FORMATS["e8m0"].decode(xp.where(amax == 0, one, code))
        return Chosen(scale=scale, zero_point=xp.zeros_like(scale))

    def _highest_mantissa(self, fmt: Format) -> int:
        """Returns the largest float32 mantissa of amax with which the exponent is not raised."""
        every = (1 << 23) - 1
        match self.policy:
            case Exponents.FLOOR:
                return every
            case Exponents.EVEN:  # rounds up to the next power of two from half a step below it (the tie goes to even)
                return every - (1 << (22 - _mantissa_bits(fmt)))
            case Exponents.CEIL:
                return 0
            case Exponents.RCEIL:
                return int((fmt.reach / 2.0 ** _emax(fmt) - 1) * (1 << 23))


def _emax(fmt: Format) -> int:
    """Returns the exponent of the largest value: floor(log2(reach)), without a logarithm."""
    return int(_bits_of_one(fmt.reach) >> 23) - 127


def _bits_of_one(value: float) -> int:
    """Returns the float32 bit pattern of a number."""
    return int(np.float32(value).view(np.int32))


def _mantissa_bits(fmt: Format) -> int:
    if isinstance(fmt, Float):
        return fmt.mantissa_bits
    if isinstance(fmt, Fixed):
        return fmt.fraction_bits
    raise NumericsError(f"{fmt.name} has no mantissa to round an exponent by; use floor, ceil or rceil", slug="scheme")
