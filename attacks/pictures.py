"""Folders of pictures that reach elsewhere, swell, or are none; and preprocess.json of malice."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import helper

from attacks.case import ESCAPE, INERT, REFUSED, Case
from attacks.parts import CLASSES, constant, graph, info, model, save, vector, weights

_NO = frozenset({REFUSED})
_OUT = frozenset({ESCAPE})
_ANY = INERT | _NO
_SIDE, _COUNT = 8, 40
_USUAL = {"size": [_SIDE, _SIDE], "mean": 0.5, "std": 0.25}
Make = Callable[[Path], Path]


def net(folder: Path) -> Path:
    """Returns a saved net that takes pictures of 8 x 8."""
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Reshape", ["r", "shape"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "w2"], ["y"], name="last"),
    ]
    held = [constant("w1", weights(8, 3, 3, 3)), constant("w2", weights(288, CLASSES)), vector("shape", 0, -1)]
    inputs = [info("image", ["N", 3, _SIDE, _SIDE])]
    return save(folder, model(graph(nodes, held, inputs=inputs)), "good.onnx")


def _png(width: int = _SIDE, height: int = _SIDE, *, seed: int = 0, depth: int = 8, body: bytes | None = None) -> bytes:
    """Returns an RGB picture; with another body it need not be one."""
    if body is None:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width * 3 * depth // 8), dtype=np.uint8)
        body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">2I5B", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _folder(first: bytes | None = None, *, name: str = "p0.png", lines: str | None = None) -> Make:
    """Returns what writes a folder of pictures, the first of which is odd; ``lines`` replaces its line in the list."""

    def write(folder: Path) -> Path:
        place = folder / "pictures"
        place.mkdir()
        (place / "preprocess.json").write_text(json.dumps(_USUAL))
        for number in range(1, _COUNT):
            (place / f"p{number}.png").write_bytes(_png(seed=number))
        if first is not None:
            (place / name).write_bytes(first)
        rows = "".join(f"p{n}.png,{n % CLASSES}\n" for n in range(1, _COUNT))
        (place / "labels.csv").write_text(f"file,label\n{lines if lines is not None else name + ',0' + chr(10)}{rows}")
        return place

    return write


def _listed(lines: str) -> Make:
    return _folder(lines=lines)


def _link(target: str, name: str = "p0.png") -> Make:
    def write(folder: Path) -> Path:
        place = _folder(name=name)(folder)
        (place / name).symlink_to(target)
        return place

    return write


def _fifo(folder: Path) -> Path:
    place = _folder()(folder)
    os.mkfifo(place / "p0.png")
    return place


def _absolute(folder: Path) -> Path:
    return _listed(f"{folder.parent / 'outside' / 'secret.bin'},0\n")(folder)


def _labels(data: bytes) -> Make:
    def write(folder: Path) -> Path:
        place = _folder()(folder)
        (place / "labels.csv").write_bytes(data)
        return place

    return write


def _classes(name: str) -> Make:
    """Returns what writes one sub-folder a class, one of an odd name."""

    def write(folder: Path) -> Path:
        place = folder / "pictures"
        for label, kind in enumerate([name, "b", "c"]):
            (place / kind).mkdir(parents=True)
            for number in range(16):
                (place / kind / f"{number}.png").write_bytes(_png(seed=100 * label + number))
        (place / "preprocess.json").write_text(json.dumps(_USUAL))
        return place

    return write


def _linked_class(folder: Path) -> Path:
    place = _classes("a")(folder)
    (folder.parent / "outside" / "0.png").write_bytes(_png())
    (folder.parent / "outside" / "secret.bin").rename(folder.parent / "outside" / "secret.txt")
    (place / "d").symlink_to("../../outside")
    return place


def _preprocess(text: str | bytes) -> Make:
    def write(folder: Path) -> Path:
        place = _folder(_png())(folder)
        (place / "preprocess.json").write_bytes(text.encode() if isinstance(text, str) else text)
        return place

    return write


def _with(**more: object) -> Make:
    return _preprocess(json.dumps({**_USUAL, **more}))


def _other(kind: str, mode: str = "RGB", side: int = _SIDE, orientation: int | None = None) -> bytes:
    """Returns a picture of another file format or kind of pixels, by Pillow."""
    from PIL import Image

    file = io.BytesIO()
    image = Image.new(mode, (side, side))
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
        image.save(file, kind, exif=exif)
    else:
        image.save(file, kind)
    return file.getvalue()


def _made(kind: str, mode: str = "RGB", *, name: str = "p0.png", orientation: int | None = None) -> Make:
    return lambda folder: _folder(_other(kind, mode, orientation=orientation), name=name)(folder)


def _animated(folder: Path) -> Path:
    from PIL import Image

    file = io.BytesIO()
    frames = [Image.new("RGB", (_SIDE, _SIDE), (i, 0, 0)) for i in range(3)]
    frames[0].save(file, "TIFF", save_all=True, append_images=frames[1:])
    return _folder(file.getvalue())(folder)


def _bomb(side: int) -> bytes:
    """Returns a small PNG that claims ``side`` x ``side`` pixels; its body has a part of them."""
    return _png(side, side, body=zlib.compress(bytes(20_000_000), 9))


_SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(canary) (w) file closefile\n"
_DEEP = "[" * 100_000 + "]" * 100_000
CASES = [
    Case(name=f"pictures/{name}", kind="data", allowed=allowed, make=make, what=what, partner=net)
    for name, allowed, make, what in [
        ("honest", INERT, _folder(_png()), "no attack, must work"),
        ("list-parent", _OUT, _listed("../outside/secret.bin,0\n"), "labels.csv names `../`"),
        ("list-absolute", _OUT, _absolute, "labels.csv names an absolute path"),
        ("list-down-and-up", _OUT, _listed("a/../../../outside/secret.bin,0\n"), ""),
        ("list-backslashes", _OUT, _listed("..\\..\\outside\\secret.bin,0\n"), ""),
        ("list-nul", frozenset({REFUSED, ESCAPE}), _listed("p1.png\0/../x,0\n"), ""),
        ("list-folder", frozenset({REFUSED, ESCAPE}), _listed(".,0\n"), "the folder itself"),
        ("list-nothing", _OUT, _listed(",0\n"), "no name"),
        ("list-absent", _NO, _listed("nowhere.png,0\n"), ""),
        ("list-negative", _NO, _listed("p1.png,-1\n"), "class -1"),
        ("list-huge", _NO, _listed(f"p1.png,{'9' * 400}\n"), "a class of 400 digits"),
        ("list-other-digits", _NO, _listed("p1.png,٣\n"), "a class in Arabic digits"),
        ("list-formula", _NO, _listed("=cmd|' /C calc'!A0,0\n"), ""),
        ("list-short", _NO, _listed("p1.png\n"), "a line without a class"),
        ("list-field", _NO, _labels(b"file,label\n" + b"a" * 1_000_000 + b",0\n"), "a field of 1 MB"),
        ("list-not-utf-8", _NO, _labels(b"file,label\n\xff\xfe.png,0\n"), ""),
        ("list-no-header", _NO, _labels(b"p1.png,0\n"), ""),
        ("list-empty", _NO, _labels(b""), ""),
        ("list-quote", _NO, _labels(b'file,label\n"p1.png,0\n'), "a quote that never ends"),
        ("link-file", _OUT, _link("../../outside/secret.bin"), ""),
        ("link-device", _OUT, _link("/dev/zero"), ""),
        ("link-circle", frozenset({REFUSED, ESCAPE}), _link("p0.png"), "a link to itself"),
        ("link-class", frozenset({REFUSED, ESCAPE}), _linked_class, "a class that is a link to a folder outside"),
        ("fifo", _NO, _fifo, "opening it would wait forever"),
        ("class-script", _ANY, _classes("<script>alert(1)<|script>"), "a class that is called so"),
        ("class-ansi", _ANY, _classes("\x1b[31mred"), "a class that is called so"),
        ("empty", _NO, _folder(b""), "0 bytes"),
        ("text", _NO, _folder(b"no picture"), ""),
        ("cut", _NO, _folder(_png()[:80]), ""),
        ("svg", _NO, _folder(_SVG), "called .png"),
        ("eps", _NO, _folder(_EPS), "called .png; other readers start Ghostscript"),
        ("gif", _NO, _made("GIF"), "called .png"),
        ("jpeg", _ANY, _made("JPEG"), "called .png"),
        ("cmyk", _ANY, _made("JPEG", "CMYK"), ""),
        ("bits-16-gray", _NO, _made("PNG", "I;16"), ""),
        ("bits-16-colour", _ANY, _folder(_png(depth=16)), ""),
        ("floats", _NO, _made("TIFF", "F"), ""),
        ("palette", _ANY, _made("PNG", "P"), ""),
        ("alpha", _ANY, _made("PNG", "RGBA"), ""),
        ("turned", _ANY, _made("JPEG", orientation=6), "EXIF says turn by 90 degrees"),
        ("turned-oddly", _ANY, _made("JPEG", orientation=4711), "EXIF says turn by 4711"),
        ("frames", _NO, _animated, "three frames"),
        ("bomb-2-gigapixel", _NO, _folder(_bomb(46_000)), "46,000 x 46,000 in 20 kB"),
        ("bomb-90-megapixel", _ANY, _folder(_bomb(9_400)), "under the limit, its body is cut off"),
        ("side-2-31", _NO, _folder(_png(2**31 - 1, 1, body=b"")), "2^31 x 1"),
        ("side-0", _NO, _folder(_png(0, 0, body=zlib.compress(b""))), ""),
        ("preprocess-nan", _NO, _preprocess('{"size": 8, "mean": NaN}'), ""),
        ("preprocess-infinite", _NO, _preprocess('{"size": 8, "std": Infinity}'), ""),
        ("preprocess-1e999", _NO, _preprocess('{"size": 8, "mean": 1e999}'), ""),
        ("preprocess-digits", _NO, _preprocess('{"size": ' + "9" * 5000 + "}"), "a number of 5,000 digits"),
        ("preprocess-deep", _NO, _preprocess('{"size": ' + _DEEP + "}"), "100,000 brackets"),
        ("preprocess-large", _NO, _preprocess(b" " * 3_000_000 + b"{}"), "3 MB"),
        ("preprocess-list", _NO, _preprocess("[]"), ""),
        ("preprocess-empty", _NO, _preprocess(b""), ""),
        ("preprocess-not-utf-8", _NO, _preprocess(b'{"input": "\xff\xfe"}'), ""),
        ("preprocess-half-character", _NO, _preprocess('{"size": [8, 8], "input": "\\ud800"}'), "a lone surrogate"),
        ("preprocess-twice", _ANY, _preprocess('{"size": [8, 8], "mean": 0.5, "mean": 0.1}'), "one key twice"),
        ("preprocess-key", _NO, _with(**{"<script>alert(1)</script>\x1b[31m": 1}), "a key that is called so"),
        ("preprocess-path", _NO, _with(input="../../etc/passwd"), "an input that is called so"),
        ("preprocess-bool", _NO, _with(size=True), ""),
        ("preprocess-choice", _NO, _with(layout=["NCHW"]), "a list for a word"),
        ("preprocess-object", _NO, _with(color={"a": 1}), "an object for a word"),
        ("preprocess-std-0", _NO, _with(std=0), ""),
        ("preprocess-ratio-0", _NO, _with(scale="1/0"), ""),
        ("preprocess-ratio-digits", _NO, _with(scale="9" * 39 + "/1"), ""),
        ("preprocess-other-digits", _NO, _with(scale="²/5"), "a digit that is none"),
        ("preprocess-size-huge", _NO, _with(size=16_384), "each picture 16,384 x 16,384"),
        ("preprocess-crop", _NO, _with(crop=1000), "a crop larger than the picture"),
    ]
]  # fmt: skip
