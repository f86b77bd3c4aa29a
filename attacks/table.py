"""Runs fewbits on the hostile files and writes what came to docs/hostile-files.md.

python -m attacks.table [GROUP ...]     runs these groups, all where none is named; rows of others stay as they are
python -m attacks.table --list          writes the lists of attacks/README.md, runs nothing
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from attacks.case import Case, required
from attacks.catalog import CASES, GROUPS
from attacks.running import BYTES, SECONDS, Verdict, attack

_ROOT = Path(__file__).parents[1]
_PAGE = _ROOT / "docs" / "hostile-files.md"
_LIST = Path(__file__).with_name("README.md")
_BLOCK = re.compile(r"<!-- begin (?P<name>[a-z]+) -->\n.*?<!-- end -->", re.DOTALL)


def cell(text: str) -> str:
    """Returns text as a cell of a Markdown table, in which nothing is alive.

    >>> cell("a|b <i>")
    'a\\\\|b &lt;i&gt;'
    """
    parts = re.split(r"(`[^`]*`)", text)
    for place in range(0, len(parts), 2):
        safe = re.sub(r"([\\*_])", r"\\\1", parts[place]).replace("<", "&lt;").replace(">", "&gt;")
        parts[place] = safe.replace("[", "&#91;").replace("]", "&#93;")
    return (
        "".join(parts).replace("|", "\\|").replace("$", "&#36;").replace("`", "&#96;" if text.count("`") % 2 else "`")
    )


def about(case: Case) -> str:
    """Returns the name of a case, and what it is where the name does not say it."""
    name = case.name.partition("/")[2]
    return f"{name}: {cell(case.what)}" if case.what else name


def row(verdict: Verdict) -> str:
    """Returns one line of the table."""
    case = verdict.case
    outcome = f"**{cell('; '.join(verdict.faults)[:300])}**" if verdict.faults else cell(verdict.outcome)
    seconds = max(ran.seconds for ran in verdict.runs)
    peak = max(ran.peak for ran in verdict.runs)
    return f"| {about(case)} | {required(case)} | {outcome} | {seconds:.1f} | {peak / 1e6:.0f} |"


def run_group(group: str) -> tuple[str, int]:
    """Returns the table of a group, and how many of its cases came out wrong."""
    verdicts = []
    for case in (case for case in CASES if case.group == group):
        with tempfile.TemporaryDirectory(prefix="attack-") as place:
            verdicts.append(attack(case, Path(place)))
        print("wrong" if verdicts[-1].faults else "right", case.name, *verdicts[-1].faults, sep="  ", flush=True)
    wrong = sum(bool(verdict.faults) for verdict in verdicts)
    right = f"{len(verdicts) - wrong} of {len(verdicts)} as required."
    lines = [right, "", "| Case | Required | Outcome | s | MB |", "|---|---|---|---:|---:|", *map(row, verdicts)]
    return "\n".join(lines), wrong


def listing(group: str) -> str:
    """Returns the list of a group: case and required outcome."""
    lines = ["| Case | Required |", "|---|---|"]
    lines += [f"| {about(case)} | {required(case)} |" for case in CASES if case.group == group]
    return "\n".join(lines)


def filled(page: str, blocks: dict[str, str]) -> str:
    """Returns a page with new text in the marked places that are named."""

    def replace(found: re.Match[str]) -> str:
        name = found["name"]
        return f"<!-- begin {name} -->\n{blocks[name]}\n<!-- end -->" if name in blocks else found[0]

    return _BLOCK.sub(replace, page)


def main(arguments: list[str]) -> int:
    """Returns 0 where every case that was run came out as required."""
    if arguments == ["--list"]:
        _LIST.write_text(filled(_LIST.read_text(encoding="utf-8"), {g: listing(g) for g in GROUPS}), encoding="utf-8")
        return 0
    wrong = 0
    for group in arguments or GROUPS:
        table, some = run_group(group)
        wrong += some
        _PAGE.write_text(filled(_PAGE.read_text(encoding="utf-8"), {group: table}), encoding="utf-8")
    print(f"{wrong} wrong; each may take {SECONDS:.0f} s and {BYTES / 1e9:.0f} GB")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
