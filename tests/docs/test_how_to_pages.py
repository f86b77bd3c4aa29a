"""The files that the how-to pages show are complete: put in place as a stranger would, they are found and judged."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HURRIED = ROOT / "tests" / "examples" / "hurried.py"
BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
PLACE = re.compile(r"# src/(?P<folder>[\w/]+)/(?P<module>\w+)\.py\n")
PAGES = sorted((ROOT / "docs").glob("how-to-add-*.md"))
# What the page's commands must print, beyond ending well.
PRINTED = {
    "format": "nf3-g64: 3.5 bits per weight",
    "algorithm": "No budget was set",
    "target": "no matrix unit",
    "exporter": "head.weight:codes int8 (10, 64)",
    "metric": "true-probability",
}


@dataclass(frozen=True)
class Page:
    """The blocks of one page: the new file with its place, the commands, and the scripts."""

    folder: str
    module: str
    file: str
    commands: tuple[str, ...]
    scripts: tuple[str, ...]
    entry: str


def read(path: Path) -> Page:
    blocks = [(m["language"], m["text"]) for m in BLOCK.finditer(path.read_text(encoding="utf-8"))]
    python = [text for language, text in blocks if language == "python"]
    place = PLACE.match(python[0])
    assert place is not None, "the first block of Python is the new file and says where it goes"
    return Page(
        folder=place["folder"],
        module=place["module"],
        file=python[0],
        commands=tuple(line for language, text in blocks if language == "sh" for line in text.splitlines()),
        scripts=tuple(python[1:]),
        entry=next(text for language, text in blocks if language == "toml"),
    )


def install(page: Page, site: Path) -> None:
    """Installs the file as a package of a stranger: its module, and the entry point that the page shows."""
    (site / f"{page.module}.py").write_text(page.file, encoding="utf-8")
    group = re.search(r'entry-points\."([\w.]+)"', page.entry)
    line = re.search(r'^([\w-]+) = "your_package\.(\w+)"$', page.entry, re.MULTILINE)
    assert group is not None
    assert line is not None
    assert (group[1], line[2]) == (page.folder.replace("/", "."), page.module)
    info = site / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[{group[1]}]\n{line[1]} = {line[2]}\n", encoding="utf-8")


def run(command: list[str], site: Path, *, where: Path = ROOT) -> str:
    env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONWARNINGS": "error"}
    done = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def argv(line: str) -> list[str]:
    program, *arguments = shlex.split(line)
    return [sys.executable, *([] if program == "python" else ["-m", program]), *arguments]


def test_there_is_a_page_for_each_kind_of_part():
    assert {path.stem.split("-")[-1] for path in PAGES} == set(PRINTED)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_file_of_the_page_is_found_and_passes_the_commands_of_the_page(path, tmp_path):
    page = read(path)
    install(page, tmp_path)
    where, printed = ROOT, []
    for line in page.commands:
        if line.startswith("cd "):
            where = where / line.removeprefix("cd ")
        else:
            printed.append(run(argv(line), tmp_path, where=where))
    for number, script in enumerate(page.scripts):
        place = tmp_path / f"script_{number}.py"
        place.write_text(script, encoding="utf-8")
        printed.append(run([sys.executable, str(HURRIED), str(place)], tmp_path))
    assert PRINTED[path.stem.split("-")[-1]] in "\n".join(printed)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_file_of_the_page_is_one_that_the_project_does_not_have(path):
    page = read(path)
    folder = ROOT / "src" / page.folder
    assert folder.is_dir()
    assert not (folder / f"{page.module}.py").exists(), "choose another example, this one would be shadowed"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_file_of_the_page_looks_like_a_file_of_the_project(path, tmp_path):
    page = read(path)
    place = tmp_path / f"{page.module}.py"
    place.write_text(page.file, encoding="utf-8")
    config = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    run([sys.executable, "-m", "ruff", "check", *config, str(place)], tmp_path)
    run([sys.executable, "-m", "ruff", "format", "--check", *config, str(place)], tmp_path)
