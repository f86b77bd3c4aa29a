"""OCP's two 8-bit floats."""

from __future__ import annotations

from fewbits.numerics.floating import Float, Specials
from fewbits.numerics.format import Format

_SOURCE = "OCP 8-bit Floating Point Specification 1.0"

FORMATS: tuple[Format, ...] = (
    Float(name="fp8_e4m3", exponent_bits=4, mantissa_bits=3, bias=7, specials=Specials.NAN, source=_SOURCE),
    Float(name="fp8_e5m2", exponent_bits=5, mantissa_bits=2, bias=15, specials=Specials.IEEE, source=_SOURCE),
)
