"""Float and quantized file side by side: latency interleaved, peak memory in processes of their own, size on disk."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

from fewbits.measurement.latency import Clock, LatencyResult, Speedup, Timing, measure_latency
from fewbits.measurement.memory import peak_bytes
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Options, Tensors

FLOAT = "float"
QUANTIZED = "quantized"
MENDED = "mended"
# By whether one thread does all the work: then its own time is read, which other programs on the machine cannot
# stretch. (A run longer than the scheduler's slice is interrupted and a shorter one is not: on a busy machine the wall
# clock made one file look 15 times faster that was 2.4 times faster.)
_CLOCKS: dict[bool, tuple[str, Clock]] = {
    True: ("thread", time.thread_time_ns),
    False: ("wall", time.perf_counter_ns),
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model on disk.

    Args:
      model: The ONNX file.
      data_folder: Where its external data lie, if not beside it.
      external_bytes: Bytes of these.
    """

    model: Path
    data_folder: Path | None = None
    external_bytes: int = 0

    @property
    def size(self) -> int:
        """Bytes on disk, external data included."""
        return self.model.stat().st_size + self.external_bytes


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """What running the two files costs.

    Args:
      latency: Timings of both, with every block.
      timing: Of the handed-over file.
      float_timing: Of the float file.
      speedup: Float over handed-over.
      peak_bytes: Peak memory of opening and running the handed-over file; None where the system does not tell.
      float_peak_bytes: The same of the float file.
      quantized_bytes: Size of the handed-over file.
      float_bytes: Size of the float file.
      options: Session options of both.
      runtime: Runtime with version.
      session_options: The options in the runtime's own words.
      batch: Examples per run.
      mended: How much faster the float model is in canonical form, repairs included; None where that is the file.
      over_mended: How much faster the handed-over file is than that.
    """

    latency: LatencyResult
    timing: Timing
    float_timing: Timing
    speedup: Speedup
    peak_bytes: int | None
    float_peak_bytes: int | None
    quantized_bytes: int
    float_bytes: int
    options: Options
    runtime: str
    session_options: Mapping[str, str]
    batch: int
    mended: Speedup | None = None
    over_mended: Speedup | None = None

    @property
    def clock(self) -> str:
        """What the time is of: ``thread`` or ``wall``."""
        return _CLOCKS[self.options.threads == 1][0]

    def of_mended(self, size: int) -> Performance:
        """Returns the figures where the float model is handed over in canonical form."""
        assert self.mended is not None
        return replace(
            self,
            timing=self.latency.timings[MENDED],
            speedup=self.mended,
            peak_bytes=self.float_peak_bytes,
            quantized_bytes=size,
        )

    def of_float(self) -> Performance:
        """Returns the figures where the float model itself is handed over."""
        return replace(
            self,
            timing=self.float_timing,
            speedup=Speedup(ratio=1.0, low=1.0, high=1.0, confidence=self.speedup.confidence),
            peak_bytes=self.float_peak_bytes,
            quantized_bytes=self.float_bytes,
        )


def quick_speedup(
    models: tuple[bytes, bytes], *, feeds: Tensors, options: Options, seconds: float, seed: int
) -> Speedup:
    """Returns roughly how much faster the second model is than the first: enough to see whether it is.

    Args:
      models: The two, as bytes; what either holds outside lies in the data folder of the options.
      feeds: One example.
      options: Session options.
      seconds: How long is measured.
      seed: Of the order.
    """
    runtime = RUNTIMES[options.runtime]
    first, second = (runtime.open(model, options) for model in models)
    runs = {FLOAT: lambda: first.run(feeds), QUANTIZED: lambda: second.run(feeds)}
    clock = _CLOCKS[options.threads == 1][1]
    return measure_latency(runs, baseline=FLOAT, seconds=seconds, seed=seed, clock=clock).speedups[QUANTIZED]


def measure_performance(
    files: tuple[ModelFiles, ...], *, feeds: Tensors, batch: int, options: Options, seconds: float, seed: int
) -> Performance:
    """Returns what running the float and the quantized file costs.

    Args:
      files: The two, and where it is another file the float model in canonical form.
      feeds: One example, or one of the model's fixed batches.
      batch: How many examples that is.
      options: Session options.
      seconds: How long is measured.
      seed: Of the order.
    """
    named = dict(zip((FLOAT, QUANTIZED, MENDED), files, strict=False))
    own = {name: replace(options, data_folder=file.data_folder) for name, file in named.items()}
    float_file, quantized_file = files[:2]
    runtime = RUNTIMES[options.runtime]
    sessions = {name: runtime.open(file.model, own[name]) for name, file in named.items()}
    latency = measure_latency(
        {name: partial(session.run, feeds) for name, session in sessions.items()},
        baseline=FLOAT,
        batch=batch,
        seconds=seconds,
        seed=seed,
        clock=_CLOCKS[options.threads == 1][1],
    )
    return Performance(
        latency=latency,
        timing=latency.timings[QUANTIZED],
        float_timing=latency.timings[FLOAT],
        speedup=latency.speedups[QUANTIZED],
        peak_bytes=peak_bytes(quantized_file.model, own[QUANTIZED], feeds),
        float_peak_bytes=peak_bytes(float_file.model, own[FLOAT], feeds),
        quantized_bytes=quantized_file.size,
        float_bytes=float_file.size,
        options=options,
        runtime=runtime.name,
        session_options=runtime.describe(options),
        batch=batch,
        mended=latency.speedups.get(MENDED),
        over_mended=latency.speedup(QUANTIZED, over=MENDED) if MENDED in named else None,
    )
