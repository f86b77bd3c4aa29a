"""A sign, or nothing: log2(3) = 1.58 bits of information, stored in two."""

from __future__ import annotations

from fewbits.numerics.codebook import Codebook
from fewbits.numerics.format import Format

FORMATS: tuple[Format, ...] = (
    # Half a scale becomes 0, as in BitNet b1.58 (arXiv 2402.17764), which rounds half to even integers.
    Codebook(
        name="ternary",
        values=(-1.0, 0.0, 1.0),
        ties="zero",
        source="Ternary Weight Networks (arXiv 1605.04711)",
    ),
)
