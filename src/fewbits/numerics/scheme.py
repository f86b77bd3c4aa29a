"""A scheme: format + granularity + symmetric or not; all that is needed to read stored codes, but for the scales."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import final

from fewbits._base.errors import NumericsError
from fewbits.numerics.format import Format
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import Granularity, parse_granularity

_PATTERN = re.compile(r"(?P<format>\w+) (?P<granularity>per-\w+(?:\([^)]*\))?) (?P<symmetry>symmetric|asymmetric)")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How a tensor is stored.

    Args:
      format: Element format of the codes.
      granularity: Which elements share a scale.
      symmetric: If true the zero point is the code of zero (0, or absent); else each scale has a zero point.
    """

    format: Format
    granularity: Granularity
    symmetric: bool

    @property
    def name(self) -> str:
        """The scheme in words, e.g. ``int8 per-channel(0) symmetric``; ``parse_scheme`` reads it back."""
        return f"{self.format.name} {self.granularity.name} {'symmetric' if self.symmetric else 'asymmetric'}"


def parse_scheme(text: str) -> Scheme:
    """Returns the scheme that ``Scheme.name`` printed.

    Raises: NumericsError(slug="scheme") where the words are not of that form.

    >>> parse_scheme("uint8 per-tensor asymmetric").name
    'uint8 per-tensor asymmetric'
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise NumericsError(
            f"cannot read scheme {text!r}; expected FORMAT GRANULARITY symmetric|asymmetric, "
            "e.g. 'int8 per-channel(0) symmetric'",
            slug="scheme",
        )
    return Scheme(
        format=FORMATS[match["format"]],
        granularity=parse_granularity(match["granularity"]),
        symmetric=match["symmetry"] == "symmetric",
    )
