"""Metrics for those models of the bag that do not tell classes apart on their last axis: ``--metric bag_metrics:NAME``.

Each is what a user would write; the labels are part of the model's data.
"""

from __future__ import annotations

import numpy as np


def pixels(outputs, labels):
    """The share of pixels whose class is right; classes lie on axis 1."""
    return (outputs["classes"].argmax(axis=1) == labels).mean(axis=(1, 2))


def closeness(outputs, labels):
    """How much of the true picture's energy is met: 1 minus the energy of the error over that of the picture."""
    error = outputs["picture"].astype(np.float64) - labels
    axes = tuple(range(1, error.ndim))
    return np.clip(1 - (error**2).sum(axis=axes) / (labels.astype(np.float64) ** 2).sum(axis=axes), 0, 1)


def boxes(outputs, labels):
    """The share of boxes that overlap their true one by half at least, as intersection over union."""
    rows, true = outputs["detections"][:, :, :4].astype(np.float64), labels.astype(np.float64)
    low = np.maximum(rows[..., :2] - rows[..., 2:] / 2, true[..., :2] - true[..., 2:] / 2)
    high = np.minimum(rows[..., :2] + rows[..., 2:] / 2, true[..., :2] + true[..., 2:] / 2)
    common = np.clip(high - low, 0, None).prod(axis=-1)
    both = rows[..., 2:].prod(axis=-1) + true[..., 2:].prod(axis=-1) - common
    return (common >= 0.5 * both).mean(axis=1)


def credence(outputs, labels):
    """The probability that the model gives to what happened."""
    liked = outputs["liked"].astype(np.float64)[:, 0]
    return np.where(labels == 1, liked, 1 - liked)


for _metric in (pixels, closeness, boxes, credence):
    _metric.higher_is_better = True
    _metric.bounds = (0.0, 1.0)
