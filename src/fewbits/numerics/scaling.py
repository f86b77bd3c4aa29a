"""Scales and zero points from ranges."""

from __future__ import annotations

from fewbits._base.arrays import Array, namespace
from fewbits._base.errors import NumericsError
from fewbits.numerics.format import Format, Int

# Smallest normal float32. A smaller scale would be denormal: some kernels flush it to zero and then divide by it.
MIN_SCALE = 1.1754943508222875e-38
# Largest finite float32.
MAX_SCALE = 3.4028234663852886e38
# Ranges end a little inside float32: a scale rounded up to float32 (2**-24 relative), times the largest code, would
# else be infinite.
_INSIDE = 1.0 - 2.0**-22


def _refuse_nonfinite(xp: object, *arrays: Array) -> None:
    for array in arrays:
        if not bool(xp.all(xp.isfinite(array))):  # type: ignore[attr-defined]
            raise NumericsError(
                "a range holds NaN or infinity; check the tensor that it was taken from", slug="nonfinite-amax"
            )


def choose_scale(amax: Array, fmt: Format) -> Array:
    """Returns the scale that maps amax onto the largest value of fmt.

    scale = amax / fmt.max_value, raised to the smallest normal float32, and lowered where scale * fmt.max_value would
    not be finite.  Where amax is 0 the scale is 1, so that the codes are 0 and not NaN.

    Args:
      amax: Largest magnitude per group, any shape, in units of the tensor, >= 0.
      fmt: Element format; only ``max_value`` is used.
    Returns: float32, the shape of amax, > 0 and normal.
    Raises: NumericsError(slug="nonfinite-amax") if any amax is NaN or infinite.

    >>> import numpy as np
    >>> choose_scale(np.array([0.0, 254.0]), Int(bits=8, signed=True)).tolist()
    [1.0, 2.0]
    """
    xp = namespace(amax)
    amax = xp.astype(amax, xp.float64)
    _refuse_nonfinite(xp, amax)
    scale = xp.clip(amax / fmt.max_value, MIN_SCALE, MAX_SCALE * _INSIDE / fmt.max_value)
    return xp.astype(xp.where(amax == 0, xp.ones_like(scale), scale), xp.float32)


def choose_affine(low: Array, high: Array, fmt: Int) -> tuple[Array, Array]:
    """Returns the scale and the zero point that map [low, high], widened to hold 0, onto all codes of fmt.

    scale = (high - low) / (max_code - min_code),  zero_point = round(min_code - low / scale), clipped to the codes.
    Zero is exact: it has the code zero_point.  Ends beyond MAX_SCALE * steps / (steps + 1) are drawn in, because
    rounding the zero point moves the grid by up to half a step, and no code may stand for infinity.

    Args:
      low: Lower end per group, any shape, in units of the tensor.
      high: Upper end per group, the same shape, >= low.
      fmt: Integer format of the codes.
    Returns: (scale, float32 > 0 and normal; zero_point, float32 integers in [min_code, max_code]).
    Raises: NumericsError(slug="nonfinite-amax") for NaN or infinite ends.
    Source: Jacob et al. 2018 (arXiv 1712.05877), section 2.1 and equation 1.

    >>> import numpy as np
    >>> choose_affine(np.array(0.0), np.array(510.0), Int(bits=8, signed=False))
    (array(2., dtype=float32), array(0., dtype=float32))
    """
    xp = namespace(low, high)
    low, high = xp.astype(low, xp.float64), xp.astype(high, xp.float64)
    _refuse_nonfinite(xp, low, high)
    steps = fmt.max_code - fmt.min_code
    furthest = MAX_SCALE * _INSIDE * steps / (steps + 1)
    low, high = xp.clip(low, -furthest, 0.0), xp.clip(high, 0.0, furthest)
    wide = xp.clip((high - low) / steps, MIN_SCALE, None)
    scale = xp.astype(xp.where(high == low, xp.ones_like(wide), wide), xp.float32)
    zero = xp.round(fmt.min_code - low / xp.astype(scale, xp.float64))
    return xp.asarray(scale), xp.asarray(xp.astype(xp.clip(zero, fmt.min_value, fmt.max_value), xp.float32))


def affine_from_amax(amax: Array, fmt: Int) -> tuple[Array, Array]:
    """Returns scale and zero point of a symmetric range; an unsigned format has its zero point in the middle.

    For unsigned codes of b bits the zero point is 2**(b-1) and the scale amax / (2**(b-1) - 1), so that codes 1 to
    2**b - 1 are used and both signs have the same grid.
    """
    xp = namespace(amax)
    half = Int(bits=fmt.bits, signed=True)
    scale = choose_scale(amax, half)
    return scale, xp.full_like(scale, 0.0 if fmt.signed else float(1 << (fmt.bits - 1)))
