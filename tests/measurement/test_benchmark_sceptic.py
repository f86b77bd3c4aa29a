"""Which file each figure of a performance is of: two files whose every figure differs, through a runtime that tells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fewbits.measurement import benchmark
from fewbits.measurement.latency import LatencyResult, Run, measure_latency
from fewbits.runtimes.base import Options

FEEDS = {"x": np.zeros((4, 2), np.float32)}
# Nanoseconds of a call; far above the 0.3 ms below which calls share a timing.
TAKES = {b"float file": 6_000_000, b"int": 2_000_000}


class Clock:
    """A clock that calls move."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    def opened(file: Path | bytes, options: Options) -> Any:
        takes = TAKES[file.read_bytes() if isinstance(file, Path) else file]

        def run(feeds: Mapping[str, np.ndarray]) -> None:
            clock.now += takes

        return SimpleNamespace(run=run)

    def measured(runs: Mapping[str, Run], **options: Any) -> LatencyResult:
        return measure_latency(runs, **{**options, "clock": clock})

    runtime = SimpleNamespace(open=opened, name="told 1.0", describe=lambda options: {"threads": "1"})
    monkeypatch.setattr(benchmark, "RUNTIMES", {"ort": runtime})
    monkeypatch.setattr(benchmark, "measure_latency", measured)
    monkeypatch.setattr(benchmark, "peak_bytes", lambda file, options, feeds: 1000 * len(file.read_bytes()))


def test_every_figure_is_that_of_its_own_file(told: None, tmp_path: Path) -> None:
    paths = tmp_path / "f.onnx", tmp_path / "q.onnx"
    for file, content in zip(paths, TAKES, strict=True):
        file.write_bytes(content)
    files = (benchmark.ModelFiles(model=paths[0]), benchmark.ModelFiles(model=paths[1]))
    found = benchmark.measure_performance(files, feeds=FEEDS, batch=4, options=Options(), seconds=0.1, seed=0)
    assert (found.float_bytes, found.quantized_bytes) == (10, 3)
    assert (found.float_peak_bytes, found.peak_bytes) == (10_000, 3_000)
    assert (found.float_timing.p50_ms, found.timing.p50_ms) == (6.0, 2.0)
    assert found.speedup.ratio == pytest.approx(3.0)
    assert found.speedup.faster
    assert (found.batch, found.timing.throughput) == (4, pytest.approx(2000.0))
    kept = found.of_float()
    assert (kept.quantized_bytes, kept.peak_bytes, kept.timing.p50_ms, kept.speedup.ratio) == (10, 10_000, 6.0, 1.0)


def test_the_quick_look_has_float_over_candidate_too(told: None) -> None:
    look = {"feeds": FEEDS, "options": Options(), "seconds": 0.1, "seed": 0}
    first, second = TAKES
    assert benchmark.quick_speedup((first, second), **look).ratio == pytest.approx(3.0)
    assert benchmark.quick_speedup((second, first), **look).slower
