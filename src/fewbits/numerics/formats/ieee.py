"""float32, and the two 16-bit floats: IEEE 754's half precision, and the upper half of float32."""

from __future__ import annotations

from fewbits.numerics.floating import Float, Single, Specials
from fewbits.numerics.format import Format

FORMATS: tuple[Format, ...] = (
    Single(),
    Float(
        name="fp16",
        exponent_bits=5,
        mantissa_bits=10,
        bias=15,
        specials=Specials.IEEE,
        source="IEEE 754-2019, binary16",
    ),
    Float(
        name="bf16",
        exponent_bits=8,
        mantissa_bits=7,
        bias=127,
        specials=Specials.IEEE,
        source="Intel BFLOAT16 Hardware Numerics Definition 1.0",
    ),
)
