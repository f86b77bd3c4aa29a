"""A graph input that is handed through as an output keeps its name and its values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import fewbits


def test_an_input_that_is_also_an_output_is_handed_through(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = onnx.numpy_helper.from_array(rng.standard_normal((8, 4, 3, 3)).astype(np.float32) / 6, "w")
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4, 8, 8])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 8, 8, 8])
    conv = onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])
    graph = onnx.helper.make_graph([conv], "g", [x], [y, x], initializer=[weight])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "m.onnx",
    )
    data = {"x": rng.standard_normal((60, 4, 8, 8)).astype(np.float32)}
    result = fewbits.quantize(tmp_path / "m.onnx", data=data, scheme="w8a8", effort="fast", allow_slower=True)
    session = onnxruntime.InferenceSession(result.model_bytes, providers=["CPUExecutionProvider"])
    outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"x": data["x"][:5]}), strict=True))
    assert np.array_equal(outputs["x"], data["x"][:5])
    assert result.run.candidate.integer == ("conv",)
