"""Formats in which scales are stored: they have no sign."""

from __future__ import annotations

from fewbits.numerics.floating import Exponent, Float, Specials
from fewbits.numerics.format import Format

FORMATS: tuple[Format, ...] = (
    Exponent(name="e8m0", source="OCP Microscaling Formats (MX) 1.0, 5.4.1"),
    Float(
        name="ue4m3",
        exponent_bits=4,
        mantissa_bits=3,
        bias=7,
        specials=Specials.NAN,
        signed=False,
        source="NVIDIA PTX ISA 8.6, alternate floating point: ue4m3 (the scale of NVFP4)",
    ),
)
