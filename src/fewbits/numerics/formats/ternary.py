"""A sign, or nothing: log2(3) = 1.58 bits of information, stored in two."""

from __future__ import annotations

from fewbits.numerics.codebook import Codebook
from fewbits.numerics.format import Format

FORMATS: tuple[Format, ...] = (
    Codebook(name="ternary", values=(-1.0, 0.0, 1.0), source="Ternary Weight Networks (arXiv 1605.04711)"),
)
