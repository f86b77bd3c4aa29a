"""What a search asks of a candidate on its way: whether its speed, or its loss, already decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fewbits.measurement.benchmark import quick_speedup
from fewbits.measurement.outcome import Outcome
from fewbits.runtimes.base import Options
from fewbits.search.building import Candidate
from fewbits.search.handing_over import is_slower
from fewbits.search.preparing import Prepared
from fewbits.search.verdict_data import loss_bound

# Over float, the speed below which integers are not worth their loss.
_WORTH_INTEGERS = 1.05
# The part of its speed that a file must keep when a node goes back to float for closeness alone.
_FREE = 0.97
# Seconds after which it is plain whether a candidate is slower than float.
_QUICK_SECONDS = 1.0


def pays(prepared: Prepared, candidate: Candidate, options: Options, feeds: dict[str, np.ndarray]) -> bool:
    """Returns whether a candidate is faster than float by more than noise; always where that is not asked for."""
    request, model = prepared.request, prepared.model
    if request.allow_slower:
        return True
    models, own = (model.original, candidate.data), replace(options, data_folder=model.folder)
    found = quick_speedup(models, feeds=feeds, options=own, seconds=_QUICK_SECONDS, seed=request.seed)
    return found.ratio > _WORTH_INTEGERS


def is_refuted(prepared: Prepared, outcome: Outcome) -> bool:
    """Returns whether the selection data show, at the confidence of the run, a loss beyond the budget."""
    request, parts = prepared.request, prepared.parts
    assert parts is not None and request.max_drop is not None
    groups = None if parts.data.groups is None else parts.data.groups[parts.selection][: len(outcome.scores)]
    bound = loss_bound(prepared.selection_metric, outcome, confidence=request.confidence, groups=groups)
    return bound.lower > request.max_drop


def loses_speed(
    prepared: Prepared, models: tuple[bytes, bytes], options: Options, feeds: dict[str, np.ndarray]
) -> bool:
    """Returns whether the second file is slower than the first by more than may be given away."""
    own = replace(options, data_folder=prepared.model.folder)
    found = quick_speedup(models, feeds=feeds, options=own, seconds=_QUICK_SECONDS, seed=prepared.request.seed)
    return found.ratio < _FREE


def hopeless(prepared: Prepared, candidate: Candidate, options: Options, feeds: dict[str, np.ndarray]) -> str | None:
    """Returns why no mix with float nodes can win: all integers are already slower than float, and may not be."""
    request = prepared.request
    if request.allow_slower:
        return None
    speedup = quick_speedup(
        (prepared.model.original, candidate.data),
        feeds=feeds,
        options=replace(options, data_folder=prepared.model.folder),
        seconds=_QUICK_SECONDS,
        seed=request.seed,
    )
    if not is_slower(speedup):
        return None
    return (
        f"all nodes in integers run at {speedup.ratio:.2f}x of float's speed, so no mix with float nodes was tried "
        "[slower-than-float]"
    )
