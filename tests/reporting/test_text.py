from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.reporting.text import clean, fold

ANY = st.text(
    alphabet=st.one_of(st.characters(), st.sampled_from("\x1b\x07\x90\x9b\x9c\x9d[]()m;\\\u202e\u200b\ud800 \n"))
)


@given(ANY)
def test_clean_leaves_only_characters_that_print_as_themselves(text: str) -> None:
    cleaned = clean(text)
    assert not {unicodedata.category(c) for c in cleaned} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    cleaned.encode("utf-8")


@given(ANY)
def test_clean_is_idempotent(text: str) -> None:
    assert clean(clean(text)) == clean(text)


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S"]), min_size=1))
def test_clean_keeps_visible_text_in_any_script(text: str) -> None:
    assert clean(text) == text


@given(ANY, st.integers(3, 40))
def test_clean_respects_its_limit(text: str, limit: int) -> None:
    assert len(clean(text, limit=limit)) <= limit


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a\x1b[31;1mb\x1b[0mc", "abc"),
        ("a\x9b2Jb", "ab"),
        ("a\x1b]0;new title\x07b", "ab"),
        ("a\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\b", "alinkb"),
        ("a\x1bP payload \x9cb", "ab"),
        ("a\x1bcb", "ab"),
        ("a\x1b", "a"),
        ("a\x1b]never ends", "anever ends"),
        ("first\r\nsecond\u2029third\tfourth", "first second third fourth"),
        ("\u202egnp\u202c.exe\u2066\ufeff", "gnp.exe"),
        ("a\x00b\x7fc\ud800d\ufffee\ufdd0f", "abcdef"),
        ("\U000e0041tag", "tag"),
    ],
)
def test_clean_removes_what_moves_cursors_or_hides(raw: str, expected: str) -> None:
    assert clean(raw) == expected


def test_clean_takes_linear_time_on_unterminated_control_strings() -> None:
    # 400,000 openers; quadratic work would be 10^11 steps and never end.
    assert clean("\x90" * 400_000) == ""
    assert clean("\x1b]" * 200_000) == ""


@given(ANY, st.sampled_from(["ascii", "latin-1", "cp1252", "utf-8"]))
def test_fold_gives_text_that_the_encoding_has(text: str, encoding: str) -> None:
    fold(clean(text), encoding).encode(encoding)


def test_fold_treats_an_unknown_encoding_as_ascii() -> None:
    assert fold("2× → 3", "no-such-codec") == "2x -> 3"
