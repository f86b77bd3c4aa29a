"""Which of the files is handed over, once all are timed, and what its reader should know."""

from __future__ import annotations

from fewbits.measurement.benchmark import Performance
from fewbits.measurement.latency import Speedup

# A gain of mending alone that is told.
_NOTICED = 1.1


def not_worth_it(performance: Performance) -> str | None:
    """Returns why the float model is handed over instead of the quantized one, None where it is not."""
    speedup = performance.speedup
    if speedup.slower:
        return f"the quantized model runs at {speedup.ratio:.2f}x of the float model's speed"
    if performance.quantized_bytes >= performance.float_bytes and not speedup.faster:
        return "the quantized model is neither smaller nor faster than the float model"
    return None


def mended_wins(performance: Performance) -> bool:
    """Returns whether the float model in canonical form is faster than the quantized one, and than the file it was."""
    mended, over = performance.mended, performance.over_mended
    return mended is not None and over is not None and mended.faster and over.slower


def mended_reason(performance: Performance) -> str:
    assert performance.mended is not None and performance.over_mended is not None
    return (
        f"mended, it runs {performance.mended.ratio:.2f}x as fast as the file that came in, and the quantized model "
        f"runs at {performance.over_mended.ratio:.2f}x of that speed"
    )


def share_of_mending(performance: Performance) -> tuple[str, ...]:
    """Returns what a reader should know where part of the speed is not that of integers."""
    mended, over = performance.mended, performance.over_mended
    if mended is None or over is None or mended.low < _NOTICED:
        return ()
    return (
        f"the float model alone, its graph mended likewise, runs {mended.ratio:.2f}x as fast as the file that came in; "
        f"the integers add {over.ratio:.2f}x to that [float-mended]",
    )


def slower_but_smaller(
    performance: Performance, float_reason: str | None, *, over: Speedup | None = None
) -> tuple[str, ...]:
    """Returns what a reader who needs the smaller file more than the faster one should know."""
    speedup = performance.speedup if over is None else over
    ratio = performance.float_bytes / performance.quantized_bytes
    if float_reason is None or ratio <= 1:
        return ()
    return (
        f"the quantized file would be {ratio:.2f}x smaller, at {speedup.ratio:.2f}x of float's speed; "
        "--allow-slower hands it over [smaller-but-slower]",
    )
