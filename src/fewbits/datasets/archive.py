"""Reads the arrays of an .npz without trusting it: no pickle, sizes checked before anything is allocated, row by row.

An .npz is a zip of .npy files. What is refused: object, structured and text arrays; a shape that does not have the
bytes that the archive says; sizes that deflate cannot reach; duplicate, encrypted or differently compressed members;
Fortran order (its rows are not contiguous, so it cannot be streamed).
Sources: NumPy, "numpy.lib.format" (the .npy format, versions 1.0 to 3.0); PKWARE APPNOTE 6.3.9 for zip.
"""

from __future__ import annotations

import ast
import os
import re
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from typing import IO, Any, Final, cast

import numpy as np

from fewbits._base import limits
from fewbits._base.errors import DataError
from fewbits.datasets.base import NUMBER_KINDS

_MAGIC: Final = b"\x93NUMPY"
_LENGTH_FORMATS: Final = {(1, 0): "<H", (2, 0): "<I", (3, 0): "<I"}
_DESCR: Final = re.compile(r"[<>|=]?[a-zA-Z?][0-9]{0,9}")
_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")  # APPNOTE 4.3.7: signature, …, file name length, extra field length
_ENCRYPTED: Final = 0x1
_BROKEN: Final = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,  # undecodable names among others
    NotImplementedError,
    RuntimeError,
    OverflowError,
    IndexError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One array of an archive, as its headers declare it; the declared sizes are known to agree.

    Attributes:
      name: The array's name, without ``.npy``.
      info: The zip directory's entry.
      start: Bytes of the .npy header before the first value.
      dtype: As stored, perhaps not in this machine's byte order.
      shape: With the axis of examples.
    """

    name: str
    info: zipfile.ZipInfo
    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one example."""
        return int(self.dtype.itemsize) * prod(self.shape[1:])

    @property
    def stored(self) -> bool:
        """Whether the member is not compressed, so that any row can be reached directly."""
        return self.info.compress_type == zipfile.ZIP_STORED


class _Guarded(FileIO):
    """A file that refuses to be read in pieces larger than any honest archive needs."""

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > limits.MAX_ARCHIVE_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory has {wanted} bytes")
        return super().read(wanted)


@contextmanager
def open_archive(path: str) -> Iterator[zipfile.ZipFile]:
    """Opens a zip archive for reading; whatever goes wrong with it inside the block is a DataError.

    Raises: DataError(slug="data-missing" | "npz-broken").
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
            raise DataError(f"{path!r} is not a plain file; expected an .npz", slug="data-missing")
        file = _Guarded(path, "rb")
    except OSError as error:
        raise DataError(
            f"cannot open the data {path!r}: {error.strerror}; check the path", slug="data-missing"
        ) from error
    with file:
        try:
            with zipfile.ZipFile(cast(IO[bytes], file)) as archive:
                yield archive
        except _BROKEN as error:
            raise broken(path, str(error) or type(error).__name__) from error


def broken(path: str, why: str) -> DataError:
    """Returns the refusal of a damaged archive."""
    return DataError(f"{path!r} is not a readable .npz ({why}); write it again with numpy.savez", slug="npz-broken")


def read_members(path: str, archive: zipfile.ZipFile) -> list[Member]:
    """Returns the arrays of an archive, every header parsed and every declared size checked; allocates nothing.

    Raises: DataError with the slug of what is wrong: npz-broken, npz-member, npz-duplicate, npz-bomb, npz-header,
      npz-object-dtype, npz-dtype, npz-fortran-order, npz-shape, npz-too-large.
    """
    infos = archive.infolist()
    if len(infos) > limits.MAX_ARCHIVE_MEMBERS:
        raise DataError(
            f"{path!r} has {len(infos)} members; at most {limits.MAX_ARCHIVE_MEMBERS} are read", slug="npz-too-large"
        )
    total = sum(info.compress_size for info in infos)
    size = Path(path).stat().st_size
    if total > size:
        raise DataError(
            f"{path!r} claims {total} bytes of members in a file of {size} bytes; it is damaged or hostile",
            slug="npz-bomb",
        )
    names: set[str] = set()
    for info in infos:
        if info.filename in names:
            raise DataError(f"{path!r} has two members {info.filename!r}; write each array once", slug="npz-duplicate")
        names.add(info.filename)
    return [_read_member(path, archive, info) for info in infos]


def _read_member(path: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    where = f"{path!r}, member {info.filename!r}"
    if not info.filename.endswith(".npy") or info.filename == ".npy":
        raise DataError(f"{where} is not an array (.npy); an .npz holds arrays only", slug="npz-member")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & _ENCRYPTED:
        raise DataError(
            f"{where} is encrypted or compressed by a method that NumPy does not write; use numpy.savez",
            slug="npz-member",
        )
    _check_ratio(where, info)
    with archive.open(info) as stream:
        dtype, shape, start = _parse_header(where, stream)
    rows_bytes = dtype.itemsize * prod(shape)
    if start + rows_bytes != info.file_size:
        raise DataError(
            f"{where} declares {dtype} of shape {_shown(shape)}, which is {rows_bytes} bytes, and holds"
            f" {info.file_size - start}; the file is damaged or hostile",
            slug="npz-shape",
        )
    if shape and (shape[0] > limits.MAX_EXAMPLES or dtype.itemsize * prod(shape[1:]) > limits.MAX_EXAMPLE_BYTES):
        raise DataError(
            f"{where} has shape {_shown(shape)}; at most {limits.MAX_EXAMPLES} examples of"
            f" {limits.MAX_EXAMPLE_BYTES} bytes are read",
            slug="npz-too-large",
        )
    return Member(name=info.filename.removesuffix(".npy"), info=info, start=start, dtype=dtype, shape=shape)


def _check_ratio(where: str, info: zipfile.ZipInfo) -> None:
    packed, unpacked = info.compress_size, info.file_size
    if info.compress_type == zipfile.ZIP_STORED:
        possible = unpacked == packed
    else:
        possible = unpacked <= (packed + 1) * limits.MAX_DEFLATE_RATIO
    suspect = unpacked > limits.MAX_SUSPECT_MEMBER_BYTES and unpacked > packed * limits.SUSPECT_ZIP_RATIO
    if not possible or suspect:
        raise DataError(
            f"{where} claims {unpacked} bytes in {packed}; that is a zip bomb or damage."
            " Where it is neither, write it with numpy.savez (not compressed)",
            slug="npz-bomb",
        )


def _parse_header(where: str, stream: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Returns dtype, shape and the length of a .npy header (numpy.lib.format, "Format Version 1.0" to "3.0")."""

    def refuse(why: str) -> DataError:
        return DataError(f"{where} {why}; write it again with numpy.savez", slug="npz-header")

    begin = stream.read(8)
    if len(begin) < 8 or begin[:6] != _MAGIC:
        raise refuse("is no .npy file")
    form = _LENGTH_FORMATS.get((begin[6], begin[7]))
    if form is None:
        raise refuse(f"has .npy version {begin[6]}.{begin[7]}")
    length = struct.unpack(form, stream.read(struct.calcsize(form)))[0]
    if length > limits.MAX_ARRAY_HEADER_BYTES:
        raise refuse(f"has a header of {length} bytes, above the {limits.MAX_ARRAY_HEADER_BYTES} that NumPy reads")
    text = stream.read(length)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd literals make the compiler warn; they are refused below
            header = ast.literal_eval(text.decode("latin-1").strip())
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        header = None
    if len(text) != length or not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise refuse("has a broken .npy header")
    shape, fortran = header["shape"], header["fortran_order"]
    if (
        not isinstance(shape, tuple)
        or len(shape) > limits.MAX_DIMENSIONS
        or any(type(axis) is not int or not 0 <= axis < 2**63 for axis in shape)
        or not isinstance(fortran, bool)
    ):
        raise refuse("declares an impossible shape")
    dtype = _parse_dtype(where, header["descr"])
    if fortran and sum(axis != 1 for axis in shape) > 1:
        raise DataError(
            f"{where} is in Fortran order, whose examples cannot be streamed; save numpy.ascontiguousarray(x)",
            slug="npz-fortran-order",
        )
    return dtype, shape, 8 + struct.calcsize(form) + length


def _parse_dtype(where: str, descr: object) -> np.dtype[Any]:
    """Returns the dtype of a plain array of numbers or of fixed-length text (which only `groups` may be)."""
    dtype = None
    if isinstance(descr, str) and _DESCR.fullmatch(descr):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dtype = np.dtype(descr)
        except (TypeError, ValueError, OverflowError):
            dtype = None
    if dtype is not None and dtype.hasobject:
        raise DataError(
            f"{where} holds Python objects, which could run code when loaded; save numbers:"
            " x.astype('float32'), all examples of one shape",
            slug="npz-object-dtype",
        )
    if (
        dtype is None
        or dtype.itemsize == 0
        or not (dtype.kind in "SU" or (dtype.kind in NUMBER_KINDS and dtype.itemsize <= 8))
    ):
        hint = (
            " (NumPy stores bfloat16 and other extension types so)" if dtype is not None and dtype.kind == "V" else ""
        )
        raise DataError(
            f"{where} has dtype {str(descr)[:80]!r}{hint}; expected integers, booleans or floats of up to 8 bytes",
            slug="npz-dtype",
        )
    return dtype


def _shown(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape[:8]))}{', …' if len(shape) > 8 else ''}]"


# --- rows ------------------------------------------------------------------------------------------------------------


class StreamedRows:
    """Reads rows in order, inflating what lies between; holds one chunk. The last row brings the zip's checksum."""

    def __init__(self, archive: zipfile.ZipFile, member: Member) -> None:
        self._stream = archive.open(member.info)
        self._row_bytes = member.row_bytes
        self._position = -member.start

    def read_into(self, row: int, view: memoryview) -> None:
        """Fills view, a writable view of bytes, with whole rows from row on; row is not before the last one read."""
        self._skip(row * self._row_bytes - self._position)
        while view:
            data = self._stream.read(min(len(view), limits.READ_CHUNK_BYTES))
            if not data:
                raise EOFError("the data end early")
            view[: len(data)] = data
            view = view[len(data) :]
            self._position += len(data)

    def _skip(self, count: int) -> None:
        assert count >= 0, "rows are read in order"
        while count:
            data = self._stream.read(min(count, limits.READ_CHUNK_BYTES))
            if not data:
                raise EOFError("the data end early")
            count -= len(data)
            self._position += len(data)


class StoredRows:
    """Reads rows of an uncompressed member from where they lie in the file, in any order."""

    def __init__(self, archive: zipfile.ZipFile, member: Member) -> None:
        assert archive.fp is not None
        self._descriptor = archive.fp.fileno()
        signature, name, extra = _LOCAL_HEADER.unpack(
            os.pread(self._descriptor, _LOCAL_HEADER.size, member.info.header_offset)
        )
        if signature != b"PK\x03\x04":
            raise zipfile.BadZipFile("a member's local header is missing")
        self._begin = member.info.header_offset + _LOCAL_HEADER.size + name + extra + member.start
        self._row_bytes = member.row_bytes

    def read_into(self, row: int, view: memoryview) -> None:
        """Fills view, a writable view of bytes, with whole rows from row on."""
        read_at(self._descriptor, view, self._begin + row * self._row_bytes)


def read_at(descriptor: int, view: memoryview, position: int) -> None:
    """Fills view with the bytes of a file from position on. Raises: EOFError if the file ends before."""
    while view:
        count = os.preadv(descriptor, [view], position)
        if not count:
            raise EOFError("the data end early")
        view = view[count:]
        position += count
