"""OpenVINO's sessions, its refusals, and the reading of what it executes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fewbits._base.errors import ModelError, ResourceError, UsageError
from fewbits.measurement.golden import make_golden, replay_golden
from fewbits.measurement.memory import peak_bytes
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Numbers, Options
from fewbits.runtimes.openvino import RUNTIME

pytest.importorskip("openvino", reason="openvino is an extra: pip install fewbits[openvino]")

OPTIONS = Options(runtime="openvino")


@pytest.fixture
def saved(net: Any, tmp_path: Path) -> Path:
    n = net()
    x = n.input(("N", 16, 8, 8))
    a = n.relu(n.conv(x, 16, 16, name="first"))
    n.output(n.gemm(n.op("Flatten", n.op("GlobalAveragePool", a)), 16, 8), a)
    return n.save(tmp_path)


def examples(count: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((count, 16, 8, 8)).astype(np.float32)}


def test_the_catalog_knows_it() -> None:
    assert RUNTIMES["openvino"] is RUNTIME
    assert RUNTIME.name.startswith("openvino 20")


def test_outputs_are_those_of_onnxruntime_by_name_for_any_number_of_rows(saved: Path) -> None:
    session = RUNTIME.open(saved, OPTIONS)
    for count in (4, 1, 3, 5, 4):  # more shapes than are kept
        wanted = RUNTIMES["ort"].open(saved, Options()).run(examples(count))
        found = session.run(examples(count))
        assert list(found) == list(wanted)
        for name, value in wanted.items():
            # 144 products and 64 means in another order: 208 * 2**-24 = 1.2e-5 of magnitudes of order 1.
            np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-5)


def test_one_session_answers_the_same_bits_again(saved: Path) -> None:
    first = RUNTIME.open(saved, OPTIONS).run(examples(4))
    second = RUNTIME.open(saved.read_bytes(), OPTIONS).run(examples(4))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_outputs_stay_when_the_session_runs_again(saved: Path) -> None:
    session = RUNTIME.open(saved, OPTIONS)
    first = session.run(examples(2))
    before = {name: value.copy() for name, value in first.items()}
    session.run({"x": np.zeros((2, 16, 8, 8), np.float32)})
    assert all(np.array_equal(first[name], before[name]) for name in first)


def test_bfloat16_is_another_answer_and_is_told(saved: Path) -> None:
    options = Options(runtime="openvino", precision="bf16")
    exact, rounded = (RUNTIME.open(saved, o).run(examples(4)) for o in (OPTIONS, options))
    name = next(iter(exact))
    error = np.abs(exact[name] - rounded[name]).max() / np.abs(exact[name]).max()
    # 8 bits of mantissa: a relative step of 2**-8, on sums of hundreds of terms.
    assert 0 < error < 0.05
    assert RUNTIME.describe(options)["inference_precision_hint"] == "bf16"
    assert RUNTIME.describe(OPTIONS)["inference_precision_hint"] == "f32"


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x07"])
def test_what_is_no_model_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(ModelError) as caught:
        RUNTIME.open(data, OPTIONS)
    assert caught.value.slug == "runtime-refuses"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("feeds", [{"x": np.zeros((4, 15, 8, 8), np.float32)}, {"y": np.zeros(1, np.float32)}])
def test_a_wrong_input_is_refused_in_one_line(feeds: dict[str, np.ndarray], saved: Path) -> None:
    with pytest.raises(ModelError) as caught:
        RUNTIME.open(saved, OPTIONS).run(feeds)
    assert caught.value.slug in ("runtime-refuses", "run-failed")
    assert "\n" not in str(caught.value)
    assert "Exception from" not in str(caught.value)


def test_a_run_beyond_its_seconds_is_ended(net: Any, tmp_path: Path) -> None:
    n = net()
    a = n.input((1, 64, 256, 256))
    for _ in range(8):
        a = n.conv(a, 64, 64)
    n.output(a)
    session = RUNTIME.open(n.save(tmp_path), Options(runtime="openvino", seconds=0.001))
    with pytest.raises(ResourceError) as caught:
        session.run({"x": np.zeros((1, 64, 256, 256), np.float32)})
    assert caught.value.slug == "model-too-slow"


def test_external_data_are_found_beside_bytes_and_beside_a_file_elsewhere(saved: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    onnx.save_model(
        onnx.load(saved), outside / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0
    )
    away = tmp_path / "away" / "m.onnx"
    away.parent.mkdir()
    away.write_bytes((outside / "m.onnx").read_bytes())
    wanted = RUNTIME.open(saved, OPTIONS).run(examples(2))
    options = Options(runtime="openvino", data_folder=outside)
    for model in (outside / "m.onnx", away, away.read_bytes()):
        found = RUNTIME.open(model, options).run(examples(2))
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_the_executed_graph_tells_numbers_shapes_times_and_names(saved: Path) -> None:
    nodes = RUNTIME.executed(saved, OPTIONS, examples(4))
    conv = next(node for node in nodes if node.op == "Convolution")
    assert "first" in conv.origins
    assert conv.numbers is Numbers.FLOAT
    assert conv.inputs[0] == ("float", (4, 16, 8, 8))
    assert conv.microseconds > 0
    assert all(node.op not in ("Const", "Input", "Output") for node in nodes)


def test_golden_outputs_know_their_runtime(saved: Path, tmp_path: Path) -> None:
    options = Options(runtime="openvino", precision="bf16")
    golden = make_golden(saved, examples(1), options, seed=0)
    replayed = replay_golden(saved, golden)
    assert replayed.equal and replayed.same_place


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell")
def test_peak_memory_is_that_of_this_runtime(saved: Path) -> None:
    found = peak_bytes(saved, OPTIONS, examples(1))
    assert found is not None and 0 < found < 500e6


def test_without_the_package_the_refusal_says_what_to_install(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError) as caught:
        RUNTIME.open(saved, OPTIONS)
    assert caught.value.slug == "extra-missing"
    assert "fewbits[openvino]" in str(caught.value)
