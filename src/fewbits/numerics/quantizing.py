"""From values to a quantized tensor in one call, by the largest magnitude."""

from __future__ import annotations

import re

from fewbits._base.arrays import Array, namespace
from fewbits._base.errors import NumericsError, UsageError
from fewbits.numerics.format import Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import Granularity, PerChannel, PerGroup, PerTensor
from fewbits.numerics.qtensor import QParams, QTensor, quantize, refuse_nonfinite
from fewbits.numerics.scaling import affine_from_amax
from fewbits.numerics.scheme import Scheme

_PATTERN = re.compile(r"(?P<format>[a-z0-9_]+?)(?:-(?:g(?P<group>\d+)|(?P<channel>channel)))?")


def quantize_symmetric(values: Array, scheme: str, *, axis: int = -1) -> QTensor:
    """Returns the tensor quantized symmetrically by the largest magnitude of each group.

    Args:
      values: Floating point, at least one element.
      scheme: ``FORMAT`` (per tensor), ``FORMAT-gSIZE`` (groups along ``axis``), or ``FORMAT-channel`` (for matrices: a
        scale for each index of the axis that is not ``axis``).
      axis: Reduction axis.
    Raises: UsageError(slug="scheme-shorthand"); NumericsError for empty, non-float or non-finite values.
    """
    match = _PATTERN.fullmatch(scheme)
    if match is None:
        raise UsageError(
            f"cannot read scheme {scheme!r}; write e.g. int8, int4-g128 or int8-channel", slug="scheme-shorthand"
        )
    fmt = FORMATS[match["format"]]
    xp = namespace(values)
    if not xp.isdtype(values.dtype, "real floating") or 0 in values.shape:
        raise NumericsError(
            f"expected a floating-point array with elements, got {values.dtype} of shape {list(values.shape)}",
            slug="array-not-float",
        )
    if not isinstance(fmt, Int):
        raise UsageError(f"format {fmt.name!r} is not an integer format", slug="scheme-shorthand")
    values = xp.astype(values, xp.float32)
    refuse_nonfinite(values, where="the array")
    granularity = _granularity(match["group"], match["channel"], axis=axis, rank=values.ndim)
    groups = granularity.to_groups(values)
    scale, zero = affine_from_amax(xp.max(xp.abs(groups), axis=1), fmt)
    shape = granularity.scale_shape(tuple(values.shape))
    params = QParams(
        scheme=Scheme(format=fmt, granularity=granularity, symmetric=True),
        scale=xp.reshape(scale, shape),
        zero_point=xp.reshape(zero, shape),
    )
    return quantize(values, params)


def _granularity(group: str | None, channel: str | None, *, axis: int, rank: int) -> Granularity:
    if group is not None:
        return PerGroup(axis=axis, size=int(group))
    if channel is None:
        return PerTensor()
    if rank < 2:
        raise NumericsError(f"an array of rank {rank} has no channels beside its axis", slug="axis-out-of-range")
    return PerChannel(axis=0 if axis % rank else 1)
