"""Whether weights bear to be stored in 16-bit floats."""

from __future__ import annotations

from collections.abc import Iterable

from fewbits._base.arrays import Array, namespace
from fewbits.numerics.format import Format
from fewbits.numerics.formats import FORMATS

_BF16 = FORMATS["bf16"]


def beyond_half(slabs: Iterable[Array], fmt: Format) -> str | None:
    """Returns how many values a 16-bit format cannot reach, in words; None where it reaches all.

    Args:
      slabs: The values, finite float32, in pieces.
      fmt: ``fp16`` or ``bf16``.
    """
    count = total = 0
    for values in slabs:
        xp = namespace(values)
        count += int(xp.sum(xp.astype(xp.abs(values) > fmt.max_value, xp.int64)))
        total += int(values.size or 0)
    return f"{count} of its {total} values lie beyond {fmt.max_value:.6g}, the largest of {fmt.name}" if count else None


def lost_in_half(slabs: Iterable[Array], fmt: Format) -> str | None:
    """Returns what a 16-bit format loses of tiny values, in words; None where it loses less than bf16 would.

    fp16 has three bits more than bf16 down to 6.1e-5, and ever fewer below, where its step stays 6e-8. A tensor of
    which it loses more than bf16, in squared error, is better left as it is, or stored as bf16.

    Args:
      slabs: The values, finite float32, in pieces.
      fmt: ``fp16`` or ``bf16``.
    Source: IEEE 754-2019, binary16, for the smallest normal number, 2**-14, and the step below it, 2**-24.
    """
    lost = other = 0.0
    for values in slabs:
        lost += _squared_error(values, fmt)
        other += _squared_error(values, _BF16)
    if lost <= other:
        return None
    times = f"{(lost / other) ** 0.5:.3g} times as much of them as bf16" if other else "some of them, and bf16 nothing"
    return f"its values are so small that {fmt.name} loses {times}"


def _squared_error(values: Array, fmt: Format) -> float:
    xp = namespace(values)
    wrong = xp.astype(fmt.decode(fmt.encode(values)), xp.float64) - xp.astype(values, xp.float64)
    return float(xp.sum(wrong * wrong))
