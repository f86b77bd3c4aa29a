"""The slow oracle: scalar, exact (fractions), in plain sight of the specification; tests hold the fast path to it."""

from __future__ import annotations

from fractions import Fraction
from math import floor

# float32: 24 bits of precision, exponents of the last bit from -149 (denormal) up.
_PRECISION = 24
_LOWEST_BIT = -149


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


def to_float32(value: Fraction) -> Fraction:
    """Returns the float32 nearest to an exact value, as a fraction; ties to even, denormals kept, no overflow check."""
    if value == 0:
        return Fraction(0)
    exponent = 0
    magnitude = abs(value)
    while magnitude >= 2 ** (exponent + 1):
        exponent += 1
    while magnitude < Fraction(2) ** exponent:
        exponent -= 1
    last = Fraction(2) ** max(exponent - _PRECISION + 1, _LOWEST_BIT)
    return round_half_even(value / last) * last


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
