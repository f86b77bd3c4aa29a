"""Codes of GGUF's super-blocks (Q2_K to Q6_K), by a search of our own for the least weighted squared error.

A super-block is 256 values: 8 or 16 sub-blocks with an integer scale each (and an integer minimum), under one fp16
scale d (and one fp16 dmin). Readers make ``d * scale * code - dmin * minimum`` of a code.

1. Each sub-block alone: for a few widths of its range, the codes, and the scale and minimum that fit them best (a
   linear least squares in closed form); the best width stays.
2. Each super-block: d and dmin of fp16 such that rounding the sub-scales to them costs least, in the quadratic model
   that the sums of step 1 give: nothing of the size of the tensor is touched.
3. Codes against exactly what is stored. Then each sub-scale and minimum a step up and down, and d and dmin by least
   squares over the super-block, with new codes each; what lowers the error stays.
4. Steps 2 and 3 again from there, and at the end the better of what was found and of plain rounding.

All blocks of a tile go side by side, elements first: [size, sub-blocks, super-blocks]. Sums are ordered, so that the
codes are the same in every library. Blocks are scaled by a power of two, so that squares stay inside float32.

Source: the layouts are ggml's (ggml-common.h). Its own quantizers (ggml-quants.c, make_qkx2_quants and neighbours)
fit widths alike under fixed weights, and then round sub-scales once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import sqrt
from typing import NamedTuple, final

from fewbits._base.arrays import (
    Array,
    bits_of,
    clip_in_place,
    floats_of,
    ignore_overflow,
    namespace,
    ordered_sum,
    round_in_place,
)
from fewbits.numerics.block_rounding import stored_fp16
from fewbits.numerics.format import Int
from fewbits.numerics.granularity import PerGroup
from fewbits.numerics.named import Solver
from fewbits.numerics.qtensor import QParams, QTensor
from fewbits.numerics.scheme import Scheme

SUPER_BLOCK = 256
# Values below 2**-40 are not scaled up to 1: fp16 has no scale for them, and 2**40 must not leave float32.
_EXPONENTS = (-40, 126)
# Measured (benchmarks/bench_gguf.py): more of each lowers the error by less than 1 % at twice the time.
# Step 1: scale = range / (highest code + t), t = k * sqrt(number of codes) / 20 for these k.
_WIDTHS = tuple(range(-10, 6))
# Step 2: d = largest scale / (highest sub-scale + u), u these numbers and these shares of the highest sub-scale. With
# the shares, values near fp16's denormals, where neighbouring d are far apart, still find a d that suits them.
_STEPS = tuple(k / 4 for k in range(-6, 7))
_SHARES = tuple(-k / 16 for k in range(1, 9))
_ROUNDS = 2
# Sums of a sub-block whose values have but one code determine no line.
_SINGULAR = 1e-6


class Weighting(Enum):
    """What the squared error of a value counts, where nothing is known of the inputs."""

    EQUAL = "equal"
    """One: the least squared error."""
    MAGNITUDE = "magnitude"
    """|value| + the mean of that over the sub-block. Squared errors are 1 to 7 % above the least, but the outputs of
    networks err less in most cases (benchmarks/bench_gguf.py). ggml weighs Q4_K and Q5_K by |value| + rms; without the
    root every library gives the same bits (torch rounds roots otherwise than IEEE 754)."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SuperBlockSearch(Solver):
    """The search of this file.

    Args:
      weighting: What the squared error of a value counts.
    """

    weighting: Weighting = Weighting.MAGNITUDE

    @property
    def name(self) -> str:
        return f"search, {self.weighting.value} weights"

    def solve(self, rows: Array, scheme: Scheme) -> QTensor:
        with ignore_overflow():  # a quotient by a scale of almost 0 saturates
            blocks = _Blocks.of(rows, scheme, self.weighting)
            plain = blocks.plain()
            best, line = plain, blocks.widths()
            for _ in range(_ROUNDS):
                found = blocks.improved(blocks.rounded(line))
                best = _choose(found.total < best.total, found, best)
                line = blocks.line(found.sums)
            best = _choose(blocks.total_error(best) <= blocks.total_error(plain), best, plain)
            return blocks.tensor(best, scheme, tuple(rows.shape))


class _Sums(NamedTuple):
    """Sums over each sub-block, weighted: of its codes, their squares, their products with the values."""

    codes: Array
    squares: Array
    products: Array


class _Line(NamedTuple):
    """Scale and subtracted minimum of each sub-block in real numbers, what they cost, and the codes' sums."""

    scale: Array
    minimum: Array
    cost: Array
    sums: _Sums


class _Found(NamedTuple):
    """What may be stored: d and dmin [1, super-blocks]; codes of scale and minimum, and cost, for each sub-block."""

    d: Array
    dmin: Array
    scale: Array
    minimum: Array
    cost: Array
    sums: _Sums

    @property
    def total(self) -> Array:
        """The cost of each super-block, [1, super-blocks]."""
        return ordered_sum(self.cost, (0,))


def _either(better: Array, new: Array, old: Array) -> Array:
    return old if new is old else namespace(better).where(better, new, old)


def _better_sums(better: Array, new: _Sums, old: _Sums) -> _Sums:
    return _Sums(*(_either(better, a, b) for a, b in zip(new, old, strict=True)))


def _better_line(new: _Line, old: _Line) -> _Line:
    better = new.cost < old.cost
    return _Line(
        scale=_either(better, new.scale, old.scale),
        minimum=_either(better, new.minimum, old.minimum),
        cost=_either(better, new.cost, old.cost),
        sums=_better_sums(better, new.sums, old.sums),
    )


def _choose(better: Array, new: _Found, old: _Found) -> _Found:
    """Returns the new one where it is better; arrays that both share stay as they are."""
    return _Found(
        d=_either(better, new.d, old.d),
        dmin=_either(better, new.dmin, old.dmin),
        scale=_either(better, new.scale, old.scale),
        minimum=_either(better, new.minimum, old.minimum),
        cost=_either(better, new.cost, old.cost),
        sums=_better_sums(better, new.sums, old.sums),
    )


def _quotient(a: Array, b: Array) -> Array:
    """Returns a / b, and 0 where b is 0."""
    xp = namespace(b)
    return a / xp.where(b == 0, xp.full_like(b, float("inf")), b)


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Blocks:
    """The super-blocks of a tile.

    Args:
      values: [size, sub-blocks, super-blocks], multiplied by 1/unit.
      weights: Of the squared errors, like the values; None: 1 each.
      unit: Powers of two, [1, super-blocks].
      weight, first, second: Sums of the weights, and of the weighted values and their squares, over each sub-block.
      low, high: Smallest and largest value of each sub-block.
      codes, scales: Formats of codes and of sub-scales.
      minimums: Format of the codes of minimums; None where the scheme has none.
    """

    values: Array
    weights: Array | None
    unit: Array
    weight: Array
    first: Array
    second: Array
    low: Array
    high: Array
    codes: Int
    scales: Int
    minimums: Int | None

    @classmethod
    def of(cls, rows: Array, scheme: Scheme, weighting: Weighting) -> _Blocks:
        """Returns the super-blocks of some rows, [rows, columns] float32."""
        xp = namespace(rows)
        grouped, inner, shift = scheme.granularity, scheme.scale, scheme.minimum
        assert isinstance(grouped, PerGroup) and isinstance(inner, Scheme) and isinstance(scheme.format, Int)
        outer = xp.reshape(rows, (-1, SUPER_BLOCK // grouped.size, grouped.size))
        values = xp.reshape(xp.reshape(xp.permute_dims(outer, (2, 1, 0)), (-1,)), outer.shape[::-1])
        most = xp.max(xp.abs(values), axis=(0, 1))
        exponent = xp.clip((bits_of(most) >> 23) - 126, *_EXPONENTS)[None, :]
        values = values * floats_of((127 - exponent) << 23)
        low, high = xp.min(values, axis=0), xp.max(values, axis=0)
        weights = None
        if weighting is Weighting.MAGNITUDE:
            weights = xp.abs(values)
            weights = weights + ordered_sum(weights, (0,)) / grouped.size
        weighted = values if weights is None else values * weights
        ones = xp.full_like(low, float(grouped.size))
        return cls(
            values=values,
            weights=weights,
            unit=floats_of((127 + exponent) << 23),
            weight=ones if weights is None else _over_elements(weights),
            first=_over_elements(weighted),
            second=_over_elements(weighted * values),
            low=low,
            high=high,
            codes=scheme.format,
            scales=_integers(inner),
            minimums=_integers(shift) if isinstance(shift, Scheme) else None,
        )

    def widths(self) -> _Line:
        """Returns the best line of each sub-block over a few widths of its range."""
        step = sqrt(2.0**self.codes.bits) / 20
        best: _Line | None = None
        for scale, minimum in self._starts([k * step for k in _WIDTHS]):
            line = self.line(self._sums(self._codes(scale, minimum)))
            best = line if best is None else _better_line(line, best)
        assert best is not None
        return best

    def _starts(self, steps: list[float]) -> list[tuple[Array, Array]]:
        """Returns scales and minimums under which the range of each sub-block ends so many steps from the last code."""
        xp = namespace(self.low)
        if self.minimums is not None:
            low = xp.clip(self.low, None, 0.0)
            return [((self.high - low) / (self.codes.max_value + t), -low) for t in steps]
        # Two's complement reaches one step further down: the largest magnitude to either end.
        top, nothing = _largest(self.low, self.high), xp.zeros_like(self.low)
        ends = [self.codes.min_value - t / 2 for t in steps] + [self.codes.max_value + t / 2 for t in steps]
        return [(top / end, nothing) for end in ends]

    def plain(self) -> _Found:
        """Returns the result of rounding alone: the extremes to the last codes, the largest sub-scale to its last."""
        xp = namespace(self.low)
        scale, minimum = self._starts([0.0])[0]
        ones = xp.ones_like(scale)
        d, scales = self._outer(scale, ones, self.scales, plain=True)
        dmin, minimums = self._outer(minimum, ones, self.minimums, plain=True)
        return self._found(d, dmin, scales, minimums)

    def rounded(self, line: _Line) -> _Found:
        """Returns step 2: the line of each sub-block as sub-scales under a common d and dmin."""
        xp = namespace(line.scale)
        codes, squares, _ = line.sums
        # How fast the error grows beside the best scale; less fast where the minimum is free to follow it.
        steep = xp.where(line.minimum > 0, xp.clip(squares - _quotient(codes * codes, self.weight), 0.0, None), squares)
        d, scales = self._outer(line.scale, steep, self.scales)
        minimum = self._minimum_of(d * scales, codes)
        dmin, minimums = self._outer(minimum, self.weight, self.minimums)
        return self._found(d, dmin, scales, minimums)

    def improved(self, found: _Found) -> _Found:
        """Returns step 3: sub-scales and minimums a step aside, then d and dmin anew."""
        xp = namespace(found.scale)
        for step in (0.0, -1.0, 1.0) if self.minimums is not None else (-1.0, 1.0, -2.0, 2.0):
            scale = xp.clip(found.scale + step, self.scales.min_value, self.scales.max_value)
            around = self._minimum_code(found.d * scale, found)
            for aside in (0.0, -1.0, 1.0) if self.minimums is not None else (0.0,):
                minimum = around if self.minimums is None else xp.clip(around + aside, 0.0, self.minimums.max_value)
                tried = self._found(found.d, found.dmin, scale, minimum)
                found = _choose(tried.cost < found.cost, tried, found)
        d, dmin = self._refitted(found)
        tried = self._found(d, dmin, found.scale, found.minimum)
        return _choose(tried.total < found.total, tried, found)

    def _minimum_code(self, scale: Array, found: _Found) -> Array:
        if self.minimums is None:
            return found.minimum
        minimum = round_in_place(_quotient(self._minimum_of(scale, found.sums.codes), found.dmin))
        return clip_in_place(minimum, 0.0, self.minimums.max_value)

    def _minimum_of(self, scale: Array, codes: Array) -> Array:
        """Returns the subtracted minimum that fits best under given scales, for codes of this sum; at least 0."""
        xp = namespace(scale)
        if self.minimums is None:
            return xp.zeros_like(scale)
        return xp.clip(_quotient(scale * codes - self.first, self.weight), 0.0, None)

    def _outer(self, wanted: Array, steep: Array, fmt: Int | None, *, plain: bool = False) -> tuple[Array, Array]:
        """Returns an fp16 scale for each super-block, and codes of fmt under it, for the numbers wanted."""
        xp = namespace(wanted)
        low, high = xp.min(wanted, axis=0, keepdims=True), xp.max(wanted, axis=0, keepdims=True)
        if fmt is None:
            return xp.zeros_like(high), xp.zeros_like(wanted)
        top = _largest(low, high) if fmt.signed else high
        end = fmt.min_value if fmt.signed else fmt.max_value
        steps = (0.0,) if plain else (*_STEPS, *(share * abs(end) for share in _SHARES))
        best: tuple[Array, Array, Array] | None = None
        for step in steps:
            scale = self._fp16(top / (end - step if fmt.signed else end + step))
            codes = clip_in_place(round_in_place(_quotient(wanted, scale)), fmt.min_value, fmt.max_value)
            miss = scale * codes - wanted
            cost = ordered_sum(steep * miss * miss, (0,))
            if best is None:
                best = cost, scale, codes
            else:
                better = cost < best[0]
                best = (
                    xp.where(better, cost, best[0]),
                    xp.where(better, scale, best[1]),
                    xp.where(better, codes, best[2]),
                )
        assert best is not None
        return best[1], best[2]

    def _fp16(self, scale: Array) -> Array:
        """Returns scales as fp16 stores them, in multiples of the unit; never -0."""
        return stored_fp16(scale * self.unit) / self.unit + 0.0

    def _refitted(self, found: _Found) -> tuple[Array, Array]:
        """Returns d and dmin by least squares over each super-block, for the codes that there are."""
        xp = namespace(found.d)
        scale, minimum, sums = found.scale, found.minimum, found.sums
        a = ordered_sum(scale * scale * sums.squares, (0,))
        right = ordered_sum(scale * sums.products, (0,))
        if self.minimums is None:
            return self._fp16(_quotient(right, a)), found.dmin
        b = ordered_sum(scale * minimum * sums.codes, (0,))
        c = ordered_sum(minimum * minimum * self.weight, (0,))
        below = ordered_sum(minimum * self.first, (0,))
        determinant = a * c - b * b
        known = determinant > _SINGULAR * a * c
        d = xp.where(known, _quotient(right * c - below * b, determinant), found.d)
        dmin = xp.where(known, _quotient(b * right - a * below, determinant), found.dmin)
        return self._fp16(d), self._fp16(dmin)

    def _codes(self, scale: Array, minimum: Array) -> Array:
        """Returns the nearest codes, float32, of every value under these scales and minimums of the sub-blocks."""
        values = self.values if self.minimums is None else self.values + minimum
        return clip_in_place(round_in_place(_quotient(values, scale)), self.codes.min_value, self.codes.max_value)

    def _sums(self, codes: Array) -> _Sums:
        weighted = codes if self.weights is None else codes * self.weights
        return _Sums(
            codes=_over_elements(weighted),
            squares=_over_elements(weighted * codes),
            products=_over_elements(weighted * self.values),
        )

    def line(self, sums: _Sums) -> _Line:
        """Returns the scale and minimum (at least 0) of each sub-block with the least error for its codes."""
        xp = namespace(sums.codes)
        through_zero = _quotient(sums.products, sums.squares)
        if self.minimums is None:
            minimum = xp.zeros_like(through_zero)
            return _Line(through_zero, minimum, self._cost(through_zero, minimum, sums), sums)
        determinant = self.weight * sums.squares - sums.codes * sums.codes
        known = determinant > _SINGULAR * self.weight * sums.squares
        slope = _quotient(self.weight * sums.products - self.first * sums.codes, determinant)
        scale = xp.where(known, slope, through_zero)
        scale = xp.where(scale * sums.codes < self.first, through_zero, scale)  # its minimum would be below 0
        minimum = self._minimum_of(scale, sums.codes)
        return _Line(scale, minimum, self._cost(scale, minimum, sums), sums)

    def _cost(self, scale: Array, minimum: Array, sums: _Sums) -> Array:
        """Returns the squared error of each sub-block, multiplied out: good to 1e-7 of the squares of the values."""
        cost = self.second - 2 * scale * sums.products + scale * scale * sums.squares
        if self.minimums is None:
            return cost
        return cost + minimum * (2 * self.first - 2 * scale * sums.codes + minimum * self.weight)

    def _found(self, d: Array, dmin: Array, scale: Array, minimum: Array) -> _Found:
        real = d * scale, dmin * minimum
        sums = self._sums(self._codes(*real))
        return _Found(d, dmin, scale, minimum, self._cost(*real, sums), sums)

    def total_error(self, found: _Found) -> Array:
        """Returns the squared error of each super-block, [1, super-blocks], value by value."""
        scale, minimum = found.d * found.scale, found.dmin * found.minimum
        miss = self._codes(scale, minimum) * scale - minimum - self.values
        miss = miss * miss if self.weights is None else miss * miss * self.weights
        return ordered_sum(_over_elements(miss), (0,))

    def tensor(self, found: _Found, scheme: Scheme, shape: tuple[int, ...]) -> QTensor:
        """Returns the codes against the stored scales, laid out in rows."""
        xp = namespace(found.d)
        codes = self._codes(found.d * found.scale, found.dmin * found.minimum)

        def rows(array: Array, fmt: Int) -> Array:
            turned = xp.permute_dims(array, tuple(range(array.ndim))[::-1])
            return xp.astype(xp.reshape(turned, (shape[0], -1)), getattr(xp, fmt.code_dtype))

        def nested(outer: Array, inner: Array, how: Scheme, fmt: Int) -> QTensor:
            scale = xp.reshape(outer * self.unit, (shape[0], -1))
            return QTensor(
                codes=rows(inner, fmt), params=QParams(scheme=how, scale=scale, zero_point=xp.zeros_like(scale))
            )

        assert isinstance(scheme.scale, Scheme)
        scale = nested(found.d, found.scale, scheme.scale, self.scales)
        offset = None
        if isinstance(scheme.minimum, Scheme) and self.minimums is not None:
            offset = nested(found.dmin, found.minimum, scheme.minimum, self.minimums)
        zero = xp.reshape(xp.zeros_like(found.scale), scale.shape)
        params = QParams(scheme=scheme, scale=scale, zero_point=zero, offset=offset)
        return QTensor(codes=rows(codes, self.codes), params=params)


def _over_elements(array: Array) -> Array:
    """Returns the sums of each sub-block, [sub-blocks, super-blocks]."""
    return ordered_sum(array, (0,))[0, ...]


def _largest(low: Array, high: Array) -> Array:
    """Returns the end with the larger magnitude."""
    return namespace(low).where(-low > high, low, high)


def _integers(scheme: Scheme) -> Int:
    assert isinstance(scheme.format, Int), "sub-scales are integers"
    return scheme.format
