"""Weights alone in blocks of few bits: what the file holds, what the runtime makes of it, and how codes are chosen."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import fewbits
from fewbits._base.errors import TargetError, UsageError
from fewbits.measurement import benchmark
from fewbits.models.onnx import opening
from fewbits.numerics.granularity import PerChannel, PerGroup
from fewbits.planning.plan import plan_from_json
from fewbits.runtimes.base import Options
from fewbits.runtimes.ort import RUNTIME
from fewbits.search import blockwise, preparing

SCHEMES = ["w4a16", "w4a16-g16-asym", "w2a16-g64", "w2a16-g32-asym", "w8a16-g128", "w8a16-g32-asym"]
BLOCKS = ("MatMulNBits", "GatherBlockQuantized")


def network(net: Any) -> Any:
    """A table, products both ways round, with biases of two shapes, and what cannot be in blocks."""
    n = net()
    ids = n.input(("N", 12), "ids", TensorProto.INT64)
    h = n.op("Gather", n.weight(64, 40, fan_in=1, name="table"), ids)
    h = n.relu(n.matmul(h, 40, 32))
    turned = n.op("Transpose", h, perm=[1, 0, 2])
    weights = n.weight(1, 4 * 16, 32, fan_in=32, name="lstm_w"), n.weight(1, 4 * 16, 16, fan_in=16, name="lstm_r")
    _, last = n.ops("LSTM", turned, *weights, outputs=2, hidden_size=16)
    last = n.op("Reshape", last, n.ints(-1, 16))
    wide = n.op("Gemm", last, n.weight(48, 16, name="with_bias"), n.vector(48), name="fc", transB=1)
    row = n.const(np.linspace(-1, 1, 24).reshape(1, 24), name="row")
    shared = n.weight(48, 48, name="shared")
    both = n.op("Add", n.op("MatMul", wide, shared), n.op("MatMul", n.relu(wide), shared))
    scaled = n.op("Gemm", both, n.weight(48, 24, name="scaled"), name="half", alpha=0.5)
    n.output(n.op("Gemm", wide, n.weight(48, 24, name="with_row"), row, name="fc_row"), scaled)
    return n


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the latency measurement short, and leaves out the one of memory: nothing here is about either."""
    monkeypatch.setitem(preparing._LATENCY_SECONDS, "balanced", 0.05)
    monkeypatch.setattr(benchmark, "peak_bytes", lambda *anything: None)


@pytest.fixture
def path(net: Any, tmp_path: Path) -> Path:
    return network(net).save(tmp_path)


@pytest.fixture
def ids() -> np.ndarray:
    # Words of unequal frequency, so that inputs are correlated and their second moment says something.
    rng = np.random.default_rng(0)
    return np.minimum(rng.geometric(0.08, (160, 12)), 63)


def quantized(path: Path, scheme: str, **more: Any) -> fewbits.api.Result:
    return fewbits.quantize(path, scheme=scheme, allow_slower=True, **more)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def unpacked(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Returns codes of rows of bytes, the lowest bits first: a decoder of its own."""
    parts = [(packed >> (bits * i)) & ((1 << bits) - 1) for i in range(8 // bits)]
    return np.stack(parts, axis=-1).reshape(*packed.shape[:-1], -1)[..., :count].astype(np.int64)


def held_weights(data: bytes) -> dict[str, np.ndarray]:
    """Returns what the block operators' tensors stand for, [out, in] or [rows, columns], by the name of the weight."""
    model = onnx.load_from_string(data)
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type not in BLOCKS:
            continue
        attrs, names = attributes(node), list(node.input)
        bits, size = attrs["bits"], attrs["block_size"]
        codes, scales = (names[1], names[2]) if node.op_type == "MatMulNBits" else (names[0], names[2])
        zero = names[3] if len(names) > 3 and names[3] else None
        scale, packed = tensors[scales], tensors[codes]
        columns = attrs.get("K", packed.shape[-1] * 8 // bits)
        values = unpacked(packed, bits, size if packed.ndim == 3 else columns).reshape(len(packed), -1)[:, :columns]
        zeros = unpacked(tensors[zero], bits, scale.shape[1]) if zero else np.full(scale.shape, 1 << (bits - 1))
        spread = np.arange(columns) // size
        found[codes.removesuffix("_q")] = (values - zeros[:, spread]).astype(np.float32) * scale[:, spread]
    return found


def with_level(data: bytes, level: int) -> bytes:
    model = onnx.load_from_string(data)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = level
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_file_computes_as_the_values_that_its_codes_stand_for(path: Path, ids: np.ndarray, scheme: str) -> None:
    result = quantized(path, scheme)
    held = held_weights(result.model_bytes)
    assert {"table", "with_bias", "with_row"} < set(held) and len(held) == 4
    proto, decisions = onnx.load(path), result.plan.by_site()
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.name in held:
            axis = decisions[tensor.name].scheme.granularity.axis  # type: ignore[union-attr]
            back = held[tensor.name].T if axis == 0 else held[tensor.name]
            # Within the widest step: half of one for nearest codes, less where a part of the range is cut off.
            assert back.shape == values.shape and not np.array_equal(back, values)
        elif tensor.name in decisions:
            granularity = decisions[tensor.name].scheme.granularity  # type: ignore[union-attr]
            assert isinstance(granularity, PerChannel)
            other = tuple(i for i in range(values.ndim) if i != granularity.axis)
            scale = (np.abs(values).max(axis=other, keepdims=True) / np.float32(127)).astype(np.float32)
            back = np.clip(np.rint(values / scale), -128, 127) * scale
        else:
            continue
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(back, np.float32), tensor.name))
    plain, feeds = Options(optimize=False), {"ids": ids[:3]}
    expected = RUNTIME.open(proto.SerializeToString(), plain).run(feeds)
    # At level 1 the operator computes in float32: what is left is the order of its sums.
    got = RUNTIME.open(with_level(result.model_bytes, 1), plain).run(feeds)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_of_a_table_come_back_to_the_bit(net: Any, tmp_path: Path, scheme: str) -> None:
    n = net()
    wanted = n.input(("N", 5), "ids", TensorProto.INT64)
    n.output(n.op("Gather", n.weight(50, 36, name="table"), wanted, name="pick"))
    result = quantized(n.save(tmp_path), scheme)
    ids = np.random.default_rng(1).integers(-50, 50, (7, 5))
    for optimize in (False, True):
        got = RUNTIME.open(result.model_bytes, Options(optimize=optimize)).run({"ids": ids})
        assert np.array_equal(next(iter(got.values())), held_weights(result.model_bytes)["table"][ids])


def test_what_cannot_be_in_blocks_is_held_a_channel_and_says_why(path: Path) -> None:
    result = quantized(path, "w4a16-g32")
    decisions = result.plan.by_site()
    blocks = {name for name, d in decisions.items() if isinstance(d.scheme.granularity, PerGroup)}  # type: ignore[union-attr]
    assert {"table", "with_bias", "with_row"} < blocks and len(blocks) == 4
    why = {name: d.reason for name, d in decisions.items() if name not in blocks}
    assert "LSTM has no kernel for weights in blocks" in why["lstm_w"]
    assert "2 operators read it" in why["shared"]
    assert "alpha and beta are 1" in why["scaled"]
    assert all("int8 a channel, not int4" in reason for reason in why.values())
    found = fewbits.inspect(path, scheme="w4a16-g32")
    told = {node.op: node.why for node in found.nodes if node.op in ("LSTM", "Gather")}
    assert "LSTM has no kernel" in told["LSTM"] and "GatherBlockQuantized" in told["Gather"]


def test_a_table_whose_rows_are_no_whole_bytes_is_held_a_channel(net: Any, tmp_path: Path) -> None:
    n = net()
    ids = n.input(("N", 5), "ids", TensorProto.INT64)
    n.output(
        n.gemm(n.op("ReduceMean", n.op("Gather", n.weight(50, 33, name="table"), ids), axes=[1], keepdims=0), 33, 8)
    )
    result = quantized(n.save(tmp_path), "w4a16-g32")
    assert "a row is a multiple of 4 elements" in result.plan.by_site()["table"].reason


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_product_states_its_accuracy_level_and_so_do_plan_and_report(path: Path, scheme: str) -> None:
    result = quantized(path, scheme)
    nodes = [node for node in onnx.load_from_string(result.model_bytes).graph.node if node.op_type == "MatMulNBits"]
    assert len(nodes) == 3 and all(attributes(node)["accuracy_level"] == 4 for node in nodes)
    multiplied = [d for d in result.plan.quantized if d.op != "Gather" and isinstance(d.scheme.granularity, PerGroup)]  # type: ignore[union-attr]
    assert all("accuracy_level 4" in d.reason for d in multiplied)
    options = result.report.latency.session_options
    assert options is not None and options["accuracy_level"] == 4
    assert quantized(path, "w8a16").report.latency.session_options.get("accuracy_level") is None  # type: ignore[union-attr]


def test_the_report_counts_scales_and_names_the_kernels(path: Path) -> None:
    report = quantized(path, "w4a16-g32-asym").report
    layer = {row.site: row for row in report.layers}["table"]
    # 64 rows of 40: codes of 4 bits, two scales of 32 bits and two zero points of 4 bits a row.
    assert layer.bits_per_weight == (40 * 4 + 2 * 36) / 40
    assert layer.scale_bytes == 64 * 2 * 36 // 8
    assert report.executed.kernels is not None and report.executed.kernels["MatMulNBits"] >= 3
    assert report.executed.kernels["GatherBlockQuantized"] == 1
    assert report.headline.startswith("4 weights stored in 4 bits, 4 weights stored in 8 bits, ")


def test_the_size_of_a_block_that_nobody_named_is_told(path: Path) -> None:
    named, unnamed = quantized(path, "w4a16-g32"), quantized(path, "w4a16")
    assert "blocks of 32, since w4a16 names no size" in unnamed.plan.by_site()["table"].reason
    assert "names no size" not in named.plan.by_site()["table"].reason
    assert named.model_bytes == unnamed.model_bytes


def test_the_forecast_is_near_the_file(path: Path) -> None:
    for scheme in ("w4a16-g32", "w2a16-g16-asym"):
        said, came = fewbits.plan(path, scheme=scheme), quantized(path, scheme)
        # Names and attributes of the nodes are the rest: a small model has little else.
        assert abs(said.quantized_bytes - len(came.model_bytes)) < 4000
        assert {d.site for d in said.plan.quantized} == {d.site for d in came.plan.quantized}


@pytest.mark.parametrize(
    ("scheme", "near"),
    [
        ("w3a16-g32", "w4a16-g32"), ("w4a16-g8", "w4a16-g16"), ("w4a16-g100", "w4a16-g128"), ("w4a8", "w8a8"),
        ("w4a16-g32-scale-fp16", "w4a16-g32"), ("w4a16-channel", "w4a16-g32"), ("w16a16", "fp16"),
        ("w2a16-g512", "w2a16-g256"), ("mxfp4", None),
    ],
)  # fmt: skip
def test_a_scheme_that_no_operator_holds_is_refused_with_the_nearest(path: Path, scheme: str, near: str | None) -> None:
    with pytest.raises(TargetError, match="scheme-not-written") as caught:
        quantized(path, scheme)
    assert near is None or f"the nearest is {near!r}" in str(caught.value)


def test_where_nothing_can_be_in_blocks_node_and_operator_are_named(net: Any, tmp_path: Path) -> None:
    n = net()
    n.output(n.conv(n.input(("N", 8, 6, 6)), 8, 16))
    model = n.save(tmp_path)
    with pytest.raises(TargetError, match="nothing-in-blocks") as caught:
        quantized(model, "w4a16-g32")
    text = str(caught.value)
    assert "Conv 'conv" in text and "no kernel for weights in blocks" in text and "--scheme w8a16" in text
    with pytest.raises(TargetError, match="nothing-in-blocks"):
        fewbits.plan(model, scheme="w4a16-g32")
    assert quantized(model, "w8a16").plan.quantized


def test_a_model_whose_weights_lie_in_a_file_gets_the_same_codes(
    net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = held_weights(quantized(network(net).save(tmp_path), "w4a16-g32").model_bytes)
    outside = tmp_path / "outside.onnx"
    onnx.save_model(network(net).model(), outside, save_as_external_data=True, location="net.bin", size_threshold=0)
    monkeypatch.setattr(opening, "_LAZY_BYTES", 0)
    result = quantized(outside, "w4a16-g32")
    result.save(tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size > 0
    model = onnx.load(tmp_path / "out" / "model.onnx")
    found = held_weights(model.SerializeToString())
    assert found.keys() == inside.keys()
    assert all(np.array_equal(found[name], value) for name, value in inside.items())
    assert fewbits.verify(tmp_path / "out").golden_equal


# --- by evidence --------------------------------------------------------------------------------------------------


def test_with_data_codes_are_chosen_by_the_error_on_examples_held_out(path: Path, ids: np.ndarray) -> None:
    result = quantized(path, "w4a16-g32", data={"ids": ids})
    chosen = [d for d in result.plan.quantized if isinstance(d.scheme.granularity, PerGroup) and d.op != "Gather"]  # type: ignore[union-attr]
    assert len(chosen) == 3
    assert all("calibration examples held out" in d.reason for d in chosen)
    assert any(d.rounder == "gptq" for d in chosen)
    assert result.plan.split["calibration"] > 0
    # Rows of a table are picked, not multiplied: no input weighs them.
    assert result.plan.by_site()["table"].rounder == "nearest"
    assert result.report.metric.quality.sqnr_db is not None


def test_a_plan_that_was_made_with_data_replays_to_the_byte_and_needs_them(path: Path, ids: np.ndarray) -> None:
    first = quantized(path, "w4a16-g32", data={"ids": ids})
    again = quantized(path, "w4a16-g32", data={"ids": ids})
    assert again.model_bytes == first.model_bytes
    assert again.plan == first.plan
    plan = plan_from_json(first.plan.to_json())
    replayed = fewbits.quantize(path, plan=plan, data={"ids": ids}, allow_slower=True)
    assert replayed.model_bytes == first.model_bytes
    with pytest.raises(UsageError, match="data-missing"):
        fewbits.quantize(path, plan=plan, allow_slower=True)
    plain = replace(
        plan, decisions=tuple(replace(d, range_rule="mse", rounder="nearest") for d in plan.decisions if d.stored)
    )
    held = {d.site for d in plan.decisions if isinstance(d.scheme.granularity, PerGroup)}  # type: ignore[union-attr]
    assert {d.site for d in plain.decisions if d.site in held} == held
    assert fewbits.quantize(path, plan=plain, allow_slower=True).model_bytes == quantized(path, "w4a16-g32").model_bytes


def test_the_choice_brings_outputs_closer_to_float_than_nearest_codes(path: Path, ids: np.ndarray) -> None:
    float_outputs = RUNTIME.open(path.read_bytes(), Options()).run({"ids": ids[120:]})

    def error(data: bytes) -> float:
        got = RUNTIME.open(with_level(data, 1), Options()).run({"ids": ids[120:]})
        return sum(float(np.square(got[name] - value).sum()) for name, value in float_outputs.items())

    evaluation = {"ids": ids[120:]}
    fed = quantized(path, "w4a16-g32", data={"ids": ids[:120]}, eval=evaluation)
    nearest = quantized(path, "w4a16-g32")
    print(f"with data {error(fed.model_bytes):.4g}, without {error(nearest.model_bytes):.4g}")
    assert error(fed.model_bytes) < error(nearest.model_bytes)


def test_too_few_examples_to_hold_some_out_choose_nothing(path: Path, ids: np.ndarray) -> None:
    result = quantized(path, "w4a16-g32", data={"ids": ids[:6]}, eval={"ids": ids[6:]})
    assert {d.rounder for d in result.plan.quantized} == {"nearest"}


def test_little_memory_makes_more_passes_and_the_same_codes(
    path: Path, ids: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = quantized(path, "w4a16-g32", data={"ids": ids})
    monkeypatch.setattr(blockwise, "_GROUP_BYTES", 1)
    passes: Counter[str] = Counter()
    see = blockwise.Blockwise._see

    def counted(self: Any, widths: dict[str, int]) -> Any:
        passes["of all"] += 1
        assert len(widths) == 1
        return see(self, widths)

    monkeypatch.setattr(blockwise.Blockwise, "_see", counted)
    assert quantized(path, "w4a16-g32", data={"ids": ids}).model_bytes == whole.model_bytes
    assert passes["of all"] == 3  # three products, three inputs; and none again when the file is written


def test_an_input_too_wide_for_a_second_moment_keeps_nearest_codes(
    path: Path, ids: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockwise, "_MOST_BYTES", 1)
    result = quantized(path, "w4a16-g32", data={"ids": ids})
    assert {d.rounder for d in result.plan.quantized} == {"nearest"}


# --- plans that a person edits ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "scheme", "fault"),
    [
        ("with_bias", "int4 per-group(0, 32) symmetric", "blocks lie along axis 1"),
        ("with_row", "int4 per-group(0, 24) symmetric", "blocks have 16, 32, 64, 128, 256 elements"),
        ("with_row", "int3 per-group(0, 32) symmetric", "codes of 2, 4, 8 bits"),
        ("with_row", "uint4 per-group(0, 32) symmetric", "symmetric codes are signed"),
        ("with_row", "int4 per-group(0, 32) symmetric, scale fp16", "scales float32"),
        ("lstm_w", "int4 per-group(2, 32) symmetric", "LSTM has no kernel"),
        ("shared", "int4 per-group(0, 32) symmetric", "2 operators read it"),
    ],
)
def test_blocks_that_an_operator_cannot_hold_are_refused_in_a_plan(
    path: Path, site: str, scheme: str, fault: str
) -> None:
    rows = json.loads(quantized(path, "w4a16-g32").plan.to_json())
    next(row for row in rows["sites"] if row["site"] == site)["scheme"] = scheme
    with pytest.raises(TargetError, match="format-not-legal") as caught:
        fewbits.quantize(path, plan=plan_from_json(json.dumps(rows)), allow_slower=True)
    assert fault in str(caught.value)


def test_one_file_may_hold_weights_in_several_widths(path: Path) -> None:
    rows = json.loads(quantized(path, "w4a16-g32").plan.to_json())
    changed = {"table": "int2 per-group(1, 16) symmetric", "with_row": "uint8 per-group(0, 64) asymmetric"}
    for row in rows["sites"]:
        row["scheme"] = changed.get(row["site"], row["scheme"])
    rows["sites"] = [row for row in rows["sites"] if row["site"] != "with_bias"]
    result = fewbits.quantize(path, plan=plan_from_json(json.dumps(rows)), allow_slower=True)
    nodes = [node for node in onnx.load_from_string(result.model_bytes).graph.node if node.op_type in BLOCKS]
    assert sorted(attributes(node)["bits"] for node in nodes) == [2, 4, 8]


# --- a real model -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_on_a_keyword_spotter_data_halve_the_distance_to_float(real_data: Any) -> None:
    model, stored = real_data("speech_commands/kwt1.onnx"), real_data("speech_commands/features_labels.npz")
    with np.load(stored) as arrays:
        features, labels = arrays["features"], arrays["label"].astype(np.int64)
    evaluation = {"features": features[200:], "labels": labels[200:]}
    fed = quantized(model, "w4a16-g32", data={"features": features[:200]}, eval=evaluation)
    plan = quantized(model, "w4a16-g32").plan
    nearest = fewbits.quantize(model, plan=plan, data={"features": features[:200]}, eval=evaluation, allow_slower=True)
    ours, plain = fed.report.metric.quality.kl, nearest.report.metric.quality.kl
    print(f"KL to float: {ours:.5f} with data, {plain:.5f} without")
    assert ours is not None and plain is not None and ours < plain / 2
