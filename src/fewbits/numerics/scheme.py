"""A scheme: format + granularity + symmetric or not + how scales are stored; all that is needed to read codes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import final

from fewbits._base.errors import NumericsError
from fewbits.numerics.format import Format
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import Granularity, parse_granularity

_HEAD = re.compile(r"(?P<format>\w+) (?P<granularity>per-\w+(?:\([^)]*\))?) (?P<symmetry>symmetric|asymmetric)")
# A scale of a scale of a scale: GGUF and NF4 need two.
_MAX_DEPTH = 4
# What a scale takes that is stored as float32.
_FLOAT_BITS = 32


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How a tensor is stored.

    Args:
      format: Element format of the codes.
      granularity: Which elements share a scale.
      symmetric: If true the zero point is the code of zero (0, or absent); else each scale has a zero point or minimum.
      scale: How scales are stored: None as float32, a format as its values, a scheme as a quantized tensor again.
      zero_point: Format of the zero points of an asymmetric scheme; None: the format of the codes.
      minimum: How minimums are stored, of a scheme that has them in the place of zero points; None: it has none.
      scaled: False where codes stand for themselves (fp16): the scale is 1 and is not stored.
    Raises: NumericsError(slug="scheme") for a zero point or minimum of a symmetric scheme, or for both.
    """

    format: Format
    granularity: Granularity
    symmetric: bool
    scale: Format | Scheme | None = None
    zero_point: Format | None = None
    minimum: Format | Scheme | None = None
    scaled: bool = True

    def __post_init__(self) -> None:
        shifted = (self.zero_point is not None) + (self.minimum is not None)
        if shifted > (0 if self.symmetric else 1):
            raise NumericsError(
                "a symmetric scheme has no zero point and no minimum, an asymmetric one has not both", slug="scheme"
            )

    @property
    def name(self) -> str:
        """The scheme in words, e.g. ``int8 per-channel(0) symmetric``; ``parse_scheme`` reads it back."""
        words = f"{self.format.name} {self.granularity.name} {'symmetric' if self.symmetric else 'asymmetric'}"
        for key, stored in (("scale", self.scale), ("zero_point", self.zero_point), ("minimum", self.minimum)):
            if stored is not None:
                words += f", {key} {stored.name if isinstance(stored, Format) else f'({stored.name})'}"
        return words if self.scaled else f"{words}, unscaled"

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        """Returns the bits of a tensor of this shape: codes, scales, zero points or minimums, without any padding."""
        bits = prod(shape) * self.format.stored_bits
        if not self.scaled:
            return bits
        scales = self.granularity.scale_shape(shape)
        bits += _bits(self.scale, scales)
        if self.minimum is not None:
            return bits + _bits(self.minimum, scales)
        return bits if self.symmetric else bits + prod(scales) * (self.zero_point or self.format).stored_bits


def _bits(how: Format | Scheme | None, shape: tuple[int, ...]) -> int:
    if isinstance(how, Scheme):
        return how.stored_bits(shape)
    return prod(shape) * (_FLOAT_BITS if how is None else how.stored_bits)


def parse_scheme(text: str) -> Scheme:
    """Returns the scheme that ``Scheme.name`` printed.

    Raises: NumericsError(slug="scheme") where the words are not of that form.

    >>> parse_scheme("uint8 per-tensor asymmetric").name
    'uint8 per-tensor asymmetric'
    >>> parse_scheme("fp4_e2m1 per-group(-1, 16) symmetric, scale (ue4m3 per-tensor symmetric)").scale.format.name
    'ue4m3'
    """
    return _parse(text, whole=text, depth=0)


def _parse(text: str, *, whole: str, depth: int) -> Scheme:
    head, *rest = _parts(text)
    match = _HEAD.fullmatch(head)
    stored: dict[str, Format | Scheme] = {}
    scaled = True
    for part in rest:
        key, _, value = part.partition(" ")
        if part == "unscaled":
            scaled = False
        elif key not in ("scale", "zero_point", "minimum") or key in stored or not value or depth == _MAX_DEPTH:
            match = None
        elif value.startswith("(") and value.endswith(")"):
            stored[key] = _parse(value[1:-1], whole=whole, depth=depth + 1)
        else:
            stored[key] = FORMATS[value]
    zero_point = stored.get("zero_point")
    if match is None or isinstance(zero_point, Scheme):
        raise NumericsError(
            f"cannot read scheme {whole[:200]!r}; expected FORMAT GRANULARITY symmetric|asymmetric, "
            "e.g. 'int8 per-channel(0) symmetric', or with ', scale FORMAT' behind",
            slug="scheme",
        )
    return Scheme(
        format=FORMATS[match["format"]],
        granularity=parse_granularity(match["granularity"]),
        symmetric=match["symmetry"] == "symmetric",
        scale=stored.get("scale"),
        zero_point=zero_point,
        minimum=stored.get("minimum"),
        scaled=scaled,
    )


def _parts(text: str) -> list[str]:
    """Returns what stands between the commas that lie outside of brackets."""
    parts, depth, start = [], 0, 0
    for place, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if depth == 0 and text.startswith(", ", place):
            parts.append(text[start:place])
            start = place + 2
    return [*parts, text[start:]]
