"""A quantized tensor as a value: codes, scales, zero points, and the scheme that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import final

from fewbits._base.arrays import Array, freeze, ignore_overflow, namespace, same_array, to_numpy
from fewbits._base.errors import NumericsError
from fewbits.numerics.format import Int
from fewbits.numerics.granularity import PerTensor
from fewbits.numerics.scheme import Scheme


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QParams:
    """Scales and zero points without codes: all that is known of an activation before it flows.

    Args:
      scheme: How codes are read.
      scale: float32 > 0, shape ``scheme.granularity.scale_shape(tensor shape)``, or scalar for per-tensor.
      zero_point: float32 integers of the scale's shape; zeros for symmetric signed formats.
    """

    scheme: Scheme
    scale: Array
    zero_point: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", freeze(self.scale))
        object.__setattr__(self, "zero_point", freeze(self.zero_point))
        if self.scale.shape != self.zero_point.shape:
            raise NumericsError(
                f"scale {list(self.scale.shape)} and zero point {list(self.zero_point.shape)} differ in shape",
                slug="qparams-shape",
            )

    def check_fits(self, shape: tuple[int, ...]) -> None:
        """Raises NumericsError(slug="scale-shape") if the scales do not belong to a tensor of this shape.

        Broadcasting alone would let scales of the wrong axis of a square matrix pass.
        """
        expected = self.scheme.granularity.scale_shape(shape)
        scalar = self.scale.shape == () and isinstance(self.scheme.granularity, PerTensor)
        if tuple(self.scale.shape) != expected and not scalar:
            raise NumericsError(
                f"{self.scheme.granularity.name} scales of a tensor of shape {list(shape)} have shape "
                f"{list(expected)}, got {list(self.scale.shape)}; reshape them",
                slug="scale-shape",
            )

    def same(self, other: QParams) -> bool:
        """Returns whether scheme and every bit of the arrays are equal."""
        return (
            self.scheme == other.scheme
            and same_array(self.scale, other.scale)
            and same_array(self.zero_point, other.zero_point)
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QTensor:
    """A quantized tensor.

    Invariant: ``dequantize() == (decode(codes) - zero_point) * scale`` in float32, in this order of operations.

    Args:
      codes: One code per element, dtype ``scheme.format.code_dtype``, the tensor's shape.
      params: Scheme, scales and zero points.
    Raises: NumericsError(slug="scale-shape") for scales that do not belong to a tensor of the codes' shape.
    """

    codes: Array
    params: QParams

    def __post_init__(self) -> None:
        object.__setattr__(self, "codes", freeze(self.codes))
        self.params.check_fits(self.shape)

    @property
    def scheme(self) -> Scheme:
        """How the codes are read."""
        return self.params.scheme

    @property
    def scale(self) -> Array:
        """float32 scales, in a shape of the tensor's rank."""
        return self.params.scale

    @property
    def zero_point(self) -> Array:
        """Zero points, the scales' shape."""
        return self.params.zero_point

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.codes.shape)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per element, scales (32 bits) and zero points (as wide as a code) included."""
        groups = prod(self.scale.shape)
        zero_bits = 0 if self.scheme.symmetric else self.scheme.format.stored_bits
        return float(self.scheme.format.stored_bits + groups * (32 + zero_bits) / max(1, prod(self.shape)))

    def dequantize(self) -> Array:
        """Returns the float32 values that the codes stand for, in the tensor's shape."""
        granularity = self.scheme.granularity
        scale = granularity.expand(self.scale, self.shape)
        zero = granularity.expand(self.zero_point, self.shape)
        return (self.scheme.format.decode(self.codes) - zero) * scale

    def same(self, other: QTensor) -> bool:
        """Returns whether scheme and every bit of codes, scales and zero points are equal."""
        return self.params.same(other.params) and same_array(self.codes, other.codes)


def quantize(values: Array, params: QParams) -> QTensor:
    """Returns the nearest codes of the values under given scales.

    codes = saturate(round_half_even(values / scale) + zero_point), the division in float32: ONNX QuantizeLinear.

    Args:
      values: Floating point, any shape with at least one element; taken as float32.
      params: Scheme and scales, in shapes that fit the values.
    Raises: NumericsError(slug="nonfinite-values") for NaN or infinity, with count and first index;
      NumericsError(slug="scale-not-positive") for a scale that is not positive and finite;
      NumericsError(slug="scale-shape") for scales that do not belong to a tensor of this shape.
    Source: ONNX operator QuantizeLinear-21.
    """
    xp = namespace(values)
    fmt = params.scheme.format
    params.check_fits(tuple(values.shape))
    with ignore_overflow():  # float64 beyond float32 becomes infinite, and is refused as such
        values = xp.astype(values, xp.float32)
    refuse_nonfinite(values)
    if not bool(xp.all((params.scale > 0) & xp.isfinite(params.scale))):
        raise NumericsError("a scale is zero, negative or not finite", slug="scale-not-positive")
    granularity = params.scheme.granularity
    with ignore_overflow():  # an infinite quotient saturates below
        scaled = values / granularity.expand(params.scale, values.shape)
    if isinstance(fmt, Int):
        # Clip before adding the zero point, so that a quotient of 1e38 cannot swallow it.
        reach = float(fmt.max_code - fmt.min_code)
        scaled = xp.clip(xp.round(scaled), -reach, reach) + granularity.expand(params.zero_point, values.shape)
    return QTensor(codes=fmt.encode(scaled), params=params)


def refuse_nonfinite(values: Array, *, where: str = "the tensor") -> None:
    """Raises NumericsError(slug="nonfinite-values") if any value is NaN or infinite: name, count, first index."""
    xp = namespace(values)
    bad = ~xp.isfinite(values)
    if not bool(xp.any(bad)):
        return
    flat = to_numpy(xp.reshape(bad, (-1,)))
    first = int(flat.argmax())
    index = []
    for size in reversed(values.shape):
        index.append(first % size)
        first //= size
    raise NumericsError(
        f"{where} holds {int(flat.sum())} NaN or infinite values, the first at index {index[::-1]}; "
        "repair the tensor before quantizing",
        slug="nonfinite-values",
    )
