"""A model with a fixed batch is calibrated on the examples alone, not on what fills its last batch up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fewbits.datasets import open_dataset
from fewbits.flow import observe
from fewbits.models.onnx.model import OnnxModel
from fewbits.models.onnx.opening import open_model


def _model(path: Path, batch: object) -> OnnxModel:
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="g"), helper.make_node("Relu", ["h"], ["y"], name="r")],
        "n",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5])],
        [
            numpy_helper.from_array(rng.standard_normal((6, 5)).astype(np.float32), "w"),
            numpy_helper.from_array(rng.standard_normal(5).astype(np.float32), "b"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return open_model(str(path))


@pytest.mark.parametrize("count", [1, 7, 8, 10, 16])
@pytest.mark.parametrize("jobs", [1, 3])
def test_a_fixed_batch_counts_each_example_once(tmp_path: Path, count: int, jobs: int) -> None:
    # Positive inputs: what fills a batch up would show as zeros, or as copies.
    x = np.random.default_rng(1).integers(1, 9, (count, 6)).astype(np.float32)
    data = open_dataset({"x": x})
    model = _model(tmp_path / "fixed.onnx", 8)
    found = observe(model, data, np.arange(count), ("x", "h", "y"), jobs=jobs)
    assert found.examples == count
    totals = {name: histogram.total for name, histogram in found.histograms.items()}
    assert totals == {"x": count * 6, "h": count * 5, "y": count * 5}
    free = observe(_model(tmp_path / "free.onnx", "batch"), data, np.arange(count), ("x",), jobs=jobs)
    assert found.histograms["x"].same(free.histograms["x"])
