"""Prefixes run part by part give what the whole model gives, whatever is kept, and run no part twice."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from fewbits.models.onnx.prefixes import PrefixRuns
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Options

LAYERS = ("first", "left", "right", "last")


def network(scales: dict[str, float]) -> bytes:
    """Four layers, two of them side by side; one reads a tensor through a body, and a sum goes around them all."""
    then = helper.make_graph(
        [helper.make_node("Neg", ["first_out"], ["turned"], "turn")],
        "then",
        [],
        [helper.make_tensor_value_info("turned", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["first_out"], ["kept"], "keep")],
        "other",
        [],
        [helper.make_tensor_value_info("kept", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["x_q"], "quantize"),
        helper.make_node("DequantizeLinear", ["x_q", "step", "zero"], ["x_dq"], "dequantize"),
        helper.make_node("Transpose", ["w_first"], ["w_turned"], "of_constants", perm=[1, 0]),
        helper.make_node("MatMul", ["x_dq", "w_turned"], ["first_out"], "first"),
        helper.make_node("If", ["yes"], ["branch"], "if", then_branch=then, else_branch=other),
        helper.make_node("MatMul", ["branch", "w_left"], ["left_out"], "left"),
        helper.make_node("MatMul", ["branch", "w_right"], ["right_out"], "right"),
        helper.make_node("Add", ["left_out", "right_out"], ["joined"], "join"),
        helper.make_node("Add", ["joined", "x_dq"], ["around"], "around"),
        helper.make_node("MatMul", ["around", "w_last"], ["y"], "last"),
    ]
    rng = np.random.default_rng(0)
    inits = [
        numpy_helper.from_array((rng.standard_normal((4, 4)) * s).astype("f4"), f"w_{n}") for n, s in scales.items()
    ]
    inits += [numpy_helper.from_array(np.array(v), n) for n, v in (("step", np.float32(0.1)), ("zero", np.uint8(7)))]
    inits.append(numpy_helper.from_array(np.array(True), "yes"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        inits,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def whole(data: bytes, name: str, x: np.ndarray) -> np.ndarray:
    model = onnx.load_from_string(data)
    model.graph.output.append(helper.make_empty_tensor_value_info(name))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([name], {"x": x})[0]


READ = {"first": "x_dq", "left": "branch", "right": "branch", "last": "around"}
BATCHES = [np.random.default_rng(i).random((3 if i < 2 else 2, 4)).astype(np.float32) for i in range(3)]


@pytest.mark.parametrize("limit", [1 << 28, 100, 0])
def test_every_look_is_that_of_the_whole_model(limit):
    opened = []

    def open_part(data: bytes):
        opened.append({node.name for node in onnx.load_from_string(data).graph.node})
        return RUNTIMES["ort"].open(data, Options())

    runs = PrefixRuns(lambda: [({"x": x}, len(x) - 1) for x in BATCHES], open_part, limit=limit)
    scales = dict.fromkeys(LAYERS, 1.0)
    for i, group in enumerate((["first"], ["left", "right"], ["last"])):
        data = network(scales)
        changing = [name for name in LAYERS if name not in LAYERS[: LAYERS.index(group[0])]]
        found = list(runs.look(data, dict.fromkeys(group, 0), changing))
        assert [count for _, count in found] == [2, 2, 1]
        for x, (seen, _) in zip(BATCHES, found, strict=True):
            assert set(seen) == set(group)
            for name in group:
                assert np.array_equal(seen[name], whole(data, READ[name], x))
        for name in group:  # what was looked at changes, as a layer that learns does
            scales[name] = 2.0 + i
    assert opened[0] == {"quantize", "dequantize"}
    if limit > 1000:
        assert "quantize" not in opened[1] | opened[2], "codes are kept, and dequantized anew"
        assert opened[2] == {"dequantize", "left", "right", "join", "around"}
    else:
        assert {"first", "if"} <= opened[2]
        assert ("quantize" in opened[2]) == (limit == 0), "what was kept before the limit was reached is still there"


def test_the_last_layers_are_not_computed():
    opened = []

    def open_part(data: bytes):
        opened.append(onnx.load_from_string(data))
        return RUNTIMES["ort"].open(data, Options())

    runs = PrefixRuns(lambda: [({"x": BATCHES[0]}, 3)], open_part, limit=1 << 28)
    list(runs.look(network(dict.fromkeys(LAYERS, 1.0)), {"left": 0}, ["left", "right", "last"]))
    assert {node.name for node in opened[0].graph.node} >= {"first", "if"}
    assert {each.name for each in opened[0].graph.initializer} == {"step", "zero", "yes", "w_first"}


def test_sequences_are_not_kept():
    """A tensor is split and joined again between the layers: what crosses there is a list of tensors."""
    nodes = [
        helper.make_node("MatMul", ["x", "w_first"], ["h"], "first"),
        helper.make_node("SplitToSequence", ["h"], ["parts"], "split", axis=1, keepdims=1),
        helper.make_node("MatMul", ["h", "w_left"], ["l"], "left"),
        helper.make_node("ConcatFromSequence", ["parts"], ["back"], "join", axis=1),
        helper.make_node("Add", ["l", "back"], ["sum"], "add"),
        helper.make_node("MatMul", ["sum", "w_last"], ["y"], "last"),
    ]
    rng = np.random.default_rng(0)
    inits = [
        numpy_helper.from_array(rng.standard_normal((4, 4)).astype(np.float32), f"w_{name}")
        for name in ("first", "left", "last")
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], inits)
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    runs = PrefixRuns(
        lambda: [({"x": x}, len(x)) for x in BATCHES],
        lambda part: RUNTIMES["ort"].open(part, Options()),
        limit=1 << 28,
    )
    for name, changing in (("left", ["left", "last"]), ("last", ["last"])):
        found = list(runs.look(data, {name: 0}, changing))
        for x, (seen, _) in zip(BATCHES, found, strict=True):
            assert np.array_equal(seen[name], whole(data, {"left": "h", "last": "sum"}[name], x))
