"""Integers of 2 to 8 and 16 bits, int32 for biases and accumulators, and the fixed point of MXINT8."""

from __future__ import annotations

from fewbits.numerics.format import Fixed, Format, Int

_WIDTHS = (2, 3, 4, 5, 6, 7, 8, 16)

FORMATS: tuple[Format, ...] = (
    *(Int(bits=bits, signed=True) for bits in _WIDTHS),
    *(Int(bits=bits, signed=False) for bits in _WIDTHS),
    Int(bits=32, signed=True),
    Fixed(name="mxint8", bits=8, fraction_bits=6, source="OCP Microscaling Formats (MX) 1.0, 5.3.4"),
)
