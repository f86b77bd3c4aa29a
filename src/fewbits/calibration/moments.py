"""The second moment of what flows into a layer: all that error feedback needs to know of its inputs."""

from __future__ import annotations

from typing import final

import numpy as np


@final
class SecondMoment:
    """H = X^T X over all rows x of a layer's inputs, float64: the memory of one matrix, however many rows flow.

    Products of float32 are exact in float64; their sum rounds. So the same shards in the same order give the same bits,
    and another order the same up to 2**-53 of each sum of magnitudes, for each addition.

    Args:
      columns: K, the length of a row.
    """

    def __init__(self, columns: int) -> None:
        self.total = np.zeros((columns, columns))
        self.rows = 0

    def add(self, values: np.ndarray) -> None:
        """Takes more rows: [..., K], finite or not; what is not shows in ``finite``."""
        lines = values.reshape(-1, values.shape[-1]).astype(np.float64)
        self.total += lines.T @ lines
        self.rows += len(lines)

    def merge(self, other: SecondMoment) -> None:
        """Takes all rows of another one."""
        self.total += other.total
        self.rows += other.rows

    @property
    def finite(self) -> bool:
        """Whether every row was: one value that is not finite makes its whole column of H so."""
        return bool(np.isfinite(np.diagonal(self.total)).all())

    def output_error(self, error: np.ndarray) -> float:
        """Returns tr(E H E^T), the squared error that weights off by E [outputs, K] make of all outputs."""
        wide = error.astype(np.float64)
        return float(np.sum((wide @ self.total) * wide))


def bytes_of(columns: int) -> int:
    """Returns the memory of a second moment of so many columns."""
    return 8 * columns * columns
