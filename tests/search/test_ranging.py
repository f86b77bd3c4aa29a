"""Range rules site by site: the error that decides is that of the outputs, and no rule is judged on what it saw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fewbits.datasets import open_dataset
from fewbits.flow import activation_params, observe, silent
from fewbits.models.onnx.opening import open_model
from fewbits.numerics.qtensor import quantize
from fewbits.planning.plan import Plan, plan_from_json
from fewbits.planning.site import Role
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Options
from fewbits.search import ranging
from fewbits.search.building import activation_sites
from fewbits.search.draft import draft_plan
from fewbits.search.layerwise import closeness_part, learning_part
from fewbits.search.ranging import RULES, by_output_error
from fewbits.targets import TARGETS

CHANNELS, SIDE, LOUD = 6, 8, 3


def network(*, deaf: bool, group: int = 1) -> bytes:
    """Two Convs; of what flows between them one channel is a hundred times as loud, and the second may not hear it."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((CHANNELS, CHANNELS // group, 3, 3)).astype(np.float32)
    second = rng.standard_normal((CHANNELS, CHANNELS // group, 3, 3)).astype(np.float32)
    first[LOUD] *= 100
    if deaf:
        second[:, LOUD % (CHANNELS // group)] = 0
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], "conv0", pads=[1] * 4, group=group),
        helper.make_node("Conv", ["c0", "w1"], ["y"], "conv1", pads=[1] * 4, strides=[2, 2], group=group),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", CHANNELS, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CHANNELS, SIDE // 2, SIDE // 2])],
        [numpy_helper.from_array(first, "w0"), numpy_helper.from_array(second, "w1")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.fixture(scope="module")
def examples() -> np.ndarray:
    values = np.random.default_rng(1).standard_normal((160, CHANNELS, SIDE, SIDE))
    return np.asarray(values * np.exp(0.5 * values), dtype=np.float32)


class Case:
    """A model as the search sees it: opened, drafted, with its examples."""

    def __init__(self, data: bytes, examples: np.ndarray, folder: Path) -> None:
        (folder / "net.onnx").write_bytes(data)
        self.data, self.model = data, open_model(folder / "net.onnx")
        self.target = TARGETS["emulated"]
        self.dataset = open_dataset({"x": examples})
        self.calibration = np.arange(len(examples))
        self.plan = draft_plan(self.model, self.target)

    def chosen(self, **options: Any) -> Plan:
        return by_output_error(self.model, self.target, self.plan, self.dataset, self.calibration, **options)


def rules_of(plan: Plan) -> dict[str, str | None]:
    return {d.site: d.range_rule for d in plan.quantized if d.role is Role.ACTIVATION}


@pytest.mark.parametrize("group", [1, 2], ids=["whole", "grouped"])
def test_the_error_is_that_of_the_layers_output(examples, tmp_path, monkeypatch, group):
    # Every position is looked at, so that the error is that of the Conv itself, computed by the runtime.
    monkeypatch.setattr(ranging, "_POSITIONS", 10**9)
    case = Case(network(deaf=False, group=group), examples, tmp_path)
    statistics = observe(case.model, case.dataset, learning_part(case.calibration), activation_sites(case.plan))
    found = {"mse": activation_params(case.plan, statistics)}
    readers = ranging._readers(case.model, case.target, case.plan)
    held = closeness_part(case.calibration)
    errors = ranging._errors(case.model, readers, found, case.dataset, held, seed=0, progress=silent)
    session = RUNTIMES["ort"].open(case.data, Options())
    codes = quantize(examples[held], found["mse"]["x"])
    layer = onnx.load_from_string(case.data)
    del layer.graph.node[1]
    layer.graph.node[0].output[0] = layer.graph.output[0].name
    for dimension in layer.graph.output[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_value = SIDE
    session = RUNTIMES["ort"].open(layer.SerializeToString(), Options())
    plain, rounded = (session.run({"x": x})["y"].astype(np.float64) for x in (examples[held], codes.dequantize()))
    place = [reader.tensor for reader in readers].index("x")
    wanted = np.square(rounded - plain).sum() / np.square(plain).sum()
    # The runtime's sums of 54 products are float32: 2**-18 of the largest, beside differences of some 2**-8 of it.
    assert errors[place]["mse"] == pytest.approx(wanted, rel=1e-3)


def test_a_range_need_not_cover_what_no_weight_reads(examples, tmp_path):
    deaf = Case(network(deaf=True), examples, tmp_path).chosen()
    hears = Case(network(deaf=False), examples, tmp_path).chosen()
    part = {name: plan.by_site()["c0"].reason for name, plan in (("deaf", deaf), ("hears", hears))}
    print(part)
    assert rules_of(deaf)["c0"] != "mse", "the least error of the tensor is not that of what is read"
    assert rules_of(deaf)["c0"] != "minmax"
    assert "held out" in part["deaf"]


def test_what_is_chosen_errs_no_more_than_any_one_rule(examples, tmp_path):
    case = Case(network(deaf=False), examples, tmp_path)
    statistics = observe(case.model, case.dataset, learning_part(case.calibration), activation_sites(case.plan))
    found = {rule: activation_params(case.plan.with_range_rule(Role.ACTIVATION, rule), statistics) for rule in RULES}
    readers = ranging._readers(case.model, case.target, case.plan)
    held = closeness_part(case.calibration)
    errors = ranging._errors(case.model, readers, found, case.dataset, held, seed=0, progress=silent)
    chosen = rules_of(case.chosen())
    for reader, each in zip(readers, errors, strict=True):
        assert each[chosen[reader.tensor]] == min(each.values())


def test_the_plan_keeps_everything_but_ranges_and_reasons_and_reads_back(examples, tmp_path):
    case = Case(network(deaf=True), examples, tmp_path)
    chosen = case.chosen()
    plain = {d.site: d for d in case.plan.decisions}
    for decision in chosen.decisions:
        before = plain[decision.site]
        assert replace(decision, range_rule=before.range_rule, reason=before.reason) == before
        assert (decision.range_rule == before.range_rule) == (decision.reason == before.reason)
    assert plan_from_json(chosen.to_json()) == chosen
    assert case.chosen() == chosen


@pytest.mark.parametrize("count", [0, 1, 100])
def test_without_enough_examples_to_hold_out_nothing_is_chosen(examples, tmp_path, count):
    case = Case(network(deaf=True), examples, tmp_path)
    case.calibration = case.calibration[:count]
    assert case.chosen() == case.plan


def leaky_network(slope: float) -> bytes:
    """Two Convs with a LeakyRelu between, whose input reaches far down."""
    rng = np.random.default_rng(2)
    weights = [rng.standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32) for _ in range(2)]
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], "conv0", pads=[1] * 4),
        helper.make_node("LeakyRelu", ["c0"], ["h"], "leaky", alpha=slope),
        helper.make_node("Conv", ["h", "w1"], ["y"], "conv1", pads=[1] * 4),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", CHANNELS, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CHANNELS, SIDE, SIDE])],
        [
            numpy_helper.from_array(weights[0], "w0"),
            numpy_helper.from_array(np.full(CHANNELS, -20, np.float32), "b0"),
            numpy_helper.from_array(weights[1], "w1"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def test_a_site_that_a_leaky_relu_reads_is_ranged_by_what_comes_behind(examples, tmp_path):
    case = Case(leaky_network(0.1), examples, tmp_path)
    assert rules_of(case.plan) == {"x": "mse", "c0": "mse:0.1", "h": "mse", "y": "mse"}
    assert rules_of(draft_plan(case.model, case.target, activation_range="minmax"))["c0"] == "minmax"
    readers = ranging._readers(case.model, case.target, case.plan)
    assert {reader.tensor: reader.slope for reader in readers} == {"x": 1.0, "h": 1.0}
    # What replans keeps it, and a site that was not there before gets what most have.
    assert rules_of(draft_plan(case.model, case.target, activation_range="minmax").ranged_as(case.plan)) == rules_of(
        case.plan
    )
    fewer = replace(case.plan, decisions=tuple(d for d in case.plan.decisions if d.site != "x"))
    assert rules_of(case.plan.ranged_as(fewer))["x"] == "mse"


def test_what_a_leaky_relu_makes_of_an_error_is_what_counts():
    reader = ranging._Reader(tensor="c", root="c", layer=None, weight=None, slope=0.25)
    values = np.array([-4.0, 2.0])[:, None, None]
    assert reader.output(values).ravel().tolist() == [-1.0, 2.0]
