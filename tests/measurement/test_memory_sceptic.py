"""The peak is the model's, without the process that runs it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from fewbits.measurement.memory import peak_bytes
from fewbits.runtimes.base import Options


def test_the_process_itself_is_not_counted(runs: ModuleType, tmp_path: Path) -> None:
    net = runs.small_net(tmp_path / "n.onnx")
    found = peak_bytes(net, Options(), runs.small_data(1))
    if found is None:
        pytest.skip("this system does not tell a process's peak memory")
    # Python with NumPy and ONNX Runtime loaded holds more than 40 MB; a model of 25 kB, its session and arena a few.
    assert 0 < found < 25e6
