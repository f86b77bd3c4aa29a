"""Formats that are a list of values: NF4, binary, ternary, and what is learned from a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, final

import numpy as np

from fewbits._base.arrays import Array, look_up, namespace
from fewbits._base.errors import NumericsError
from fewbits.numerics.format import MAX_LISTED_BITS, Format
from fewbits.numerics.nearest import places, thresholds


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Codebook(Format):
    """Any k values; a code is a place in the list.

    Encoding takes the nearest value, decided exactly. A tie goes to the value at the even place of the sorted list,
    with ``ties="up"`` to the larger one, with ``ties="zero"`` to the smaller magnitude. Beyond the ends it saturates.

    Args:
      name: The name in catalogs.
      values: 2 to 65536 finite values, distinct as float32, in the order of their codes.
      ties: ``even``, ``up`` or ``zero``.
      source: The document that defines the values.
    Raises: NumericsError(slug="codebook") for too few or too many values, duplicates, NaN and infinity.

    >>> import numpy as np
    >>> Codebook(name="thirds", values=(-1, 0, 1 / 3, 1)).encode(np.array([0.2, 0.1, -7.0])).tolist()
    [2, 1, 0]
    """

    name: str = field()
    values: tuple[float, ...]
    ties: Literal["even", "up", "zero"] = "even"
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _checked(self.name, self.values))
        if self.ties not in ("even", "up", "zero"):
            raise NumericsError(
                f"codebook {self.name!r}: ties go to 'even', 'up' or 'zero', not {self.ties!r}", slug="codebook"
            )

    @property
    def stored_bits(self) -> int:
        return max(1, (len(self.values) - 1).bit_length())

    @property
    def min_value(self) -> float:
        return min(self.values)

    @property
    def max_value(self) -> float:
        return max(self.values)

    @property
    def code_dtype(self) -> str:
        return "uint8" if self.stored_bits <= 8 else "uint16"

    def codes(self) -> np.ndarray:
        return np.arange(len(self.values)).astype(self.code_dtype)

    def nearest(self, values: Array) -> Array:
        limits, order = _limits(self)
        place = places(values, limits)
        if order is not None:
            place = look_up(order, place)
        xp = namespace(place)
        return xp.astype(place, getattr(xp, self.code_dtype), copy=False)

    def decode(self, codes: Array) -> Array:
        return look_up(_table(self), codes)


def _checked(name: str, values: Sequence[float]) -> tuple[float, ...]:
    """Returns the values as float32 sees them."""
    limit = 1 << MAX_LISTED_BITS
    taken = np.asarray(values, dtype=np.float64)
    if taken.ndim != 1 or not 2 <= taken.size <= limit:
        raise NumericsError(
            f"codebook {name!r} has shape {list(taken.shape)}; expected a list of 2 to {limit} values", slug="codebook"
        )
    with np.errstate(over="ignore"):
        seen = taken.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(seen))
    if bad.size:
        raise NumericsError(
            f"codebook {name!r}: value {bad[0]} is {taken[bad[0]]}, which is not a finite float32", slug="codebook"
        )
    distinct, counts = np.unique(seen, return_counts=True)
    if distinct.size != seen.size:
        raise NumericsError(
            f"codebook {name!r} holds {distinct[counts > 1][0]!s} more than once (as float32); list each value once",
            slug="codebook",
        )
    return tuple((seen + np.float32(0)).tolist())  # + 0 turns -0 into 0: equal codebooks share one table


@lru_cache(maxsize=64)
def _limits(fmt: Codebook) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the thresholds between the sorted values, and the code of each place, None where it is the place."""
    order = np.argsort(np.asarray(fmt.values, np.float64), kind="stable")
    grid = np.asarray(fmt.values, np.float64)[order]
    pairs = len(grid) - 1
    upward = {
        "even": np.arange(pairs) % 2 == 1,  # between places p and p + 1 the even one is the upper where p is odd
        "up": np.ones(pairs, bool),
        "zero": np.abs(grid[1:]) < np.abs(grid[:-1]),
    }[fmt.ties]
    codes = None if np.array_equal(order, np.arange(len(order))) else order.astype(np.int32)
    return thresholds(grid, ties_up=upward), codes


@lru_cache(maxsize=64)
def _table(fmt: Codebook) -> np.ndarray:
    table = np.asarray(fmt.values, dtype=np.float32)
    table.flags.writeable = False
    return table
