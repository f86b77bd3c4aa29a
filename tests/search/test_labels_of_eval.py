"""Labels that only the verdict data have still judge the result."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np

import fewbits

DEMO = Path(str(files("fewbits"))) / "demo"


def test_labels_of_eval_judge_although_data_have_none() -> None:
    with np.load(DEMO / "digits.npz") as file:
        images, labels = file["image"], file["labels"]
    result = fewbits.quantize(
        DEMO / "digits.onnx",
        data={"image": images[:300]},
        eval={"image": images[300:], "labels": labels[300:]},
        max_drop="2%",
        effort="fast",
    )
    assert result.report.metric.name == "top-1"
    assert result.report.metric.examples == len(images) - 300
    assert result.report.metric.float is not None
    assert result.report.metric.float > 0.95
