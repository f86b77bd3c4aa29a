"""Top-1: is the largest output the label?"""

from __future__ import annotations

from typing import final

import numpy as np

from fewbits._base.errors import DataError
from fewbits.measurement.metrics.base import Metric, Outputs


@final
class Top1(Metric):
    """1 where the largest value along the last axis stands at the label, else 0; the first of equal ones counts."""

    name = "top-1"
    needs_labels = True
    answers = True

    def score(self, outputs: Outputs, reference: Outputs, labels: np.ndarray | None, *, output: str) -> np.ndarray:
        assert labels is not None, "resolve_metric asks for labels"
        values = outputs[output]
        wanted = labels.reshape(labels.shape[0], -1)
        if values.dtype.kind in "iu" and values.size == wanted.size:  # the answers: the model ends in an ArgMax
            return np.asarray((values.reshape(wanted.shape) == wanted).mean(axis=1), dtype=np.float64)
        answers = values.reshape(values.shape[0], -1, values.shape[-1]).argmax(axis=-1) if values.ndim > 1 else None
        if answers is None or answers.shape != wanted.shape:
            raise DataError(
                f"labels have shape {list(labels.shape)}, output {output!r} has {list(values.shape)}: top-1 "
                "needs one class a label on the last axis; name another one with --score-output, or another --metric",
                slug="labels-shape",
            )
        if values.shape[-1] < 2 or not np.array_equal(wanted, np.round(wanted)):
            raise DataError(
                f"top-1 needs whole labels and an output with classes; output {output!r} has {values.shape[-1]} on its "
                "last axis; name another one with --score-output, or a --metric of your own (module:function)",
                slug="labels-not-classes",
            )
        if wanted.min(initial=0) < 0 or wanted.max(initial=0) >= values.shape[-1]:
            raise DataError(
                f"labels reach from {wanted.min():g} to {wanted.max():g}, output {output!r} has classes 0 to "
                f"{values.shape[-1] - 1}; number the labels as the model does",
                slug="labels-range",
            )
        return np.asarray((answers == wanted).mean(axis=1), dtype=np.float64)


METRIC: Metric = Top1()
