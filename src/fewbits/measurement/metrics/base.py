"""The protocol of metrics, and metrics that are a user's function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, final

import numpy as np

from fewbits._base.errors import DataError, UsageError

Outputs = Mapping[str, np.ndarray]


class Metric(ABC):
    """Scores examples one by one; the figure of a model is the mean of its scores.

    Attributes:
      name: Name in catalogs and reports.
      needs_labels: Whether it compares with labels; else with the float model's own answers.
      higher_is_better: Direction.
      bounds: Smallest and largest score; None where unbounded (bounds are then asymptotic, and drops relative).
      answers: Whether a score is 0 or 1: an answer that is right or wrong, so that changes are flips.
    """

    name: str
    needs_labels: bool
    higher_is_better: bool = True
    bounds: tuple[float, float] | None = (0.0, 1.0)
    answers: bool = False

    @abstractmethod
    def score(self, outputs: Outputs, reference: Outputs, labels: np.ndarray | None, *, output: str) -> np.ndarray:
        """Returns one score per example, [n] float64.

        Args:
          outputs: All outputs of the model that is scored, first axis = examples.
          reference: All outputs of the float model on the same examples.
          labels: [n] or more axes, None without.
          output: Name of the output that holds the answer.
        """


@final
class FunctionMetric(Metric):
    """A user's function ``f(outputs, labels) -> [n] scores``.

    ``outputs`` maps output names to arrays; ``labels`` is an array or None. Attributes of the function declare what is
    not the default: ``higher_is_better = False``, ``bounds = (low, high)``.
    """

    needs_labels = False

    def __init__(
        self,
        function: Callable[[dict[str, np.ndarray], np.ndarray | None], Any],
        *,
        name: str,
        higher_is_better: bool,
        bounds: tuple[float, float] | None,
    ) -> None:
        self.name = name
        self.higher_is_better = higher_is_better
        self.bounds = bounds
        self._function = function

    @classmethod
    def of(cls, function: object, *, name: str) -> FunctionMetric:
        """Returns the metric of a function, with what the function's attributes declare."""
        if not callable(function):
            raise UsageError(f"metric {name!r} is not a function", slug="metric-not-found")
        declared = vars(function) if hasattr(function, "__dict__") else {}
        bounds = declared.get("bounds")
        if bounds is not None and not (len(bounds) == 2 and bounds[0] < bounds[1]):
            raise UsageError(f"metric {name!r}: bounds must be (low, high), got {bounds!r}", slug="metric-bounds")
        return cls(
            function,
            name=name,
            higher_is_better=bool(declared.get("higher_is_better", True)),
            bounds=None if bounds is None else (float(bounds[0]), float(bounds[1])),
        )

    def score(self, outputs: Outputs, reference: Outputs, labels: np.ndarray | None, *, output: str) -> np.ndarray:
        count = next(iter(outputs.values())).shape[0]
        try:
            scores = np.asarray(self._function(dict(outputs), labels), dtype=np.float64)
        except Exception as error:  # a stranger's code may raise anything; the message must name it, not us
            raise DataError(
                f"metric {self.name!r} raised {type(error).__name__}: {error}; mend the function", slug="metric-failed"
            ) from error
        if scores.shape != (count,):
            raise DataError(
                f"metric {self.name!r} returned shape {list(scores.shape)} for {count} examples, expected [{count}]; "
                "return one score per example",
                slug="metric-shape",
            )
        if not np.isfinite(scores).all():
            raise DataError(f"metric {self.name!r} returned NaN or infinity; mend the function", slug="metric-failed")
        if self.bounds is not None and (scores.min() < self.bounds[0] or scores.max() > self.bounds[1]):
            raise DataError(
                f"metric {self.name!r} returned {scores.min():g} to {scores.max():g}, outside its bounds {self.bounds}",
                slug="metric-bounds",
            )
        return scores
