"""What stands in an exported file: names, annotations, constants; and what the runtime makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fewbits.runtimes.base import Numbers

IMAGE = ("N", 16, 8, 8)


def residual(n: Any) -> None:
    """A residual block with a pool, a pad, a classifier and two outputs."""
    x = n.input(IMAGE, "image")
    a = n.relu(n.conv(x, 16, 16))
    b = n.relu(n.op("Add", a, n.conv(a, 16, 16)))
    c = n.op("MaxPool", n.op("Pad", b, n.ints(0, 0, 1, 1, 0, 0, 1, 1)), kernel_shape=[2, 2])
    n.output(n.gemm(n.op("Flatten", n.op("GlobalAveragePool", c)), 16, 8), b)


@pytest.fixture
def exported(net: Any, bench: Any) -> Any:
    n = net()
    residual(n)
    n.nodes[0].doc_string = "the stem"
    n.nodes[0].metadata_props.add(key="origin", value="layer1")
    n.value_info.append(helper.make_tensor_value_info(n.nodes[1].output[0], TensorProto.FLOAT, ["N", 16, 8, 8]))
    proto = n.model()
    proto.doc_string, proto.graph.doc_string, proto.domain, proto.model_version = "model", "graph", "org.example", 3
    proto.graph.input[0].doc_string = "pixels"
    proto.metadata_props.add(key="author", value="somebody")
    return bench.run(proto)


def test_every_node_has_a_name_and_no_two_the_same(exported: Any) -> None:
    names = [node.name for node in exported.proto.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


def test_no_two_tensors_have_the_same_name(exported: Any) -> None:
    graph = exported.proto.graph
    names = [*(t.name for t in graph.initializer), *(v.name for v in graph.input)]
    names += [name for node in graph.node for name in node.output if name]
    assert len(set(names)) == len(names)


def test_every_initializer_is_read(exported: Any) -> None:
    read = {name for node in exported.proto.graph.node for name in node.input}
    assert {t.name for t in exported.proto.graph.initializer} <= read


def test_inputs_and_outputs_keep_name_type_shape_and_order(exported: Any) -> None:
    before = onnx.load_model_from_string(exported.model.original).graph
    after = exported.proto.graph
    for old, new in zip((*before.input, *before.output), (*after.input, *after.output), strict=True):
        assert (new.name, new.type) == (old.name, old.type)
    assert after.input[0].doc_string == "pixels"


def test_documentation_and_metadata_of_the_model_stay(exported: Any) -> None:
    proto = exported.proto
    assert (proto.doc_string, proto.graph.doc_string) == ("model", "graph")
    assert (proto.domain, proto.model_version) == ("org.example", 3)
    assert {p.key: p.value for p in proto.metadata_props}["author"] == "somebody"
    stem = next(node for node in proto.graph.node if node.doc_string)
    assert (stem.op_type, stem.doc_string, stem.metadata_props[0].value) == ("Conv", "the stem", "layer1")


def test_operators_keep_their_names(exported: Any) -> None:
    old = {(n.name, n.op_type) for n in onnx.load_model_from_string(exported.model.original).graph.node}
    new = {(n.name, n.op_type) for n in exported.proto.graph.node}
    assert old <= new


def test_annotations_that_the_file_had_stay_and_no_others_come(exported: Any) -> None:
    assert [info.name for info in exported.proto.graph.value_info] == list(exported.model.annotated)
    assert len(exported.model.annotated) == 1


def test_the_file_is_standard_onnx_of_the_same_opset(exported: Any) -> None:
    proto = exported.proto
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 17)]
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    onnx.checker.check_model(proto, full_check=True)


def test_the_same_plan_gives_the_same_bytes(net: Any, bench: Any) -> None:
    first, second = net(), net()
    residual(first)
    residual(second)
    assert bench.run(first).data == bench.run(second).data


def test_weights_are_int8_and_no_float_copy_is_left(exported: Any) -> None:
    kinds = Counter(t.data_type for t in exported.proto.graph.initializer if np.prod(t.dims) >= 128)
    assert kinds == {TensorProto.INT8: 3}


def test_a_name_that_ours_would_take_is_left_to_the_model(net: Any, bench: Any) -> None:
    n = net()
    x = n.input(("N", 16))
    w = n.weight(16, 16, name="w")
    for taken in ("w_q", "w_s", "w_dq", "x_s", "zp_uint8_0"):
        n.const(np.ones(16), taken)
    total = "w_q"
    for name in ("w_s", "w_dq", "x_s", "zp_uint8_0"):
        total = n.op("Mul", total, name)
    n.output(n.op("Add", n.op("MatMul", x, w, name="x_Q", out="x_q"), n.op("Mul", n.input(("N", 16), "y"), total)))
    case = bench.run(n)
    assert case.problems() == []
    assert min(case.sqnr.values()) > 30


# --- layers kept float --------------------------------------------------------------------------------------------


def _convs(n: Any, middle: Callable[[str], str] = lambda x: x) -> None:
    x = n.input(IMAGE)
    a = n.relu(n.conv(x, 16, 16, name="A"))
    n.output(n.conv(middle(n.conv(a, 16, 16, name="B")), 16, 16, name="C"))


@pytest.mark.parametrize("behind", ["nothing", "Relu", "Clip", "MaxPool", "Clip, MaxPool"])
def test_a_conv_kept_float_runs_in_float(behind: str, net: Any, bench: Any) -> None:
    def middle(x: str) -> str:
        x = n.relu(x) if "Relu" in behind else x
        x = n.clip(x) if "Clip" in behind else x
        return n.op("MaxPool", x, kernel_shape=[2, 2]) if "MaxPool" in behind else x

    n = net()
    _convs(n, middle)
    case = bench.run(n, keep_float=("B",))
    assert case.ran(Numbers.INTEGER)["QLinearConv"] == 2
    assert sum(count for op, count in case.ran(Numbers.FLOAT).items() if "Conv" in op) == 1


def test_a_gemm_kept_float_runs_in_float(net: Any, bench: Any) -> None:
    n = net()
    x = n.input(("N", 32))
    b = n.gemm(n.relu(n.gemm(x, 32, 16)), 16, 16, name="B")
    n.output(n.gemm(n.relu(b), 16, 8))
    case = bench.run(n, keep_float=("B",))
    assert case.ran(Numbers.INTEGER)["QGemm"] == 2
    assert sum(count for op, count in case.ran(Numbers.FLOAT).items() if "Gemm" in op) == 1


def test_a_transposed_conv_keeps_its_float_weight(net: Any, bench: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    a = n.op("ConvTranspose", n.relu(n.conv(x, 16, 16)), n.weight(16, 16, 2, 2), strides=[2, 2])
    n.output(n.conv(a, 16, 16))
    case = bench.run(n)
    assert case.problems() == []
    assert case.slugs == {"ConvTranspose": "no-integer-kernel"}


@pytest.mark.parametrize("kept", ["A", "C", "A B", "B C", "A B C"])
def test_convs_kept_float_at_the_ends_run_in_float(kept: str, net: Any, bench: Any) -> None:
    n = net()
    _convs(n)
    case = bench.run(n, keep_float=tuple(kept.split()))
    count = len(kept.split())
    assert case.ran(Numbers.INTEGER)["QLinearConv"] == 3 - count
    assert sum(number for op, number in case.ran(Numbers.FLOAT).items() if "Conv" in op) == count
    assert not any(node.op_type == "Sum" for node in case.proto.graph.node), "a barrier where none is needed"


def test_a_shape_reads_codes(net: Any, bench: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    a = n.relu(n.conv(x, 16, 16))
    n.output(n.conv(a, 16, 16))
    n.output(n.op("Shape", a), dtype=TensorProto.INT64)
    case = bench.run(n)
    assert case.ops["DequantizeLinear"] == 1


@pytest.mark.parametrize("kept", ["A", "B"])
def test_one_of_two_layers_with_a_shared_weight_may_stay_float(kept: str, net: Any, bench: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    w = n.weight(16, 16, 3, 3)
    a = n.relu(n.op("Conv", x, w, n.vector(16), pads=[1] * 4, name="A"))
    n.output(n.op("Conv", a, w, n.vector(16), pads=[1] * 4, name="B"))
    case = bench.run(n, keep_float=(kept,))
    assert case.ran(Numbers.INTEGER)["QLinearConv"] == 1
    assert case.ran(Numbers.FLOAT).total() == 1


def test_a_tensor_read_inside_a_branch_counts_as_read(net: Any, bench: Any) -> None:
    n = net()
    x, flag = n.input(IMAGE), n.input(("N",), "flag")
    a = n.conv(x, 16, 16)
    info = [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)]
    branches = [helper.make_graph([helper.make_node(op, [a], ["t"])], op, [], info) for op in ("Tanh", "Sigmoid")]
    positive = n.op("Greater", n.op("ReduceSum", flag, keepdims=0), n.const(0.0))
    n.output(n.op("If", positive, then_branch=branches[0], else_branch=branches[1]), shape=IMAGE)
    n.output(n.conv(n.relu(a), 16, 16))
    case = bench.run(n.model(checked=False))
    assert case.ran(Numbers.INTEGER)["QLinearConv"] == 2
    assert min(case.sqnr.values()) > 20


# --- real models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "floats"),
    [
        ("cifar10/resnet20.onnx", {}),
        ("imagenet_sample/tiny_darknet.onnx", {"GlobalAveragePool": "chain-end", "Flatten": "moves-float"}),
        ("imagenet_sample/mobilenet_v1_0.5_160_dequant.onnx", {}),
    ],
)
def test_every_node_of_a_real_cnn_runs_as_promised(
    name: str, floats: dict[str, str], real_data: Callable[[str], Path], bench: Any, graphs: Any
) -> None:
    from fewbits.models.onnx.opening import open_model

    model = open_model(real_data(name))
    case = bench.quantize(model, graphs.live_examples(model, 4))
    assert case.slugs == floats
    assert case.problems() == []
    assert len(case.data) < 0.3 * len(case.model.original)


def test_every_weight_of_a_real_transformer_runs_in_integers(
    real_data: Callable[[str], Path], bench: Any, graphs: Any
) -> None:
    from fewbits.models.onnx.opening import open_model

    model = open_model(real_data("speech_commands/kwt1.onnx"))
    case = bench.quantize(model, graphs.live_examples(model, 4))
    weighted = [op for op in model.view.ops if op.op in ("MatMul", "Gemm") and model.view.is_constant(op.inputs[1])]
    assert len(weighted) == 74  # 12 blocks of q, k, v, projection and two of the MLP; embedding and head
    assert {op.name for op in weighted} <= set(case.placement.integer)
    assert case.problems() == []
    assert len(case.data) < 0.35 * len(case.model.original)
