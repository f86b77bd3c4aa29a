"""Budgets: how much metric may be lost, and how that is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import final

from fewbits._base.errors import UsageError

# A bare number at or above this is more likely "1" meant as 1 % than a loss of 100 points: ask, never guess.
_LARGEST_FRACTION = 0.2
_NUMBER = re.compile(r"(?P<number>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*(?P<percent>%)?")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much metric may be lost.

    Args:
      max_drop: Fraction: points / 100 for metrics in [0, 1], relative for all others; >= 0.
      confidence: Of the one-sided bound that must lie inside, in (0.5, 1).
    """

    max_drop: float
    confidence: float = 0.95


def _number(text: str | float) -> tuple[float, bool]:
    """Returns the number and whether it bears a percent sign; NaN for what is no plain decimal number."""
    match = _NUMBER.fullmatch(str(text).strip())
    return (float(match["number"]), match["percent"] is not None) if match else (float("nan"), False)


def parse_max_drop(text: str | float) -> float:
    """Returns the fraction that a ``--max-drop`` means: a "%" string, or a fraction below 0.2.

    Raises: UsageError(slug="max-drop") for anything else.

    >>> parse_max_drop("1%"), parse_max_drop(0.01), parse_max_drop("0.5 %")
    (0.01, 0.01, 0.005)
    """
    number, percent = _number(text)
    if number != number:
        raise UsageError(f"--max-drop {text!r} is not a number; write '1%' or 0.01", slug="max-drop")
    value = number / 100 if percent else number
    if not 0 <= value <= 1 or (not percent and value >= _LARGEST_FRACTION):
        raise UsageError(
            f"--max-drop {text!r} is not a loss that can be meant; write a percentage ('{number:g}%') "
            "or a fraction below 0.2 (0.01 is 1 %)",
            slug="max-drop",
        )
    return value


def parse_confidence(text: str | float) -> float:
    """Returns the confidence that ``--confidence`` means: "95%" or 0.95.

    Raises: UsageError(slug="confidence") outside (0.5, 1).

    >>> parse_confidence("95%"), parse_confidence(0.9)
    (0.95, 0.9)
    """
    number, percent = _number(text)
    value = number / 100 if percent else number
    if not 0.5 < value < 1:
        raise UsageError(f"--confidence {text!r} is not between 50% and 100%; write '95%' or 0.95", slug="confidence")
    return value
