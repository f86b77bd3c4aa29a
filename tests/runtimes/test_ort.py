"""ONNX Runtime's sessions, its refusals, and the reading of what it executes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from fewbits._base.errors import ModelError
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import ExecutedNode, Numbers, Options
from fewbits.runtimes.ort import RUNTIME


@pytest.fixture
def saved(net: Any, tmp_path: Path) -> Path:
    n = net()
    x = n.input(("N", 16, 8, 8))
    a = n.relu(n.conv(x, 16, 16))
    n.output(n.gemm(n.op("Flatten", n.op("GlobalAveragePool", a)), 16, 8), a)
    return n.save(tmp_path)


@pytest.fixture
def feeds() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((4, 16, 8, 8)).astype(np.float32)}


def test_the_catalog_knows_it() -> None:
    assert RUNTIMES["ort"] is RUNTIME
    assert RUNTIME.name.startswith("onnxruntime ")


def test_outputs_come_by_name_and_any_options_agree(saved: Path, feeds: dict[str, np.ndarray]) -> None:
    runs = [RUNTIME.open(saved, Options(optimize=o, threads=t)).run(feeds) for o in (True, False) for t in (1, 2)]
    runs.append(RUNTIME.open(saved.read_bytes(), Options()).run(feeds))
    for run in runs:
        assert list(run) == list(runs[0])
        for name, value in run.items():
            # 144 products and 64 means in another order: 208 * 2**-24 = 1.2e-5 of magnitudes of order 1.
            np.testing.assert_allclose(value, runs[0][name], rtol=0, atol=2e-5)


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x07"])
def test_what_is_no_model_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(ModelError) as caught:
        RUNTIME.open(data, Options())
    assert caught.value.slug == "runtime-refuses"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(4, 15, 8, 8), (4, 16, 8)])
def test_a_wrong_input_is_refused_in_one_line(shape: tuple[int, ...], saved: Path) -> None:
    with pytest.raises(ModelError) as caught:
        RUNTIME.open(saved, Options()).run({"x": np.zeros(shape, np.float32)})
    assert caught.value.slug == "run-failed"
    assert "\n" not in str(caught.value)


def test_a_float_model_executes_in_floats(saved: Path, feeds: dict[str, np.ndarray]) -> None:
    nodes = RUNTIME.executed(saved, Options(), feeds)
    assert {node.numbers for node in nodes} <= {Numbers.FLOAT, Numbers.CONVERSION, Numbers.MOVES}
    assert [node.op for node in nodes if node.numbers is Numbers.FLOAT][-1] == "Gemm"
    assert all(node.microseconds >= 0 for node in nodes)


def test_an_integer_model_executes_in_integers_with_its_types(net: Any, bench: Any) -> None:
    n = net()
    x = n.input(("N", 16, 8, 8))
    n.output(n.conv(n.relu(n.conv(x, 16, 16)), 16, 16))
    convs = [node for node in bench.run(n).executed if node.op == "QLinearConv"]
    assert len(convs) == 2
    for node in convs:
        assert node.numbers is Numbers.INTEGER
        kinds = [kind for kind, _ in node.inputs]
        # x, its scale and zero point, w, its scales and zero points, y's scale and zero point, bias
        assert kinds == ["uint8", "float", "uint8", "int8", "float", "int8", "float", "uint8", "int32"] or kinds == [
            "uint8", "float", "uint8", "float", "int8", "float", "uint8", "int32",
        ]  # fmt: skip  # prepacked weights are not listed
        assert [kind for kind, _ in node.outputs] == ["uint8"]


def test_unoptimized_sessions_show_the_file_as_it_is(net: Any, bench: Any) -> None:
    n = net()
    x = n.input(("N", 16))
    n.output(n.gemm(x, 16, 8))
    case = bench.run(n)
    nodes = RUNTIME.executed(bench.folder / "quantized.onnx", Options(optimize=False), case.feeds)
    assert [node.op for node in nodes if node.numbers is Numbers.FLOAT] == ["Gemm"]
    assert sum(node.numbers is Numbers.CONVERSION for node in nodes) == 4


def test_shapes_and_indices_are_neutral(net: Any, tmp_path: Path) -> None:
    n = net()
    x = n.input(("N", "M"))
    n.output(n.op("Mul", n.op("Gather", n.op("Shape", n.relu(x)), n.ints(1)), n.ints(2)), dtype=TensorProto.INT64)
    nodes = {n.op: n for n in RUNTIME.executed(n.save(tmp_path), Options(), {"x": np.ones((2, 3), np.float32)})}
    assert nodes["Mul"].numbers is Numbers.NEUTRAL
    assert nodes["Gather"].numbers is Numbers.NEUTRAL


def test_profiling_leaves_no_file_behind(
    saved: Path, feeds: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    found: Callable[[], tuple[ExecutedNode, ...]] = lambda: RUNTIME.executed(saved, Options(), feeds)  # noqa: E731
    assert len(found()) == len(found())
    assert set(tmp_path.iterdir()) == before
