"""Integers of 2 to 8 and 16 bits, and int32 for biases and accumulators."""

from __future__ import annotations

from fewbits.numerics.format import Format, Int

_WIDTHS = (2, 3, 4, 5, 6, 7, 8, 16)

FORMATS: tuple[Format, ...] = (
    *(Int(bits=bits, signed=True) for bits in _WIDTHS),
    *(Int(bits=bits, signed=False) for bits in _WIDTHS),
    Int(bits=32, signed=True),
)
