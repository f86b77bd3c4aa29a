"""What the laws of schemes are asked of: every entry of the catalog and its like, drawn matrices, and their grids.

conftest.py makes this importable as ``fewbits_test_laws``. Where a law cannot hold for an entry, a predicate says why.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fewbits.numerics.format import Int
from fewbits.numerics.named import ArrayScheme, Solver
from fewbits.numerics.qtensor import QTensor, as_array
from fewbits.numerics.scheme import Scheme, parse_scheme
from fewbits.numerics.schemes import SCHEMES
from fewbits.numerics.shorthand import rule_of

SHORTHANDS = (
    "int8", "uint8", "uint8-asym", "int16", "uint16-asym", "int2-channel", "int5-channel", "uint7-channel-asym",
    "int8-token", "uint3-token-asym", "int4-g32", "int3-g7", "uint4-g32-asym", "uint2-g16-asym", "uint6-g5-asym",
    "int4-f50", "uint4-f33-asym", "int8-b4x8", "uint4-b3x5-asym", "int4-g32-scale-fp16", "int4-g16-scale-bf16",
    "uint4-g32-asym-scale-fp16", "int8-channel-scale-fp16", "int4-g32-scale-e8m0", "int4-g16-scale-ue4m3",
    "fp8_e4m3", "fp8_e5m2-channel", "fp8_e4m3-token", "fp6_e3m2-g32", "fp6_e2m3-b2x2", "fp4_e2m1-g16", "fp4_e2m1-f24",
    "fp4_e2m1-g16-scale-fp8_e4m3", "mxint8-g8", "mxint8-channel", "nf4-g64", "nf4-f64-scale-bf16", "binary-g32",
    "binary", "ternary-channel", "ternary-g10", "fp16-channel", "bf16-g4",
)  # fmt: skip
# What no shorthand spells: minimums, real zero points, scales of scales.
WORDS = {
    "min": "uint4 per-group(-1, 32) asymmetric, scale fp16, minimum fp16",
    "min-float32": "uint3 per-channel(0) asymmetric, minimum fp32",
    "min-nested": "uint4 per-group(-1, 8) asymmetric, scale (uint8 per-token(-1) symmetric), minimum fp32",
    "real-zero": "uint4 per-group(-1, 16) asymmetric, zero_point fp16",
    "fp4-min": "fp4_e2m1 per-group(-1, 16) asymmetric, minimum fp32",
    "nested-twice": "int4 per-group(-1, 8) symmetric, scale (fp8_e4m3 per-token(-1) symmetric, scale (bf16 per-tensor "
    "symmetric))",
}


def _own(name: str, words: str) -> ArrayScheme:
    scheme = parse_scheme(words)
    return ArrayScheme(name=name, scheme=scheme, rule=rule_of(scheme.format))


ENTRIES: dict[str, ArrayScheme] = {
    **{name: SCHEMES.of_array(name) for name in (*SCHEMES, *SHORTHANDS)},
    **{f"{name}, activations": s.activation for name, s in SCHEMES.items() if s.activation not in (None, s.weight)},
    **{name: _own(name, words) for name, words in WORDS.items()},
}


def where(holds: Callable[[ArrayScheme], bool]) -> pytest.MarkDecorator:
    """Returns the parametrization over the entries for which a law can hold."""
    held = [pytest.param(entry, id=name) for name, entry in ENTRIES.items() if holds(entry)]
    return pytest.mark.parametrize("entry", held)


every_entry = where(lambda entry: True)
few = settings(deadline=None, max_examples=4, suppress_health_check=[HealthCheck.too_slow])


def solved(entry: ArrayScheme) -> bool:
    return isinstance(entry.rule, Solver)


def has_zero(entry: ArrayScheme) -> bool:
    """Returns whether zero is a value whatever the scale."""
    return entry.scheme.format.zero_code is not None and not shifted(entry.scheme)


def shifted(scheme: Scheme) -> bool:
    """Returns whether zero need not be a value: a minimum, or a zero point that is no code."""
    return scheme.minimum is not None or (scheme.zero_point is not None and not isinstance(scheme.zero_point, Int))


def in_its_own(scheme: Scheme) -> bool:
    """Returns whether a group's scale depends on nothing but the group."""
    return not isinstance(scheme.scale, Scheme) and not isinstance(scheme.minimum, Scheme)


def wide(entry: ArrayScheme, columns: int) -> int:
    """Returns the next count of columns that the entry takes."""
    return -(-columns // entry.divides) * entry.divides


KINDS = ("normal", "spread", "halves", "outlier", "positive", "far from zero", "few values")


def values_of(kind: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal(shape)
    if kind == "spread":
        drawn *= np.exp2(rng.integers(-12, 12, shape))
    elif kind == "halves":
        drawn = rng.integers(-40, 41, shape) / 2
    elif kind == "outlier":
        drawn.reshape(-1)[rng.integers(drawn.size)] = 1e4
    elif kind == "positive":
        drawn = np.abs(drawn)
    elif kind == "far from zero":
        drawn = drawn / 8 + 3
    elif kind == "few values":
        drawn = rng.choice([-1.5, 0.0, 0.25, 6.0], shape)
    return drawn.astype(np.float32)


@st.composite
def cases(draw, kinds: tuple[str, ...] = KINDS) -> Callable[[ArrayScheme], np.ndarray]:
    """Draws what makes a matrix for an entry: its columns are a multiple of what the entry asks for."""
    rows, columns, blocks = draw(st.integers(1, 6)), draw(st.integers(1, 80)), draw(st.integers(1, 2))
    kind, seed = draw(st.sampled_from(kinds)), draw(st.integers(0, 2**32 - 1))

    def make(entry: ArrayScheme) -> np.ndarray:
        return values_of(kind, (rows, blocks * entry.divides if entry.divides > 1 else columns), seed)

    return make


def expanded(tensor: QTensor, stored: object) -> np.ndarray:
    """Returns scales, zero points or offsets as float64 in the tensor's shape."""
    if stored is None:
        return np.zeros(tensor.shape)
    array = np.asarray(as_array(stored))
    whole = tensor.scheme.granularity.expand(array, tensor.shape)
    return np.broadcast_to(np.asarray(whole), tensor.shape).astype(np.float64)


class Grid:
    """The values that each element could have become, in float64: (grid - zero) * scale - offset."""

    def __init__(self, tensor: QTensor) -> None:
        self.scale, self.zero = expanded(tensor, tensor.scale), expanded(tensor, tensor.zero_point)
        self.offset, self.format = expanded(tensor, tensor.offset), tensor.scheme.format
        self.grid = self.format.grid.astype(np.float64)
        self.low = (self.grid[0] - self.zero) * self.scale - self.offset
        self.high = (self.grid[-1] - self.zero) * self.scale - self.offset

    def around(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the values below and above each, the same twice beyond the ends."""
        wanted = (values + self.offset) / np.where(self.scale == 0, np.inf, self.scale) + self.zero
        wanted = np.clip(wanted, self.grid[0], self.grid[-1])
        place = np.clip(np.searchsorted(self.grid, wanted, side="right") - 1, 0, len(self.grid) - 2)
        low, high = (self.grid[p] for p in (place, place + 1))
        return (low - self.zero) * self.scale - self.offset, (high - self.zero) * self.scale - self.offset

    def slack(self, values: np.ndarray) -> np.ndarray:
        """Returns by how much float32 may miss the nearest.

        Encoding: (v + offset), its quotient, and + zero are each rounded, 2**-24 of what they give; a choice between
        two neighbours by a quotient that is off by d steps is off by at most 2 d. Decoding rounds the product of one
        of the neighbours, and the difference. Below 2**-126 a rounding is 2**-150 instead.
        """
        shift = np.abs(self.offset) + np.abs(self.zero * self.scale)
        low, high = self.around(values)
        return (
            2.0**-24 * (6 * (np.abs(values) + shift) + 2 * (np.maximum(np.abs(low), np.abs(high)) + shift)) + 2.0**-146
        )

    def gap(self, values: np.ndarray) -> np.ndarray:
        """Returns the distance of what lies on the grid from the nearest other value of it."""
        wanted = (values + self.offset) / np.where(self.scale == 0, np.inf, self.scale) + self.zero
        place = np.argmin(np.abs(self.grid - wanted[..., None]), axis=-1) if len(self.grid) < 300 else None
        if place is None:
            place = np.searchsorted((self.grid[:-1] + self.grid[1:]) / 2, wanted)
        steps = np.diff(self.grid, prepend=-np.inf, append=np.inf)
        return np.minimum(steps[place], steps[place + 1]) * np.abs(self.scale)
