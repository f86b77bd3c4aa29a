"""Whole runs for the tests of this room."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

_SUPPORT = Path(__file__).parents[1] / "support" / "runs.py"


@pytest.fixture(scope="session")
def runs() -> ModuleType:
    """The module tests/support/runs.py."""
    name = "fewbits_test_runs"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, _SUPPORT)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]
