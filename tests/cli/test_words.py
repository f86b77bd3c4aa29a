"""What a stranger reads: aligned, indented, at most a page wide, and harmless whatever the model's names are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import onnx
import pytest

from fewbits.cli._common import human_bytes, human_count, note, parse_duration, say, say_json, table


def test_say_keeps_indentation_and_removes_what_moves_a_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    say(["  indented", "\x1b[31mred\x1b[0m and \u202egnp.exe", "two\nlines", "    "])
    assert capsys.readouterr().out == "  indented\nred and gnp.exe\ntwo lines\n\n"


def test_a_note_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    note("note: \x1b[2Jcareful")
    seen = capsys.readouterr()
    assert (seen.out, seen.err) == ("", "note: careful\n")


def test_json_has_no_constants_that_are_not_json() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        say_json({"x": float("inf")})


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_499, "999 kB"), (999_500, "1 MB"), (2.5e12, "2500 GB")],
)
def test_bytes_never_need_an_exponent(count: float, words: str) -> None:
    assert human_bytes(count) == words


@pytest.mark.parametrize(
    ("count", "words"), [(7, "7"), (999.6, "1 thousand"), (40_551_040, "40.6 million"), (3e13, "30000 billion")]
)
def test_counts_never_need_an_exponent(count: float, words: str) -> None:
    assert human_count(count) == words


@pytest.mark.parametrize("text", ["0", "-1s", "m", "1d", "inf", "nan", "1e400s", ""])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(click.UsageError, match="90s, 10m or 1h"):
        parse_duration(text)


def test_a_table_is_aligned_and_wraps_its_last_column() -> None:
    lines = table([("a", "x" * 30, "word " * 40), ("bb", "y", "short")], head=("n", "name", "why"))
    assert max(map(len, lines)) <= 100
    starts = {line.index("word") for line in lines if "word" in line}
    assert len(starts) == 1
    assert lines[0].index("why") in starts
    assert lines[-1].split() == ["bb", "y", "short"]


@pytest.mark.parametrize(
    "args",
    [
        ("inspect", "MODEL"), ("inspect", "MODEL", "--all"), ("plan", "MODEL"), ("plan", "MODEL", "--data", "DATA"),
        ("targets",), ("targets", "ort-cpu"), ("targets", "ort-cpu:arm"), ("doctor",), ("formats",),
        ("measure", "MODEL", "MODEL", "--data", "DATA", "--max-drop", "1%"), ("verify", "OUT"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_no_verb_prints_more_than_a_page_wide(
    cli: Callable[..., Any], runs: ModuleType, written: Path, args: tuple[str, ...]
) -> None:
    places = {"MODEL": runs.DIGITS, "DATA": runs.DIGITS_DATA, "OUT": written}
    done = cli(*(places.get(arg, arg) for arg in args))
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= 100, max(lines, key=len)
    # Names of formats have underscores, and the ends of float formats exponents.
    machine_words = r"None|nan\b" if args == ("formats",) else r"\d %|[a-z]_[a-z].*\(|None|nan\b|e[+-]\d\d\b"
    assert not any(re.search(machine_words, line) for line in lines), done.out


def test_names_in_a_model_cannot_move_the_cursor(cli: Callable[..., Any], net: Path, tmp_path: Path) -> None:
    model = onnx.load(str(net))
    for number, node in enumerate(model.graph.node):
        node.name = f"\x1b[2J\x1b]0;owned\x07<script>{number}\u202e\n"
    onnx.save(model, str(tmp_path / "evil.onnx"))
    for args in (("inspect", tmp_path / "evil.onnx", "--all"), ("plan", tmp_path / "evil.onnx")):
        done = cli(*args)
        assert done.code == 0, done.err
        assert not set(done.out + done.err) & {"\x1b", "\x07", "\u202e", "\r"}
