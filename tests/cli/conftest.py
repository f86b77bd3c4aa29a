"""One real run of the demo model for all tests of the room, and the command line in this process."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

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


@pytest.fixture
def cli(runs: ModuleType, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the command line in this process, hurried: ``cli("inspect", model)``."""
    runs.hurry(monkeypatch)
    return lambda *args: runs.in_process(args, capfd.readouterr, monkeypatch)


@pytest.fixture(scope="session")
def first_run(runs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What ``fewbits quantize`` on the demo model printed with --json, in a process of its own."""
    folder = tmp_path_factory.mktemp("first")
    return folder, runs.hurried_shell(
        "quantize", runs.DIGITS, "--data", runs.DIGITS_DATA, "--max-drop", "2%", "-o", folder / "out", "--json"
    )


@pytest.fixture(scope="session")
def written(first_run: Any) -> Path:
    """The output folder of the first run; not to be changed."""
    folder, done = first_run
    assert done.code == 0, done.err
    return folder / "out"


@pytest.fixture
def out(written: Path, tmp_path: Path) -> Path:
    """A copy of the output folder, to be changed at will."""
    return Path(shutil.copytree(written, tmp_path / "out"))


@pytest.fixture
def net(runs: ModuleType, tmp_path: Path) -> Path:
    """A small model."""
    return Path(runs.small_net(tmp_path / "net.onnx"))


@pytest.fixture
def net_data(runs: ModuleType, tmp_path: Path) -> Path:
    """Data for it, without labels."""
    return Path(runs.save_data(tmp_path / "net.npz", runs.small_data()))
