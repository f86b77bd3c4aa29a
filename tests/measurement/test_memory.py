"""Peak memory of a model in a process of its own."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from onnx import helper

from fewbits.measurement.memory import peak_bytes
from fewbits.runtimes.base import Options


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell")
def test_the_peak_holds_the_weights_and_the_widest_tensor(tmp_path: Path, runs: ModuleType) -> None:
    rng = np.random.default_rng(0)
    wide = 1_500_000  # 6 MB of weights that are read, and two tensors of 3 MB
    path = runs.save_model(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")],
        {"w": rng.standard_normal((2, wide // 2)).astype(np.float32)},
        shape=["batch", 2],
        out=["batch", wide // 2],
    )
    found = peak_bytes(path, Options(), {"x": np.ones((1, 2), np.float32)})
    assert found is not None
    assert 4 * wide < found < 200e6


def test_a_model_that_does_not_run_has_no_peak(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    assert peak_bytes(tmp_path / "broken.onnx", Options(), {"x": np.ones((1, 2), np.float32)}) is None
