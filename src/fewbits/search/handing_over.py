"""Which of the files is handed over, once all are timed, and what its reader should know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fewbits.measurement.benchmark import ModelFiles, Performance
from fewbits.measurement.latency import Speedup

# A gain of mending alone that is told.
_NOTICED = 1.1
# A loss of speed below this is none that anybody would notice, however sure it is.
_AS_FAST = 0.98
# Over the file that came in, what a mended float model may have in bytes (float16 widened has twice as many).
_AS_SMALL = 1.1


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which file is handed over.

    Args:
      float_reason: Why no integers are, in words; None where they are.
      mended: Whether the float model is taken in canonical form.
      notes: What the reader should know.
    """

    float_reason: str | None
    mended: bool = False
    notes: tuple[str, ...] = ()


def choose_file(
    performance: Performance, files: tuple[ModelFiles, ...], *, float_reason: str | None, choosing: bool
) -> Choice:
    """Returns which file is handed over, by speed and size.

    Args:
      performance: Of the files.
      files: The float model, the quantized one, and the float model in canonical form where that differs.
      float_reason: Why integers are out of the question already, in words.
      choosing: Whether speed has a say: it has none where a plan is applied, or a slower file is welcome.
    """
    if float_reason is not None:
        return Choice(float_reason=float_reason)
    lost = not_worth_it(performance) if choosing else None
    if lost is not None:
        return Choice(float_reason=lost, notes=slower_but_smaller(performance))
    small = len(files) > 2 and files[2].size <= _AS_SMALL * files[0].size
    if choosing and small and mended_wins(performance):
        notes = slower_but_smaller(performance, over=performance.over_mended)
        return Choice(float_reason=mended_reason(performance), mended=True, notes=notes)
    return Choice(float_reason=None, notes=share_of_mending(performance))


def is_slower(speedup: Speedup) -> bool:
    """Returns whether a file is slower, beyond noise and by as much as could be noticed."""
    return speedup.slower and speedup.ratio < _AS_FAST


def not_worth_it(performance: Performance) -> str | None:
    """Returns why the float model is handed over instead of the quantized one, None where it is not."""
    speedup = performance.speedup
    if is_slower(speedup):
        return f"the quantized model runs at {speedup.ratio:.2f}x of the float model's speed"
    if performance.quantized_bytes >= performance.float_bytes and not speedup.faster:
        return "the quantized model is neither smaller nor faster than the float model"
    return None


def mended_wins(performance: Performance) -> bool:
    """Returns whether the float model in canonical form is faster than the quantized one, and than the file it was."""
    mended, over = performance.mended, performance.over_mended
    return mended is not None and over is not None and mended.faster and is_slower(over)


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


def slower_but_smaller(performance: Performance, *, over: Speedup | None = None) -> tuple[str, ...]:
    """Returns what a reader who needs the smaller file more than the faster one should know."""
    speedup = performance.speedup if over is None else over
    ratio = performance.float_bytes / performance.quantized_bytes
    if ratio <= 1:
        return ()
    return (
        f"the quantized file would be {ratio:.2f}x smaller, at {speedup.ratio:.2f}x of float's speed; "
        "--allow-slower hands it over [smaller-but-slower]",
    )
