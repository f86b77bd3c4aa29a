"""docs/repairs.md has every repair that there is, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from fewbits.models.onnx.repairs import REPAIRS
from fewbits.search.repairing import BY_COST, DYNAMIC, LIGHT_FLOAT, PAIRED

PAGE = Path(__file__).parents[2] / "docs" / "repairs.md"


def test_the_page_lists_just_the_repairs_that_are_tried() -> None:
    table = PAGE.read_text(encoding="utf-8").split("## Tried")[1].split("## Without")[0]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert listed == [*(repair.name for repair in REPAIRS), DYNAMIC, BY_COST, PAIRED, LIGHT_FLOAT]
