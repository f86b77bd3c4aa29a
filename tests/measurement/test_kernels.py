"""The kernels of ``fewbits doctor``: all forms compute one function, run as they should, and are timed rightly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fewbits._base.errors import ModelError, UsageError
from fewbits.measurement.kernels import LAYERS, Form, Layer, build, feeds_of, measure_kernels
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import ExecutedNode, Numbers, Options, Runtime, Session

SMALL = {
    "conv": replace(LAYERS[0], data=(1, 8, 9, 9), weight=(8, 8, 3, 3), depth=1),
    "depthwise": replace(LAYERS[1], data=(1, 8, 9, 9), weight=(8, 1, 3, 3), group=8, depth=1),
    "gemm": replace(LAYERS[2], data=(3, 64), weight=(64, 64), depth=1),
    "add": replace(LAYERS[4], data=(1, 8, 9, 9), weight=(1, 8, 9, 9), depth=1, forms=(Form.STATIC, Form.ALONE)),
}
CASES = [(name, form) for name, layer in SMALL.items() for form in layer.forms]


def run(layer: Layer, form: Form) -> np.ndarray:
    session = RUNTIMES["ort"].open(build(layer, form, signed=False), Options())
    (found,) = session.run(feeds_of(layer, form, signed=False)).values()
    if form is Form.STATIC:
        return (found.astype(np.float32) - 128) * (4 / 128)
    return np.asarray(found, np.float32)


@pytest.mark.parametrize(("name", "form"), CASES, ids=lambda value: str(value))
def test_every_form_computes_the_float_function_but_for_rounding(name: str, form: Form) -> None:
    wanted, found = run(SMALL[name], Form.FLOAT), run(SMALL[name], form)
    # A step of 8 bits is 4/128 of the deviation, its noise 0.01; three of them (input, weight, output) make 35 dB. What
    # lies beyond 4 deviations is cut off, as it should be, and left out here. 4 bits in blocks of 32 have a step of
    # about 2.2/7 of the weights' deviation: noise 0.09, 21 dB.
    least = 19 if form in (Form.WEIGHTS_4, Form.WEIGHTS_4_ROUNDED) else 32
    inside = np.abs(wanted) < 3.9
    assert inside.mean() > 0.98
    noise = float(np.mean((wanted - found)[inside] ** 2))
    assert 10 * np.log10(float(np.mean(wanted[inside] ** 2)) / max(noise, 1e-20)) > least


@pytest.mark.parametrize("form", LAYERS[2].forms)
def test_no_two_layers_of_a_chain_have_equal_weights(form: Form) -> None:
    chain = onnx.load_model_from_string(build(replace(SMALL["gemm"], depth=4), form, signed=False))
    weights = [
        numpy_helper.to_array(t).tobytes() for t in chain.graph.initializer if numpy_helper.to_array(t).size > 1000
    ]
    assert len(weights) == len(set(weights)) == 4, "the runtime keeps equal ones once, and they are read from the cache"


@pytest.fixture(scope="module")
def timed() -> dict[tuple[str, Form], Any]:
    layers = [replace(layer, key=name) for name, layer in SMALL.items()]
    rows = measure_kernels(RUNTIMES["ort"], seconds=0.01, signed=False, layers=layers)
    return {(row.layer, row.form): row for row in rows}


@pytest.mark.parametrize(
    ("name", "form", "kernel"),
    [
        ("conv", Form.FLOAT, "Conv"),
        ("conv", Form.STATIC, "QLinearConv"),
        ("conv", Form.DYNAMIC, "ConvInteger"),
        ("depthwise", Form.STATIC, "QLinearConv"),
        ("gemm", Form.STATIC, "QGemm"),
        ("gemm", Form.DYNAMIC, "DynamicQuantizeMatMul"),
        ("gemm", Form.WEIGHTS_4, "MatMulNBits"),
        ("gemm", Form.WEIGHTS_8_ROUNDED, "MatMulNBits"),
        ("add", Form.STATIC, "QLinearAdd"),
        ("add", Form.ALONE, "QLinearAdd"),
    ],
)
def test_each_form_runs_as_the_kernel_it_stands_for(timed: Any, name: str, form: Form, kernel: str) -> None:
    assert kernel in {op.rpartition(".")[2] for op in timed[name, form].runs_as}


def test_every_row_has_a_time_and_all_but_float_a_ratio_with_its_interval(timed: Any) -> None:
    assert len(timed) == len(CASES) + len(SMALL)
    for (_, form), row in timed.items():
        assert row.refused == ""
        assert row.ms is not None and row.ms > 0
        if form is Form.FLOAT:
            assert (row.speedup, row.float_ms) == (None, row.ms)
        else:
            assert 0 < row.speedup.low <= row.speedup.ratio <= row.speedup.high


class _Session(Session):
    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def run(self, feeds: Any) -> dict[str, np.ndarray]:
        self.call()
        return {}


class _Fake(Runtime):
    """A runtime in which each chain takes as long as is said, by a clock of its own, or is refused."""

    name = "fake 1.0"

    def __init__(self, took: dict[bytes, int | str]) -> None:
        self.took, self.now = took, 0

    def _spend(self, nanoseconds: int) -> None:
        self.now += nanoseconds

    def describe(self, options: Options) -> dict[str, str]:
        return {}

    def open(self, model: bytes | Path, options: Options) -> Session:
        assert isinstance(model, bytes)
        assert options.threads == 1
        took = self.took[model]
        if isinstance(took, str):
            raise ModelError(took, slug="runtime-refuses")
        return _Session(lambda: self._spend(took))

    def executed(self, model: Path, options: Options, feeds: Any, *, runs: int = 4) -> tuple[ExecutedNode, ...]:
        kinds = (("Quantize", Numbers.CONVERSION), ("Kernel", Numbers.INTEGER), ("Move", Numbers.MOVES))
        return tuple(
            ExecutedNode(name=op, op=op, numbers=numbers, inputs=(), outputs=(), microseconds=1.0)
            for op, numbers in (*kinds, *kinds)
        )


def fake(layer: Layer, **took: int | str) -> Any:
    forms = (Form.FLOAT, *layer.forms)
    runtime = _Fake({build(layer, form, signed=True): took[form.name] for form in forms})
    rows = measure_kernels(runtime, seconds=1.0, signed=True, layers=[layer], clock=lambda: runtime.now)
    return {row.form: row for row in rows}


def test_a_time_is_of_one_layer_and_the_ratio_is_over_float() -> None:
    layer = replace(SMALL["gemm"], depth=4, forms=(Form.STATIC, Form.HALF))
    rows = fake(layer, FLOAT=8_000_000, STATIC=2_000_000, HALF=16_000_000)
    assert [rows[form].ms for form in (Form.FLOAT, *layer.forms)] == [2.0, 0.5, 4.0]
    assert [rows[form].float_ms for form in layer.forms] == [2.0, 2.0]
    assert [rows[form].speedup.ratio for form in layer.forms] == [4.0, 0.5]
    assert rows[Form.STATIC].runs_as == ("Kernel",), "conversions and moves are no kernels, and each stands once"


def test_a_refused_form_says_why_and_the_others_are_timed() -> None:
    layer = replace(SMALL["gemm"], forms=(Form.STATIC, Form.WEIGHTS_4))
    rows = fake(layer, FLOAT=8_000_000, STATIC=2_000_000, WEIGHTS_4="no such operator")
    assert (rows[Form.WEIGHTS_4].refused, rows[Form.WEIGHTS_4].ms) == ("no such operator", None)
    assert rows[Form.STATIC].speedup.ratio == 4.0


def test_without_float_nothing_is_timed_and_every_row_says_so() -> None:
    layer = replace(SMALL["gemm"], forms=(Form.STATIC,))
    rows = fake(layer, FLOAT="broken", STATIC=2_000_000)
    assert rows[Form.FLOAT].refused == "broken"
    assert "float was refused: broken" in rows[Form.STATIC].refused
    assert rows[Form.STATIC].ms is None


def test_no_time_is_no_measurement() -> None:
    with pytest.raises(UsageError, match="latency-request"):
        measure_kernels(RUNTIMES["ort"], seconds=0.0, signed=False, layers=[SMALL["add"]])
