"""Names and texts that a page, a terminal, a shell or a file system could take for commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import ModelProto

from attacks.case import INERT, REFUSED, Case
from attacks.parts import WIDTH, examples, honest, save

_ANY = INERT | frozenset({REFUSED})
PHRASES = {
    "script": "</script><script>alert(1)</script>",
    "style": "</style></title></textarea><svg onload=alert(1)>",
    "comment": "--><script>alert(1)</script><!--",
    "image": '"><img src=x onerror=alert(1)>',
    "image-address": "![a](http://attack.invalid/x.png) <img src=http://attack.invalid/y.png>",
    "quote": "' onmouseover='alert(1)' x='",
    "link": "[click](javascript:alert(1)) <a href=javascript:alert(1)>x</a>",
    "template": "{{ 7 * 7 }}{% for i in range(9) %}x{% endfor %}${7*7}",
    "markdown": "a\n# heading\n```\n| b | c |\n---\nlicense: mit",
    "front-matter": "---\nlicense: evil\ntags: [x]\n---",
    "mathematics": "$x$ $$\\frac{1}{0}$$ \\input{/etc/passwd}",
    "formula": "=cmd|' /C calc'!A0",
    "formula-at": "@SUM(1+1)*cmd|' /C calc'!A0",
    "shell": "`touch canary`$(touch canary);touch canary|touch canary&",
    "ansi": "\x1b[2J\x1b[31mred\x1b]0;title\x07\x1b[1A",
    "ansi-c1": "a\x9b31mb\x9d0;title\x9cc",
    "ansi-link": "\x1b]8;;http://attack.invalid\x1b\\here\x1b]8;;\x1b\\",
    "return": "all is well\rfewbits: met\x08\x08\x08",
    "right-to-left": "weight\u202egnp.exe\u2066x\u200f",
    "invisible": "we\u200bi\u200dght\ufeff\U000e0041",
    "nul": "a\x00b",
    "newline": "a\nfewbits: everything is fine [ok]\nb",
    "separators": "a\u2028b\u2029c\x0bd\x0ce\x85f",
    "format": "%s%s%n %d {0} {} {x.__class__}",
    "path": "../../etc/passwd",
    "path-absolute": "/etc/cron.d/attack",
    "path-windows": "..\\..\\CON:stream|x?*",
    "dots": "..",
    "blank": " ",
    "quotes": "'\"\\'\\\"",
    "zalgo": "a" + "\u0301" * 500,
    "emoji": "\U0001f600\U0001f1e9\U0001f1ea\uffff",
    "long": "n" * 100_000,
    "markup": "[bold red]x[/bold red][link=http://attack.invalid]y[/link][/]",
    "json": '", "verdict": "met", "x": "',
    "proto": "__proto__",
    "keyword": "__class__.__init__.__globals__",
}


def named(phrase: str) -> ModelProto:
    """Returns the honest net in which all that has a name, but input and output, bears this phrase."""
    proto = honest()
    _rename(proto, {"h": f"{phrase}h", "r": f"{phrase}r", "w1": f"{phrase}w1", "w2": f"{phrase}w2"})
    for number, node in enumerate(proto.graph.node):
        node.name = f"{phrase}{number}"
        node.doc_string = phrase
    proto.graph.name = proto.graph.doc_string = phrase
    proto.producer_name = proto.producer_version = proto.domain = proto.doc_string = phrase
    proto.metadata_props.add(key=phrase, value=phrase)
    return proto


def _rename(proto: ModelProto, new: dict[str, str]) -> None:
    for node in proto.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    for held in (*proto.graph.initializer, *proto.graph.input, *proto.graph.output):
        held.name = new.get(held.name, held.name)


def _phrase(phrase: str) -> Callable[[Path], Path]:
    return lambda folder: save(folder, named(phrase))


def _ends(phrase: str) -> Callable[[Path], Path]:
    """Returns what writes the honest net with a phrase as the names of its input, its output and their axes."""

    def write(folder: Path) -> Path:
        proto = honest()
        _rename(proto, {"x": phrase, "y": f"{phrase}y"})
        for value in (proto.graph.input[0], proto.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_param = phrase
        return save(folder, proto)

    return write


def _fed(phrase: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        values = np.random.default_rng(7).standard_normal((64, WIDTH)).astype(np.float32)
        return examples(folder, **{phrase: values})

    return write


def _bytes(places: int) -> Callable[[Path], Path]:
    """Returns what writes the honest net with bytes in its names that are no UTF-8."""

    def write(folder: Path) -> Path:
        data = named("QQQQ").SerializeToString()
        path = folder / "model.onnx"
        path.write_bytes(data.replace(b"QQQQ", b"\xff\xfe\xc0\x80", places))
        return path

    return write


def _file(name: str) -> Callable[[Path], Path]:
    return lambda folder: save(folder, honest(), name)


def _doubled(folder: Path) -> Path:
    proto = honest()
    for node in proto.graph.node:
        node.name = "same"
    return save(folder, proto)


def _one_name(folder: Path) -> Path:
    """The honest net in which a node bears the name of a tensor, and another the name of a file of the output."""
    proto = honest()
    for node, name in zip(proto.graph.node, ("w1", "manifest.json", "report.html"), strict=True):
        node.name = name
    _rename(proto, {"w1": "model.onnx", "h": "plan.json"})
    return save(folder, proto)


def _case(name: str, make: Callable[[Path], Path], what: str, partner: Callable[[Path], Path] | None = None) -> Case:
    return Case(name=f"names/{name}", kind="model", allowed=_ANY, make=make, what=what, partner=partner)


def shown(phrase: str) -> str:
    """Returns a phrase as Python would write it, cut to a cell of a table."""
    text = ascii(phrase)
    return text if len(text) <= 60 else f"{text[:57]}..."


_ENDS = ("script", "image", "ansi", "right-to-left", "path", "path-absolute", "formula", "markup", "shell", "format")
CASES = [
    *(_case(name, _phrase(phrase), shown(phrase)) for name, phrase in PHRASES.items()),
    *(_case(f"ends-{name}", _ends(PHRASES[name]), "of input and output", _fed(PHRASES[name])) for name in _ENDS),
    _case("not-utf-8", _bytes(-1), "everywhere"),
    _case("not-utf-8-one", _bytes(1), "in one name"),
    _case("doubled", _doubled, "all nodes have one name"),
    _case("of-files", _one_name, "the names of the output's files"),
    _case("file-script", _file("<script>alert(1)<|script>.onnx"), "the model's file is called so"),
    _case("file-ansi", _file("\x1b[31mred\x1b[0m.onnx"), "the model's file is called so"),
    _case("file-newline", _file("a\nfewbits: fine [ok]\n.onnx"), "the model's file is called so"),
    _case("file-option", _file("--overwrite.onnx"), "the model's file is called so"),
    _case("file-not-utf-8", _file("a\udcff\udcfeb.onnx"), "the model's file is called so"),
]
