"""A file must answer an example alone as it does among others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewbits.measurement.benchmark import ModelFiles
from fewbits.models.onnx.opening import open_model
from fewbits.runtimes.base import Options
from fewbits.search.rows import rows_differ


@pytest.mark.parametrize("mixed", [True, False])
def test_a_model_whose_examples_touch_each_other_is_told(mixed: bool, net: Any, bench: Any, tmp_path: Path) -> None:
    n = net()
    y = n.gemm(n.input(("N", 16)), 16, 8)
    n.output(n.op("Sub", y, n.op("ReduceMean", y, axes=[0], keepdims=1)) if mixed else n.relu(y))
    path = n.save(tmp_path)
    model = open_model(path)
    data = bench.examples({"x": np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)})
    output = model.view.outputs[0]
    found = rows_differ(ModelFiles(model=path), model, data, np.arange(8), output=output, options=Options())
    assert (found is not None) is mixed
    if found is not None:
        assert "among 8" in found
