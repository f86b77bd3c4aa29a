"""The package ``attacks`` at the top of the repository, and a child that runs many command lines."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_HERE = Path(__file__).parent
_ATTACKS = _HERE.parents[1] / "attacks"


def _package(name: str, place: Path, **more: Any) -> Any:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, place, **more)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


# Test modules import it by name, before any fixture runs.
_package("attacks", _ATTACKS / "__init__.py", submodule_search_locations=[str(_ATTACKS)])


@pytest.fixture(scope="module")
def warm() -> Iterator[Any]:
    """Runs command lines in one child: ``warm.run("inspect", file, folder=place)``."""
    child = _package("fewbits_test_warm_client", _HERE / "warm_client.py").Warm()
    yield child
    child.close()
