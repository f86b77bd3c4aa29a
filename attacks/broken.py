"""Files that are no model: cut off, of another kind, random, or not even files."""

from __future__ import annotations

import gzip
import io
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

from attacks.case import INERT, REFUSED, RESOURCES, Case
from attacks.parts import field, honest, save

_NO = frozenset({REFUSED})
_NO_OR_LARGE = frozenset({REFUSED, RESOURCES})
_EIGHTHS = 8
Make = Callable[[Path], Path]


def _bytes(make: Callable[[], bytes]) -> Make:
    def write(folder: Path) -> Path:
        path = folder / "model.onnx"
        path.write_bytes(make())
        return path

    return write


def _whole() -> bytes:
    data: bytes = honest().SerializeToString()
    return data


def _cut(eighths: int) -> Callable[[], bytes]:
    return lambda: _whole()[: len(_whole()) * eighths // _EIGHTHS]


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model.onnx", _whole())
    return file.getvalue()


def _nested(depth: int) -> bytes:
    """Graph > node > attribute > graph … as bytes, deeper than any library will build it."""
    body = b""
    for _ in range(depth):
        body = field(1, field(5, field(6, body)))
    return field(7, body)


def _link(target: str) -> Make:
    def write(folder: Path) -> Path:
        path = folder / "model.onnx"
        path.symlink_to(target)
        return path

    return write


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "model.onnx")
    return folder / "model.onnx"


def _folder(folder: Path) -> Path:
    (folder / "model.onnx").mkdir()
    return folder / "model.onnx"


def _sparse(folder: Path) -> Path:
    path = folder / "model.onnx"
    with path.open("wb") as file:
        file.truncate(2**40)
    return path


def _linked(folder: Path) -> Path:
    save(folder, honest(), "real.onnx")
    (folder / "model.onnx").symlink_to("real.onnx")
    return folder / "model.onnx"


def _unreadable(folder: Path) -> Path:
    return folder / "not-there.onnx"


_PICKLE = b"\x80\x04cposix\nsystem\nX\x0c\x00\x00\x00touch canary\x85R."
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
_PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
CASES = [
    Case(name=f"broken/{name}", kind="model", allowed=allowed, make=make, what=what)
    for name, allowed, make, what in [
        ("empty", _NO, _bytes(lambda: b""), ""),
        ("one-byte", _NO, _bytes(lambda: b"\x08"), ""),
        ("text", _NO, _bytes(lambda: b"This is not a model.\n" * 50), ""),
        ("json", _NO, _bytes(lambda: b'{"model": 1}'), ""),
        ("zip", _NO, _bytes(_zip), "with a model in it"),
        ("gzip", _NO, _bytes(lambda: gzip.compress(_whole(), mtime=0)), "of a model"),
        ("png", _NO, _bytes(lambda: _PNG), ""),
        ("pickle", _NO, _bytes(lambda: _PICKLE), "runs a command"),
        ("html", _NO, _bytes(lambda: b"<!DOCTYPE html><title>404</title>"), "what a failed download leaves"),
        ("lfs", _NO, _bytes(lambda: _POINTER), "a pointer"),
        ("zeros", _NO, _bytes(lambda: bytes(10_000)), ""),
        ("ones", _NO, _bytes(lambda: b"\xff" * 10_000), "a number that never ends"),
        *((f"random-{n}", _NO, _bytes(lambda n=n: random.Random(n).randbytes(10_000)), "") for n in range(4)),
        *((f"cut-{n}-of-8", _NO, _bytes(_cut(n)), "truncated") for n in range(1, _EIGHTHS)),
        ("cut-last-byte", INERT | _NO, _bytes(lambda: _whole()[:-1]), ""),
        ("tail", INERT | _NO, _bytes(lambda: _whole() + b"\x00" * 100), "zeros behind a model"),
        ("twice", INERT | _NO, _bytes(lambda: _whole() * 2), "two models in a row"),
        ("long-field", _NO, _bytes(lambda: b"\x3a\xff\xff\xff\xff\x07" + b"x" * 10), "a field of 2^31 bytes"),
        ("nested-10000", _NO, _bytes(lambda: _nested(10_000)), "graphs in graphs, as bytes"),
        ("groups", _NO, _bytes(lambda: b"\x0b" * 100_000), "100,000 groups that begin"),
        ("sparse-1-tb", _NO, _sparse, "a file of 1 TB of holes"),
        ("directory", _NO, _folder, ""),
        ("fifo", _NO, _fifo, "opening it would wait forever"),
        ("device", _NO_OR_LARGE, _link("/dev/zero"), "a link to it"),
        ("process", _NO, _link("/proc/self/mem"), "a link to it"),
        ("circle", _NO_OR_LARGE, _link("model.onnx"), "a link to itself"),
        ("link", INERT, _linked, "a link to a good model: no attack, must work"),
        ("absent", _NO, _unreadable, ""),
    ]
]  # fmt: skip
