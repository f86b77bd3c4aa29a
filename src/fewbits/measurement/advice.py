"""What to choose on this machine, in sentences made from timed kernels and from nothing else."""

from __future__ import annotations

from collections.abc import Container, Sequence
from statistics import median

from fewbits.measurement.kernels import Form, KernelTime

FORM_WORDS = {
    Form.FLOAT: "float",
    Form.STATIC: "static int8",
    Form.ALONE: "int8 and conversions",
    Form.DYNAMIC: "dynamic int8",
    Form.WEIGHTS_8: "8-bit weights",
    Form.WEIGHTS_8_ROUNDED: "8-bit weights, rounded",
    Form.WEIGHTS_4: "4-bit weights",
    Form.WEIGHTS_4_ROUNDED: "4-bit weights, rounded",
    Form.HALF: "float16",
}
LAYER_WORDS = {
    "conv": "Convolutions",
    "depthwise": "Depthwise convolutions",
    "gemm-1": "Gemm and MatMul with one row",
    "gemm-128": "Gemm and MatMul with 128 rows",
    "add": "Add inside a chain of int8",
    "add-alone": "Add between float operators",
}
# The scheme that writes a form; it is named only where the product has it.
_SCHEMES = {Form.STATIC: "w8a8", Form.ALONE: "w8a8", Form.WEIGHTS_8_ROUNDED: "w8a16"}
# Two sessions of one file differ by up to 0.7 % (see latency): an interval that comes nearer to 1 decides nothing.
_MARGIN = 0.01
# Upper over lower end of an interval: 1.03 to 1.2 on an idle machine, 1.5 and more on one that two others shared, and
# on a crowded one so much that ratios of 30 were seen where an idle machine shows 3.
_IDLE_SPAN, _HOPELESS_SPAN = 1.3, 2.0
_AGAIN = "ask again on an idle machine, or with more --seconds"


def is_faster(time: KernelTime) -> bool:
    """Returns whether a form may be called faster than float."""
    return time.speedup is not None and time.speedup.low > 1 + _MARGIN


def is_slower(time: KernelTime) -> bool:
    """Returns whether a form may be called slower than float."""
    return time.speedup is not None and time.speedup.high < 1 - _MARGIN


def advise(times: Sequence[KernelTime], *, schemes: Container[str]) -> tuple[str, ...]:
    """Returns a sentence for each layer, one for float16, and a warning or nothing else where noise hides the figures.

    "Best seen" is the largest ratio; others "also faster" may be as fast, where their intervals overlap.


    Args:
      times: What ``measure_kernels`` found.
      schemes: Names that ``--scheme`` takes.
    """
    lines = []
    for layer in dict.fromkeys(time.layer for time in times):
        own = [time for time in times if time.layer == layer and time.speedup is not None and time.form != Form.HALF]
        if own:
            lines.append(f"{LAYER_WORDS[layer]}: {_of_layer(own, schemes)}")
    halves = [time for time in times if time.form == Form.HALF and time.speedup is not None]
    if halves:
        lines.append(f"float16: {_of_halves(halves)}")
    span = _span(times)
    if span > _HOPELESS_SPAN:
        return (f"These intervals are too wide to choose by, so something else is running here: {_AGAIN}",)
    if span > _IDLE_SPAN:
        lines.insert(0, f"These intervals are wide, so something else was running here: {_AGAIN}")
    return tuple(lines)


def _span(times: Sequence[KernelTime]) -> float:
    """Returns the median over all intervals of upper over lower end; 1 where there is none."""
    spans = [
        time.speedup.high / time.speedup.low for time in times if time.speedup is not None and time.speedup.low > 0
    ]
    return median(spans) if spans else 1.0


def _of_layer(times: Sequence[KernelTime], schemes: Container[str]) -> str:
    faster = sorted((time for time in times if is_faster(time)), key=_ratio, reverse=True)
    slower = sorted((time for time in times if is_slower(time)), key=_ratio)
    level = [time for time in times if not is_faster(time) and not is_slower(time)]
    kinds = (
        ("best seen is", faster[:1]),
        ("also faster:", faster[1:]),
        ("not decided:", level),
        ("slower:", slower),
    )
    said = [f"{what} {', '.join(_told(time, schemes) for time in group)}" for what, group in kinds if group]
    return "; ".join(said if faster else ["nothing is shown to be faster than float", *said])


def _of_halves(times: Sequence[KernelTime]) -> str:
    faster = [time for time in times if is_faster(time)]
    if not faster:
        return "faster than float nowhere here; it halves the file, not the time"
    return f"faster than float in {', '.join(f'{LAYER_WORDS[t.layer]} ({_ratio(t):.2f}x)' for t in faster)}"


def _ratio(time: KernelTime) -> float:
    return 0.0 if time.speedup is None else time.speedup.ratio


def _told(time: KernelTime, schemes: Container[str]) -> str:
    """Returns a form with its ratio, and where it is worth writing, with the option that writes it."""
    scheme = _SCHEMES.get(time.form, "")
    option = f"--scheme {scheme}" if scheme in schemes else "no --scheme writes it yet"
    return f"{FORM_WORDS[time.form]} ({_ratio(time):.2f}x{f', {option}' if is_faster(time) else ''})"
