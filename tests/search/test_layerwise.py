"""Layer by layer: the mean error of each layer's output is gone, and the plan replays to the same bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import fewbits
from fewbits.algorithms.transforms.bias_correction import ALGORITHM
from fewbits.models.onnx.prefixes import PrefixRuns
from fewbits.planning.plan import plan_from_json
from fewbits.planning.site import Role
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Options
from fewbits.search import layerwise, transforming
from fewbits.search.layerwise import STEP, with_rounding
from fewbits.search.memory import memory_needed


def network(seed: int = 0) -> bytes:
    """Three depthwise Convs with biases: few products a channel, so that rounding errors do not cancel."""
    rng = np.random.default_rng(seed)
    nodes, inits, source = [], [], "x"
    for i in range(3):
        weight = (rng.standard_normal((8, 1, 3, 3)) * np.exp(rng.standard_normal((8, 1, 1, 1)))).astype(np.float32)
        bias = rng.standard_normal(8).astype(np.float32)
        inits += [numpy_helper.from_array(weight, f"w{i}"), numpy_helper.from_array(bias, f"b{i}")]
        nodes.append(helper.make_node("Conv", [source, f"w{i}", f"b{i}"], [f"c{i}"], f"conv{i}", group=8, pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], f"relu{i}"))
        source = f"r{i}"
    nodes.append(helper.make_node("GlobalAveragePool", [source], ["pooled"], "pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["y"], "flatten"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        inits,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.fixture(scope="module")
def examples() -> np.ndarray:
    rng = np.random.default_rng(1)
    # Skewed, so that rounding has a mean error.
    return (rng.gamma(1.0, 1.0, (240, 8, 8, 8)) * rng.gamma(1.0, 1.0, (1, 8, 1, 1))).astype(np.float32)


@pytest.fixture(scope="module")
def done(tmp_path_factory, examples):
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    path.write_bytes(network())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforming, "TRANSFORMED", {})  # factors between the layers would leave nothing to correct
        return path, fewbits.quantize(path, data={"x": examples}, scheme="w8a8", allow_slower=True)


def test_less_memory_keeps_fewer_tensors_between_looks_and_gives_the_same_bytes(done, examples, monkeypatch):
    path, result = done
    limits = []

    class Told(PrefixRuns):
        def __init__(self, *arguments, limit, **more):
            limits.append(limit)
            super().__init__(*arguments, limit=limit, **more)

    monkeypatch.setattr(layerwise, "PrefixRuns", Told)
    needed = memory_needed(result.run.prepared.model, result.plan.quantized)
    for room in (0, 3000, None):
        limits.clear()
        again = fewbits.quantize(
            path, data={"x": examples}, plan=result.plan, max_memory=None if room is None else needed + room
        )
        assert again.model_bytes == result.model_bytes
        assert set(limits) == {layerwise._KEPT_BYTES if room is None else room // 2}


def exposing(data: bytes, names: list[str]) -> bytes:
    proto = onnx.load_from_string(data)
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    return bytes(proto.SerializeToString())


def mean_outputs(model: bytes, names: list[str], examples: np.ndarray) -> dict[str, np.ndarray]:
    outputs = RUNTIMES["ort"].open(exposing(model, names), Options()).run({"x": examples})
    return {name: outputs[name].mean(axis=(0, 2, 3), dtype=np.float64) for name in names}


def test_the_plan_says_that_biases_are_corrected(done):
    _, result = done
    assert STEP in [step.name for step in result.plan.transforms]
    assert plan_from_json(result.plan.to_json()) == result.plan


def test_mean_outputs_are_those_of_the_float_model_where_they_were_not(done, examples):
    path, result = done
    parts = result.run.prepared.parts
    seen = examples[parts.calibration]
    names = ["c0", "c1", "c2"]
    wanted = mean_outputs(path.read_bytes(), names, seen)
    plan = result.plan
    plain = fewbits.quantize(path, data={"x": examples}, plan=plan_without(plan), allow_slower=True)
    for name in names:
        before = np.abs(mean_outputs(plain.model_bytes, names, seen)[name] - wanted[name]).max()
        after = np.abs(mean_outputs(result.model_bytes, names, seen)[name] - wanted[name]).max()
        # What is left is the rounding of the int32 bias, and float32 sums.
        step = bias_scales(result.model_bytes, name).max()
        assert after <= step + 1e-5 * np.abs(wanted[name]).max(), name
        assert before > 2 * after, name


def plan_without(plan):
    return replace(plan, transforms=tuple(step for step in plan.transforms if step.name != STEP))


def bias_scales(model: bytes, output: str) -> np.ndarray:
    graph = onnx.load_from_string(model).graph
    conv = next(node for node in graph.node if output in node.output)
    dequantize = next(node for node in graph.node if conv.input[2] in node.output)
    return next(numpy_helper.to_array(i) for i in graph.initializer if i.name == dequantize.input[1])


def test_a_replay_gives_the_same_bytes(done, examples):
    path, result = done
    again = fewbits.quantize(path, data={"x": examples}, plan=result.plan, allow_slower=True)
    assert again.model_bytes == result.model_bytes
    assert again.plan.transforms == result.plan.transforms


def test_the_transform_takes_the_excess_off():
    transform = ALGORITHM(excess=np.array([0.5, -1.0]))
    weight = np.ones((2, 3), np.float32)
    same, bias = transform.fold(weight, np.array([1.0, 2.0], np.float32), axis=0)
    assert same is weight
    assert bias.dtype == np.float32
    assert bias.tolist() == [0.5, 3.0]
    assert transform.fold(weight, None, axis=0)[1].tolist() == [-0.5, 1.0]


@pytest.fixture(scope="module")
def narrow(done, examples):
    """The same network in w4a8, codes aiming at the float layers' outputs, whatever they are worth here."""
    path, _ = done
    emulated = {"target": "emulated", "allow_slower": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforming, "TRANSFORMED", {})
        drafted = fewbits.quantize(path, data={"x": examples}, scheme="w4a8", **emulated, effort="fast")
    plan = with_rounding(drafted.plan)
    plain = replace(plan, decisions=tuple(replace(d, rounder="gptq" if d.rounder else None) for d in plan.decisions))
    made = {
        name: fewbits.quantize(path, data={"x": examples}, plan=each, **emulated)
        for name, each in (("gptaq", plan), ("gptq", plain))
    }
    return path, made


def test_narrow_weights_aim_at_the_float_layer(narrow, examples):
    path, made = narrow
    plan = made["gptaq"].plan
    assert {d.rounder for d in plan.quantized if d.role is Role.WEIGHT} == {"gptaq"}
    seen = examples[made["gptaq"].run.prepared.parts.calibration]
    wanted = mean_outputs(path.read_bytes(), ["c2"], seen)["c2"]
    for result in made.values():
        found = mean_outputs(result.model_bytes, ["c2"], seen)["c2"]
        # Scales of rows have changed, and biases are written by them: their rounding is all that is left.
        step = bias_scales(result.model_bytes, "c2").max()
        assert np.abs(found - wanted).max() <= step + 1e-5 * np.abs(wanted).max()

    def errors(name: str) -> float:
        out = RUNTIMES["ort"].open(made[name].model_bytes, Options()).run({"x": examples})
        true = RUNTIMES["ort"].open(path.read_bytes(), Options()).run({"x": examples})
        return sum(float(np.square(out[key] - true[key]).sum()) for key in true)

    assert errors("gptaq") < 0.95 * errors("gptq")


def test_narrow_weights_are_replayed_to_the_same_bytes(narrow, examples):
    path, made = narrow
    again = fewbits.quantize(path, data={"x": examples}, plan=made["gptaq"].plan, target="emulated", allow_slower=True)
    assert again.model_bytes == made["gptaq"].model_bytes
    scales = {name: weight_scales(result.model_bytes) for name, result in made.items()}
    assert not np.array_equal(scales["gptaq"], scales["gptq"]), "no row of three layers took another scale"


def weight_scales(model: bytes) -> np.ndarray:
    graph = onnx.load_from_string(model).graph
    arrays = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    made = {node.output[0]: node for node in graph.node}
    weights = (made[node.input[1]] for node in graph.node if node.op_type == "Conv")
    return np.concatenate([np.ravel(arrays[node.input[1]]) for node in weights])
