"""Tables of rows beside integer layers: held as codes where the budget bears it, given back to float where not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import fewbits

pytestmark = pytest.mark.usefixtures("hurried")
WORDS, WIDTH, CLASSES = 2048, 32, 8


def model(net: Callable[..., Any], path: Path, *, spread: float) -> tuple[Path, dict[str, np.ndarray]]:
    """Writes a classifier of single words, and examples; one column of its table is so many times as large as the rest.

    Codes of a row have one scale: the large column leaves the others nothing. The layer behind takes no note of it.
    """
    rng = np.random.default_rng(0)
    table = rng.standard_normal((WORDS, WIDTH)).astype(np.float32)
    weight = rng.standard_normal((WIDTH, CLASSES)).astype(np.float32)
    table[:, 0] *= spread
    weight[0] = 0
    n = net()
    ids = n.input(("N", 1), "ids", onnx.TensorProto.INT64)
    h = n.op("Reshape", n.op("Gather", n.const(table, "table"), ids), n.ints(-1, WIDTH))
    n.output(n.op("MatMul", h, n.const(weight, "head"), out="logits"))
    words = rng.integers(0, WORDS, (1400, 1))
    logits = table[words[:, 0]] @ weight
    ends = np.sort(logits, axis=1)
    clear = ends[:, -1] - ends[:, -2] > 2.0
    return Path(n.save(path)), {"ids": words[clear], "labels": logits[clear].argmax(axis=1)}


def search(path: Path, data: dict[str, np.ndarray]) -> Any:
    return fewbits.quantize(path, data=data, max_drop=0.03, effort="fast", allow_slower=True)


def test_a_table_that_bears_it_is_held_as_codes(net: Callable[..., Any], tmp_path: Path) -> None:
    result = search(*model(net, tmp_path, spread=1.0))
    assert result.verdict == "met"
    assert "table" in {d.site for d in result.plan.quantized if d.stored}


def test_a_table_that_codes_ruin_goes_back_to_float(net: Callable[..., Any], tmp_path: Path) -> None:
    path, data = model(net, tmp_path, spread=1e5)
    forced = fewbits.quantize(path, data=data, scheme="w8a8", max_drop=0.03, allow_slower=True)
    assert forced.verdict == "not met", "codes do not ruin the table; the test shows nothing"
    result = search(path, data)
    assert result.verdict == "met", result.report.headline
    assert "table" not in {d.site for d in result.plan.quantized if d.scheme is not None and d.scheme.scaled}
