"""``fp16`` and ``bf16``: weights as 16-bit floats behind a Cast, everything else as it was."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

import fewbits
from fewbits._base.errors import TargetError
from fewbits.algorithms.half_weights import beyond_half, lost_in_half
from fewbits.measurement import benchmark
from fewbits.models.onnx import opening
from fewbits.numerics import oracle
from fewbits.numerics.formats import FORMATS
from fewbits.planning.plan import plan_from_json
from fewbits.runtimes.base import Options
from fewbits.runtimes.ort import RUNTIME
from fewbits.search import preparing

KINDS = ("fp16", "bf16")
TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the latency measurement short, and leaves out the one of memory: nothing here is about either."""
    monkeypatch.setitem(preparing._LATENCY_SECONDS, "balanced", 0.05)
    monkeypatch.setattr(benchmark, "peak_bytes", lambda *anything: None)


@pytest.fixture
def path(net: Any, tmp_path: Path) -> Path:
    """A table, products, a recurrent layer, a fixed operand of a sum: weights of whatever operator."""
    n = net()
    ids = n.input(("N", 12), "ids", TensorProto.INT64)
    h = n.op("Gather", n.weight(64, 40, fan_in=1, name="table"), ids)
    h = n.op("Add", h, n.weight(12, 40, fan_in=1, name="places"))
    h = n.relu(n.matmul(h, 40, 32))
    turned = n.op("Transpose", h, perm=[1, 0, 2])
    weights = n.weight(1, 4 * 16, 32, fan_in=32, name="lstm_w"), n.weight(1, 4 * 16, 16, fan_in=16, name="lstm_r")
    _, last = n.ops("LSTM", turned, *weights, outputs=2, hidden_size=16)
    n.output(n.gemm(n.op("Reshape", last, n.ints(-1, 16)), 16, 24))
    return n.save(tmp_path)


@pytest.fixture
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 64, (400, 12))


def quantized(path: Path, scheme: str, **more: Any) -> fewbits.api.Result:
    return fewbits.quantize(path, scheme=scheme, allow_slower=True, **more)


def stored_bits_of(data: bytes, kind: str) -> dict[str, np.ndarray]:
    """Returns the bit patterns of the file's 16-bit floats, read from their raw bytes, by the weight's name."""
    found = {}
    for tensor in onnx.load_from_string(data).graph.initializer:
        if tensor.data_type == TYPES[kind]:
            bits = np.frombuffer(tensor.raw_data, "<u2").reshape(tuple(tensor.dims))
            found[tensor.name.removesuffix(f"_{kind}")] = bits
    return found


def rewrite(path: Path, name: str, change: Any) -> None:
    """Changes the values of one tensor of a file."""
    proto = onnx.load(path)
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))
    onnx.save(proto, path)


@pytest.mark.parametrize("kind", KINDS)
def test_each_weight_lies_in_the_file_as_the_oracle_rounds_it(path: Path, kind: str) -> None:
    held = stored_bits_of(quantized(path, kind).model_bytes, kind)
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    assert {"table", "places", "lstm_w", "lstm_r"} < set(held)
    large = {n for n, w in weights.items() if w.dtype == np.float32 and w.size >= 256}
    assert set(held) == large
    for name, bits in held.items():
        some = np.random.default_rng(0).choice(bits.size, 200)
        wanted = [oracle.encode(float(v), FORMATS[kind]) for v in weights[name].reshape(-1)[some]]
        assert bits.reshape(-1)[some].tolist() == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_the_runtime_computes_to_the_bit_as_the_float_model_of_the_rounded_weights(
    path: Path, ids: np.ndarray, kind: str
) -> None:
    data = quantized(path, kind).model_bytes
    proto = onnx.load(path)
    held = stored_bits_of(data, kind)
    for tensor in proto.graph.initializer:
        if tensor.name in held:
            back = np.asarray(FORMATS[kind].decode(held[tensor.name]), np.float32)
            tensor.CopyFrom(numpy_helper.from_array(back, tensor.name))
    for optimize in (True, False):
        options = Options(optimize=optimize)
        expected = RUNTIME.open(proto.SerializeToString(), options).run({"ids": ids[:5]})
        got = RUNTIME.open(data, options).run({"ids": ids[:5]})
        for name, value in expected.items():
            np.testing.assert_array_equal(got[name], value)


@pytest.mark.parametrize("kind", KINDS)
def test_no_cast_is_left_in_the_session(path: Path, ids: np.ndarray, kind: str) -> None:
    made = path.with_name("made.onnx")
    made.write_bytes(quantized(path, kind).model_bytes)

    def ops(file: Path) -> Counter[str]:
        return Counter(node.op for node in RUNTIME.executed(file, Options(), {"ids": ids[:1]}))

    assert ops(made) == ops(path)


def test_the_file_is_half_as_large_and_its_answers_are_floats_to_three_digits(
    net: Any, tmp_path: Path, ids: np.ndarray
) -> None:
    n = net()
    h = n.op("Gather", n.weight(4096, 128, fan_in=1, name="table"), n.input(("N", 12), "ids", TensorProto.INT64))
    n.output(n.matmul(n.relu(n.matmul(h, 128, 128)), 128, 32))
    path = n.save(tmp_path)
    report = quantized(path, "fp16", data={"ids": ids}).report
    assert report.size.ratio == pytest.approx(2, abs=0.01)
    assert report.metric.examples == 400 and report.metric.quality.agreement == 1
    # Rounding to 11 bits twice in a row: about 2**-12 of the signal, 70 dB.
    assert report.metric.quality.sqnr_db > 60


def test_halves_that_came_in_go_out_as_they_were(net: Any, tmp_path: Path) -> None:
    n = net()
    n.output(n.gemm(n.input(("N", 32)), 32, 32))
    proto = onnx.load(n.save(tmp_path))
    halves = {}
    for tensor in proto.graph.initializer:
        halves[tensor.name] = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(halves[tensor.name], tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(proto, tmp_path / "half.onnx")
    held = stored_bits_of(quantized(tmp_path / "half.onnx", "fp16").model_bytes, "fp16")
    assert held
    for name, bits in held.items():
        np.testing.assert_array_equal(bits, halves[name].view(np.uint16))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_large_table_are_cast_as_they_are_picked(
    net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from fewbits.export import onnx_qdq
    from fewbits.targets import _stored

    n = net()
    places = n.input(("N", 5), "ids", TensorProto.INT64)
    n.output(
        n.op("Gather", n.weight(64, 40, name="table"), places), n.op("Gather", n.weight(8, 40, name="few"), places)
    )
    path = n.save(tmp_path)
    ids = np.random.default_rng(0).integers(0, 8, (3, 5))
    whole = quantized(path, kind)
    for module in (_stored, onnx_qdq):
        monkeypatch.setattr(module, "LARGE_TABLE", 64 * 40)
    result = quantized(path, kind)
    reasons = {name: d.reason for name, d in result.plan.by_site().items()}
    assert "as they are picked" in reasons["table"] and "is loaded" in reasons["few"]
    proto = onnx.load_from_string(result.model_bytes)
    onnx.checker.check_model(proto, full_check=True)
    read = {node.input[0] for node in proto.graph.node if node.op_type == "Gather"}
    assert f"table_{kind}" in read and f"few_{kind}" not in read
    for optimize in (True, False):
        sessions = [RUNTIME.open(made.model_bytes, Options(optimize=optimize)) for made in (whole, result)]
        expected, got = (session.run({"ids": ids}) for session in sessions)
        assert len(expected) == 2
        for name, value in expected.items():
            np.testing.assert_array_equal(got[name], value)


@pytest.mark.parametrize("largest", [65504.0, 65505.0, 1e30])
def test_a_weight_beyond_the_largest_half_stays_float32_and_says_so(path: Path, largest: float) -> None:
    def grown(values: np.ndarray) -> np.ndarray:
        values[0, 0] = -largest
        return values

    rewrite(path, "places", grown)
    plan = quantized(path, "fp16").plan
    decision = plan.by_site()["places"]
    assert decision.is_float == (largest > 65504)
    assert not plan.by_site()["table"].is_float
    if decision.is_float:
        assert decision.reason == "float32, not fp16: 1 of its 480 values lie beyond 65504, the largest of fp16"
    assert not quantized(path, "bf16").plan.by_site()["places"].is_float


def test_a_weight_of_tiny_values_stays_float32_in_fp16_and_not_in_bf16(path: Path) -> None:
    rewrite(path, "table", lambda values: (values * np.float32(1e-6)).astype(np.float32))
    decision = quantized(path, "fp16").plan.by_site()["table"]
    assert decision.is_float and "so small that fp16 loses" in decision.reason
    assert not quantized(path, "bf16").plan.by_site()["table"].is_float


def test_where_no_weight_fits_the_refusal_names_the_next_scheme(net: Any, tmp_path: Path) -> None:
    n = net()
    x = n.input(("N", 32))
    n.output(n.op("MatMul", x, n.const(np.full((32, 32), 1e6, np.float32), name="huge")))
    path = n.save(tmp_path)
    with pytest.raises(TargetError, match=r"'huge'.* the nearest scheme is 'bf16' \[half-out-of-range\]"):
        quantized(path, "fp16")
    with pytest.raises(TargetError, match="half-out-of-range"):
        fewbits.plan(path, scheme="fp16")


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_is_read_and_replayed_to_the_byte_and_an_edited_one_is_checked(path: Path, kind: str) -> None:
    result = quantized(path, kind)
    plan = plan_from_json(result.plan.to_json())
    assert plan == result.plan
    assert fewbits.quantize(path, plan=plan, allow_slower=True).model_bytes == result.model_bytes
    rows = json.loads(result.plan.to_json())
    assert {row["scheme"] for row in rows["sites"]} == {f"{kind} per-tensor symmetric, unscaled"}
    mixed = json.loads(result.plan.to_json())
    other = next(k for k in KINDS if k != kind)
    mixed["sites"][0]["scheme"] = mixed["sites"][0]["scheme"].replace(kind, other)
    mixed["sites"][1]["scheme"] = "float"
    data = fewbits.quantize(path, plan=plan_from_json(json.dumps(mixed)), allow_slower=True).model_bytes
    assert len(stored_bits_of(data, other)) == 1
    assert len(stored_bits_of(data, kind)) == len(rows["sites"]) - 2
    rows["sites"][0]["scheme"] = rows["sites"][0]["scheme"].replace(kind, "fp8_e4m3")
    with pytest.raises(TargetError, match=r"without scales it stores fp16 and bf16.*format-not-legal"):
        fewbits.quantize(path, plan=plan_from_json(json.dumps(rows)), allow_slower=True)


def test_a_plan_that_would_saturate_is_refused(path: Path) -> None:
    text = quantized(path, "fp16").plan.to_json()
    rewrite(path, "table", lambda values: (values * np.float32(1e6)).astype(np.float32))
    with pytest.raises(TargetError, match=r"'table'.*lie beyond 65504.*half-out-of-range"):
        fewbits.quantize(path, plan=plan_from_json(text), allow_slower=True)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_do_not_depend_on_where_the_weights_lie(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    inside = quantized(path, kind).model_bytes
    onnx.save_model(
        onnx.load(path), tmp_path / "apart.onnx", save_as_external_data=True, location="apart.bin", size_threshold=0
    )
    monkeypatch.setattr(opening, "_LAZY_BYTES", 0)
    from fewbits.models.onnx import weights

    monkeypatch.setattr(weights, "_SLAB_BYTES", 1000)
    quantized(tmp_path / "apart.onnx", kind).save(tmp_path / "out")
    outside = onnx.load(tmp_path / "out" / "model.onnx")
    held = stored_bits_of(inside, kind)
    assert held
    for name, bits in stored_bits_of(outside.SerializeToString(), kind).items():
        np.testing.assert_array_equal(bits, held[name])
    assert fewbits.verify(tmp_path / "out").golden_equal


def test_a_weight_that_a_body_reads_from_outside_is_cast_for_it_too(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    made = helper.make_tensor_value_info("made", TensorProto.FLOAT, ["N", 32])
    one = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["made"], name="one")], "one", [], [made])
    made = helper.make_tensor_value_info("kept", TensorProto.FLOAT, ["N", 32])
    two = helper.make_graph([helper.make_node("Identity", ["x"], ["kept"], name="two")], "two", [], [made])
    graph = helper.make_graph(
        [helper.make_node("If", ["yes"], ["y"], name="choose", then_branch=one, else_branch=two)],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 32]),
            helper.make_tensor_value_info("yes", TensorProto.BOOL, [1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "if.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    data = quantized(path, "fp16").model_bytes
    x = np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)
    for optimize in (True, False):
        session = RUNTIME.open(data, Options(optimize=optimize))
        got = session.run({"x": x, "yes": np.array([True])})["y"]
        # Sums of 32 products of up to 10: float32 in any order.
        np.testing.assert_allclose(got, x @ weight.astype(np.float16).astype(np.float32), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(session.run({"x": x, "yes": np.array([False])})["y"], x)


VALUES = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e6, 1e6, width=32))


@given(VALUES)
def test_what_a_format_reaches_is_what_does_not_saturate(values: np.ndarray) -> None:
    fmt = FORMATS["fp16"]
    inside = [v for v in values if abs(float(v)) <= 65504]
    assert (beyond_half([values], fmt) is None) == (len(inside) == len(values))
    assert beyond_half([values], FORMATS["bf16"]) is None
    with np.errstate(over="ignore"):
        assert beyond_half([values], fmt) is not None or np.all(np.isfinite(values.astype(np.float16)))


@given(VALUES.map(lambda v: np.where(np.abs(v) > 65000, np.float32(1), v)), st.integers(0, 30))
def test_fp16_is_refused_exactly_where_bf16_errs_less(values: np.ndarray, shift: int) -> None:
    values = values * np.float32(2.0**-shift)
    bits = values.view(np.uint32).astype(np.uint64)
    up = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
    errors = [((v.astype(np.float64) - values) ** 2).sum() for v in (values.astype(np.float16), up)]
    assert (lost_in_half([values], FORMATS["fp16"]) is None) == (errors[0] <= errors[1])
    assert lost_in_half([values], FORMATS["bf16"]) is None
    assert lost_in_half(np.split(values, len(values)), FORMATS["bf16"]) is None


def test_openvino_runs_them_as_it_runs_the_float_model(path: Path, ids: np.ndarray) -> None:
    pytest.importorskip("openvino", reason="openvino is an extra")
    from fewbits.runtimes.openvino import RUNTIME as OPENVINO

    made = path.with_name("made.onnx")
    result = quantized(path, "fp16", target="openvino:vnni")
    made.write_bytes(result.model_bytes)
    assert stored_bits_of(result.model_bytes, "fp16").keys() == {d.site for d in result.plan.quantized}
    options = Options(runtime="openvino", precision="f32")

    def kernels(file: Path) -> Counter[str]:
        found = Counter(node.op for node in OPENVINO.executed(file, options, {"ids": ids[:1]}))
        return Counter({op: found[op] for op in ("FullyConnected", "RNNSeq")})

    assert kernels(made) == kernels(path) and all(kernels(path).values())
    expected = OPENVINO.open(path, options).run({"ids": ids[:5]})
    got = OPENVINO.open(made, options).run({"ids": ids[:5]})
    for name, value in expected.items():
        noise = np.square(got[name] - value, dtype=np.float64).sum() / np.square(value, dtype=np.float64).sum()
        assert noise < 1e-5  # 50 dB: weights rounded to 11 bits leave 70, and the layers behind them may add up


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_read_along_two_axes_is_held_once(net: Any, tmp_path: Path, kind: str) -> None:
    n = net()
    x = n.input(("N", 32))
    weight = n.weight(32, 32, name="w")
    n.output(n.op("Gemm", n.op("Gemm", x, weight), weight, transB=1))
    result = quantized(n.save(tmp_path), kind)
    held = onnx.load_from_string(result.model_bytes).graph.initializer
    assert [(tensor.data_type, len(tensor.raw_data)) for tensor in held] == [(TYPES[kind], 32 * 32 * 2)]


def test_a_plan_of_halves_is_replayed_where_no_other_codes_could_be_stored(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((24, 32)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["w", "x"], ["y"])],
        "left",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [32, "n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [24, "n"])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "left.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    first = quantized(path, "fp16")
    again = fewbits.quantize(path, plan=first.plan, allow_slower=True)
    assert len(first.plan.quantized) == 1
    assert again.model_bytes == first.model_bytes
    floats = replace(
        first.plan, decisions=tuple(replace(d, scheme=None, stored=False, rounder=None) for d in first.plan.decisions)
    )
    assert fewbits.quantize(path, plan=floats).model_bytes == path.read_bytes()
