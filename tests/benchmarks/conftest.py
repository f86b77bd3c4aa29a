"""The scripts of benchmarks/ import each other by plain names; so do their tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

_SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the names mean the scripts; other tests have modules of the same names."""
    for script in _SCRIPTS.glob("*.py"):
        known = sys.modules.get(script.stem)
        if known is not None and getattr(known, "__file__", None) != str(script):
            monkeypatch.delitem(sys.modules, script.stem)
    monkeypatch.syspath_prepend(str(_SCRIPTS))
