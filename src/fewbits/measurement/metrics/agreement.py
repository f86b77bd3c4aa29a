"""Agreement: is the largest output the float model's?"""

from __future__ import annotations

from typing import final

import numpy as np

from fewbits._base.errors import DataError
from fewbits.measurement.metrics.base import Metric, Outputs
from fewbits.measurement.quality import classes_last


@final
class Agreement(Metric):
    """The share of answers that are the float model's; needs no labels, says nothing of truth.

    Of float outputs the answer is the largest along the last axis, or of maps (four axes and more) along axis 1;
    integer outputs are answers themselves.
    """

    name = "agreement"
    needs_labels = False
    answers = True

    def score(self, outputs: Outputs, reference: Outputs, labels: np.ndarray | None, *, output: str) -> np.ndarray:
        values, float_values = outputs[output], reference[output]
        if values.dtype.kind in "iub":  # the answers themselves: the model ends in an ArgMax
            equal = values == float_values
            return np.asarray(equal.reshape(equal.shape[0], -1).mean(axis=1), dtype=np.float64)
        shape = list(values.shape)
        values, float_values = classes_last(values), classes_last(float_values)
        if values.ndim < 2 or values.shape[-1] < 2:
            raise DataError(
                f"output {output!r} has shape {shape}: no classes to agree on (last axis; axis 1 of maps); "
                "name another output with --score-output, or a --metric of your own (module:function)",
                slug="agreement-needs-classes",
            )
        same = values.argmax(axis=-1) == float_values.argmax(axis=-1)
        return np.asarray(same.reshape(same.shape[0], -1).mean(axis=1), dtype=np.float64)


METRIC: Metric = Agreement()
