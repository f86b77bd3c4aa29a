"""Fixtures that several rooms share: a writer of small graphs, and a bench that takes them the whole way."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

_SUPPORT = Path(__file__).parent / "support"
_DATA = Path(os.environ.get("FEWBITS_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def _loaded(name: str) -> ModuleType:
    """Returns a module of tests/support, loaded once."""
    full = f"fewbits_test_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, _SUPPORT / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[full] = module = importlib.util.module_from_spec(spec)  # dataclasses look their module up
        spec.loader.exec_module(module)
    return sys.modules[full]


@pytest.fixture(scope="session")
def graphs() -> ModuleType:
    """The module tests/support/graphs.py."""
    return _loaded("graphs")


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the latency measurement of runs short."""
    _loaded("runs").hurry(monkeypatch)


@pytest.fixture(scope="session")
def flow() -> SimpleNamespace:
    """The steps between model and exporter, imported in this one place."""
    from fewbits.flow import check_plan, observe, stream
    from fewbits.search.draft import draft_plan

    return SimpleNamespace(draft_plan=draft_plan, check_plan=check_plan, observe=observe, stream=stream)


@pytest.fixture
def net(graphs: ModuleType) -> Callable[..., Any]:
    """The class of graph writers: ``net(opset=18)``."""
    return graphs.Net


@pytest.fixture
def bench(graphs: ModuleType, flow: SimpleNamespace, tmp_path: Path) -> Any:
    """Takes a graph the whole way; see tests/support/graphs.py."""
    return graphs.Bench(tmp_path, flow)


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Returns the path of a real model or data file; skips the test where it is absent."""

    def find(name: str) -> Path:
        path = _DATA / name
        if not path.exists():
            pytest.skip(f"{name} is not there; set FEWBITS_TEST_DATA to the folder of real models")
        return path

    return find
