"""A record: one measured fact, with the conditions under which it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import final


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One measured fact.

    Args:
      metric: What was measured, e.g. ``top-1``.
      subject: Of what: ``float``, ``quantized``, or ``difference``.
      value: The measured value; None where it could not be measured.
      unit: Unit of value and bound.
      bound: One-sided confidence bound, where there is one.
      n: How many examples or calls stand behind it.
      seed: Seed of what was drawn.
      conditions: Runtime, threads, split and so on, in words.
    """

    metric: str
    subject: str
    value: float | None
    unit: str
    bound: float | None = None
    n: int | None = None
    seed: int | None = None
    conditions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Returns the record as one line of JSON; a value that is not finite is null, because JSON has no NaN."""
        row = {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in asdict(self).items()}
        return json.dumps(row, ensure_ascii=False, sort_keys=True, allow_nan=False)
