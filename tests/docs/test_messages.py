"""docs/messages.md holds every slug of the source, with the exit code and the wording that the source has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fewbits._base import errors

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "fewbits"
PAGE = ROOT / "docs" / "messages.md"
HEADING = re.compile(r"^### `(?P<slug>[a-z0-9-]+)`(?: \((?P<kind>[^)]*)\))?$", re.MULTILINE)
# A message that carries its slug itself: a warning, or a refusal of the command line's last net.
TRAILING = re.compile(r" \[(?P<slug>[a-z]{2,}(?:-(?:[a-z]+|\.\*))*)\]$")
# Calls whose slug names a rule of a target; the others raise.
RULES = ("Reason", "Condition", "FloatIsland")


@dataclass
class Slug:
    """What the source says of one slug: the places, the exit codes, and the messages as regular expressions."""

    places: list[str] = field(default_factory=list)
    codes: set[int] = field(default_factory=set)
    patterns: list[str] = field(default_factory=list)


def constants(node: ast.expr) -> list[str]:
    """Returns every string that an expression may be: both arms of an ``a if c else b``."""
    if isinstance(node, ast.IfExp):
        return constants(node.body) + constants(node.orelse)
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def pattern(node: ast.expr | None) -> str | None:
    """Returns a pattern with the fixed words of a message; None where the message is made elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.JoinedStr):
        parts = [re.escape(p.value) if isinstance(p, ast.Constant) else ".*" for p in node.values]
        return "".join(parts)
    return None


def calls(tree: ast.Module) -> Iterator[tuple[ast.Call, str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            for keyword in node.keywords:
                if keyword.arg == "slug" or (keyword.arg == "rule" and name in RULES):
                    for slug in constants(keyword.value):
                        yield node, name, slug


def docstrings(tree: ast.Module) -> set[int]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    bodies = [n.body for n in ast.walk(tree) if isinstance(n, kinds)]
    return {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}


def own_slugs() -> dict[str, Slug]:
    found: dict[str, Slug] = {}
    for file in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        place = file.relative_to(SOURCE).as_posix()
        for call, name, slug in calls(tree):
            entry = found.setdefault(slug, Slug())
            entry.places.append(f"{place}:{call.lineno}")
            error = getattr(errors, name, None)
            if error is not None:
                entry.codes.add(int(error.exit_code))
            text = pattern(call.args[0]) if call.args and name not in RULES else None
            entry.patterns += [] if text is None else [text]
        skipped = docstrings(tree)
        for node in ast.walk(tree):
            if id(node) in skipped or not isinstance(node, ast.Constant | ast.JoinedStr):
                continue
            text = pattern(node)
            plain = TRAILING.search(re.sub(r"\\(.)", r"\1", text)) if text else None
            if plain is not None and text is not None:
                entry = found.setdefault(plain["slug"], Slug())
                entry.places.append(f"{place}:{node.lineno}")
                entry.patterns.append(text[: text.rindex(re.escape(" ["))])
    return found


def entries() -> dict[str, tuple[str, str]]:
    """Returns what stands in the brackets of each heading, and the text below it."""
    text = PAGE.read_text(encoding="utf-8")
    found = list(HEADING.finditer(text))
    ends = [m.start() for m in found[1:]] + [len(text)]
    return {
        m["slug"]: (m["kind"] or "", re.split(r"^## ", text[m.end() : end], flags=re.MULTILINE)[0])
        for m, end in zip(found, ends, strict=True)
    }


SLUGS = own_slugs()
ENTRIES = entries()


def source_of(slug: str) -> Slug | None:
    """Returns what the source says of a slug, perhaps of one whose end is filled in when it is printed."""
    return SLUGS.get(slug) or next((SLUGS[s] for s in SLUGS if "*" in s and re.fullmatch(s, slug)), None)


def test_every_slug_of_the_source_has_an_entry():
    lacking = [s for s in SLUGS if not any(re.fullmatch(s, entry) for entry in ENTRIES)]
    missing = {slug: SLUGS[slug].places for slug in sorted(lacking)}
    assert not missing, "write an entry in docs/messages.md"


def test_every_entry_has_a_place_in_the_source():
    assert not [s for s in ENTRIES if source_of(s) is None], "no source raises these; remove the entry"


def test_no_slug_stands_twice():
    text = PAGE.read_text(encoding="utf-8")
    slugs = [m["slug"] for m in HEADING.finditer(text)]
    assert len(slugs) == len(set(slugs))


@pytest.mark.parametrize("slug", sorted(ENTRIES))
def test_an_entry_names_the_exit_codes_of_the_source(slug):
    written = {int(n) for n in re.findall(r"\d+", ENTRIES[slug][0])}
    found = source_of(slug)
    codes = found.codes if found else set()
    assert not codes or written == codes, f"{slug}: the source exits with {sorted(codes)}"


@pytest.mark.parametrize("slug", sorted(ENTRIES))
def test_an_entry_shows_a_message_as_the_source_words_it(slug):
    body = ENTRIES[slug][1]
    examples = [" ".join(block.replace("\n> ", " ").split()) for block in re.findall(r"^> ((?:.+\n)+)", body, re.M)]
    found = source_of(slug)
    patterns = [" ".join(p.replace("\\ ", " ").split()) for p in found.patterns] if found else []
    if patterns:
        assert examples, f"{slug}: show the message behind '> '"
        for example in examples:
            assert any(re.fullmatch(p.strip(), example) for p in patterns), f"{example!r} fits none of {patterns}"


@pytest.mark.parametrize("slug", sorted(ENTRIES))
def test_an_entry_says_what_happened_and_what_to_do(slug):
    told = " ".join(line for line in ENTRIES[slug][1].splitlines() if not line.startswith(">"))
    assert len(told.split()) >= 5, f"{slug}: an entry needs a sentence or two"
