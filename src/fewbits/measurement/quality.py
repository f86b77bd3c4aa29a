"""How close two models' outputs are: KL divergence and signal to noise, streamed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

# Rows that sum to one within this are taken for probabilities: float32 sums of 1000 softmax values are off by 1e-6.
_SUM_TOLERANCE = 1e-3
# Outputs beyond this count as this much: no float32 network means them, and their squares still fit a float64.
_LARGE = 1e30
# Probabilities below this count as this much; float32's smallest normal number.
_SMALLEST = 1.1754943508222875e-38


def are_probabilities(values: np.ndarray) -> bool:
    """Returns whether every row along the last axis is one of probabilities, and not of logits."""
    sums = values.sum(axis=-1, dtype=np.float64)
    return bool(values.min(initial=0.0) >= 0 and np.abs(sums - 1).max(initial=0.0) < _SUM_TOLERANCE)


def bounded(values: np.ndarray) -> np.ndarray:
    """Returns values in float64 with infinities, and NaN as the lowest, brought to where arithmetic stays finite.

    A masked class of -inf has probability 0 and costs nothing where both models mask it.
    """
    return np.clip(np.nan_to_num(values.astype(np.float64), nan=-_LARGE), -_LARGE, _LARGE)


def log_probabilities(values: np.ndarray, *, probabilities: bool) -> np.ndarray:
    """Returns log-probabilities along the last axis, float64, whose rows add up to 1.

    Args:
      values: [n, …, classes].
      probabilities: Whether they are probabilities, up to rounding, and need no softmax.
    """
    wide = bounded(values)
    if probabilities:
        positive = np.maximum(wide, _SMALLEST)
        return np.asarray(np.log(positive) - np.log(positive.sum(axis=-1, keepdims=True)))
    shifted = wide - wide.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def classes_last(values: np.ndarray) -> np.ndarray:
    """Returns outputs with their classes on the last axis: of maps [n, classes, height, width, …] they are axis 1."""
    return np.moveaxis(values, 1, -1) if values.ndim >= 4 else values


def kl_per_example(reference: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Returns KL(reference || outputs) in nats, [n] float64: the mean over all rows of an example.

    Whether both hold probabilities or logits is read from the reference: the rows of an integer softmax do not add up
    to one, but they are what the float model's rows are.

    Args:
      reference: [n, …, classes], logits or probabilities of the float model.
      outputs: The same shape, of the other model.
    """
    known = are_probabilities(reference)
    p, q = (log_probabilities(values, probabilities=known) for values in (reference, outputs))
    rows = (np.exp(p) * (p - q)).sum(axis=-1)
    return np.asarray(rows.reshape(rows.shape[0], -1).mean(axis=1))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How close a model's outputs are to the float model's.

    Args:
      kl: Mean KL divergence in nats per example; None where the last axis has no classes.
      sqnr_db: 10 log10(sum float^2 / sum difference^2); infinite where nothing differs.
      agreement: Share of examples whose answers all agree; None where there are no classes.
    """

    kl: float | None
    sqnr_db: float
    agreement: float | None

    @property
    def gauge(self) -> float:
        """A finer measure of harm than any metric, to order candidates by: KL, or noise over signal. Less is better."""
        return self.kl if self.kl is not None else float(10.0 ** (-self.sqnr_db / 10.0))


@final
class QualityMeter:
    """Adds up batches; memory does not grow."""

    def __init__(self) -> None:
        self._examples = 0
        self._kl = 0.0
        self._same = 0
        self._classes = True
        self._signal = 0.0
        self._noise = 0.0

    def add(self, reference: np.ndarray, outputs: np.ndarray) -> None:
        """Takes the outputs of one batch, [n, …] both."""
        # Where both say the same infinity, nothing is lost, and it says nothing of the others' size.
        finite = np.isfinite(reference)
        wide = np.where(finite, reference, 0.0).astype(np.float64)
        other = np.where(finite | (outputs != reference), bounded(outputs), 0.0)
        self._examples += reference.shape[0]
        self._signal += float((wide**2).sum())
        self._noise += float(((other - wide) ** 2).sum())
        reference, outputs = classes_last(reference), classes_last(outputs)
        if reference.ndim < 2 or reference.shape[-1] < 2 or reference.dtype.kind != "f":
            self._classes = False
            return
        self._kl += float(kl_per_example(reference, outputs).sum())
        same = reference.argmax(axis=-1) == outputs.argmax(axis=-1)
        self._same += int(same.reshape(same.shape[0], -1).all(axis=1).sum())

    def result(self) -> Quality:
        """Returns the quality over all batches."""
        known = self._classes and self._examples > 0
        noise, signal = self._noise, self._signal
        return Quality(
            kl=self._kl / self._examples if known else None,
            sqnr_db=float("inf") if noise == 0 else float(10 * np.log10(max(signal, _SMALLEST) / noise)),
            agreement=self._same / self._examples if known else None,
        )
