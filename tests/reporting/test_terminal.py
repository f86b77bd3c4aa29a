from __future__ import annotations

import unicodedata
from collections.abc import Callable

import pytest

from fewbits.reporting.schema import Executed, Island, Report
from fewbits.reporting.terminal import WIDTH, summary_lines
from fewbits.reporting.words import headline


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_summary_fits_the_terminal(report: Report, encoding: str) -> None:
    for line in summary_lines(report, encoding=encoding):
        line.encode(encoding)
        assert len(line) <= WIDTH
        assert line == line.rstrip()
        assert not {unicodedata.category(c) for c in line} & {"Cc", "Cf", "Cs"}


def test_summary_begins_with_the_verdict_and_ends_with_the_report(sample: Callable[[str], Report]) -> None:
    report = sample("met")
    lines = summary_lines(report, place="out/report.html")
    assert " ".join(lines[: lines.index("")]) == headline(report)
    assert lines[-1].split() == ["report", "out/report.html"]


def test_summary_answers_the_first_questions(sample: Callable[[str], Report]) -> None:
    text = "\n".join(summary_lines(sample("met"), encoding="ascii"))
    for answer in (
        "91.83% -> 91.58%",
        "at most 0.78 points with 95% confidence, budget 1 point",
        "9 became worse, 6 better",
        "1.09 MB -> 300 kB, 3.64x smaller",
        "2.17x faster (2.11x to 2.24x",
        "27 nodes in integers, 3 in float",
        "the search put it back to float",
    ):
        assert answer in text
    # A repaired island runs in integers now, so it is not named among those in float.
    assert "/layer2/Pad" not in text


def test_summary_names_three_islands_and_counts_the_rest() -> None:
    islands = tuple(Island(node=f"n{i}", op="Softmax", rule="no-kernel", repaired=False) for i in range(5))
    lines = summary_lines(Report(verdict="met", executed=Executed(integer_nodes=1, float_nodes=5, islands=islands)))
    assert [line.split()[-1] for line in lines if "Softmax" in line] == ["no-kernel"] * 3
    assert any(line.strip() == "2 more, see the report" for line in lines)


def test_summary_says_why_a_figure_is_missing(sample: Callable[[str], Report]) -> None:
    assert "  speed     unknown: not timed: the run was asked not to" in summary_lines(sample("unknown"))
