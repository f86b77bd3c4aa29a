"""Top-1 refuses labels that are no classes."""

from __future__ import annotations

import numpy as np
import pytest

from fewbits import DataError
from fewbits.measurement.metrics import METRICS


@pytest.mark.parametrize(
    ("labels", "columns"),
    [(np.array([0.5, 1.5], np.float32), 3), (np.array([0, 0]), 1)],
    ids=["fractions", "regression"],
)
def test_what_is_no_class_is_refused(labels: np.ndarray, columns: int) -> None:
    outputs = {"y": np.zeros((2, columns), np.float32)}
    with pytest.raises(DataError) as caught:
        METRICS["top-1"].score(outputs, outputs, labels, output="y")
    assert caught.value.slug == "labels-not-classes"


def test_whole_labels_stored_as_reals_are_classes() -> None:
    outputs = {"y": np.eye(3, dtype=np.float32)}
    scores = METRICS["top-1"].score(outputs, outputs, np.array([0.0, 1.0, 0.0]), output="y")
    assert scores.tolist() == [1.0, 1.0, 0.0]
