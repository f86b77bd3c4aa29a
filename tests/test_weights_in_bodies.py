"""Weights alone inside the bodies of If, Loop and Scan: stored where they are read, and run by the real runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import fewbits
from fewbits._base.errors import TargetError
from fewbits.calibration.statistics import Statistics
from fewbits.flow import stream
from fewbits.measurement import benchmark
from fewbits.models.onnx.opening import open_model
from fewbits.numerics.granularity import PerGroup
from fewbits.planning.plan import plan_from_json
from fewbits.runtimes.base import Options
from fewbits.runtimes.ort import RUNTIME
from fewbits.search import preparing
from fewbits.targets import place_stored, resolve_target

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
WIDTH = 32
SCHEMES = ("w8a16", "w8a16-g32", "w4a16-g32", "w4a16-g16-asym", "fp16", "bf16")
Model = onnx.ModelProto


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the latency measurement short, and leaves out the one of memory: nothing here is about either."""
    monkeypatch.setitem(preparing._LATENCY_SECONDS, "balanced", 0.05)
    monkeypatch.setattr(benchmark, "peak_bytes", lambda *anything: None)


def info(name: str, kind: int = FLOAT, shape: Any = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def weight(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    values = np.random.default_rng([seed, len(name)]).standard_normal(shape).astype(np.float32) / np.sqrt(shape[0])
    return numpy_helper.from_array(values.astype(np.float32), name)


def made(nodes: list[Any], inputs: list[Any], outputs: list[Any], fixed: list[Any], path: Path) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, fixed)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def if_model(path: Path) -> Path:
    """Both branches have a weight by the same name; one also reads a weight of the main graph."""
    rows = [1, WIDTH]
    then = helper.make_graph(
        [
            helper.make_node("MatMul", ["h", "w"], ["p"], name="product"),
            helper.make_node("Tanh", ["p"], ["r"], name="tanh"),
            helper.make_node("Gemm", ["r", "captured", "bias"], ["one"], name="linear", transB=1),
        ],
        "then", [], [info("one", shape=rows)], [weight("w", WIDTH, WIDTH, seed=1)],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("MatMul", ["h", "w"], ["two"], name="product")],
        "other", [], [info("two", shape=rows)], [weight("w", WIDTH, WIDTH, seed=2)],
    )  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], name="before"),
        helper.make_node("If", ["yes"], ["y"], name="choose", then_branch=then, else_branch=other),
    ]
    bias = numpy_helper.from_array(np.linspace(-1, 1, WIDTH).astype(np.float32), "bias")
    fixed = [weight("first", WIDTH, WIDTH), weight("captured", WIDTH, WIDTH, seed=3), bias]
    return made(nodes, [info("x", shape=rows), info("yes", BOOL, [1])], [info("y", shape=rows)], fixed, path)


def loop_model(path: Path) -> Path:
    """A state goes round five times, and picks a row of a table each time; an If stands inside."""
    then = helper.make_graph(
        [helper.make_node("MatMul", ["s", "deep"], ["deepened"], name="deeper")],
        "then", [], [info("deepened", shape=[1, WIDTH])], [weight("deep", WIDTH, WIDTH, seed=5)],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Identity", ["s"], ["same"], name="keep")], "other", [], [info("same", shape=[1, WIDTH])]
    )
    body = helper.make_graph(
        [
            helper.make_node("Reshape", ["i", "one"], ["place"], name="place"),
            helper.make_node("Gather", ["table", "place"], ["row"], name="pick"),
            helper.make_node("Add", ["state", "row"], ["sum"], name="add"),
            helper.make_node("MatMul", ["sum", "w"], ["p"], name="product"),
            helper.make_node("Tanh", ["p"], ["s"], name="tanh"),
            helper.make_node("Equal", ["place", "one"], ["second"], name="second"),
            helper.make_node("If", ["second"], ["next"], name="inside", then_branch=then, else_branch=other),
            helper.make_node("Identity", ["go"], ["on"], name="on"),
        ],
        "body",
        [info("i", INT64, []), info("go", BOOL, []), info("state", shape=[1, WIDTH])],
        [info("on", BOOL, []), info("next", shape=[1, WIDTH])],
        [weight("table", 16, WIDTH, seed=1), weight("w", WIDTH, WIDTH, seed=2),
         numpy_helper.from_array(np.array([1]), "one")],
    )  # fmt: skip
    nodes = [helper.make_node("Loop", ["times", "", "x"], ["y"], name="loop", body=body)]
    times = numpy_helper.from_array(np.array(5), "times")
    return made(nodes, [info("x", shape=[1, WIDTH])], [info("y", shape=[1, WIDTH])], [times], path)


def scan_model(path: Path) -> Path:
    """A cell over ten steps: one weight is the body's own, one is captured."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["step", "w"], ["p"], name="of_input"),
            helper.make_node("Tanh", ["p"], ["a"], name="of_input_tanh"),
            helper.make_node("Gemm", ["state", "recurrent"], ["b"], name="of_state"),
            helper.make_node("Add", ["a", "b"], ["c"], name="add"),
            helper.make_node("Tanh", ["c"], ["new"], name="tanh"),
            helper.make_node("Identity", ["new"], ["out"], name="out"),
        ],
        "body", [info("state", shape=[1, WIDTH]), info("step", shape=[1, WIDTH])],
        [info("new", shape=[1, WIDTH]), info("out", shape=[1, WIDTH])], [weight("w", WIDTH, WIDTH, seed=1)],
    )  # fmt: skip
    start = numpy_helper.from_array(np.zeros((1, WIDTH), np.float32), "start")
    nodes = [helper.make_node("Scan", ["start", "x"], ["last", "y"], name="scan", body=body, num_scan_inputs=1)]
    fixed = [weight("recurrent", WIDTH, WIDTH, seed=2), start]
    return made(nodes, [info("x", shape=[10, 1, WIDTH])], [info("y", shape=[10, 1, WIDTH])], fixed, path)


MODELS: dict[str, tuple[Callable[[Path], Path], set[str]]] = {
    "if": (if_model, {"first", "captured", "choose/then_branch/w", "choose/else_branch/w"}),
    "loop": (loop_model, {"loop/body/table", "loop/body/w", "loop/body/inside/then_branch/deep"}),
    "scan": (scan_model, {"scan/body/w", "recurrent"}),
}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, set[str]]:
    write, sites = MODELS[request.param]
    return request.param, write(tmp_path / "net.onnx"), sites


def quantized(path: Path, scheme: str, **more: Any) -> fewbits.api.Result:
    return fewbits.quantize(path, scheme=scheme, allow_slower=True, **more)


def feeds(kind: str) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    if kind == "scan":
        return [{"x": rng.standard_normal((10, 1, WIDTH)).astype(np.float32)}]
    x = rng.standard_normal((1, WIDTH)).astype(np.float32)
    return [{"x": x, "yes": np.array([yes])} for yes in (True, False)] if kind == "if" else [{"x": x}]


def graphs_of(graph: onnx.GraphProto, place: str = "") -> dict[str, onnx.GraphProto]:
    """Returns a graph and all inside it by where they stand."""
    found = {place: graph}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found |= graphs_of(attribute.g, f"{place}{'/' if place else ''}{node.name}/{attribute.name}")
    return found


def with_values(path: Path, result: fewbits.api.Result) -> bytes:
    """Returns the float model with each weight at the values that its codes in the plan stand for."""
    model, plan = open_model(path), result.plan
    target = resolve_target(plan.target)
    values = {
        site.name: np.asarray(value.dequantize())  # type: ignore[union-attr]
        for site, value in stream(model, plan, target, Statistics(histograms={}, examples=0))
    }
    proto = onnx.load(path)
    left = set(values)
    for place, graph in graphs_of(proto.graph).items():
        for tensor in graph.initializer:
            name = f"{place}/{tensor.name}" if place else tensor.name
            if name in values:
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[name]), tensor.name))
                left.remove(name)
    assert not left
    return bytes(proto.SerializeToString())


def exact(data: bytes) -> bytes:
    """Returns a file whose block operators compute in float32: level 1."""
    model = onnx.load_from_string(data)
    for graph in graphs_of(model.graph).values():
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = 1
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_in_bodies_are_stored_and_the_file_computes_as_what_they_stand_for(
    case: tuple[str, Path, set[str]], scheme: str
) -> None:
    kind, path, sites = case
    result = quantized(path, scheme)
    assert {d.site for d in result.plan.quantized} == sites
    assert all(d.stored for d in result.plan.quantized)
    expected = RUNTIME.open(with_values(path, result), Options(optimize=False))
    plain = RUNTIME.open(exact(result.model_bytes), Options(optimize=False))
    shipped = RUNTIME.open(result.model_bytes, Options())
    for fed in feeds(kind):
        wanted = expected.run(fed)["y"]
        # Sums of 32 products, five or ten times one after the other, in another order.
        np.testing.assert_allclose(plain.run(fed)["y"], wanted, rtol=1e-4, atol=1e-5)
        # As it ships, activations are rounded to 8 bits inside: half a percent of the norm, a few times over.
        off = shipped.run(fed)["y"] - wanted
        assert np.linalg.norm(off) < 0.05 * np.linalg.norm(wanted)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_float_weight_is_left_in_the_file(case: tuple[str, Path, set[str]], scheme: str) -> None:
    _, path, _ = case
    data = quantized(path, scheme).model_bytes
    for graph in graphs_of(onnx.load_from_string(data).graph).values():
        large = [t.name for t in graph.initializer if t.data_type == FLOAT and np.prod(t.dims) >= 256]
        assert not large
        names = [output for node in graph.node for output in node.output]
        assert len(names) == len(set(names))
    onnx.checker.check_model(onnx.load_from_string(data))


def test_the_runtime_multiplies_codes_inside_the_bodies(case: tuple[str, Path, set[str]], tmp_path: Path) -> None:
    kind, path, _ = case
    out = tmp_path / "out.onnx"
    for scheme in ("w8a16", "w4a16-g32"):
        out.write_bytes(quantized(path, scheme).model_bytes)
        ran = Counter(node.op for node in RUNTIME.executed(out, Options(), feeds(kind)[0]))
        assert sum(n for op, n in ran.items() if "MatMulNBits" in op) >= 2
        assert not {"MatMul", "Gemm", "FusedGemm", "DequantizeLinear"} & set(ran)


def test_a_plan_with_inner_sites_is_replayed_to_the_byte(case: tuple[str, Path, set[str]]) -> None:
    _, path, sites = case
    for scheme in ("w8a16", "w4a16-g32", "fp16"):
        result = quantized(path, scheme)
        plan = plan_from_json(result.plan.to_json())
        assert plan == result.plan
        assert fewbits.quantize(path, plan=plan, allow_slower=True).model_bytes == result.model_bytes
        some = min(sites)
        fewer = replace(plan, decisions=tuple(d for d in plan.decisions if d.site != some))
        data = fewbits.quantize(path, plan=fewer, allow_slower=True).model_bytes
        left = [
            t.name
            for graph in graphs_of(onnx.load_from_string(data).graph).values()
            for t in graph.initializer
            if t.data_type == FLOAT and np.prod(t.dims) >= 256
        ]
        assert left == [some.rpartition("/")[2]]


def test_with_data_inner_weights_keep_the_rule_without_data(tmp_path: Path) -> None:
    path = loop_model(tmp_path / "net.onnx")
    x = np.random.default_rng(0).standard_normal((80, WIDTH)).astype(np.float32)
    result = quantized(path, "w4a16-g32", data={"x": x})
    assert result.report.metric.examples
    found = result.plan
    assert {(d.range_rule, d.rounder) for d in found.quantized} == {("mse", "nearest")}
    assert all(isinstance(d.scheme.granularity, PerGroup) for d in found.quantized)  # type: ignore[union-attr]


def shared_model(path: Path) -> Path:
    """One weight is read in the main graph and in a body."""
    rows = [1, WIDTH]
    then = helper.make_graph(
        [helper.make_node("MatMul", ["h", "shared"], ["one"], name="again")], "then", [], [info("one", shape=rows)]
    )
    other = helper.make_graph(
        [helper.make_node("MatMul", ["h", "own"], ["two"], name="product")],
        "other", [], [info("two", shape=rows)], [weight("own", WIDTH, WIDTH, seed=4)],
    )  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "shared"], ["h"], name="before"),
        helper.make_node("If", ["yes"], ["y"], name="choose", then_branch=then, else_branch=other),
    ]
    inputs = [info("x", shape=rows), info("yes", BOOL, [1])]
    return made(nodes, inputs, [info("y", shape=rows)], [weight("shared", WIDTH, WIDTH)], path)


def test_a_weight_that_two_graphs_read_stays_float_with_its_reason(tmp_path: Path) -> None:
    path = shared_model(tmp_path / "net.onnx")
    result = quantized(path, "w8a16")
    assert [d.site for d in result.plan.quantized] == ["choose/else_branch/own"]
    placement = place_stored(open_model(path).view, resolve_target("ort-cpu"))
    why = "its weight 'shared' stays float: the main graph, 'choose/then_branch' read it, and codes lie in one graph"
    assert placement.kept_float["choose/then_branch/again"].text == why
    assert (
        placement.kept_float["choose"].text == f"it computes in float; 1 weight inside is stored in codes; again: {why}"
    )
    text = result.plan.to_json().replace("choose/else_branch/own", "shared")
    text = text.replace("choose/else_branch/product", "before")
    with pytest.raises(TargetError, match=r"'shared' stays float.*plan-illegal"):
        fewbits.quantize(path, plan=plan_from_json(text), allow_slower=True)
    assert {d.site for d in quantized(path, "fp16").plan.quantized} == {"shared", "choose/else_branch/own"}


def test_what_a_body_hands_out_as_it_is_stays_as_it_is(tmp_path: Path) -> None:
    rows = [WIDTH, WIDTH]
    then = helper.make_graph([], "then", [], [info("w", shape=rows)], [weight("w", WIDTH, WIDTH)])
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "v"], ["two"], name="product")],
        "other", [], [info("two", shape=rows)], [weight("v", WIDTH, WIDTH, seed=1)],
    )  # fmt: skip
    node = helper.make_node("If", ["yes"], ["y"], name="choose", then_branch=then, else_branch=other)
    inputs = [info("x", shape=rows), info("yes", BOOL, [1])]
    path = made([node], inputs, [info("y", shape=rows)], [], tmp_path / "net.onnx")
    for scheme in ("w8a16", "fp16"):
        assert [d.site for d in quantized(path, scheme).plan.quantized] == ["choose/else_branch/v"]


def test_names_of_inner_weights_are_one_a_weight(case: tuple[str, Path, set[str]]) -> None:
    _, path, sites = case
    model = open_model(path)
    assert sites <= set(model.view.tensors)
    seen = {name: model.weight(name).tobytes() for name in sites}
    assert len(set(seen.values())) == len(sites)
    assert all(np.concatenate(list(model.slabs(name))).tobytes() == seen[name] for name in sites)
    assert model.parameters >= sum(model.view.tensors[name].elements for name in sites)


def test_an_inspection_lists_what_stays_float_inside_and_the_report_counts_what_is_stored(tmp_path: Path) -> None:
    path = loop_model(tmp_path / "net.onnx")
    assert [w.tensor for w in fewbits.inspect(path).inner_weights] == ["table", "w", "deep"]
    assert not fewbits.inspect(path, scheme="w8a16").inner_weights
    shared = fewbits.inspect(shared_model(tmp_path / "shared.onnx"), scheme="w8a16")
    assert any("'shared' stays float" in part.why for part in shared.kept_float)
    memory = quantized(path, "fp16").report.memory
    assert memory.weights_bytes == memory.float_weights_bytes // 2 == 2 * (16 + 2 * WIDTH) * WIDTH


def test_nodes_inside_a_body_are_found_again_in_the_executed_graph(tmp_path: Path) -> None:
    report = fewbits.quantize(if_model(tmp_path / "if.onnx"), scheme="fp16", allow_slower=True).report
    islands = {island.node: island.rule for island in report.executed.islands or ()}
    assert "made-by-runtime" not in islands.values()
    # A float that was drawn as "yes" may be either: both branches have a product, and the names do not say which ran.
    assert any(name.startswith("choose/") and name.endswith("/product") for name in islands)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic"])
def test_a_weight_that_a_body_reads_beside_an_integer_layer_stays_float_for_the_body(
    tmp_path: Path, scheme: str
) -> None:
    branches = {
        f"{name}_branch": helper.make_graph([helper.make_node("MatMul", ["h", "w"], [name])], name, [], [info(name)])
        for name in ("then", "else")
    }
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
        helper.make_node("MatMul", ["y", "v"], ["z"]),
        helper.make_node("If", ["flag"], ["o"], **branches),
    ]
    fixed = [weight("w", WIDTH, WIDTH), weight("v", WIDTH, 8), numpy_helper.from_array(np.array(True), "flag")]
    x = np.random.default_rng(1).standard_normal((64, WIDTH)).astype(np.float32)

    outputs = [info("z", shape=("N", 8)), info("o", shape=("N", WIDTH))]
    path = made(nodes, [info("x", shape=("N", WIDTH))], outputs, fixed, tmp_path / "beside.onnx")
    result = fewbits.quantize(path, data={"x": x}, scheme=scheme, allow_slower=True)
    wanted = RUNTIME.open(path.read_bytes(), Options()).run({"x": x})
    got = RUNTIME.open(result.model_bytes, Options()).run({"x": x})
    np.testing.assert_allclose(got["o"], wanted["o"], rtol=1e-5, atol=1e-5)
    noise, signal = float(((got["z"] - wanted["z"]) ** 2).mean()), float((wanted["z"] ** 2).mean())
    assert 0 < noise < signal / 100  # a wrong scale would leave nothing of the signal
    assert {"w", "v"} & {d.site for d in result.plan.quantized}
