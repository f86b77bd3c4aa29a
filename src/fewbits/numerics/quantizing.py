"""From values to a quantized tensor in one call: what is seen of each group, its scale, how that is stored, codes."""

from __future__ import annotations

from math import prod

import numpy as np

from fewbits._base.arrays import Array, detached, device_of, extremes, largest_magnitude, like, namespace, ordered_sum
from fewbits._base.errors import NumericsError
from fewbits.numerics.blocks import TILE, Blocks
from fewbits.numerics.format import MAX_LISTED_BITS, Format, Int, Seed, refuse_other_dtypes
from fewbits.numerics.named import FULL_RANGE, ArrayScheme, Solver, lined_up
from fewbits.numerics.qtensor import QParams, QTensor, as_float32, encode_all, refuse_nonfinite, with_arrays
from fewbits.numerics.scaling import ScaleRule, Seen
from fewbits.numerics.scheme import Scheme
from fewbits.numerics.schemes import SCHEMES
from fewbits.numerics.shorthand import for_array


def quantize_array(
    values: Array, scheme: str | Scheme | ArrayScheme, *, axis: int = -1, seed: Seed | None = None
) -> QTensor:
    """Returns the array quantized by itself, in the library and on the device that it came in.

    Args:
      values: Floating point, at least one element, finite.
      scheme: A name (``int8``, ``int4-g128``, ``w8a8``: its weights, ``mxfp4``, ``q4_k``), an entry of the catalog, or
        a Scheme of your own, whose axes are then taken as they are written.
      axis: Reduction axis, along which groups lie.
      seed: If given, codes are rounded at random (``Format.stochastic``); scales are not.
    Raises: UnknownNameError; NumericsError for empty, non-float or non-finite values, and for an axis or block that
      does not fit.

    >>> import numpy as np
    >>> quantize_array(np.array([[1.0, -0.5, 0.25, 0.0]]), "fp4_e2m1-g2").dequantize().tolist()
    [[1.0, -0.5, 0.25, 0.0]]
    """
    values = detached(_checked(values))
    if isinstance(scheme, Scheme):
        # One of the catalog's own is applied as the catalog does: a K-quant's codes are found by its search.
        same = (entry.weight for entry in SCHEMES.values() if entry.weight.scheme == scheme)
        array_scheme, stored = next(same, for_array(scheme)), scheme
    else:
        array_scheme = SCHEMES.of_array(scheme) if isinstance(scheme, str) else scheme
        stored = array_scheme.at(axis, tuple(values.shape))
    if isinstance(array_scheme.rule, Solver):
        if seed is not None:
            raise NumericsError(
                f"{array_scheme.name} chooses codes and scales together and cannot round at random; leave out seed",
                slug="seed-unused",
            )
        return _solved(values, array_scheme.rule, stored, axis)
    # Choosing scales has looked at every value; where there are none to choose, encoding looks.
    params = choose_params(values, stored, array_scheme.rule, array_scheme.scale_rule)
    return encode_all(values, params, seed=seed, check=not stored.scaled)


def _solved(values: Array, solver: Solver, scheme: Scheme, axis: int) -> QTensor:
    """Returns the tensor solved row by row, a tile of rows at a time."""
    xp = namespace(values)
    turned = xp.moveaxis(values, axis, -1)
    rows = xp.reshape(turned, (-1, turned.shape[-1]))
    along = lined_up(scheme)
    step = max(1, TILE // rows.shape[1])
    parts = []
    for start in range(0, rows.shape[0], step):
        part = as_float32(rows[start : min(start + step, rows.shape[0]), :])
        if not bool(xp.all(xp.isfinite(part))):
            refuse_nonfinite(values, where="the array")
        parts.append(solver.solve(part, along))
    lead = tuple(turned.shape[:-1])

    def put_together(arrays: list[Array]) -> Array:
        whole = xp.concat(arrays, axis=0) if len(arrays) > 1 else arrays[0]
        return xp.moveaxis(xp.reshape(whole, (*lead, whole.shape[-1])), -1, axis)

    return with_arrays(parts, put_together, scheme)


def _checked(values: Array) -> Array:
    values = refuse_other_dtypes(values)
    if values.ndim == 0 or 0 in values.shape:
        raise NumericsError(
            f"expected an array with at least one axis and one element, got shape {list(values.shape)}",
            slug="array-empty",
        )
    return values


def choose_params(
    values: Array, scheme: Scheme, rule: ScaleRule = FULL_RANGE, scale_rule: ScaleRule = FULL_RANGE
) -> QParams:
    """Returns the scales of an array, as they are stored.

    Args:
      values: Floating point, finite, at least one element.
      scheme: Written for this array: its axes exist.
      rule: How scales are chosen.
      scale_rule: How the scales of scales are, where the scheme quantizes scales again.
    Raises: NumericsError(slug="nonfinite-values") with count and first index.
    """
    shape = tuple(values.shape)
    xp = namespace(values)
    scales = scheme.granularity.scale_shape(shape)
    if not scheme.scaled:
        one = xp.ones(scales, dtype=xp.float32, device=device_of(values))
        return QParams(scheme=scheme, scale=one, zero_point=xp.zeros_like(one))
    seen = _see(values, scheme, rule)
    chosen = rule.choose(seen, scheme)
    offset = chosen.offset
    scale = chosen.scale
    if isinstance(scheme.scale, Scheme):
        scale = _without_say(scale, seen, scheme)
    elif scheme.scale is not None:
        scale = _kept_finite(scale, scheme)
    return QParams(
        scheme=scheme,
        scale=_stored(xp.reshape(scale, scales), scheme.scale, positive=True, rule=scale_rule),
        zero_point=_stored(xp.reshape(chosen.zero_point, scales), scheme.zero_point, positive=False),
        offset=None if offset is None else _stored(xp.reshape(offset, scales), scheme.minimum, positive=False),
    )


def _without_say(scale: Array, seen: Seen, scheme: Scheme) -> Array:
    """Returns the scales, those of groups that any scale fits (all zeros) drawn to the smallest of the others.

    Left at 1 they would decide the scale of the scales: one row of zeros would ruin a tensor of small weights.
    """
    xp = namespace(scale)
    free = seen.low == seen.high if scheme.minimum is not None else seen.amax == 0
    others = xp.min(xp.where(free, xp.full_like(scale, float("inf")), scale))
    return xp.where(free & xp.isfinite(others), others, scale)


def _kept_finite(scale: Array, scheme: Scheme) -> Array:
    """Returns the scales, at most the largest that is stored exactly and keeps the furthest code within float32."""
    fmt, how = scheme.format, scheme.scale
    if not isinstance(how, Format) or how.stored_bits > MAX_LISTED_BITS:
        return scale
    furthest = max(fmt.max_value, -fmt.min_value) if scheme.symmetric else fmt.max_value - fmt.min_value
    if isinstance(fmt, Int) and scheme.symmetric and not fmt.signed:
        furthest = (fmt.max_value + 1) / 2
    grid = how.grid.astype(np.float64)
    inside = grid[grid * furthest <= np.finfo(np.float32).max]
    return namespace(scale).clip(scale, None, float(inside[-1]))


def _stored(
    array: Array, how: Format | Scheme | None, *, positive: bool, rule: ScaleRule = FULL_RANGE
) -> Array | QTensor:
    """Returns scales, zero points or minimums as they can be stored; a scale never as 0 or infinity."""
    if how is None:
        return array
    if isinstance(how, Scheme):
        return encode_all(array, choose_params(array, how, rule), seed=None, check=False)
    stored = how.decode(how.encode(array))
    if not positive:
        return stored
    xp = namespace(stored)
    grid = how.grid if how.stored_bits <= 16 else np.array([np.finfo(np.float32).tiny])
    smallest = float(grid[grid > 0][0])
    return xp.where(stored < smallest, xp.full_like(stored, smallest), stored)


def _see(values: Array, scheme: Scheme, rule: ScaleRule) -> Seen:
    """Returns what the rule needs to know of each group, in the shape of the view's scales."""
    blocks = scheme.granularity.blocks(tuple(values.shape))
    viewed, xp = blocks.view(values), namespace(values)
    low = xp.empty(blocks.kept, dtype=xp.float32, device=device_of(values))
    high = xp.empty(blocks.kept, dtype=xp.float32, device=device_of(values))
    total = xp.zeros(blocks.kept, dtype=xp.float64, device=device_of(values)) if rule.needs_total else None
    begun: set[tuple[tuple[int, int], ...]] = set()
    for tile in blocks.tiles():
        part = as_float32(viewed[tile])
        place = blocks.scale_tile(tile)
        if scheme.symmetric:
            most = largest_magnitude(part, blocks.axes)
            least = -most
        else:
            least, most = extremes(part, blocks.axes)
        key = tuple((side.start, side.stop) for side in place)
        if key in begun:  # a group larger than a tile
            least, most = xp.minimum(least, low[place]), xp.maximum(most, high[place])
        elif not blocks.whole(tile):
            begun.add(key)
        low[place], high[place] = least, most
        if total is not None:
            total[place] += ordered_sum(xp.astype(xp.abs(part), xp.float64), blocks.axes)
    if not bool(xp.all(xp.isfinite(low)) & xp.all(xp.isfinite(high))):
        refuse_nonfinite(values, where="the array")
    count = _counts(blocks, scheme, values) if rule.needs_total else None
    return Seen(low=low, high=high, total=total, count=count)


def _counts(blocks: Blocks, scheme: Scheme, values: Array) -> Array:
    """Returns how many values share each scale, padding not counted, float64 in the shape of the view's scales."""
    size = prod(blocks.split[axis] for axis in blocks.axes)
    if prod(blocks.split) == prod(values.shape):
        return like(np.full(blocks.kept, float(size)), values)
    ones = np.ones(tuple(values.shape), np.float32)
    return like(np.asarray(np.sum(blocks.view(ones), axis=blocks.axes, keepdims=True, dtype=np.float64)), values)
