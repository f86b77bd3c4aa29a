"""Plans (plan.json) that are no plans, or that name places."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacks.case import INERT, REFUSED, TARGET, USAGE, Case

_NO = frozenset({USAGE, REFUSED})
_ANY = INERT | _NO
Make = Callable[[Path], Path]
# What a plan says of the first layer's weight, and of what else is quantized in the honest net.
_SITE = {
    "site": "w1", "role": "weight", "op": "MatMul", "node": "first", "scheme": "int8 per-channel(1) symmetric",
    "range": "minmax", "rounder": "nearest", "reason": "by hand",
}  # fmt: skip
_SPLIT = {"calibration": 0.4, "selection": 0.0, "verdict": 0.6}
_OTHERS = [
    {**_SITE, "site": "x", "role": "activation", "op": "input", "node": "x", "rounder": None, "range": "mse",
     "scheme": "uint8 per-tensor asymmetric"},
    {**_SITE, "site": "r", "role": "activation", "rounder": None, "range": "mse",
     "scheme": "uint8 per-tensor asymmetric"},
    {**_SITE, "site": "w2", "node": "second"},
]  # fmt: skip


def _plan(sites: list[dict[str, Any]] | None = None, **parts: Any) -> dict[str, Any]:
    return {
        "schema_version": 1, "target": "ort-cpu", "seed": 0, "calibration_examples": 16, "split": _SPLIT, "hashes": {},
        "versions": {}, "transforms": [], "sites": [*([_SITE] if sites is None else sites), *_OTHERS],
        "links": [], **parts,
    }  # fmt: skip


def _text(text: str | bytes) -> Make:
    def write(folder: Path) -> Path:
        path = folder / "plan.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape"))
        return path

    return write


def _json(sites: list[dict[str, Any]] | None = None, **parts: Any) -> Make:
    return _text(json.dumps(_plan(sites, **parts)))


def _site(**fields: Any) -> Make:
    return _json([{**_SITE, **fields}])


def _large(folder: Path) -> Path:
    """Returns a plan of 2 GB, which are blanks and stand on no disk."""
    path = folder / "plan.json"
    with path.open("wb") as file:
        file.write(b"{")
        file.truncate(2**31)
    return path


def _many_sites(folder: Path) -> Path:
    return _json([{**_SITE, "site": f"s{i}"} for i in range(100_000)])(folder)


def _link(target: str) -> Make:
    def write(folder: Path) -> Path:
        (folder / "plan.json").symlink_to(target)
        return folder / "plan.json"

    return write


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "plan.json")
    return folder / "plan.json"


_DEEP = "[" * 100_000 + "]" * 100_000
_EVIL = "</script><script>alert(1)</script>\x1b[31m\u202e"
CASES = [
    Case(name=f"plan/{name}", kind="plan", allowed=allowed, make=make, what=what)
    for name, allowed, make, what in [
        ("honest", INERT, _json(), "no attack, must work"),
        ("empty", _NO, _text(b""), ""),
        ("text", _NO, _text("a plan"), ""),
        ("list", _NO, _text("[]"), ""),
        ("null", _NO, _text("null"), ""),
        ("not-utf-8", _NO, _text(b'{"a": "\xff\xfe"}'), ""),
        ("half-character", _ANY, _text(json.dumps(_plan([{**_SITE, "reason": "x"}])).replace('"x"', '"\\ud800"')),
         "a lone surrogate"),
        ("deep", _NO, _text(f'{{"sites": {_DEEP}}}'), "100,000 brackets"),
        ("deep-objects", _NO, _text('{"a":' * 100_000 + "1" + "}" * 100_000), ""),
        ("large", _NO | {6}, _large, "2 GB"),
        ("sites-100000", _ANY, _many_sites, ""),
        ("digits", _NO, _text(json.dumps(_plan()).replace('"seed": 0', '"seed": ' + "9" * 5000)), "5,000 digits"),
        ("seed-2-200", _ANY, _json(seed=2**200), ""),
        ("seed-nan", _NO, _text(json.dumps(_plan()).replace('"seed": 0', '"seed": NaN')), ""),
        ("seed-negative", _NO, _json(seed=-1), ""),
        ("seed-true", _NO, _json(seed=True), ""),
        ("examples-2-62", _ANY, _json(calibration_examples=2**62), ""),
        ("share-nan", _NO, _text(json.dumps(_plan()).replace("0.4", "NaN")), ""),
        ("share-1e999", _NO, _text(json.dumps(_plan()).replace("0.6", "1e999")), ""),
        ("share-unknown", _ANY, _json(split={"../x": 0.5}), ""),
        ("share-all", _ANY, _json(split={"calibration": 1, "selection": 1, "verdict": 1}), "three times everything"),
        ("share-zero", _ANY, _json(split={"calibration": 0, "selection": 0, "verdict": 0}), ""),
        ("version-999", _NO, _json(schema_version=999), ""),
        ("version-text", _NO, _json(schema_version="1"), ""),
        ("target-path", _NO, _json(target="../../etc/passwd"), ""),
        ("target-module", _NO, _json(target="os:system"), ""),
        ("target-evil", _NO, _json(target=_EVIL), ""),
        ("key-evil", _NO, _json(**{_EVIL: 1}), ""),
        ("site-path", _ANY, _site(site="../../etc/passwd"), ""),
        ("site-evil", _ANY, _site(site=_EVIL), ""),
        ("site-twice", _NO, _json([_SITE, _SITE]), ""),
        ("site-number", _NO, _site(site=1), ""),
        ("reason-evil", _ANY, _site(reason=_EVIL), "which the report shows"),
        ("reason-long", _ANY, _site(reason="n" * 1_000_000), "1 MB"),
        ("role-unknown", _NO, _site(role="__class__"), ""),
        ("scheme-bits", _NO, _site(scheme="int999999999 per-channel(1) symmetric"), ""),
        ("scheme-digits", _NO, _site(scheme=f"int8 per-channel({'9' * 5000}) symmetric"), ""),
        ("scheme-axis", _NO | {TARGET}, _site(scheme="int8 per-channel(4611686018427387904) symmetric"), ""),
        ("scheme-group-0", _NO | {TARGET}, _site(scheme="int8 per-group(0,0) symmetric"), ""),
        ("scheme-evil", _NO, _site(scheme=_EVIL), ""),
        ("range-module", _NO, _site(range="os:system"), ""),
        ("range-digits", _NO, _site(range="percentile:" + "9" * 5000), ""),
        ("range-nan", _NO, _site(range="percentile:nan"), ""),
        ("rounder-path", _NO, _site(rounder="../nearest"), ""),
        ("transform-unknown", _ANY, _json(transforms=[{"name": "../../x", "where": ["/etc/passwd"]}]), ""),
        ("transform-evil", _ANY, _json(transforms=[{"name": _EVIL}]), ""),
        ("link-unknown", _ANY, _json(links=[{"root": "/etc/passwd", "member": "../x", "node": "y"}]), ""),
        ("links-circle", _ANY, _json(links=[{"root": "w1", "member": "w2", "node": "first"},
                                            {"root": "w2", "member": "w1", "node": "first"}]), ""),
        ("hashes-evil", _ANY, _json(hashes={"model": _EVIL, "../x": "y"}), ""),
        ("versions-evil", _ANY, _json(versions={_EVIL: _EVIL}), ""),
        ("python", _NO, _text("!!python/object/apply:os.system ['touch canary']"), "YAML that runs a command"),
        ("directory", _NO, lambda folder: (folder / "plan.json").mkdir() or folder / "plan.json", ""),
        ("fifo", _NO, _fifo, "opening it would wait forever"),
        ("device", _NO | {6}, _link("/dev/zero"), "a link to it"),
        ("outside", _NO, _link("../outside/secret.bin"), "a link to a file outside"),
    ]
]  # fmt: skip
