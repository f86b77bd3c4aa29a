"""OCP's 6- and 4-bit floats: elements of microscaling blocks, without NaN and infinity."""

from __future__ import annotations

from fewbits.numerics.floating import Float, Specials
from fewbits.numerics.format import Format

_SOURCE = "OCP Microscaling Formats (MX) 1.0, 5.3"

FORMATS: tuple[Format, ...] = (
    Float(name="fp6_e3m2", exponent_bits=3, mantissa_bits=2, bias=3, specials=Specials.NONE, source=_SOURCE),
    Float(name="fp6_e2m3", exponent_bits=2, mantissa_bits=3, bias=1, specials=Specials.NONE, source=_SOURCE),
    Float(name="fp4_e2m1", exponent_bits=2, mantissa_bits=1, bias=1, specials=Specials.NONE, source=_SOURCE),
)
