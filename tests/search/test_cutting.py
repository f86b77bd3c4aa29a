"""Ranges before a LeakyRelu: which may be cut, how a cut is chosen, and that it is recorded and replayed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import fewbits
from fewbits.calibration.histogram import histogram_of
from fewbits.calibration.statistics import Statistics
from fewbits.models.onnx.opening import open_model
from fewbits.planning.plan import Plan, plan_from_json
from fewbits.search.cutting import RULE, SHARES, cut, cuttable, uncut
from fewbits.search.draft import draft_plan
from fewbits.targets import resolve_target

WEIGHTS = np.array([-160.0, -160.0, 8.0, 8.0], np.float32)
SLOPE = 0.001


def network() -> bytes:
    """Conv, LeakyRelu; Conv, Relu; Conv that LeakyRelu and the end read; the last gives an output of the graph too."""
    rng = np.random.default_rng(0)
    inits, nodes = [], []
    for i, (source, op) in enumerate((("x", "LeakyRelu"), ("a0", "Relu"), ("a1", "LeakyRelu"), ("a2", "LeakyRelu"))):
        inits.append(numpy_helper.from_array(rng.standard_normal((4, 4, 3, 3)).astype(np.float32), f"w{i}"))
        inits.append(numpy_helper.from_array(rng.standard_normal(4).astype(np.float32), f"b{i}"))
        nodes.append(helper.make_node("Conv", [source, f"w{i}", f"b{i}"], [f"c{i}"], f"conv{i}", pads=[1] * 4))
        more = {"alpha": 0.1} if op == "LeakyRelu" else {}
        nodes.append(helper.make_node(op, [f"c{i}"], [f"a{i}"], f"act{i}", **more))
    wanted = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4, 6, 6]) for name in ("a3", "c3")]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 6, 6])]
    graph = helper.make_graph(nodes, "net", given, wanted, inits)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.fixture(scope="module")
def drafted(tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "net.onnx"
    path.write_bytes(network())
    model, target = open_model(str(path)), resolve_target("ort-cpu:vnni")
    plan = draft_plan(model, target)
    seen = histogram_of(np.random.default_rng(1).standard_normal(1000).astype(np.float32))
    sites = [d.site for d in plan.quantized]
    return model, plan, Statistics(histograms=dict.fromkeys(sites, seen), examples=1)


def rules(plan: Plan) -> dict[str, str | None]:
    return {d.site: d.range_rule for d in plan.quantized}


def test_only_what_a_leaky_relu_alone_reads_may_be_cut(drafted):
    model, plan, statistics = drafted
    assert set(rules(plan)) >= {"c0", "c2"}
    # c1 goes into a Relu, c3 out of the graph; what a LeakyRelu gives has nothing behind it that shrinks.
    assert cuttable(model, plan, statistics) == ("c0", "c2")


def test_what_has_one_sign_or_another_rule_is_left(drafted):
    model, plan, statistics = drafted
    positive = histogram_of(np.array([0.5, 1.0], np.float32))
    other = replace(statistics, histograms={**statistics.histograms, "c0": positive})
    assert cuttable(model, plan, other) == ("c2",)
    decisions = tuple(replace(d, range_rule="minmax") if d.site == "c2" else d for d in plan.decisions)
    assert cuttable(model, replace(plan, decisions=decisions), statistics) == ("c0",)


def test_each_site_gets_the_cut_that_brings_examples_closest(drafted):
    _, plan, _ = drafted
    wanted = {"c0": SHARES[1], "c2": SHARES[-1]}

    def distance(tried: Plan) -> float:
        shares = {site: float((rules(tried)[site] or "").partition(":")[2] or 1.0) for site in wanted}
        return 1.0 + sum(abs(shares[site] - share) for site, share in wanted.items())

    found = rules(cut(plan, ("c0", "c2"), distance))
    assert {site: found[site] for site in wanted} == {site: f"{RULE}:{share:g}" for site, share in wanted.items()}
    assert {s: r for s, r in found.items() if s not in wanted} == {
        s: r for s, r in rules(plan).items() if s not in wanted
    }


def test_what_brings_nothing_beyond_chance_leaves_the_plan_alone(drafted):
    _, plan, _ = drafted
    assert cut(plan, ("c0", "c2"), lambda tried: 1.0 if tried is plan else 0.99) is plan
    assert cut(plan, (), lambda tried: 0.0) is plan


def test_what_layers_learn_does_not_depend_on_cuts(drafted):
    _, plan, _ = drafted
    narrower = cut(plan, ("c0", "c2"), lambda tried: 1.0 if tried is plan else 0.5)
    assert narrower != plan
    assert uncut(narrower) == plan == uncut(plan)


def some(seed: int, count: int) -> np.ndarray:
    """Returns inputs, [count, 4, 6, 6]."""
    return np.random.default_rng(seed).random((count, 4, 6, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One Conv that makes half of its channels far more negative than the others are large, and a flat LeakyRelu."""
    weight = np.zeros((4, 4, 1, 1), np.float32)
    weight[range(4), range(4), 0, 0] = WEIGHTS
    inits = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.zeros(4, np.float32), "b")]
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv"),
        helper.make_node("LeakyRelu", ["c"], ["y"], "act", alpha=SLOPE),
    ]
    shape = ["n", 4, 6, 6]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "flat", ends[:1], ends[1:], inits)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path_factory.mktemp("cut") / "flat.onnx"
    path.write_bytes(model.SerializeToString())
    return path, fewbits.quantize(path, data={"x": some(0, 200)}, scheme="w8a8", effort="best", allow_slower=True)


def test_a_cut_is_kept_in_the_plan_and_replays_to_the_same_bytes(done):
    path, result = done
    assert (rules(result.plan)["c"] or "").startswith(f"{RULE}:")
    plan = plan_from_json(result.plan.to_json())
    assert plan == result.plan
    again = fewbits.quantize(path, data={"x": some(0, 200)}, plan=plan, allow_slower=True)
    assert again.model_bytes == result.model_bytes


def test_cut_ranges_bring_unseen_examples_closer(done):
    path, result = done
    whole = tuple(replace(d, range_rule="mse") if d.site == "c" else d for d in result.plan.decisions)
    plain = fewbits.quantize(
        path, data={"x": some(0, 200)}, plan=replace(result.plan, decisions=whole), allow_slower=True
    )
    unseen = some(7, 50)
    before = unseen * WEIGHTS[:, None, None]
    wanted = np.where(before < 0, np.float32(SLOPE) * before, before)
    away = [np.mean((output(data, unseen) - wanted) ** 2) for data in (result.model_bytes, plain.model_bytes)]
    print(f"mean squared error: cut {away[0]:.3g}, whole {away[1]:.3g}")
    assert away[0] < away[1]


def output(model: bytes, x: np.ndarray) -> np.ndarray:
    from fewbits.runtimes import RUNTIMES
    from fewbits.runtimes.base import Options

    assert onnx.load_from_string(model).graph.output[0].name == "y"
    return RUNTIMES["ort"].open(model, Options()).run({"x": x})["y"]
