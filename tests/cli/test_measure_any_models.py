"""``measure`` compares any two models: quantized ones and old opsets too."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx

import fewbits

DEMO = Path(str(files("fewbits"))) / "demo"


def images(start: int, stop: int) -> dict[str, np.ndarray]:
    with np.load(DEMO / "digits.npz") as file:
        return {"image": file["image"][start:stop], "labels": file["labels"][start:stop]}


def test_a_quantized_model_may_be_the_first_one(tmp_path: Path) -> None:
    result = fewbits.quantize(
        DEMO / "digits.onnx",
        data=images(0, 200),
        eval=images(200, 400),
        scheme="w8a8",
        effort="fast",
        allow_slower=True,
    )
    quantized = tmp_path / "quantized.onnx"
    quantized.write_bytes(result.model_bytes)
    found = fewbits.measure(quantized, quantized, data=images(400, 500))
    assert (found.bound.harmful, found.bound.helpful) == (0, 0)
    assert found.float_figure == found.figure > 0.9


def test_an_old_opset_may_be_compared(tmp_path: Path) -> None:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 6])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 6])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "old", [x], [y])
    old = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 9)], ir_version=4)
    onnx.save(old, tmp_path / "old.onnx")
    data = {"x": np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)}
    found = fewbits.measure(tmp_path / "old.onnx", tmp_path / "old.onnx", data=data)
    assert found.metric == "agreement"
    assert found.bound.drop == 0
