"""``w8a8-dynamic``: products and LSTMs whose inputs are quantized by the range of each run; no data are needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import fewbits
from fewbits._base.errors import TargetError, UsageError
from fewbits.models.onnx.opening import open_model
from fewbits.planning.plan import plan_from_json
from fewbits.runtimes.base import Numbers, Options
from fewbits.runtimes.ort import RUNTIME
from fewbits.targets import Reason, dynamic_rule, may_be_dynamic, resolve_target

pytestmark = pytest.mark.usefixtures("hurried")
RNG = np.random.default_rng(7)


def saved(net: Any, path: Path) -> Path:
    onnx.save_model(net.model(), path)
    return path


def quantized(path: Path, **more: Any) -> Any:
    return fewbits.quantize(path, **{"scheme": "w8a8-dynamic", "allow_slower": True, "max_drop": None, **more})


def weight_codes(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns codes and scales of a matrix [in, out], a scale a column."""
    scale = (np.abs(weight).max(axis=0) / np.float32(127)).astype(np.float32)
    return np.clip(np.rint(weight / scale), -128, 127).astype(np.int64), scale


def product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Returns x @ weight as ONNX's DynamicQuantizeLinear and MatMulInteger define it, sums exact."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((np.float32(high) - np.float32(low)) / np.float32(255))
    zero = np.clip(np.rint(np.float32(0 - low) / scale), 0, 255)
    codes = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64) - int(zero)
    held, steps = weight_codes(weight)
    return (codes @ held).astype(np.float64) * (np.float64(scale) * steps)


def held(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("optimize", [True, False])
def test_products_are_those_of_the_standard(net: Callable[..., Any], tmp_path: Path, optimize: bool) -> None:
    n = net()
    x = n.input(("N", 6, 32), "x")
    flat = n.op("Reshape", x, n.ints(-1, 32))
    w1 = n.weight(32, 40, fan_in=32, name="w1")
    made = {
        "matmul": n.op("MatMul", x, n.weight(32, 24, fan_in=32, name="w0")),
        "added": n.op("Add", n.weight(40, fan_in=1, name="b1"), n.op("MatMul", x, w1)),
        "gemm": n.op("Gemm", flat, n.weight(32, 16, fan_in=32, name="w2"), n.weight(16, fan_in=1, name="b2")),
        "turned": n.op("Gemm", flat, n.weight(16, 32, fan_in=32, name="w3"), transB=1),
    }
    n.output(*made.values())
    path = saved(n, tmp_path / "net.onnx")
    result = quantized(path)
    data = RNG.normal(size=(3, 6, 32)).astype(np.float32) * 3 + 1
    got = RUNTIME.open(result.model_bytes, Options(optimize=optimize)).run({"x": data})
    w, rows = held(onnx.load(path)), data.reshape(-1, 32)
    wanted = {
        "matmul": product(data, w["w0"]),
        "added": product(data, w["w1"]) + w["b1"],
        "gemm": product(rows, w["w2"]) + w["b2"],
        "turned": product(rows, w["w3"].T),
    }
    for key, name in made.items():
        np.testing.assert_allclose(got[name], wanted[key], rtol=2e-6, atol=2e-6, err_msg=key)


def test_the_runtime_runs_it_in_one_kernel_with_the_bias(net: Callable[..., Any], tmp_path: Path) -> None:
    n = net()
    x = n.input(("N", 8, 32), "x")
    n.output(n.op("Add", n.op("MatMul", x, n.weight(32, 64, fan_in=32)), n.weight(64, fan_in=1)))
    data = quantized(saved(n, tmp_path / "net.onnx")).model_bytes
    (tmp_path / "q.onnx").write_bytes(data)
    nodes = RUNTIME.executed(tmp_path / "q.onnx", Options(), {"x": np.ones((1, 8, 32), np.float32)})
    assert [node.op for node in nodes] == ["DynamicQuantizeMatMul"]
    assert nodes[0].numbers is Numbers.INTEGER


def test_readers_of_one_tensor_share_its_codes(net: Callable[..., Any], tmp_path: Path) -> None:
    n = net()
    x = n.input(("N", 8, 32), "x")
    n.output(*(n.op("MatMul", x, n.weight(32, 32, fan_in=32)) for _ in range(3)))
    proto = onnx.load_from_string(quantized(saved(n, tmp_path / "net.onnx")).model_bytes)
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("DynamicQuantizeLinear") == 1
    assert kinds.count("MatMulInteger") == 3


def test_one_weight_of_two_readers_is_held_once(net: Callable[..., Any], tmp_path: Path) -> None:
    n = net()
    x, y = n.input(("N", 32), "x"), n.input(("N", 32), "y")
    shared = n.weight(32, 32, fan_in=32, name="shared")
    n.output(n.op("MatMul", x, shared), n.op("MatMul", y, shared), n.op("Gemm", x, shared, transB=1))
    path = saved(n, tmp_path / "net.onnx")
    proto = onnx.load_from_string(quantized(path).model_bytes)
    codes = [t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert len(codes) == 1 + 1  # as it lies, and turned for the Gemm, which alone has scales a row of the file
    assert "shared" not in {t.name for t in proto.graph.initializer}


def test_weights_of_two_lstms_are_held_once(net: Callable[..., Any], tmp_path: Path) -> None:
    n = net()
    x, y = n.input((9, "N", 16), "x"), n.input((9, "N", 16), "y")
    weights = n.weight(1, 4 * 16, 16, fan_in=16), n.weight(1, 4 * 16, 16, fan_in=16)
    n.output(*(n.op("LSTM", value, *weights, hidden_size=16) for value in (x, y)))
    path = saved(n, tmp_path / "net.onnx")
    data = quantized(path).model_bytes
    proto = onnx.load_from_string(data)
    assert [node.op_type for node in proto.graph.node] == ["DynamicQuantizeLSTM"] * 2
    assert sorted(tuple(t.dims) for t in proto.graph.initializer if len(t.dims) == 3) == [(1, 16, 64)] * 2
    feeds = {name: RNG.normal(size=(9, 2, 16)).astype(np.float32) for name in ("x", "y")}
    wanted = RUNTIME.open(path.read_bytes(), Options()).run(feeds)
    got = RUNTIME.open(data, Options()).run(feeds)
    for name, value in wanted.items():
        assert 10 * np.log10(float((value**2).mean()) / float(((got[name] - value) ** 2).mean())) > 30, name


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_an_lstm_is_close_to_float_and_runs_in_integers(
    net: Callable[..., Any], tmp_path: Path, direction: str
) -> None:
    hidden, both = 24, 2 if direction == "bidirectional" else 1
    n = net()
    x = n.input((9, "N", 16), "x")
    weights = n.weight(both, 4 * hidden, 16, fan_in=16), n.weight(both, 4 * hidden, hidden, fan_in=hidden)
    bias = n.weight(both, 8 * hidden, fan_in=4)
    every, last = n.ops("LSTM", x, *weights, bias, outputs=2, hidden_size=hidden, direction=direction)
    n.output(every, last)
    path = saved(n, tmp_path / "net.onnx")
    result = quantized(path)
    (tmp_path / "q.onnx").write_bytes(result.model_bytes)
    data = {"x": RNG.normal(size=(9, 2, 16)).astype(np.float32)}
    wanted = RUNTIME.open(path.read_bytes(), Options()).run(data)
    got = RUNTIME.open(result.model_bytes, Options()).run(data)
    assert set(wanted) == set(got)
    for name, value in wanted.items():
        noise = float(((got[name] - value) ** 2).mean())
        assert 10 * np.log10(float((value**2).mean()) / max(noise, 1e-30)) > 30, name
        assert noise > 0
    nodes = RUNTIME.executed(tmp_path / "q.onnx", Options(), data)
    assert [(node.op, node.numbers) for node in nodes] == [("DynamicQuantizeLSTM", Numbers.INTEGER)]


@pytest.mark.parametrize("ways", [1, 2])
def test_an_lstm_may_have_one_scale_a_weight(net: Callable[..., Any], tmp_path: Path, ways: int) -> None:
    hidden = 24
    n = net()
    x = n.input((9, 2, 16), "x")
    weights = n.weight(ways, 4 * hidden, 16, fan_in=16, name="w"), n.weight(ways, 4 * hidden, hidden, fan_in=hidden)
    direction = "bidirectional" if ways > 1 else "forward"
    n.output(n.op("LSTM", x, *weights, hidden_size=hidden, direction=direction))
    path = saved(n, tmp_path / "net.onnx")
    written = json.loads(quantized(path).plan.to_json())
    for row in written["sites"]:
        row["scheme"] = "int8 per-tensor symmetric"
    plan = plan_from_json(json.dumps(written))
    data = fewbits.quantize(path, plan=plan, allow_slower=True, max_drop=None).model_bytes
    values = held(onnx.load_from_string(data))
    assert values["w_s"].shape == (ways,)
    amax = np.abs(held(onnx.load(path))["w"]).max()
    np.testing.assert_array_equal(values["w_s"], np.float32(amax) / np.float32(127))  # no coarser than its range asks
    feeds = {"x": RNG.normal(size=(9, 2, 16)).astype(np.float32)}
    (wanted,) = RUNTIME.open(path.read_bytes(), Options()).run(feeds).values()
    (got,) = RUNTIME.open(data, Options()).run(feeds).values()
    assert 10 * np.log10(float((wanted**2).mean()) / float(((got - wanted) ** 2).mean())) > 25


def test_a_gru_and_a_conv_stay_float(net: Callable[..., Any], tmp_path: Path) -> None:
    n = net()
    x = n.input((9, 2, 16), "x")
    every = n.op("GRU", x, n.weight(1, 24, 16, fan_in=16), n.weight(1, 24, 8, fan_in=8), hidden_size=8)
    n.output(n.conv(n.op("Reshape", every, n.ints(2, 8, 9)), 8, 8, 3, dims=1))
    view = open_model(str(saved(n, tmp_path / "net.onnx"))).view
    target = resolve_target("ort-cpu")
    assert may_be_dynamic(view, target) == ()
    reasons = [dynamic_rule(op, view, target) for op in view.ops if op.op in ("GRU", "Conv")]
    assert [reason.slug for reason in reasons if isinstance(reason, Reason)] == ["no-dynamic-kernel"] * 2


def test_plans_are_replayed_to_the_same_bytes(net: Callable[..., Any], tmp_path: Path) -> None:
    n = net()
    ids = n.input(("N", 12), "ids", onnx.TensorProto.INT64)
    h = n.op("Gather", n.weight(1024, 32, fan_in=1, name="table"), ids)
    n.output(n.op("MatMul", h, n.weight(32, 16, fan_in=32, name="head")))
    path = saved(n, tmp_path / "net.onnx")
    first = quantized(path)
    plan = plan_from_json(first.plan.to_json())
    assert plan == first.plan
    assert {d.site: (d.stored, d.dynamic) for d in plan.quantized} == {"table": (True, False), "head": (False, True)}
    again = fewbits.quantize(path, plan=plan, allow_slower=True, max_drop=None)
    assert again.model_bytes == first.model_bytes


def test_an_edited_plan_is_refused_where_nothing_can_quantize_as_it_comes(
    net: Callable[..., Any], tmp_path: Path
) -> None:
    n = net()
    x = n.input(("N", 8, 32), "x")
    n.output(
        n.op("MatMul", x, n.weight(32, 16, fan_in=32, name="able")),
        n.op("Mul", x, n.weight(8, 32, fan_in=1, name="lame")),
    )
    path = saved(n, tmp_path / "net.onnx")
    written = json.loads(quantized(path).plan.to_json())
    able = next(row for row in written["sites"] if row["site"] == "able")
    for change, slug in (
        ({"site": "lame"}, "plan-illegal"),
        ({"scheme": "int8 per-tensor symmetric"}, "format-not-legal"),
    ):
        plan = plan_from_json(json.dumps({**written, "sites": [{**able, **change}]}))
        with pytest.raises(TargetError) as raised:
            fewbits.quantize(path, plan=plan, allow_slower=True, max_drop=None)
        assert raised.value.slug == slug


def test_without_vnni_no_pair_of_products_saturates(net: Callable[..., Any], tmp_path: Path) -> None:
    n = net()
    x = n.input(("N", 64), "x")
    n.output(n.op("MatMul", x, n.weight(64, 16, fan_in=64, name="w")))
    result = quantized(saved(n, tmp_path / "net.onnx"), target="ort-cpu:avx2")
    codes = held(onnx.load_from_string(result.model_bytes))["w_q"].astype(int)
    largest = -np.sort(-np.abs(codes), axis=0)[:2].sum(axis=0)
    assert (largest <= 128).all()
    assert (largest >= 126).all()  # and nothing is given away


def test_a_weight_is_not_stored_and_dynamic_at_once(net: Callable[..., Any], tmp_path: Path) -> None:
    n = net()
    n.output(n.op("MatMul", n.input(("N", 32), "x"), n.weight(32, 16, fan_in=32, name="w")))
    written = quantized(saved(n, tmp_path / "net.onnx")).plan.to_json()
    with pytest.raises(UsageError, match="exclude each other"):
        plan_from_json(written.replace('"dynamic": true', '"dynamic": true, "stored": true'))


def test_what_was_never_to_run_in_integers_is_not_reported_as_failing_to(
    net: Callable[..., Any], tmp_path: Path
) -> None:
    # A GELU by tanh, whose Mul between the products could have codes with fixed ranges: none are asked for.
    n = net()
    x = n.op("Add", n.input(("N", 6, 32), "x"), n.vector(32))
    h = n.matmul(n.op("Concat", x, x, axis=1), 32, 64)
    cube = n.op("Mul", n.op("Mul", n.op("Mul", h, h), h), n.const(0.044715))
    inner = n.op("Tanh", n.op("Mul", n.op("Add", h, cube), n.const(0.797884)))
    h = n.op("Mul", n.op("Mul", h, n.op("Add", inner, n.const(1.0))), n.const(0.5))
    n.output(n.matmul(h, 64, 8))
    data = {"x": RNG.normal(size=(80, 6, 32)).astype(np.float32)}
    report = quantized(saved(n, tmp_path / "net.onnx"), data=data).report
    assert report.executed.islands
    assert "runtime-differs" not in {island.rule for island in report.executed.islands}
