from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fewbits.reporting.html import render_html
from fewbits.reporting.model_card import model_card
from fewbits.reporting.schema import Report, from_json, to_json
from fewbits.reporting.terminal import summary_lines

GOLD = Path(__file__).resolve().parents[1] / "gold" / "reporting"
MEDIA: dict[str, Callable[[Report], str]] = {
    "json": to_json,
    "html": render_html,
    "md": model_card,
    "txt": lambda report: "\n".join(summary_lines(report)) + "\n",
}


@pytest.mark.parametrize("medium", sorted(MEDIA))
@pytest.mark.parametrize("name", ["met", "unknown", "hostile"])
def test_what_people_look_at_is_what_was_reviewed(name: str, medium: str) -> None:
    """From the stored report.json, so this is also: a report is rebuilt from saved data alone."""
    report = from_json((GOLD / f"{name}.json").read_bytes())
    assert MEDIA[medium](report) == (GOLD / f"{name}.{medium}").read_text(encoding="utf-8"), (
        "run: python tests/reporting/refresh.py, and review the difference"
    )
