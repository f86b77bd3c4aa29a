"""Seeded random changes of an honest file: bits, bytes, ends, order, and the fields of a protobuf."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from attacks.parts import varint

# Seeds are whole numbers from 0: the same seed makes the same file.
_ODD_NUMBERS = (0, 1, 2, 127, 128, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)


def mutate(data: bytes, seed: int, *, fields: bool) -> bytes:
    """Returns the file after one to three random changes.

    Args:
      data: An honest file.
      seed: Of all that is random.
      fields: Whether the file is a protobuf, so that its fields may be changed as such.
    """
    rng = random.Random(seed)
    kinds = [*_CHANGES, *([_edit_field] * len(_CHANGES) if fields else [])]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if data:
            data = rng.choice(kinds)(data, rng)
    return data


def _flip_bits(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _flip_early(data: bytes, rng: random.Random) -> bytes:
    """Changes a byte of the first hundred, where the structure is."""
    out = bytearray(data)
    out[rng.randrange(min(100, len(out)))] = rng.randrange(256)
    return bytes(out)


def _delete(data: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(data))
    return data[:begin] + data[begin + rng.choice((1, 1, 4, 16, 200)) :]


def _insert(data: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(data) + 1)
    extra = rng.choice((rng.randbytes(rng.choice((1, 4, 64))), b"\xff" * 10, b"\0" * 16))
    return data[:begin] + extra + data[begin:]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _swap(data: bytes, rng: random.Random) -> bytes:
    size = rng.choice((1, 8, 64, 256))
    a, b = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    if a + size > b:
        return data
    return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(data))
    part = data[begin : begin + rng.choice((1, 16, 256, 4096))]
    place = rng.randrange(len(data) + 1)
    return data[:place] + part * rng.choice((1, 2, 20)) + data[place:]


_CHANGES: list[Callable[[bytes, random.Random], bytes]] = [
    _flip_bits, _flip_early, _delete, _insert, _cut, _swap, _repeat,
]  # fmt: skip


# --- fields of a protobuf --------------------------------------------------------------------------------------------


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("no number")


def _fields(data: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yields (number, wire type, begin of the field, begin of its value, end) of one message."""
    while begin < end:
        key, value = _read_varint(data, begin)
        kind = key & 7
        if kind == 0:
            _, stop = _read_varint(data, value)
        elif kind == 2:
            length, value = _read_varint(data, value)
            stop = value + length
        else:
            stop = value + {1: 8, 5: 4}.get(kind, end)
        if stop > end:
            raise ValueError("no message")
        yield key >> 3, kind, begin, value, stop
        begin = stop


def _edit_field(data: bytes, rng: random.Random) -> bytes:
    """Changes one field, as deep as chance leads; the lengths around it are mended, so that all is well formed."""
    try:
        found = list(_fields(data, 0, len(data)))
    except (ValueError, IndexError):
        return _flip_bits(data, rng)
    if not found:
        return data
    number, kind, begin, value, end = rng.choice(found)
    body = data[value:end]
    if kind == 2 and body and rng.random() < 0.7:
        inner = _edit_field(body, rng)
        return data[:begin] + varint(number << 3 | 2) + varint(len(inner)) + inner + data[end:]
    return data[:begin] + _changed(data[begin:end], number, kind, body, rng) + data[end:]


def _changed(whole: bytes, number: int, kind: int, body: bytes, rng: random.Random) -> bytes:
    """Returns what stands in a field's place."""
    choice = rng.randrange(5)
    if choice == 0:
        return b""
    if choice == 1:
        return whole * 2
    if choice == 2:
        return varint(rng.randrange(1, 40) << 3 | kind) + whole[len(varint(number << 3 | kind)) :]
    if kind == 0:
        return varint(number << 3) + varint(rng.choice(_ODD_NUMBERS))
    if kind == 2:
        other = rng.choice((b"", body * 2, body[: len(body) // 2], rng.randbytes(len(body)), b"\xff" * 4))
        return varint(number << 3 | 2) + varint(len(other)) + other
    return whole
