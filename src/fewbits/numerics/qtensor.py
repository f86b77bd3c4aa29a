"""A quantized tensor as a value: codes, scales, zero points or minimums, and the scheme that reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import final

from fewbits._base.arrays import (
    Array,
    clip_in_place,
    detached,
    empty_like,
    freeze,
    ignore_overflow,
    namespace,
    round_in_place,
    same_array,
    to_numpy,
)
from fewbits._base.errors import NumericsError
from fewbits.numerics.blocks import Blocks, Tile
from fewbits.numerics.format import Format, Int, Seed
from fewbits.numerics.granularity import PerTensor
from fewbits.numerics.scheme import Scheme


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QParams:
    """Scales and zero points without codes: all that is known of an activation before it flows.

    Args:
      scheme: How codes are read.
      scale: float32 > 0, shape ``scheme.granularity.scale_shape(tensor shape)``, or scalar for per-tensor. Where the
        scheme stores scales as a format they lie on its grid; where as a scheme, they are a QTensor of that shape.
      zero_point: float32 of the scale's shape; zeros for symmetric signed formats and for schemes with minimums.
      offset: What a scheme with minimums subtracts, the negated minimum: like the scale, of either sign; else None.
    """

    scheme: Scheme
    scale: Array | QTensor
    zero_point: Array
    offset: Array | QTensor | None = None

    def __post_init__(self) -> None:
        for name in ("scale", "zero_point", "offset"):
            object.__setattr__(self, name, freeze(getattr(self, name)))
        for name, array in (("zero point", self.zero_point), ("offset", self.offset)):
            if array is not None and tuple(array.shape) != tuple(self.scale.shape):
                raise NumericsError(
                    f"scale {list(self.scale.shape)} and {name} {list(array.shape)} differ in shape",
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
            and _same(self.scale, other.scale)
            and _same(self.zero_point, other.zero_point)
            and _same(self.offset, other.offset)
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QTensor:
    """A quantized tensor.

    Invariant: ``dequantize() == (decode(codes) - zero_point) * scale`` in float32, in this order of operations; for a
    scheme with minimums ``decode(codes) * scale - offset``. A scale or offset that is itself a QTensor is dequantized.

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
    def scale(self) -> Array | QTensor:
        """Scales in a shape of the tensor's rank: float32, or a QTensor where the scheme quantizes them again."""
        return self.params.scale

    @property
    def zero_point(self) -> Array:
        """Zero points, float32 of the scales' shape."""
        return self.params.zero_point

    @property
    def offset(self) -> Array | QTensor | None:
        """What a scheme with minimums subtracts, the scales' shape; else None."""
        return self.params.offset

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.codes.shape)

    @property
    def stored_bits(self) -> int:
        """Bits of all codes, scales, zero points and minimums, without the padding of any file format."""
        return self.scheme.stored_bits(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per element, scales and zero points or minimums included."""
        return self.stored_bits / max(1, prod(self.shape))

    def dequantize(self) -> Array:
        """Returns the float32 values that the codes stand for, in the tensor's shape."""
        blocks = self.scheme.granularity.blocks(self.shape)
        codes = blocks.view(self.codes)
        values = empty_like(codes, blocks.split, "float32")
        grid = _Grid.of(self.params, blocks)
        with ignore_overflow():  # padding has code 0, which under a zero point may stand for more than float32 holds
            for tile in blocks.tiles():
                values[tile] = grid.decode(codes[tile], tile)
        return blocks.unview(values, self.shape)

    def same(self, other: QTensor) -> bool:
        """Returns whether scheme and every bit of codes, scales and zero points are equal."""
        return self.params.same(other.params) and same_array(self.codes, other.codes)


def _same(left: Array | QTensor | None, right: Array | QTensor | None) -> bool:
    if isinstance(left, QTensor):
        return isinstance(right, QTensor) and left.same(right)
    return not isinstance(right, QTensor) and same_array(left, right)


def with_arrays(tensors: Sequence[QTensor], work: Callable[[list[Array]], Array], scheme: Scheme) -> QTensor:
    """Returns the tensor of this scheme whose every array (codes, scales, …) is made of those of the tensors."""
    first = tensors[0].params

    def of(parts: list[Array | QTensor], how: Format | Scheme | None) -> Array | QTensor:
        quantized = [part for part in parts if isinstance(part, QTensor)]
        return with_arrays(quantized, work, how) if isinstance(how, Scheme) else work(parts)

    params = QParams(
        scheme=scheme,
        scale=of([t.scale for t in tensors], scheme.scale),
        zero_point=work([t.zero_point for t in tensors]),
        offset=None if first.offset is None else of([t.params.offset for t in tensors], scheme.minimum),
    )
    return QTensor(codes=work([t.codes for t in tensors]), params=params)


def as_array(stored: Array | QTensor) -> Array:
    """Returns stored scales or minimums as float32 values."""
    return stored.dequantize() if isinstance(stored, QTensor) else stored


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Grid:
    """The scales of a tensor in the view of its granularity; None for what changes nothing."""

    format: Format
    blocks: Blocks
    scale: Array | None
    zero: Array | None
    real_zero: bool
    offset: Array | None

    @classmethod
    def of(cls, params: QParams, blocks: Blocks) -> _Grid:
        xp = namespace(params.zero_point)
        zero = params.zero_point
        scaled = params.scheme.scaled
        return cls(
            format=params.scheme.format,
            blocks=blocks,
            scale=xp.reshape(as_array(params.scale), blocks.kept) if scaled else None,
            zero=xp.reshape(zero, blocks.kept) if bool(xp.any(zero != 0)) else None,
            real_zero=params.scheme.zero_point is not None and not isinstance(params.scheme.zero_point, Int),
            offset=None if params.offset is None else xp.reshape(as_array(params.offset), blocks.kept),
        )

    def decode(self, codes: Array, tile: Tile) -> Array:
        place = self.blocks.scale_tile(tile)
        values = self.format.decode(codes)
        if self.zero is not None:
            values = values - self.zero[place]
        if self.scale is not None:
            values = values * self.scale[place]
        return values if self.offset is None else values - self.offset[place]

    def encode(self, values: Array, tile: Tile, seed: Seed | None) -> Array:
        """Returns the codes of a tile of float32 values."""
        xp = namespace(values)
        place, fmt = self.blocks.scale_tile(tile), self.format
        if self.offset is not None:
            values = values + self.offset[place]
        if self.scale is not None:
            scale = self.scale[place]
            with ignore_overflow():  # an infinite quotient saturates
                # A scale that is stored as 0 stands for a group of zeros: all its quotients are to be 0.
                values = values / xp.where(scale == 0, xp.full_like(scale, float("inf")), scale)
        if not isinstance(fmt, Int):
            return fmt.nearest(values) if seed is None else fmt.stochastic(values, seed=seed)
        if seed is not None:
            return fmt.stochastic(values if self.zero is None else values + self.zero[place], seed=seed)
        if self.real_zero and self.zero is not None:
            values = values + self.zero[place]
        values = round_in_place(values if self.scale is not None else xp.asarray(values, copy=True))
        if self.zero is not None and not self.real_zero:
            # Clip before adding the zero point, so that a quotient of 1e38 cannot swallow it.
            reach = float(fmt.max_code - fmt.min_code)
            values = clip_in_place(values, -reach, reach) + self.zero[place]
        if fmt.bits > 24:  # float32 has not the largest code: rounded up, it would wrap
            values = xp.astype(values, xp.float64)
        return xp.astype(clip_in_place(values, fmt.min_value, fmt.max_value), getattr(xp, fmt.code_dtype))


def quantize(values: Array, params: QParams, *, seed: Seed | None = None) -> QTensor:
    """Returns the nearest codes of the values under given scales.

    codes = saturate(round_half_even(values / scale) + zero_point), the division in float32: ONNX QuantizeLinear.

    Args:
      values: Floating point, any shape with at least one element; taken as float32.
      params: Scheme and scales, in shapes that fit the values.
      seed: If given, rounding is stochastic (``Format.stochastic``), each tile with a seed of its own made from this.
    Raises: NumericsError(slug="nonfinite-values") for NaN or infinity, with count and first index;
      NumericsError(slug="scale-not-positive") for a scale that is not positive and finite;
      NumericsError(slug="scale-shape") for scales that do not belong to a tensor of this shape.
    Source: ONNX operator QuantizeLinear-21.
    """
    params.check_fits(tuple(values.shape))
    _refuse_bad_scale(params)
    return encode_all(values, params, seed=seed, check=True)


def encode_all(values: Array, params: QParams, *, seed: Seed | None, check: bool) -> QTensor:
    """Returns the codes of values; without ``check`` of values that are known to be finite and scales known to fit."""
    values = detached(values)
    blocks = params.scheme.granularity.blocks(tuple(values.shape))
    viewed = blocks.view(values)
    codes = empty_like(viewed, blocks.split, params.scheme.format.code_dtype)
    grid = _Grid.of(params, blocks)
    for number, tile in enumerate(blocks.tiles()):
        part = as_float32(viewed[tile])
        if check and not bool(namespace(part).all(namespace(part).isfinite(part))):
            refuse_nonfinite(values)
        codes[tile] = grid.encode(part, tile, None if seed is None else _seed_of(seed, number))
    return QTensor(codes=blocks.unview(codes, tuple(values.shape)), params=params)


def as_float32(part: Array) -> Array:
    """Returns the values as float32; what float32 cannot hold becomes infinite."""
    xp = namespace(part)
    with ignore_overflow():
        return xp.astype(part, xp.float32, copy=False)


def _seed_of(seed: Seed, number: int) -> tuple[int, ...]:
    return (*((seed,) if isinstance(seed, int) else seed), number)


def _refuse_bad_scale(params: QParams) -> None:
    scale = as_array(params.scale)
    xp = namespace(scale)
    good = xp.isfinite(scale)
    # File formats that store scales in few bits store 0 for a group of zeros, and some a sign (GGUF's Q4_0, Q6_K).
    if params.scheme.scale is None:
        good = good & (scale > 0)
    if not bool(xp.all(good)):
        raise NumericsError("a scale is zero, negative or not finite", slug="scale-not-positive")


def refuse_nonfinite(values: Array, *, where: str = "the tensor") -> None:
    """Raises NumericsError(slug="nonfinite-values") if any value is NaN or infinite: name, count, first index."""
    xp = namespace(values)
    with ignore_overflow():
        bad = ~xp.isfinite(xp.astype(values, xp.float32))
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
