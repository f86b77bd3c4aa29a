"""The statistics of a run: one histogram a site, and their file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from fewbits.calibration.histogram import EMPTY, Histogram, histogram_of


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics:
    """What was observed at each site; update / merge / finish, each returning a new value.

    Args:
      histograms: By site name.
      examples: How many examples flowed.
    """

    histograms: Mapping[str, Histogram]
    examples: int

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
    """Returns the statistics that ``Statistics.to_npz`` wrote."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        histograms = {}
        for i, name in enumerate(file["names"].tolist()):
            exponent, zeros, low, high = file[f"range_{i}"].tolist()
            histograms[name] = Histogram(
                exponent=int(exponent), counts=file[f"counts_{i}"], zeros=int(zeros), low=low, high=high
            )
        return Statistics(histograms=histograms, examples=int(file["examples"]))


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
