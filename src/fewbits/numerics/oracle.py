"""The slow oracle: scalar, exact (fractions), in plain sight of the specification; tests hold the fast path to it.

It reads a format's fields and none of its methods, so that nothing of what it judges takes part in the judgement.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import copysign, floor, inf, isinf, isnan, nan

from fewbits.numerics.codebook import Codebook
from fewbits.numerics.floating import Exponent, Float, Single, Specials
from fewbits.numerics.format import Fixed, Format, Int

# float32: 24 bits of precision, exponents of the last bit from -149 (denormal) up (IEEE 754-2019, 3.6, table 3.5).
_PRECISION = 24
_LOWEST_BIT = -149
_LARGEST = (2 - Fraction(1, 1 << (_PRECISION - 1))) * 2**127
# Formats of up to this many bits are listed value by value.
_LISTED_BITS = 16
# Exponents of E8M0: the code less 127, and 255 is NaN (OCP MX 1.0, 5.4.1).
_E8M0_BIAS = 127


# --- numbers ------------------------------------------------------------------------------------------------------


def round_half_even(value: Fraction) -> int:
    """Returns the nearest integer, ties to even (IEEE 754-2019, 4.3.1).

    >>> [round_half_even(Fraction(n, 2)) for n in (-5, -3, -1, 1, 3, 5)]
    [-2, -2, 0, 0, 2, 2]
    """
    low = floor(value)
    rest = value - low
    if rest > Fraction(1, 2) or (rest == Fraction(1, 2) and low % 2):
        return low + 1
    return low


def floor_log2(value: Fraction) -> int:
    """Returns the largest e with 2**e <= value, of a positive value.

    >>> [floor_log2(Fraction(n, 4)) for n in (1, 3, 4, 31, 32)]
    [-2, -1, 0, 2, 3]
    """
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    return exponent if Fraction(2) ** exponent <= value else exponent - 1


def to_float32(value: Fraction) -> Fraction:
    """Returns the float32 nearest to an exact value, as a fraction; ties to even, denormals kept, no overflow check."""
    if value == 0:
        return Fraction(0)
    last = Fraction(2) ** max(floor_log2(abs(value)) - _PRECISION + 1, _LOWEST_BIT)
    return round_half_even(value / last) * last


# --- formats: what a code stands for ------------------------------------------------------------------------------


def value_of(code: int, fmt: Format) -> Fraction | float:
    """Returns the exact value of a code; the float nan, inf or -inf for what is no number. The sign of zero is lost.

    Source: of integers, two's complement; of fixed point, OCP MX 1.0, 5.3.4 (INT8, whose step is 2**-6); of floats,
      IEEE 754-2019, 3.4, and for their largest exponent OCP OFP8 1.0 and OCP MX 1.0, 5.3; of E8M0, OCP MX 1.0, 5.4.1;
      of a codebook, its list (NF4: QLoRA, arXiv 2305.14314, appendix E).
    """
    match fmt:
        case Int():
            return Fraction(code)
        case Fixed():
            return Fraction(code, 1 << fmt.fraction_bits)
        case Float():
            return _floating(code, fmt.exponent_bits, fmt.mantissa_bits, fmt.bias, fmt.specials, signed=fmt.signed)
        case Single():  # binary32; its codes are the patterns as signed integers
            return _floating(code % (1 << 32), 8, _PRECISION - 1, 127, Specials.IEEE, signed=True)
        case Exponent():
            return nan if code == (1 << 8) - 1 else Fraction(2) ** (code - _E8M0_BIAS)
        case Codebook():
            return Fraction(fmt.values[code])
    raise TypeError(f"the oracle does not know formats of the kind of {fmt.name}")


def _floating(
    code: int, exponent_bits: int, mantissa_bits: int, bias: int, specials: Specials, *, signed: bool
) -> Fraction | float:
    """Returns the value of a pattern of sign, biased exponent and trailing significand (IEEE 754-2019, 3.4)."""
    mantissa = code % (1 << mantissa_bits)
    exponent = (code >> mantissa_bits) % (1 << exponent_bits)
    negative = signed and (code >> (mantissa_bits + exponent_bits)) % 2 == 1
    if exponent == (1 << exponent_bits) - 1:
        # 3.4 a) and b) for IEEE; in OFP8's E4M3 the last mantissa alone is NaN; fp6 and fp4 have numbers only.
        if specials is Specials.IEEE and mantissa == 0:
            return -inf if negative else inf
        if specials is Specials.IEEE or (specials is Specials.NAN and mantissa == (1 << mantissa_bits) - 1):
            return nan
    fraction = Fraction(mantissa, 1 << mantissa_bits)
    # 3.4 d) and e), zero and the subnormal numbers, have no leading one and the exponent of the smallest of 3.4 c).
    size = Fraction(2) ** (max(exponent, 1) - bias) * ((exponent > 0) + fraction)
    return -size if negative else size


def is_negative(code: int, fmt: Format) -> bool:
    """Returns whether the sign bit of a float's code is set; for what else there is, whether the value is below 0."""
    if isinstance(fmt, Float):
        return fmt.signed and (code >> (fmt.exponent_bits + fmt.mantissa_bits)) % 2 == 1
    if isinstance(fmt, Single):
        return code < 0
    return value_of(code, fmt) < 0


def codes_of(fmt: Format) -> range:
    """Returns every code of a format, ascending."""
    match fmt:
        case Int(signed=True) | Fixed():
            return range(-(1 << (fmt.bits - 1)), 1 << (fmt.bits - 1))
        case Int():
            return range(1 << fmt.bits)
        case Float():
            return range(1 << (fmt.signed + fmt.exponent_bits + fmt.mantissa_bits))
        case Exponent():
            return range(1 << 8)
        case Codebook():
            return range(len(fmt.values))
    raise TypeError(f"the oracle does not list the codes of {fmt.name}")


@lru_cache(maxsize=64)
def listed(fmt: Format) -> tuple[tuple[Fraction, ...], tuple[int, ...]]:
    """Returns the distinct finite values, ascending, and the code of each: of the two zeros of a float the positive."""
    found: dict[Fraction, int] = {}
    for code in codes_of(fmt):
        value = value_of(code, fmt)
        if isinstance(value, Fraction):
            found.setdefault(value, code)
    values = tuple(sorted(found))
    return values, tuple(found[value] for value in values)


def nan_code(fmt: Format) -> int | None:
    """Returns the code of NaN: positive, quiet and without payload where there are several; None where there is none.

    Source: IEEE 754-2019, 6.2.1 (a quiet NaN has the first bit of its mantissa set); OCP OFP8 1.0; OCP MX 1.0, 5.4.1.
    """
    match fmt:
        case Float(specials=Specials.IEEE):
            return ((1 << fmt.exponent_bits) - 1 << fmt.mantissa_bits) + (1 << (fmt.mantissa_bits - 1))
        case Float(specials=Specials.NAN):
            return (1 << (fmt.exponent_bits + fmt.mantissa_bits)) - 1
        case Single():
            return 0x7FC00000
        case Exponent():
            return (1 << 8) - 1
    return None


# --- formats: which code a value gets -----------------------------------------------------------------------------


def encode(value: float, fmt: Format) -> int:
    """Returns the code of the nearest value, by exact distances over the list of all; saturating at both ends.

    Ties: of integers, fixed point, floats and powers of two to the even code (IEEE 754-2019, 4.3.1, roundTiesToEven;
    the codes of two neighbours differ by one); of a codebook as it declares: to the even place of its sorted list, up,
    or to the smaller magnitude. A float keeps the sign of zero and of what becomes zero (IEEE 754-2019, 6.3).
    Infinities saturate (OCP OFP8 1.0, saturating mode).

    Args:
      value: As float32 holds it; float64 for integers.
    Raises: ValueError for NaN where the format has no code for it.
    """
    if isnan(value):
        code = nan_code(fmt)
        if code is None:
            raise ValueError(f"{fmt.name} has no code for NaN")
        return code
    if isinstance(fmt, Single) or (isinstance(fmt, Int) and fmt.bits > _LISTED_BITS):
        return _encode_unlisted(value, fmt)
    values, codes = listed(fmt)
    if isinf(value):
        return codes[-1] if value > 0 else codes[0]
    place = _nearest(Fraction(value), fmt)
    if values[place] == 0 and isinstance(fmt, Float) and fmt.signed and copysign(1.0, value) < 0:
        return 1 << (fmt.exponent_bits + fmt.mantissa_bits)
    return codes[place]


def _nearest(value: Fraction, fmt: Format) -> int:
    """Returns the place of the nearest value in the list of all."""
    values, codes = listed(fmt)
    upper = bisect_left(values, value)
    if upper in (0, len(values)):
        return min(upper, len(values) - 1)
    below, above = value - values[upper - 1], values[upper] - value
    if below != above:
        return upper if above < below else upper - 1
    if isinstance(fmt, Codebook) and fmt.ties == "zero":
        return upper if abs(values[upper]) < abs(values[upper - 1]) else upper - 1
    if isinstance(fmt, Codebook):
        return upper if fmt.ties == "up" or upper % 2 == 0 else upper - 1
    return upper if codes[upper] % 2 == 0 else upper - 1


def _encode_unlisted(value: float, fmt: Int | Single) -> int:
    """Returns the code where there are too many to list: the formula that the list stands for."""
    if isinstance(fmt, Int):
        codes = codes_of(fmt)
        if isinf(value):
            return codes[-1] if value > 0 else codes[0]
        return min(max(round_half_even(Fraction(value)), codes[0]), codes[-1])
    size = float(_LARGEST if isinf(value) else min(to_float32(abs(Fraction(value))), _LARGEST))
    # Patterns of positive floats ascend with their values, each of which a float of Python holds: bisect over them.
    pattern = bisect_left(range(0x7F800000), size, key=lambda code: float(value_of(code, fmt)))
    return pattern - (1 << 31) if copysign(1.0, value) < 0 else pattern


def neighbours(value: float, fmt: Format) -> tuple[int, int, Fraction]:
    """Returns the codes below and above a value, and the probability of the upper one in stochastic rounding.

    The probability is the distance from the lower in steps between them, which makes the expectation the value.
    A value of the format, and one beyond its ends, has one neighbour alone, twice, and the probability 0.

    Source: Gupta et al. 2015 (arXiv 1502.02551), section 3.
    """
    values, codes = listed(fmt)
    exact = values[-1] if value == inf else values[0] if value == -inf else Fraction(value)
    exact = min(max(exact, values[0]), values[-1])
    upper = bisect_left(values, exact)
    if values[upper] == exact:
        return codes[upper], codes[upper], Fraction(0)
    low, high = values[upper - 1], values[upper]
    return codes[upper - 1], codes[upper], (exact - low) / (high - low)


# --- scales -------------------------------------------------------------------------------------------------------


def reach(fmt: Format) -> Fraction:
    """Returns the largest magnitude of the sign that has the shorter side: what the largest magnitude maps onto."""
    if isinstance(fmt, Int):
        return Fraction(codes_of(fmt)[-1])
    values, _ = listed(fmt)
    return min(values[-1], -values[0]) if values[0] < 0 else values[-1]


def shared_exponent(amax: Fraction, fmt: Format, policy: str) -> int:
    """Returns e of the scale 2**e of a microscaling block; 0 for a block of zeros.

    - floor: floor(log2(amax)) - emax, emax the exponent of the largest value of the elements (OCP MX 1.0, 6.3).
    - even: the same of amax rounded to the elements' precision, ties to even.
    - ceil: ceil(log2(amax)) - emax.
    - rceil: the smallest e with amax <= 2**e * (the largest value of the elements).

    Drawn into [-127, 127 - the exponent of the largest magnitude]: above that, elements would not be float32, though
    E8M0 goes to 127 (our choice; -2 of MXINT8 is a larger magnitude than the largest value).

    Source: OCP MX 1.0, 6.3, for floor; the names of the others are torchao's (ScaleCalculationMode).
    """
    if amax == 0:
        return 0
    emax = floor_log2(reach(fmt))
    exponent = floor_log2(amax)
    match policy:
        case "floor":
            shared = exponent - emax
        case "even":
            step = Fraction(2) ** (exponent - _stored_mantissa(fmt))
            shared = floor_log2(round_half_even(amax / step) * step) - emax
        case "ceil":
            shared = exponent + (amax > Fraction(2) ** exponent) - emax
        case "rceil":
            shared = exponent - emax
            while amax > Fraction(2) ** shared * reach(fmt):
                shared += 1
        case _:
            raise ValueError(f"no such policy: {policy}")
    return min(max(shared, -_E8M0_BIAS), _E8M0_BIAS - floor_log2(max(map(abs, listed(fmt)[0]))))


def _stored_mantissa(fmt: Format) -> int:
    """Returns the bits behind the leading one of the largest elements."""
    if isinstance(fmt, Float):
        return fmt.mantissa_bits
    if isinstance(fmt, Fixed):
        return fmt.fraction_bits
    raise TypeError(f"{fmt.name} has no mantissa")


def two_level_scales(amaxes: Sequence[float], fmt: Format, stored: Format) -> tuple[list[int], Fraction]:
    """Returns the codes of the blocks' scales and the scale of the tensor: NVFP4, on a list of blocks.

    The scale that a block wants is amax / reach(fmt); the tensor's maps the largest of these onto reach(stored); each
    division is rounded to float32. A block's scale is then value_of(code) * tensor's, float32. A block of zeros wants
    none, and has no say: it takes the smallest of the others', or 1 where there are none.

    Source: NVIDIA, Pretraining LLMs with NVFP4 (arXiv 2509.25149), 2.
    """
    known = [to_float32(Fraction(amax) / reach(fmt)) for amax in amaxes if amax]
    wanted = [to_float32(Fraction(amax) / reach(fmt)) if amax else min(known, default=Fraction(1)) for amax in amaxes]
    # Some readers store the reciprocal (compressed-tensors): the scale is one that a reciprocal gives.
    tensor = to_float32(1 / to_float32(1 / to_float32(max(wanted) / reach(stored))))
    return [encode(float(to_float32(scale / tensor)), stored) for scale in wanted], tensor


def quantize(value: float, scale: Fraction, fmt: Format) -> int:
    """Returns the code of float32(value / scale), nearest, zero with its sign; that of zero under a scale of 0."""
    quotient = Fraction(0) if scale == 0 else to_float32(abs(Fraction(value)) / scale)
    return encode(copysign(float(quotient), value), fmt)


def dequantize(code: int, scale: Fraction, fmt: Format) -> float:
    """Returns float32(value * scale) of a code that stands for a number."""
    value = value_of(code, fmt)
    assert isinstance(value, Fraction)
    return float(to_float32(value * scale))


def quantize_integer(value: float, scale: float, zero_point: int, *, low: int, high: int) -> int:
    """Returns saturate(round_half_even(float32(value / scale)) + zero_point): ONNX QuantizeLinear-21 on one number.

    Args:
      value: A finite float32.
      scale: A positive finite float32.
      zero_point: Code of zero.
      low: Smallest code.
      high: Largest code.
    """
    quotient = to_float32(Fraction(value) / Fraction(scale))
    return min(max(round_half_even(quotient) + zero_point, low), high)


def dequantize_integer(code: int, scale: float, zero_point: int) -> float:
    """Returns float32((code - zero_point) * scale): ONNX DequantizeLinear-21 on one code."""
    return float(to_float32((code - zero_point) * Fraction(scale)))
