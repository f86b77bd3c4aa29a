"""A metric of your own: any function that gives one score per example.

    python examples/custom_metric.py

On the command line the same function is ``--metric custom_metric:confidence`` (from this folder).
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np

import fewbits


def confidence(outputs: dict[str, np.ndarray], labels: np.ndarray | None) -> np.ndarray:
    """Returns the probability that the model gives to the right digit, [n]."""
    assert labels is not None
    logits = outputs["logits"].astype(np.float64)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray((weights / weights.sum(axis=1, keepdims=True))[np.arange(len(labels)), labels])


# What cannot be read off a function: its direction, and between which numbers the scores lie. Scores in [0, 1] give a
# loss in points and a bound that is valid at every number of examples.
confidence.higher_is_better = True  # type: ignore[attr-defined]
confidence.bounds = (0.0, 1.0)  # type: ignore[attr-defined]


def main() -> None:
    """Quantizes the demo model under a budget on that metric."""
    demo = Path(str(files("fewbits"))) / "demo"
    result = fewbits.quantize(
        demo / "digits.onnx",
        data=demo / "digits.npz",
        metric=f"{Path(__file__).stem}:confidence",
        max_drop="5%",
        effort="fast",
    )
    print(result.report.headline)
    found = result.report.metric
    print(f"{found.name}: {found.float:.4f} in float, {found.quantized:.4f} quantized")
    print(f"method of the bound: {found.method}")


if __name__ == "__main__":
    main()
