"""The pages are true where a machine can tell: links, generated parts, verbs, options, keys, exit codes."""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from fewbits._base.errors import Exit

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md"))
    if not path.name.startswith(".")
)
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


@cache
def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_relative_links_lead_somewhere(page):
    for match in LINK.finditer(CODE.sub("", page.read_text(encoding="utf-8"))):
        target = match["target"]
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), target
        assert place.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(place), target


def tracked() -> list[Path]:
    """Returns the text files of the project, without what tools leave behind."""
    kinds = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".html", ""}
    skipped = {".venv", ".git", ".hypothesis", ".mypy_cache", ".ruff_cache", ".import_linter_cache", "build", "dist"}
    return [
        path
        for top in ROOT.iterdir()
        if top.name not in skipped and not top.name.endswith(".egg-info") and top.name != "fewbits-demo"
        for path in (top.rglob("*") if top.is_dir() else (top,))
        if path.is_file() and path.suffix in kinds and "__pycache__" not in path.parts
    ]


def test_no_file_names_a_place_of_one_machine():
    # Tests may name made-up home directories, to see that none is given away.
    homes, here, found = re.compile(r"(?<![\w.])/(?:home|Users|root)/\w+"), str(ROOT), []
    for path in tracked():
        text, name = path.read_text(encoding="utf-8", errors="replace"), path.relative_to(ROOT)
        found += [f"{name}: {m[0]}" for m in homes.finditer(text) if name.parts[0] != "tests"]
        found += [f"{name}: {here}"] if here in text else []
    assert not found


@pytest.fixture(scope="module")
def refresh() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fewbits_docs_refresh", Path(__file__).with_name("refresh.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["targets.md", "formats.md"])
def test_what_is_generated_is_of_today(refresh, name):
    assert name in refresh.GENERATED
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert refresh.refreshed(name, page) == page, "run: python tests/docs/refresh.py"


def test_the_page_of_exit_codes_has_each_code_once():
    page = (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    written = [int(n) for n in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)]
    assert written == sorted(int(code) for code in Exit)


def test_the_page_of_plans_explains_each_key_that_a_plan_has():
    from fewbits.planning import plan

    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert explained == {*plan._PART_KEYS, *plan._SITE_KEYS, "root", "member", "factor", "name", "where"}


def test_the_readme_and_the_pages_name_only_verbs_and_options_that_exist():
    from fewbits.cli import _VERBS, group

    options: dict[str, set[str]] = {}
    for verb in _VERBS:
        command = group.get_command(None, verb)  # type: ignore[arg-type]
        options[verb] = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"-h", "--help"}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        shown = re.findall(r"^```(?:sh|console|text)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        shown += re.findall(r"`(fewbits [^`\n]+)`", text)
        for line in (line.strip().removeprefix("$ ") for block in shown for line in block.splitlines()):
            match = re.match(r"fewbits ([a-z]+)( .*)?$", line)
            if match is None:
                continue
            assert match[1] in options, f"{page.name}: {line}"
            for option in re.findall(r"(?<= )--?[a-z][a-z-]*", match[2] or ""):
                assert option in options[match[1]], f"{page.name}: {line}: {option}"
