"""Repairs of the executed graph: what falls back to float is rewritten, measured again, and kept where it helps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from fewbits.calibration.statistics import Statistics
from fewbits.measurement.executed import FloatIsland
from fewbits.planning.plan import Plan
from fewbits.runtimes.base import Options
from fewbits.search.draft import draft_plan
from fewbits.search.preparing import Prepared


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Repairs:
    """What was changed, and what it brought.

    Args:
      before: Float islands of the file without repairs.
      kept: Names of the repairs that stayed.
      timings: What was measured of each that was tried, for timings.json.
    """

    before: tuple[FloatIsland, ...] = ()
    kept: tuple[str, ...] = ()
    timings: tuple[dict[str, object], ...] = ()


NO_REPAIRS = Repairs()


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Repaired:
    """A model with its repairs, and where its plan starts."""

    prepared: Prepared
    statistics: Statistics
    plan: Plan
    keep_float: tuple[str, ...]
    repairs: Repairs


def unrepaired(prepared: Prepared, statistics: Statistics) -> Repaired:
    """Returns the model as it is."""
    plan = draft_plan(prepared.model, prepared.target, base=prepared.base)
    return Repaired(prepared=prepared, statistics=statistics, plan=plan, keep_float=(), repairs=NO_REPAIRS)


def repair(prepared: Prepared, statistics: Statistics, options: Options, feeds: dict[str, np.ndarray]) -> Repaired:
    """Returns the model as it is."""
    return unrepaired(prepared, statistics)
