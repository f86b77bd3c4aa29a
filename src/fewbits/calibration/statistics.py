"""The statistics of a run: one histogram a site, and their file."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import final

import numpy as np

from fewbits._base.errors import DataError
from fewbits.calibration.histogram import EMPTY, HALF_BINS, Histogram, histogram_of


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics:
    """What was observed at each site; update / merge / finish, each returning a new value.

    Args:
      histograms: By site name.
      examples: How many examples flowed.
      known: Ranges that were found from the histograms before: a search asks for the same ones in every candidate.
    """

    histograms: Mapping[str, Histogram]
    examples: int
    known: dict[Hashable, tuple[float, float]] = field(default_factory=dict, repr=False)

    def update(self, tensors: Mapping[str, np.ndarray], *, examples: int) -> Statistics:
        """Returns the statistics with one more batch; tensors are float32, any shape, by site name."""
        merged = {
            name: self.histograms.get(name, EMPTY).merge(histogram_of(values, where=f"tensor {name!r}"))
            for name, values in tensors.items()
        }
        return Statistics(histograms={**self.histograms, **merged}, examples=self.examples + examples)

    def merge(self, other: Statistics) -> Statistics:
        """Returns the statistics of both; exact in any order, because the counts are integers."""
        names = dict.fromkeys([*self.histograms, *other.histograms])
        return Statistics(
            histograms={n: self.histograms.get(n, EMPTY).merge(other.histograms.get(n, EMPTY)) for n in names},
            examples=self.examples + other.examples,
        )

    def same(self, other: Statistics) -> bool:
        """Returns whether both hold the same counts to the last one."""
        return (
            self.examples == other.examples
            and self.histograms.keys() == other.histograms.keys()
            and all(self.histograms[n].same(other.histograms[n]) for n in self.histograms)
        )

    def to_npz(self) -> bytes:
        """Returns the statistics as .npz bytes, without pickles."""
        arrays: dict[str, np.ndarray] = {"examples": np.array(self.examples), "names": np.array(list(self.histograms))}
        for i, h in enumerate(self.histograms.values()):
            arrays[f"counts_{i}"] = h.counts
            arrays[f"range_{i}"] = np.array([h.exponent, h.zeros, h.low, h.high], dtype=np.float64)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()


def statistics_from_npz(data: bytes) -> Statistics:
    """Returns the statistics that ``Statistics.to_npz`` wrote.

    Raises: DataError(slug="statistics-invalid") for bytes that are none, naming the first fault.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            names = [str(name) for name in file["names"].tolist()]
            histograms = {name: _histogram(file[f"counts_{i}"], file[f"range_{i}"]) for i, name in enumerate(names)}
            return Statistics(histograms=histograms, examples=int(file["examples"]))
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise DataError(
            f"cannot read the stored statistics: {error}; calibrate anew", slug="statistics-invalid"
        ) from None


def _histogram(counts: np.ndarray, ends: np.ndarray) -> Histogram:
    if counts.dtype != np.int64 or counts.shape != (2 * HALF_BINS,) or counts.min() < 0:
        raise ValueError(f"counts are not {2 * HALF_BINS} integers >= 0")
    exponent, zeros, low, high = ends.tolist()
    return Histogram(exponent=int(exponent), counts=counts, zeros=int(zeros), low=low, high=high)


NOTHING = Statistics(histograms={}, examples=0)


class Merger:
    """Merges the statistics of shards, given one after the other, by a fixed binary tree.

    Shard 2i meets shard 2i + 1, their result meets its neighbour, and so on: the tree depends on the number of shards
    alone, so that statistics whose sums round would also come out the same; at most log2(shards) + 1 are held.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Statistics]] = []

    def add(self, shard: Statistics) -> None:
        """Takes the next shard."""
        level = 0
        while self._waiting and self._waiting[-1][0] == level:
            shard = self._waiting.pop()[1].merge(shard)
            level += 1
        self._waiting.append((level, shard))

    def result(self) -> Statistics:
        """Returns the merge of all shards."""
        merged = NOTHING
        for _, part in reversed(self._waiting):
            merged = part.merge(merged)
        return merged
