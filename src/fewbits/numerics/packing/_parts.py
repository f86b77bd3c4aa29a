"""What the layouts share: refusals, checked codes, scales in a stored type, zero points, and tensors of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from fewbits._base.arrays import Array, like, namespace, to_numpy
from fewbits._base.errors import NumericsError, TargetError
from fewbits._base.packing import as_floats, as_patterns, dtype_name, whole_numbers
from fewbits.numerics.codebook import Codebook
from fewbits.numerics.format import Format, Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import PerChannel, PerGroup, PerToken
from fewbits.numerics.qtensor import QParams, QTensor, as_array
from fewbits.numerics.scheme import Scheme

# How array libraries call the types of formats in which files store numbers.
DTYPES = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp8_e4m3": "float8_e4m3fn",
    "ue4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
    "e8m0": "uint8",
}


def no_scheme(layout: str, scheme: Scheme, why: str, instead: str) -> TargetError:
    """Returns the refusal of a scheme."""
    return TargetError(f"{layout} cannot hold {scheme.name!r}: {why}; {instead}", slug="layout-scheme")


def no_shape(layout: str, shape: Sequence[int], why: str, instead: str) -> TargetError:
    """Returns the refusal of a shape."""
    return TargetError(f"{layout} cannot hold a weight of shape {list(shape)}: {why}; {instead}", slug="layout-shape")


def need_matrix(layout: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns (out, in), or refuses what is no matrix."""
    if len(shape) != 2 or 0 in shape:
        raise no_shape(layout, shape, "it is no matrix [out, in]", "reshape it to two axes with at least one element")
    return shape[0], shape[1]


def need_integers(layout: str, scheme: Scheme, bits: Sequence[int]) -> Int:
    """Returns the integer format of the codes, or refuses other formats and widths, and minimums."""
    fmt = scheme.format
    widths = " or ".join(f"{b}" for b in bits)
    if not isinstance(fmt, Int):
        near = next((b for b in bits if b >= fmt.stored_bits), bits[-1])
        few = isinstance(fmt, Codebook)
        raise no_scheme(
            layout,
            scheme,
            "its codes are " + ("places in a list of values, not integers" if few else "not integers"),
            f"use int{near}",
        )
    if fmt.bits not in bits:
        near = next((b for b in bits if b >= fmt.bits), bits[-1])
        raise no_scheme(layout, scheme, f"it has codes of {widths} bits", f"use {'' if fmt.signed else 'u'}int{near}")
    if scheme.minimum is not None or not isinstance(scheme.zero_point, Int | None):
        raise no_scheme(layout, scheme, "its zero points are integers", f"use uint{fmt.bits}-g32-asym")
    if isinstance(scheme.scale, Scheme) or not scheme.scaled:
        raise no_scheme(
            layout, scheme, "its scales are plain numbers", f"use {fmt.name}-g32 or {fmt.name}-g32-scale-fp16"
        )
    return fmt


def group_size(layout: str, scheme: Scheme, shape: tuple[int, int]) -> int:
    """Returns how many elements along the reduction axis share a scale; all of a row for a scale a channel."""
    match scheme.granularity:
        case PerGroup(axis=axis, size=size) if axis in (-1, 1):
            return size
        case PerChannel(axis=axis) if axis in (0, -2):
            return shape[1]
        case PerToken(axis=axis) if axis in (-1, 1):
            return shape[1]
    raise no_scheme(
        layout,
        scheme,
        "its scales lie along the reduction axis, the last one, or one belongs to each row",
        f"use {scheme.format.name}-g128 or {scheme.format.name}-channel",
    )


def checked_codes(q: QTensor) -> Array:
    """Returns the codes, or refuses integers that the format does not have (they would wrap when packed)."""
    fmt = q.scheme.format
    xp = namespace(q.codes)
    low, high = (fmt.min_code, fmt.max_code) if isinstance(fmt, Int) else (0, int(fmt.codes().max()))
    if high - low + 1 == 1 << (8 * np.dtype(fmt.code_dtype).itemsize):
        return q.codes  # the dtype has no other
    found = xp.astype(q.codes, xp.int32)
    least, most = int(xp.min(found)), int(xp.max(found))
    if least < low or most > high:
        raise NumericsError(
            f"the codes reach from {least} to {most}, and {fmt.name} has {low} to {high}; quantize the tensor anew",
            slug="codes-range",
        )
    return q.codes


def bias_of(fmt: Int) -> int:
    """Returns what is added to a code to make it unsigned: half the codes of a signed format, else 0."""
    return -fmt.min_code


def unsigned_codes(q: QTensor) -> Array:
    """Returns integer codes of up to 8 bits plus ``bias_of``, uint8: zero lies in the middle of a signed format."""
    assert isinstance(q.scheme.format, Int)
    xp = namespace(q.codes)
    return xp.astype(xp.astype(checked_codes(q), xp.int32) + bias_of(q.scheme.format), xp.uint8)


def codes_of(unsigned: Array, fmt: Int) -> Array:
    """Returns codes in the format's own dtype; the inverse of ``unsigned_codes``."""
    xp = namespace(unsigned)
    return xp.astype(xp.astype(unsigned, xp.int32) - bias_of(fmt), getattr(xp, fmt.code_dtype))


def unsigned_zero_points(layout: str, q: QTensor, *, lowest: int = 0) -> Array:
    """Returns the zero points plus ``bias_of``, int32 of the scales' shape, at least ``lowest``; up to 8 bits.

    Raises: TargetError(slug="layout-zero-point") for fractions, and for what the layout cannot store.
    """
    assert isinstance(q.scheme.format, Int)
    return whole_zero_points(layout, q, lowest=lowest) + bias_of(q.scheme.format)


def whole_zero_points(layout: str, q: QTensor, *, lowest: int = 0) -> Array:
    """Returns the zero points, int32 of the scales' shape, from the smallest code plus ``lowest`` to the largest.

    Raises: TargetError(slug="layout-zero-point") for fractions, and for what the layout cannot store.
    """
    fmt = q.scheme.format
    assert isinstance(fmt, Int)
    xp = namespace(q.zero_point)
    zero = q.zero_point
    low, high = lowest - bias_of(fmt), fmt.max_code
    bad = (zero != xp.round(zero)) | (zero < low) | (zero > high)
    if bool(xp.any(bad)):
        first = to_numpy(zero)[to_numpy(bad)][0]
        instead = (
            f"use the symmetric int{fmt.bits}, or gptq's version 2"
            if lowest
            else f"quantize with uint{fmt.bits}-g32-asym"
        )
        raise TargetError(
            f"{layout} stores zero points as integers from {low} to {high}, and one is {first:g}; {instead}",
            slug="layout-zero-point",
        )
    return xp.astype(zero, xp.int32)


def zero_points_of(unsigned: Array, fmt: Int) -> Array:
    """Returns zero points as a quantized tensor holds them, float32; the inverse of ``unsigned_zero_points``."""
    xp = namespace(unsigned)
    return xp.astype(xp.astype(unsigned, xp.int32) - bias_of(fmt), xp.float32)


def stored_values(layout: str, values: Array, fmt: Format) -> Array:
    """Returns float32 scales in a narrower type of the file.

    Raises: TargetError(slug="layout-scale") for values that the type does not have.
    """
    if fmt.name == "fp32":
        return values
    xp = namespace(values)
    patterns = fmt.encode(values)
    off = fmt.decode(patterns) != values
    if bool(xp.any(off)):
        count = int(xp.sum(xp.astype(off, xp.int64)))
        flat = to_numpy(xp.reshape(values, (-1,)))[to_numpy(xp.reshape(off, (-1,)))]
        raise TargetError(
            f"{layout} stores scales as {fmt.name}, and {count} of {prod(off.shape)} are not on its grid, the first "
            f"{flat[0]:g}; quantize with a scheme that ends in -scale-{fmt.name}",
            slug="layout-scale",
        )
    return as_floats(patterns, DTYPES[fmt.name])


def values_of(stored: Array, fmt: Format) -> Array:
    """Returns stored scales as float32; the inverse of ``stored_values``."""
    return stored if fmt.name == "fp32" else fmt.decode(as_patterns(stored))


def take(layout: str, tensors: Mapping[str, Array], name: str, dtype: str, shape: tuple[int, ...]) -> Array:
    """Returns a tensor of a file.

    Raises: NumericsError(slug="packed-tensor") if it is missing, or of another dtype or shape.
    """
    wanted = f"{dtype} {list(shape)}"
    if name not in tensors:
        raise NumericsError(f"{layout} needs a tensor {name!r}, {wanted}; give it too", slug="packed-tensor")
    found = tensors[name]
    types = (dtype, {"float16": "uint16", "bfloat16": "uint16"}.get(dtype, "uint8" if "float8" in dtype else dtype))
    if dtype_name(found) not in types or tuple(found.shape) != shape:
        raise NumericsError(
            f"{layout}: tensor {name!r} is {dtype_name(found)} {list(found.shape)}, expected {wanted}; the file was "
            "cut short, or the tensor has another scheme or shape",
            slug="packed-tensor",
        )
    return found


def need_plain_order(layout: str, tensors: Mapping[str, Array], name: str, columns: int, group: int) -> None:
    """Refuses a file whose columns were sorted before they were put into groups.

    Raises: NumericsError(slug="act-order").
    """
    found = take(layout, tensors, name, "int32", (columns,))
    if bool(namespace(found).any(found != whole_numbers(columns, like_array=found) // group)):
        raise NumericsError(
            f"{layout}: {name!r} is not k // {group}, the file was quantized with desc_act; its groups do not lie side "
            "by side: quantize it with desc_act off",
            slug="act-order",
        )


def scale_format(scheme: Scheme, default: str = "fp32") -> Format:
    """Returns the format in which a scheme's plain scales are stored."""
    return scheme.scale if isinstance(scheme.scale, Format) else FORMATS[default]


def other_symmetry(layout: str, name: str) -> NumericsError:
    """Returns the refusal of a file whose zero points are not those of the symmetric scheme that it is read with."""
    return NumericsError(
        f"{layout}: tensor {name!r} holds zero points, and the scheme is symmetric; read it with the asymmetric one",
        slug="packed-symmetry",
    )


def no_numbers(count: int, total: int) -> NumericsError:
    """Returns the refusal of a file with scales under which no weight can be read."""
    return NumericsError(
        f"{count} of {total} stored scales are NaN or infinite; the file is damaged, or was written for another scheme",
        slug="scale-not-finite",
    )


def put_together(codes: Array, scheme: Scheme, scale: Array | QTensor, zero_point: Array | None = None) -> QTensor:
    """Returns the quantized tensor of these parts; scales and zero points are brought into the scheme's shape.

    Raises: NumericsError(slug="scale-not-finite") for scales that are NaN or infinite.
    """
    shape = scheme.granularity.scale_shape(tuple(codes.shape))
    xp = namespace(codes)
    read = as_array(scale)
    if not bool(xp.all(xp.isfinite(read))):
        raise no_numbers(int(xp.sum(xp.astype(~xp.isfinite(read), xp.int64))), prod(read.shape))
    if not isinstance(scale, QTensor):
        scale = xp.reshape(scale, shape)
    zero = like(np.zeros(shape, np.float32), codes) if zero_point is None else xp.reshape(zero_point, shape)
    return QTensor(codes=codes, params=QParams(scheme=scheme, scale=scale, zero_point=zero))


def need_divisors(layout: str, scheme: Scheme, shape: tuple[int, int], group: int, multiples: tuple[int, int]) -> None:
    """Refuses a matrix whose sides are no multiples of what shares a word, or whose rows are not made of whole groups.

    Args:
      shape: (out, in).
      group: Elements along the reduction axis that share a scale.
      multiples: Of (out, in).
    """
    for side, size, step in zip(("out", "in"), shape, multiples, strict=True):
        if size % step:
            raise no_shape(
                layout, shape, f"its {side} {size} is no multiple of {step}", f"pad it to {-(-size // step) * step}"
            )
    if shape[1] % group:
        fits = [g for g in (32, 64, 128, 256) if shape[1] % g == 0]
        sizes = " or ".join(f"{scheme.format.name}-g{g}" for g in fits)
        raise no_shape(
            layout,
            shape,
            f"groups of {group} do not divide its in {shape[1]}",
            f"use {sizes or f'{scheme.format.name}-channel'}",
        )


def need_scales(layout: str, scheme: Scheme, known: Sequence[str]) -> None:
    """Refuses a scheme whose scales are declared in a format that the file has not."""
    declared = scale_format(scheme).name
    if declared not in known:
        raise no_scheme(
            layout, scheme, f"its scales are {' or '.join(known)}, not {declared}", f"use …-scale-{known[-1]}"
        )
