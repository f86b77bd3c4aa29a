"""The main job on the real models, from the command line; the sets are those of the figures in docs/."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def cifar(path: Path, count: int | None = None) -> dict[str, np.ndarray]:
    """Returns the pictures as ResNet-20 takes them, NCHW."""
    with np.load(path) as file:
        x, y = file["x"][:count], file["y"][:count].astype(np.int64)
    return {"input": ((x / np.float32(255) - MEAN) / DEVIATION).transpose(0, 3, 1, 2).copy(), "labels": y}


@pytest.mark.slow
def test_resnet20_keeps_a_point_on_pictures_that_it_never_saw(
    runs: ModuleType, real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    import onnx

    model = real_data("cifar10/resnet20.onnx")
    name = onnx.load(str(model)).graph.input[0].name
    chosen, judged = (
        {name if key == "input" else key: value for key, value in cifar(real_data(f"cifar10/{file}"), n).items()}
        for file, n in (("cifar10_calib.npz", 1500), ("cifar10_test_jpeg.npz", None))
    )
    data, judge = runs.save_data(tmp_path / "d.npz", chosen), runs.save_data(tmp_path / "e.npz", judged)
    args = ("quantize", model, "--data", data, "--eval", judge, "--max-drop", "1%", "--json", "-o")
    done = runs.hurried_shell(*args, tmp_path / "out")
    assert done.code == 0, done.err
    report: dict[str, Any] = done.json
    assert (report["verdict"], report["metric"]["examples"]) == ("met", 4500)
    # The figure that was measured in plain float32 on these pictures is 3653 of 4500.
    assert report["metric"]["float"] == pytest.approx(3653 / 4500, abs=2 / 4500)
    assert report["executed"]["float_nodes"] <= 2
    assert report["size"]["ratio"] > 3
    assert report["latency"]["speedup_low"] > 1
    verified = runs.shell("verify", tmp_path / "out", "--model", model, "--data", judge, "--json")
    assert verified.code == 0, verified.err
    assert verified.json["figure"] == report["metric"]["quantized"]
