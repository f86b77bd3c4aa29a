"""Writes docs/report.schema.json and tests/gold/reporting/ anew: python tests/reporting/refresh.py"""

from __future__ import annotations

import runpy
from pathlib import Path

from fewbits.reporting.html import render_html
from fewbits.reporting.model_card import model_card
from fewbits.reporting.schema import Report, json_schema, to_json
from fewbits.reporting.terminal import summary_lines

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GOLD = ROOT / "tests" / "gold" / "reporting"


def main() -> None:
    samples = runpy.run_path(str(HERE / "conftest.py"))
    GOLD.mkdir(parents=True, exist_ok=True)
    for name in samples["GOLD"]:
        report = Report.model_validate(samples["SAMPLES"][name]())
        outputs = {
            f"{name}.json": to_json(report),
            f"{name}.html": render_html(report),
            f"{name}.md": model_card(report),
            f"{name}.txt": "\n".join(summary_lines(report)) + "\n",
        }
        for file, text in outputs.items():
            (GOLD / file).write_text(text, encoding="utf-8")
    (ROOT / "docs" / "report.schema.json").write_text(json_schema(), encoding="utf-8")


if __name__ == "__main__":
    main()
