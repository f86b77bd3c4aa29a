"""Archives of examples (.npz) that would run code, or claim what they do not hold."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from attacks.case import ESCAPE, INERT, REFUSED, RESOURCES, Case
from attacks.parts import WIDTH

_NO = frozenset({REFUSED})
_NO_OR_LARGE = frozenset({REFUSED, RESOURCES})
_ANY = INERT | _NO
_GIB = 2**30
Make = Callable[[Path], Path]


class _Canary:
    """What writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch canary",)


def _values(count: int = 64) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((count, WIDTH)).astype(np.float32)


def _npy(array: np.ndarray | None = None, header: str | None = None, *, length: int | None = None) -> bytes:
    """Returns an .npy of these values with another header, or with a header that claims another length."""
    array = _values() if array is None else array
    if header is None:
        header = f"{{'descr': {array.dtype.str!r}, 'fortran_order': False, 'shape': {array.shape}, }}"
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) if length is None else length) + text + array.tobytes()


def _shape(shape: str, *, order: str = "False", descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


def _archive(*members: tuple[str, bytes], compress: bool = False) -> Make:
    def write(folder: Path) -> Path:
        path = folder / "data.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as file:
            for name, body in members:
                file.writestr(name, body)
        return path

    return write


def _x(header: str | None = None, **more: Any) -> Make:
    return _archive(("x.npy", _npy(header=header, **more)))


def _saved(**arrays: Any) -> Make:
    def write(folder: Path) -> Path:
        np.savez(folder / "data.npz", **arrays)
        return folder / "data.npz"

    return write


def _objects(name: str) -> Make:
    """Returns what writes an array of objects, one of which runs a command when it is read."""

    def write(folder: Path) -> Path:
        array = np.empty(2, dtype=object)
        array[:] = [_Canary(), 1]
        arrays: dict[str, Any] = {"x": _values(), name: array}
        np.savez(folder / "data.npz", **arrays)
        return folder / "data.npz"

    return write


def _raw_pickle(folder: Path) -> Path:
    path = folder / "data.npz"
    path.write_bytes(pickle.dumps(_Canary()))
    return path


def _pickle_member(folder: Path) -> Path:
    return _archive(("x.npy", _npy()), ("y.npy", pickle.dumps(_Canary())))(folder)


def _edit(make: Make, edit: Callable[[bytearray], None]) -> Make:
    """Returns what writes an archive and then changes its bytes."""

    def write(folder: Path) -> Path:
        path = make(folder)
        data = bytearray(path.read_bytes())
        edit(data)
        path.write_bytes(data)
        return path

    return write


def _central(data: bytearray) -> int:
    return data.index(b"PK\x01\x02")


def _set(kind: str, central: int, local: int | None, value: int) -> Callable[[bytearray], None]:
    """Returns the edit that writes a number into the directory's entry, and into the local header."""

    def edit(data: bytearray) -> None:
        struct.pack_into(kind, data, _central(data) + central, value)
        if local is not None:
            struct.pack_into(kind, data, local, value)

    return edit


def _bomb(folder: Path) -> Path:
    """An array of 4 GiB of zeros in about 4 MB; but for its checksum as honest a zip as can be."""
    head = _npy(header=_shape(f"({4 * _GIB // (4 * WIDTH)}, {WIDTH})"))[: -_values().nbytes]
    return _claiming(folder, head, repeats=4096, size=4 * _GIB)


def _small_bomb(folder: Path) -> Path:
    """64 KB that say they are 4 GiB: what is packed ends early, the sizes lie."""
    head = _npy(header=_shape(f"({4 * _GIB // (4 * WIDTH)}, {WIDTH})"))[: -_values().nbytes]
    return _claiming(folder, head, repeats=60, size=4 * _GIB)


def _claiming(folder: Path, head: bytes, *, repeats: int, size: int) -> Path:
    """Returns an archive of one deflated member: ``head``, then 1 MiB of zeros so often, which it says are ``size``."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    body = first + block * repeats + packer.flush()
    name, whole, most = b"x.npy", len(head) + size, 0xFFFFFFFF
    sizes = struct.pack("<2H2Q", 1, 16, whole, len(body))
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 45, 0, 8, 0, 0, 0, most, most, len(name), len(sizes)) + name + sizes
    entry = struct.pack(
        "<4s6H3I5H2I", b"PK\x01\x02", 45, 45, 0, 8, 0, 0, 0, most, most, len(name), len(sizes), 0, 0, 0, 0, 0
    )
    entry += name + sizes
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(entry), len(local) + len(body), 0)
    path = folder / "data.npz"
    path.write_bytes(local + body + entry + end)
    return path


def _doubled(folder: Path) -> Path:
    """Two members of one name; libraries differ in which they read."""
    path = folder / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", _npy())
        archive.writestr("z.npy", _npy())
    path.write_bytes(path.read_bytes().replace(b"z.npy", b"x.npy"))
    return path


def _overlapping(folder: Path) -> Path:
    """A thousand entries that share one body, as in the best bombs."""
    path = folder / "data.npz"
    _archive(("x.npy", _npy()))(folder)
    data = path.read_bytes()
    begin, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entry = bytearray(data[begin:end])
    entries = b"".join(bytes(entry).replace(b"x.npy", f"{i:05d}"[-5:].encode()) for i in range(1000))
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1001, 1001, len(entry) + len(entries), begin, 0)
    path.write_bytes(data[:begin] + entry + entries + tail)
    return path


def _symlink(folder: Path) -> Path:
    path = folder / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("x.npy")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "../outside/secret.bin")
    return path


def _link(target: str) -> Make:
    def write(folder: Path) -> Path:
        (folder / "data.npz").symlink_to(target)
        return folder / "data.npz"

    return write


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "data.npz")
    return folder / "data.npz"


def _plain(make: Callable[[], bytes]) -> Make:
    def write(folder: Path) -> Path:
        (folder / "data.npz").write_bytes(make())
        return folder / "data.npz"

    return write


def _zip64_lie(folder: Path) -> Path:
    """A zip64 field that says the member has 2^63 bytes and begins at 2^62."""
    path = folder / "data.npz"
    extra = struct.pack("<HHQQQ", 1, 24, 2**63, 2**63, 2**62)
    name, body = b"x.npy", _npy()
    crc, most = zlib.crc32(body), 0xFFFFFFFF
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 45, 0, 0, 0, 0, crc, len(body), len(body), len(name), 0) + name
    entry = struct.pack(
        "<4s6H3I5H2I", b"PK\x01\x02", 45, 45, 0, 0, 0, 0, crc, most, most, len(name), len(extra), 0, 0, 0, 0, most
    )  # fmt: skip
    entry += name + extra
    begin = len(local) + len(body)
    path.write_bytes(local + body + entry + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(entry), begin, 0))
    return path


def _entries_claimed(folder: Path) -> Path:
    made = _x()(folder)
    data = bytearray(made.read_bytes())
    struct.pack_into("<HH", data, data.rindex(b"PK\x05\x06") + 8, 65_535, 65_535)
    made.write_bytes(data)
    return made


def _of_file(path: str) -> Callable[[], bytes]:
    def make() -> bytes:
        file = io.BytesIO()
        np.savez(file, x=_values())
        return {"half": file.getvalue()[:2000], "text": b"x,y\n1,2\n", "empty": b"", "npy": _npy()}[path]

    return make


_CODE = "__import__('os').system('touch canary')"
CASES = [
    Case(name=f"npz/{name}", kind="data", allowed=allowed, make=make, what=what)
    for name, allowed, make, what in [
        ("objects", _NO, _objects("x"), "a pickle that writes a file"),
        ("objects-beside", _ANY, _objects("y"), "the same in an array that no input needs"),
        ("objects-labels", _NO, _objects("labels"), "the same as the labels"),
        ("objects-groups", _NO, _objects("groups"), "the same as the groups"),
        ("pickle", _NO, _raw_pickle, "the file itself is a pickle"),
        ("pickle-member", _NO, _pickle_member, "a member is a pickle"),
        ("object-in-structure", _NO, _x(_shape("(64,)", descr="[('a', '|O'), ('b', '<f4')]")), ""),
        ("code-in-header", _NO, _x(_CODE), "the header is a call"),
        ("code-in-shape", _NO, _x(_shape(f"({_CODE}, 2)")), ""),
        ("code-in-type", _NO, _x(_shape("(64, 16)", descr=_CODE)), ""),
        ("header-list", _NO, _x("[1, 2, 3]"), "the header is no dict"),
        ("header-more", _NO, _x("{'descr': '<f4', 'fortran_order': False, 'shape': (64, 16), 'x': 1}"), ""),
        ("header-less", _NO, _x("{'descr': '<f4', 'shape': (64, 16)}"), ""),
        ("header-deep", _NO, _x("(" * 5000 + ")" * 5000), "5,000 brackets"),
        ("header-power", _NO, _x(_shape("(9**9**9, 2)")), "a power that takes years"),
        ("header-digits", _NO, _x(_shape(f"({'9' * 5000}, 2)")), "a number of 5,000 digits"),
        ("header-length", _NO, _x(length=60_000), "longer than the file"),
        ("header-length-0", _NO, _x(length=0), ""),
        ("shape-2-40", _NO, _x(_shape(f"({2**40}, 1)")), "2^40 rows claimed"),
        ("shape-2-62", _NO, _x(_shape(f"({2**62}, {2**62})")), "overflows 64 bits"),
        ("shape-negative", _NO, _x(_shape("(-64, -16)")), ""),
        ("shape-float", _NO, _x(_shape("(64.0, 16)")), ""),
        ("shape-bool", _NO, _x(_shape("(True, 16)")), ""),
        ("shape-number", _NO, _x(_shape("1024")), ""),
        ("shape-text", _NO, _x(_shape("'64'")), ""),
        ("shape-rank-100", _NO, _x(_shape(f"({'1, ' * 100})"), array=np.zeros(1, np.float32)), ""),
        ("shape-empty", _NO, _x(_shape("()"), array=np.zeros(1, np.float32)), "no axis of examples"),
        ("rows-0", _NO, _saved(x=np.zeros((0, WIDTH), np.float32)), ""),
        ("type-void", _NO, _saved(x=np.zeros((64, 4), "V4")), ""),
        ("type-text", _NO, _saved(x=np.array(["a"] * 64)), ""),
        ("type-date", _NO, _saved(x=np.zeros((64, WIDTH), "M8[s]")), ""),
        ("type-complex", _NO, _saved(x=np.zeros((64, WIDTH), np.complex64)), ""),
        ("type-huge", _NO, _x(_shape("(64,)", descr="'|S2147483647'")), ""),
        ("nan", _NO, _saved(x=np.full((64, WIDTH), np.nan, np.float32)), ""),
        ("infinite", _NO, _saved(x=np.full((64, WIDTH), np.inf, np.float32)), ""),
        ("largest", _ANY, _saved(x=np.full((64, WIDTH), 3e38, np.float32)), "sums overflow"),
        ("fortran", _NO, _saved(x=np.asfortranarray(_values())), "cannot be streamed"),
        ("magic", _NO, _archive(("x.npy", b"\x93NUMPX" + _npy()[6:])), "wrong magic"),
        ("version", _NO, _archive(("x.npy", b"\x93NUMPY\x09\x09" + _npy()[8:])), ".npy version 9.9"),
        ("cut-values", _NO, _archive(("x.npy", _npy()[:-100])), "100 bytes are missing"),
        ("more-values", _NO, _archive(("x.npy", _npy() + bytes(100))), ""),
        ("bomb-4-gib", _NO_OR_LARGE, _bomb, "4 MB that inflate to 4 GiB"),
        ("bomb-64-kb", _NO, _small_bomb, "64 KB that claim 4 GiB"),
        ("overlapping", _NO, _overlapping, "1,000 entries, one body"),
        ("member-parent", _ANY, _archive(("x.npy", _npy()), ("../../outside/new.npy", _npy())), "`../`"),
        ("member-absolute", _ANY, _archive(("x.npy", _npy()), ("/fewbits-attack.npy", _npy())), ""),
        ("member-twice", _NO, _doubled, ""),
        ("member-folder", _NO, _archive(("x.npy", _npy()), ("folder/", b"")), ""),
        ("member-ansi", _ANY, _archive(("x.npy", _npy()), ("\x1b[31m</script>.npy", _npy())), ""),
        ("member-other", _NO, _archive(("x.npy", _npy()), ("run.py", b"import os")), "not an array"),
        ("members-5000", _NO, _archive(("x.npy", _npy()), *((f"a{i}.npy", b"") for i in range(5000))), ""),
        ("member-symlink", _NO, _symlink, "a link inside the zip"),
        ("encrypted", _NO, _edit(_x(), _set("<H", 8, 6, 1)), "the flag is set"),
        ("method", _NO, _edit(_x(), _set("<H", 10, 8, 93)), "an unknown compression"),
        ("method-lie", _NO, _edit(_x(), _set("<H", 10, 8, 8)), "stored, but called deflated"),
        ("checksum", _NO, _edit(_x(), _set("<I", 16, 14, 12345)), "wrong"),
        ("size-lie", _NO, _edit(_x(), _set("<I", 24, 22, 0xFFFFFFF0)), "4 GiB claimed"),
        ("packed-lie", _NO, _edit(_x(), _set("<I", 20, 18, 0xFFFFFFF0)), "4 GiB claimed, packed"),
        ("offset-lie", _NO, _edit(_x(), _set("<I", 42, None, 0xFFFFFFF0)), "the member begins behind the end"),
        ("zip64-lie", _NO, _zip64_lie, "2^63 bytes at 2^62"),
        ("entries-lie", _ANY, _entries_claimed, "65,535 entries claimed, one is there"),
        ("half", _NO, _plain(_of_file("half")), "cut off"),
        ("csv", _NO, _plain(_of_file("text")), "a text"),
        ("empty", _NO, _plain(_of_file("empty")), ""),
        ("npy", _NO, _plain(_of_file("npy")), "an .npy that is called .npz"),
        ("fifo", _NO, _fifo, "opening it would wait forever"),
        ("device", _NO, _link("/dev/zero"), "a link to it"),
        ("circle", _NO_OR_LARGE, _link("data.npz"), "a link to itself"),
        ("escape", INERT | frozenset({REFUSED, ESCAPE}), _link("../outside/secret.bin"), "a link to a file outside"),
    ]
]  # fmt: skip
