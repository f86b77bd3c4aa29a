"""A model exported in training mode is refused for what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from fewbits import ModelError
from fewbits.models.onnx.opening import open_model


def test_batch_statistics_are_refused_with_what_to_do(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.standard_normal((4, 3, 3, 3)),
        "g": np.ones(4),
        "b": np.zeros(4),
        "m": np.zeros(4),
        "v": np.ones(4),
    }
    constants = [onnx.numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()]
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 3, 8, 8])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 4, 6, 6])
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        onnx.helper.make_node(
            "BatchNormalization", ["c", "g", "b", "m", "v"], ["y", "m1", "v1"], name="bn", training_mode=1
        ),
    ]
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], initializer=constants)
    path = tmp_path / "train.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(ModelError, match=r"model\.eval\(\)") as caught:
        open_model(path)
    assert caught.value.slug == "training-mode"
    assert "'bn'" in str(caught.value)
