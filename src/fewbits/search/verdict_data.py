"""Which examples play which part of a run, and the bound on the loss in the metric's own terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np

from fewbits._base.errors import DataError
from fewbits.evidence import FRACTIONS, PairedBound, find_overlap, paired_bound, relative_bound, split_by_hash
from fewbits.evidence.paired import trinomial_bound
from fewbits.measurement.metrics.base import Metric
from fewbits.measurement.outcome import Outcome

if TYPE_CHECKING:
    from fewbits.datasets.base import Dataset

# More calibration examples than this change no 8-bit range that matters, and cost time.
CALIBRATION_CAP = 1024

# Shares of --data by what else there is: a search needs selection data, a run without one does not.
SHARES: Mapping[tuple[bool, bool], Mapping[str, float]] = {
    (True, False): FRACTIONS,
    (True, True): {"calibration": 0.4, "selection": 0.6, "verdict": 0.0},
    (False, False): {"calibration": 0.4, "selection": 0.0, "verdict": 0.6},
    (False, True): {"calibration": 1.0, "selection": 0.0, "verdict": 0.0},
}

# Where only weights are quantized nothing is chosen from data.
WEIGHTS_ONLY: Mapping[str, float] = {"calibration": 0.0, "selection": 0.0, "verdict": 1.0}
# Ranges of each run need no calibration, but a few of many examples tell which channels hide others.
_UNRANGED: Mapping[str, float] = {"calibration": 0.2, "selection": 0.0, "verdict": 0.8}
_MANY = 100


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """Examples by the part they play; indices ascending, no content in two parts.

    Args:
      data: Where calibration and selection examples come from.
      calibration: Their indices.
      selection: Their indices; empty where nothing is searched.
      verdict_data: Where verdict examples come from.
      verdict: Their indices.
      rule: How examples were assigned, in words.
      shares: The shares that were asked for.
      notes: Facts that the reader must know.
    """

    data: Dataset
    calibration: np.ndarray
    selection: np.ndarray
    verdict_data: Dataset
    verdict: np.ndarray
    rule: str
    shares: Mapping[str, float]
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> np.ndarray | None:
        """Group labels of the verdict examples, None where they are independent."""
        groups = self.verdict_data.groups
        return None if groups is None else groups[self.verdict]


def distinct(dataset: Dataset, indices: np.ndarray) -> np.ndarray:
    """Returns the indices without those whose content stood at a smaller one; all of them where there are groups.

    A copy tells nothing new, and a bound that counted it as an example of its own would be too good. Groups say
    themselves what depends on what.
    """
    if dataset.groups is not None:
        return indices
    _, first = np.unique(dataset.keys()[indices], return_index=True)
    return np.asarray(indices[np.sort(first)])


def shares_unranged(data: Dataset) -> Mapping[str, float]:
    """Returns the shares of --data where inputs are quantized by the range of each run."""
    units = data.keys() if data.groups is None else data.groups
    return _UNRANGED if len(np.unique(units)) >= _MANY else WEIGHTS_ONLY


def assign_parts(data: Dataset, evaluation: Dataset | None, *, shares: Mapping[str, float], seed: int) -> Parts:
    """Returns the parts: by content hash (or group), and all of ``evaluation`` as verdict data where it is given."""
    keys = data.keys()
    split = split_by_hash(keys, fractions=shares, seed=seed, groups=data.groups, calibration_cap=CALIBRATION_CAP)
    unit = "content" if data.groups is None else "group"
    notes = []
    if split.duplicates:
        notes.append(
            f"{split.duplicates} examples of the data repeat the content of others; copies stay in one part, and "
            "each content counts once in the verdict [duplicate-examples]"
        )
    if evaluation is None:
        return Parts(
            data=data,
            calibration=split.calibration,
            selection=split.selection,
            verdict_data=data,
            verdict=distinct(data, split.verdict),
            rule=f"--data split by hash of {unit}, seed {seed}",
            shares=dict(shares),
            notes=tuple(notes),
        )
    judged = evaluation.keys()
    copies = len(judged) - len(np.unique(judged))
    if copies:
        notes.append(
            f"{copies} examples of --eval repeat the content of others; each content counts once in the verdict "
            "[duplicate-examples]"
        )
    shared = find_overlap(keys, judged)
    if len(shared):
        notes.append(
            f"{len(shared)} examples of --data also occur in --eval; they were left out of choosing [data-overlap]"
        )
    calibration, selection = (np.setdiff1d(part, shared) for part in (split.calibration, split.selection))
    for name, before, after in (
        ("calibration", split.calibration, calibration),
        ("selection", split.selection, selection),
    ):
        if len(before) and not len(after):
            raise DataError(
                f"all {len(before)} {name} examples also occur in --eval, so nothing is left to choose with; give "
                "--data of its own, or leave out --eval and let --data be split",
                slug="data-overlap",
            )
    return Parts(
        data=data,
        calibration=calibration,
        selection=selection,
        verdict_data=evaluation,
        verdict=distinct(evaluation, np.arange(evaluation.count)),
        rule=f"all of --eval is verdict data; --data split by hash of {unit}, seed {seed}",
        shares=dict(shares),
        notes=tuple(notes),
    )


def loss_bound(metric: Metric, outcome: Outcome, *, confidence: float, groups: np.ndarray | None = None) -> PairedBound:
    """Returns the bound on the loss: in points for metrics in [0, 1], else relative to the float model's figure."""
    sign = 1.0 if metric.higher_is_better else -1.0
    before, after = sign * outcome.float_scores, sign * outcome.scores
    if metric.bounds is None or metric.bounds != (0.0, 1.0):
        return relative_bound(before, after, confidence=confidence, groups=groups)
    bounds = (0.0, 1.0) if metric.higher_is_better else (-1.0, 0.0)
    return paired_bound(before, after, confidence=confidence, groups=groups, bounds=bounds)


def forecast(
    metric: Metric,
    outcome: Outcome,
    *,
    confidence: float,
    verdict_examples: int,
    groups: np.ndarray | None = None,
) -> PairedBound:
    """Returns the bound that the verdict will probably see, if its examples flip at the rates of these.

    For independent answers (0/1) the flips are scaled to the number of verdict examples; else the margin is, by
    1 / sqrt(n).
    """
    bound = loss_bound(metric, outcome, confidence=confidence, groups=groups)
    share = verdict_examples / bound.n
    if (
        groups is None
        and metric.answers
        and set(np.unique(np.concatenate([outcome.float_scores, outcome.scores]))) <= {0.0, 1.0}
    ):
        harmful = round(bound.harmful * share)
        helpful = min(round(bound.helpful * share), verdict_examples - harmful)  # both may have been rounded up
        return trinomial_bound(harmful, helpful, verdict_examples, confidence)
    margin = (bound.bound - bound.drop) / float(np.sqrt(share))
    return PairedBound(
        drop=bound.drop,
        bound=bound.drop + margin,
        lower=bound.drop - margin,
        method=bound.method,
        exact=False,
        n=verdict_examples,
        harmful=bound.harmful,
        helpful=bound.helpful,
        confidence=confidence,
    )
