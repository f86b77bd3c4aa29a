"""How examples become what a model takes: batches, fixed batches, and inputs without an axis for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from fewbits._base.errors import ModelError
from fewbits.datasets import open_dataset
from fewbits.models.onnx.feeding import expected, fed_by, fixed_batch, model_batches, real_rows, rows_fed
from fewbits.models.onnx.model import OnnxModel
from fewbits.models.onnx.opening import open_model
from fewbits.runtimes.base import Options
from fewbits.runtimes.ort import RUNTIME


def fed(model: OnnxModel, arrays: dict[str, np.ndarray]) -> tuple[OnnxModel, list[dict[str, np.ndarray]]]:
    """Runs a model over all examples and returns the rows of each batch."""
    data = open_dataset(arrays)
    model = fed_by(model, data)
    session = RUNTIME.open(model.original, Options())
    count = len(next(iter(arrays.values())))
    batches = model_batches(model, data, np.arange(count))
    return model, [real_rows(model, session.run(feeds), len(batch.index)) for feeds, batch in batches]


def test_an_input_without_a_batch_axis_takes_one_example_at_a_time(net: Any, tmp_path: Path) -> None:
    n = net()
    x = n.input((6, 16))
    n.output(n.gemm(x, 16, 8), shape=(6, 8))
    model, rows = fed(open_model(n.save(tmp_path)), {"x": np.ones((5, 6, 16), np.float32)})
    assert model.single == {"x"}
    assert [row[model.view.outputs[0]].shape for row in rows] == [(1, 6, 8)] * 5


def test_the_same_model_with_data_of_its_own_rank_is_a_fixed_batch(net: Any, tmp_path: Path) -> None:
    n = net()
    x = n.input((6, 16))
    n.output(n.gemm(x, 16, 8), shape=(6, 8))
    model, rows = fed(open_model(n.save(tmp_path)), {"x": np.ones((8, 16), np.float32)})
    assert model.single == frozenset()
    assert [row[model.view.outputs[0]].shape for row in rows] == [(6, 8), (2, 8)]


def test_a_number_beside_a_batch_is_fed_singly_and_the_batch_with_one_row(net: Any, tmp_path: Path) -> None:
    n = net()
    x, gain = n.input(("N", 16)), n.input((), "gain")
    n.output(n.op("Mul", n.gemm(x, 16, 8), gain), shape=("N", 8))
    arrays = {"x": np.ones((4, 16), np.float32), "gain": np.arange(4, dtype=np.float32)}
    model, rows = fed(open_model(n.save(tmp_path)), arrays)
    assert model.single == {"gain"}
    out = np.concatenate([row[model.view.outputs[0]] for row in rows])
    assert out.shape == (4, 8)
    np.testing.assert_allclose(out, np.arange(4)[:, None] * out[1:2], rtol=1e-6)
    assert expected(model)["gain"] == (np.dtype(np.float32), (None,))
    assert rows_fed(model, {"gain": np.float32(0), "x": np.ones((1, 16))}) == 1


def test_inputs_that_disagree_on_the_batch_are_refused(net: Any, tmp_path: Path) -> None:
    n = net()
    x, y = n.input((2, 16)), n.input((3, 16), "y", TensorProto.FLOAT)
    n.output(n.op("Concat", x, y, axis=0), shape=(5, 16))
    with pytest.raises(ModelError, match="batch-axes"):
        fixed_batch(open_model(n.save(tmp_path)))
