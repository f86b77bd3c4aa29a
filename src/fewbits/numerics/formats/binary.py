"""One bit: a sign."""

from __future__ import annotations

from fewbits.numerics.codebook import Codebook
from fewbits.numerics.format import Format

FORMATS: tuple[Format, ...] = (
    Codebook(name="binary", values=(-1.0, 1.0), ties="up", source="BinaryNet (arXiv 1602.02830), equation 1"),
)
