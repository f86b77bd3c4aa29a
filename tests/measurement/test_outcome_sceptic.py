"""Two models that differ: each side's scores and the direction of each measure, against sums made here."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fewbits.datasets import open_dataset
from fewbits.measurement.metrics import METRICS
from fewbits.measurement.outcome import Outcome, Reference
from fewbits.models.onnx.opening import open_model
from fewbits.runtimes.base import Options

COUNT = 70


def _answers(model: bytes, x: np.ndarray) -> np.ndarray:
    import onnxruntime as ort

    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0], dtype=np.float64)


def _probabilities(logits: np.ndarray) -> np.ndarray:
    grown = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("metric", ["top-1", "agreement"])
def test_each_side_keeps_its_own_scores_and_kl_and_noise_are_seen_from_float(
    runs: ModuleType, tmp_path: Path, metric: str
) -> None:
    model = open_model(runs.small_net(tmp_path / "float.onnx", seed=0))
    other = runs.small_net(tmp_path / "other.onnx", seed=1)
    x = runs.small_data(COUNT)["x"]
    before, after = _answers(model.original, x), _answers(other.read_bytes(), x)
    labels = before.argmax(axis=1)
    labels[::7] = after.argmax(axis=1)[::7]
    labels[1::7] = (labels[1::7] + 1) % 10
    dataset = open_dataset({"x": x, "labels": labels})
    with Reference(
        model, dataset, np.arange(COUNT), metric=METRICS[metric], output="y", options=Options()
    ) as reference:
        found: Outcome = reference.compare(other, lambda *_: None, stage="other")
    if metric == "top-1":
        assert found.float_scores.tolist() == (before.argmax(axis=1) == labels).tolist()
        assert found.scores.tolist() == (after.argmax(axis=1) == labels).tolist()
    else:
        assert found.float_scores.tolist() == [1.0] * COUNT
        assert found.scores.tolist() == (before.argmax(axis=1) == after.argmax(axis=1)).tolist()
    assert found.float_scores.mean() > found.scores.mean() + 0.1, "else a swap would not show"
    p, q = _probabilities(before), _probabilities(after)
    forward, backward = (p * np.log(p / q)).sum(axis=1).mean(), (q * np.log(q / p)).sum(axis=1).mean()
    assert abs(forward / backward - 1) > 1e-3, "else the direction would not show"
    # Outputs differ by batch size in the last bits of float32 (1e-6 relative); a hundred times that.
    assert found.quality.kl == pytest.approx(forward, rel=1e-4)
    signal, noise = (before**2).sum(), ((after - before) ** 2).sum()
    assert found.quality.sqnr_db == pytest.approx(10 * np.log10(signal / noise), abs=1e-3)
    assert found.quality.agreement == (before.argmax(axis=1) == after.argmax(axis=1)).mean()
