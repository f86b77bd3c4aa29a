"""Codes of 1 to 8 bits, packed without gaps into bytes or 32-bit words, lowest bits first; and small floats as bits."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd

import numpy as np

from fewbits._base.arrays import Array, device_of, is_numpy, like, namespace
from fewbits._base.errors import NumericsError

MAX_PACKED_BITS = 8
# Bits of a word, and the dtype of its array. Words of 32 bits are signed: safetensors and ONNX know no uint32 weights.
_WORDS = {8: "uint8", 32: "int32"}


def packed_length(count: int, bits: int, *, word: int = 8) -> int:
    """Returns how many words hold so many codes.

    >>> packed_length(11, 3), packed_length(33, 3, word=32)
    (5, 4)
    """
    return -(-count * bits // word)


def pack_bits(codes: Array, bits: int, *, word: int = 8) -> Array:
    """Returns the lowest bits of each code in one stream along the last axis: code i takes bits [i*bits, (i+1)*bits).

    Bit j of the stream is bit j % word of word j // word; a code may lie across two words; the last word ends in zeros.

    Args:
      codes: Integers [..., count]; negative ones are taken in two's complement. What lies above ``bits`` is cut off.
      bits: 1 to 8.
      word: 8 for bytes, 32 for words.
    Returns: uint8 or int32 [..., ceil(count * bits / word)].

    >>> [hex(byte) for byte in pack_bits(np.array([1, 2, 3, -1]), 4)]
    ['0x21', '0xf3']
    """
    assert 1 <= bits <= MAX_PACKED_BITS, bits
    xp = namespace(codes)
    dtype = getattr(xp, _WORDS[word])
    count = codes.shape[-1]
    lead = tuple(codes.shape[:-1])
    # uint8 wraps where a cast of a negative number to it would not be defined everywhere.
    codes = xp.astype(xp.astype(codes, xp.int32) & ((1 << bits) - 1), dtype)
    per_run, run = _run(bits, word)
    runs = -(-count // per_run)
    if runs * per_run != count:
        pad = xp.zeros((*lead, runs * per_run - count), dtype=dtype, device=device_of(codes))
        codes = xp.concat([codes, pad], axis=-1)
    codes = xp.reshape(codes, (*lead, runs, per_run))
    words = xp.zeros((*lead, runs, run), dtype=dtype, device=device_of(codes))
    for code, place, shift in _cells(bits, word):
        part = codes[..., code]
        words[..., place] |= part << shift if shift >= 0 else part >> -shift
    return xp.reshape(words, (*lead, runs * run))[..., : packed_length(count, bits, word=word)]


def unpack_bits(packed: Array, bits: int, count: int, *, signed: bool = False) -> Array:
    """Returns the codes that ``pack_bits`` packed; its exact inverse.

    Args:
      packed: uint8 or int32 [..., ceil(count * bits / word)].
      bits: 1 to 8.
      count: How many codes the last axis holds.
      signed: Whether codes are two's complement.
    Returns: uint8 [..., count], or int8 where signed.
    Raises: NumericsError(slug="packed-size") for a last axis of another length.

    >>> unpack_bits(np.array([0x21, 0xF3], dtype=np.uint8), 4, 4, signed=True).tolist()
    [1, 2, 3, -1]
    """
    assert 1 <= bits <= MAX_PACKED_BITS, bits
    xp = namespace(packed)
    word = 8 if packed.dtype == xp.uint8 else 32
    assert packed.dtype == getattr(xp, _WORDS[word]), packed.dtype
    length = packed_length(count, bits, word=word)
    if packed.shape[-1] != length:
        raise NumericsError(
            f"{count} codes of {bits} bits take {length} words of {word} bits, got {packed.shape[-1]}; "
            "the buffer was cut short, or belongs to another shape",
            slug="packed-size",
        )
    lead = tuple(packed.shape[:-1])
    per_run, run = _run(bits, word)
    runs = -(-count // per_run)
    if runs * run != length:
        pad = xp.zeros((*lead, runs * run - length), dtype=packed.dtype, device=device_of(packed))
        packed = xp.concat([packed, pad], axis=-1)
    words = xp.reshape(packed, (*lead, runs, run))
    codes = xp.zeros((*lead, runs, per_run), dtype=xp.uint8, device=device_of(packed))
    for code, place, shift in _cells(bits, word):
        part = words[..., place]
        # Cut first: a right shift of a negative int32 brings in ones.
        inside = min(bits, word - shift) if shift >= 0 else bits + shift
        part = (part >> shift if shift >= 0 else part) & ((1 << inside) - 1)
        part = xp.astype(part, xp.uint8)
        codes[..., code] |= part if shift >= 0 else part << -shift
    codes = xp.reshape(codes, (*lead, runs * per_run))[..., :count]
    if not signed:
        return codes
    unused = MAX_PACKED_BITS - bits
    return xp.astype(codes << unused, xp.int8) >> unused


def _run(bits: int, word: int) -> tuple[int, int]:
    """Returns how many codes end where a word ends, for the first time, and how many words those are."""
    shared = gcd(bits, word)
    return word // shared, bits // shared


def _cells(bits: int, word: int) -> Iterator[tuple[int, int, int]]:
    """Gives (code, word, shift) of a run: which code has a part in which word, shifted left by how much.

    A negative shift is that of a code whose lower -shift bits lie in the word before.
    """
    for code in range(_run(bits, word)[0]):
        start = code * bits
        for place in range(start // word, (start + bits - 1) // word + 1):
            yield code, place, start - place * word


def as_floats(patterns: Array, dtype: str) -> Array:
    """Returns bit patterns as numbers of a small floating-point type, where the array's library knows it.

    NumPy's types of 8 bits and bfloat16 are those of ml_dtypes. A library without the type gets its patterns back.

    Args:
      patterns: uint8 or uint16, any shape.
      dtype: ``float16``, ``bfloat16``, ``float8_e4m3fn``, ``float8_e5m2``; ``uint8`` for the patterns themselves.
    """
    if dtype == "uint8":
        return patterns
    if is_numpy(patterns):
        return patterns.view(_numpy_type(dtype))
    known = getattr(namespace(patterns), dtype, None)
    return patterns if known is None else patterns.view(known)


def as_patterns(floats: Array) -> Array:
    """Returns the bit patterns of small floats, uint8 or uint16; the inverse of ``as_floats``."""
    name = dtype_name(floats)
    if name in ("uint8", "uint16"):
        return floats
    width = "uint8" if name.startswith("float8") else "uint16"
    return floats.view(np.dtype(width) if is_numpy(floats) else getattr(namespace(floats), width))


def _numpy_type(name: str) -> np.dtype:
    if name == "float16":
        return np.dtype(np.float16)
    import ml_dtypes  # not with `import fewbits`

    found: np.dtype = np.dtype(getattr(ml_dtypes, name))
    return found


def dtype_name(array: Array) -> str:
    """Returns the name of an array's dtype, the same in every library, e.g. ``int32``."""
    return str(array.dtype).rpartition(".")[2]


def laid_out(array: Array) -> Array:
    """Returns the array in the order of memory that its shape says (C), as it lies on disk."""
    xp = namespace(array)
    return xp.reshape(xp.reshape(array, (-1,)), array.shape)


def whole_numbers(count: int, *, like_array: Array) -> Array:
    """Returns 0, 1, … count - 1 as int32 in the library and on the device of another array."""
    return like(np.arange(count, dtype=np.int32), like_array)
