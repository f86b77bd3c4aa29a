"""Every graph pass alone: what it ensures, and that the model still computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx_ir.passes import common

from fewbits.models.onnx.folding import FoldConstants
from fewbits.models.onnx.model import serialize
from fewbits.models.onnx.normal_forms import (
    ClipFirst,
    MatMulToGemm,
    MeanToPool,
    RowBiases,
    UnshareBiases,
    UnshareWeights,
)
from fewbits.models.onnx.passes import DropCopies, FoldBatchNorm, FoldPad, MendNames, canonical_passes
from fewbits.models.onnx.shapes import FixedReshapes, WholePads
from fewbits.runtimes.base import Options
from fewbits.runtimes.ort import RUNTIME

IMAGE = ("N", 16, 8, 8)
# Two float32 sums of 144 products differ by up to 2 * 144 * 2**-24 = 1.7e-5 of the sum of magnitudes, which is at most
# five times the largest output of these layers.
TOLERANCE = 1e-4


def apply(graph_pass: Any, proto: onnx.ModelProto, *, batch: int = 3) -> tuple[ir.Model, bool]:
    """Returns the model after one pass, and whether the pass changed it; asserts that it computes the same."""
    model = ir.from_proto(proto)
    common.ShapeInferencePass()(model)
    rng = np.random.default_rng(7)
    feeds = {
        value.name: rng.standard_normal([d if isinstance(d, int) else batch for d in value.shape]).astype(np.float32)
        for value in model.graph.inputs
        if not value.is_initializer()
    }
    before = RUNTIME.open(serialize(model), Options(optimize=False)).run(feeds)
    result = graph_pass(model)  # runs requires and ensures too
    data = serialize(result.model)
    onnx.checker.check_model(data, full_check=True)
    after = RUNTIME.open(data, Options(optimize=False)).run(feeds)
    assert list(after) == list(before), "names or order of the outputs changed"
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=0, atol=TOLERANCE * np.abs(value).max())
    return result.model, result.modified


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


# --- BatchNormalization -------------------------------------------------------------------------------------------


def _norm_after(n: Any, kind: str) -> None:
    x = n.input(("N", 16) if kind.startswith("gemm") else IMAGE)
    layer = {
        "conv": lambda: n.conv(x, 16, 24),
        "conv without bias": lambda: n.conv(x, 16, 24, bias=False),
        "grouped": lambda: n.conv(x, 16, 24, group=4),
        "depthwise": lambda: n.conv(x, 16, 16, group=16, bias=False),
        "transposed": lambda: n.op("ConvTranspose", x, n.weight(16, 24, 3, 3), n.vector(24), strides=[2, 2]),
        "gemm transB=1": lambda: n.gemm(x, 16, 24),
        "gemm transB=0": lambda: n.gemm(x, 16, 24, trans=0),
        "gemm without bias": lambda: n.gemm(x, 16, 24, trans=0, bias=False),
    }[kind]()
    n.output(n.relu(n.norm(layer, 16 if kind == "depthwise" else 24)))


@pytest.mark.parametrize(
    "kind",
    [
        "conv", "conv without bias", "grouped", "depthwise", "transposed",
        "gemm transB=1", "gemm transB=0", "gemm without bias",
    ],
)  # fmt: skip
def test_batchnorm_folds_into(kind: str, net: Any) -> None:
    n = net()
    _norm_after(n, kind)
    names = {t.name for t in n.initializers if t.name.startswith("w")}
    model, modified = apply(FoldBatchNorm(), n.model())
    assert modified
    assert "BatchNormalization" not in ops(model)
    assert names <= set(model.graph.initializers), "the weight lost its name"
    assert len(model.graph.initializers) == 2


def test_batchnorm_after_a_grouped_transposed_conv_stays(net: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    n.output(n.norm(n.op("ConvTranspose", x, n.weight(16, 4, 3, 3), group=4), 16))
    model, modified = apply(FoldBatchNorm(), n.model())
    assert not modified
    assert ops(model) == ["ConvTranspose", "BatchNormalization"]


def test_batchnorm_whose_input_has_two_readers_stays(net: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    a = n.conv(x, 16, 16)
    n.output(n.op("Add", n.norm(a, 16), a))
    assert not apply(FoldBatchNorm(), n.model())[1]


def test_batchnorm_whose_input_is_an_output_stays(net: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    a = n.conv(x, 16, 16)
    n.output(a, n.norm(a, 16))
    assert not apply(FoldBatchNorm(), n.model())[1]


def test_batchnorm_that_is_the_output_gives_its_name_to_the_layer(net: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    last = n.norm(n.conv(x, 16, 16), 16)
    n.output(last)
    model, modified = apply(FoldBatchNorm(), n.model())
    assert modified
    assert model.graph.node(0).outputs[0].name == last


def test_a_weight_shared_by_two_normalized_layers_is_folded_twice(net: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    w = n.weight(16, 16, 3, 3)
    a = n.norm(n.op("Conv", x, w, pads=[1] * 4), 16)
    n.output(n.norm(n.op("Conv", a, w, pads=[1] * 4), 16))
    model, _ = apply(FoldBatchNorm(), n.model())
    assert ops(model) == ["Conv", "Conv"]
    assert len(model.graph.initializers) == 4


def test_a_chain_of_batchnorms_folds_whole(net: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    n.output(n.norm(n.norm(n.conv(x, 16, 16), 16), 16))
    assert ops(apply(FoldBatchNorm(), n.model())[0]) == ["Conv"]


# --- names --------------------------------------------------------------------------------------------------------


def test_unnamed_and_doubly_named_nodes_get_names_and_the_old_ones_are_kept(net: Any) -> None:
    n = net()
    x = n.input(("N", 16))
    n.output(n.relu(n.relu(n.relu(x))))
    for node, name in zip(n.nodes, ("", "act", "act"), strict=True):
        node.name = name
    mend = MendNames()
    model = ir.from_proto(n.model())  # the runtime refuses doubled names: nothing to compare with
    assert mend(model).modified
    RUNTIME.open(serialize(model), Options())
    assert [node.name for node in model.graph] == ["Relu_0", "act", "act_1"]
    assert mend.renamed == {"Relu_0": "", "act_1": "act"}


# --- Dropout, Pad, ReduceMean -------------------------------------------------------------------------------------


def test_dropout_vanishes_inside_and_as_last_node(net: Any) -> None:
    n = net()
    x = n.input(("N", 16))
    last = n.op("Dropout", n.gemm(n.op("Dropout", n.relu(x)), 16, 8))
    n.output(last)
    model, _ = apply(DropCopies(), n.model())
    assert ops(model) == ["Relu", "Gemm"]
    assert model.graph.outputs[0].name == last


def test_dropout_from_input_to_output_stays(net: Any) -> None:
    n = net()
    n.output(n.op("Dropout", n.input(("N", 16))))
    assert ops(apply(DropCopies(), n.model())[0]) == ["Dropout"]


def test_identities_vanish_but_for_those_that_name_an_output(net: Any) -> None:
    n = net()
    x = n.input(("N", 16))
    a = n.op("Identity", n.relu(n.op("Identity", x)))
    n.output(n.op("Identity", a), n.op("Identity", a), n.op("Identity", x))
    n.output(n.op("Tanh", a))
    names = [output.name for output in n.outputs]
    model, _ = apply(DropCopies(), n.model())
    assert ops(model) == ["Relu", "Identity", "Identity", "Tanh"]
    assert [output.name for output in model.graph.outputs] == names


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_mean_over_all_spatial_axes_becomes_a_pool(opset: int, net: Any) -> None:
    n = net(opset=opset)
    x = n.input(IMAGE)
    if opset < 18:
        n.output(n.op("ReduceMean", x, axes=[-1, 2], keepdims=0), n.op("ReduceMean", x, axes=[2, 3]))
    else:
        n.output(n.op("ReduceMean", x, n.ints(-1, 2), keepdims=0), n.op("ReduceMean", x, n.ints(2, 3)))
    model, _ = apply(MeanToPool(), n.model())
    assert ops(model) == ["GlobalAveragePool", "Flatten", "GlobalAveragePool"]


def test_mean_over_other_axes_stays(net: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    n.output(n.op("ReduceMean", x, axes=[1]), n.op("ReduceMean", x, axes=[1, 2, 3]), n.op("ReduceMean", x))
    assert not apply(MeanToPool(), n.model())[1]


def test_zero_padding_moves_into_the_conv(net: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    n.output(n.conv(n.op("Pad", x, n.ints(0, 0, 0, 1, 0, 0, 2, 3)), 16, 16))
    model, _ = apply(FoldPad(), n.model())
    assert ops(model) == ["Conv"]
    assert list(model.graph.node(0).attributes["pads"].value) == [1, 2, 3, 4]


@pytest.mark.parametrize("what", ["one", "channels", "reflect", "negative", "two readers", "output", "auto_pad"])
def test_padding_that_a_conv_cannot_do_stays(what: str, net: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    amounts = {"channels": (0, 2, 0, 0, 0, 2, 0, 0), "negative": (0, 0, -1, 0, 0, 0, 0, 0)}
    widths = n.ints(*amounts.get(what, (0, 0, 1, 1, 0, 0, 1, 1)))
    extra = [n.const(1.0)] if what == "one" else []
    padded = n.op("Pad", x, widths, *extra, mode="reflect" if what == "reflect" else "constant")
    channels = 20 if what == "channels" else 16
    options: dict[str, Any] = {"auto_pad": "SAME_UPPER"} if what == "auto_pad" else {"pads": [1] * 4}
    n.output(n.op("Conv", padded, n.weight(16, channels, 3, 3), **options))
    if what == "two readers":
        n.output(n.relu(padded))
    if what == "output":
        n.output(padded)
    assert not apply(FoldPad(), n.model())[1]


def test_a_pad_of_chosen_axes_becomes_a_pad_of_all_and_then_the_convs(net: Any) -> None:
    n = net(opset=18)
    x = n.input(IMAGE)
    n.output(n.conv(n.op("Pad", x, n.ints(1, 2, 3, 4), "", n.ints(-1, 2)), 16, 16, pads=[0] * 4))
    model, _ = apply(WholePads(), n.model())
    pad = model.graph.node(0)
    assert pad.inputs[1].const_value.numpy().tolist() == [0, 0, 2, 1, 0, 0, 4, 3]
    assert ops(apply(FoldPad(), ir.to_proto(model))[0]) == ["Conv"]


# --- sharing and normal forms -------------------------------------------------------------------------------------


def test_a_shared_bias_gets_a_copy_with_a_name_of_its_own(net: Any) -> None:
    n = net()
    x = n.input(("N", 16))
    b = n.vector(16, "b")
    n.vector(16, "b_copy")
    h = n.op("Gemm", x, n.weight(16, 16), b)
    n.output(n.op("Add", n.op("Gemm", h, n.weight(16, 16), b), "b_copy"))
    model, _ = apply(UnshareBiases(), n.model())
    assert [node.inputs[2].name for node in model.graph if node.op_type == "Gemm"] == ["b", "b_copy_1"]


def test_a_bias_that_is_read_as_data_too_gets_a_copy(net: Any) -> None:
    n = net()
    x = n.input(("N", 16))
    b = n.vector(16, "b")
    n.output(n.op("Add", n.op("Gemm", x, n.weight(16, 16), b), b))
    model, _ = apply(UnshareBiases(), n.model())
    assert [node.inputs[-1].name for node in model.graph] == ["b_copy", "b"]


def test_a_weight_read_along_two_axes_is_copied_and_along_one_is_not(net: Any) -> None:
    n = net()
    x = n.input(("N", 16))
    w = n.weight(16, 16, name="w")
    n.output(n.op("MatMul", n.op("Gemm", n.op("Gemm", x, w, transB=1), w, transB=0), w))
    model, _ = apply(UnshareWeights(), n.model())
    assert [node.inputs[1].name for node in model.graph] == ["w", "w_copy", "w_copy"]


def test_a_weight_that_is_looked_up_too_is_copied_for_its_layer(net: Any) -> None:
    n = net()
    x = n.input(("N", 16))
    w = n.weight(16, 16, name="w")
    n.output(n.op("Gather", w, n.ints(0, 1)), n.op("Gemm", x, w, transB=1))
    model, _ = apply(UnshareWeights(), n.model())
    assert [node.inputs[index].name for node, index in zip(model.graph, (0, 1), strict=True)] == ["w", "w_copy"]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 24)])
def test_a_broadcast_bias_becomes_a_row(shape: tuple[int, ...], net: Any) -> None:
    n = net()
    x = n.input(("N", 16))
    n.output(n.op("Gemm", x, n.weight(24, 16), n.const(n.rng.standard_normal(shape), "c"), transB=1))
    model, _ = apply(RowBiases(), n.model())
    assert tuple(model.graph.node(0).inputs[2].shape) == (24,)
    assert "c" not in model.graph.initializers


@pytest.mark.parametrize("shape", [(3, 1), (3, 24)])
def test_a_bias_that_differs_by_row_stays(shape: tuple[int, ...], net: Any) -> None:
    n = net()
    x = n.input((3, 16))
    n.output(n.op("Gemm", x, n.weight(24, 16), n.const(n.rng.standard_normal(shape)), transB=1))
    assert not apply(RowBiases(), n.model())[1]


@pytest.mark.parametrize("row_first", [False, True])
def test_matmul_with_a_row_added_becomes_gemm(row_first: bool, net: Any) -> None:
    n = net()
    x = n.input(("N", 16))
    product, row = n.matmul(x, 16, 24), n.const(n.rng.standard_normal((1, 24) if row_first else 24))
    last = n.op("Add", *((row, product) if row_first else (product, row)))
    n.output(last)
    model, _ = apply(MatMulToGemm(), n.model())
    assert ops(model) == ["Gemm"]
    assert model.graph.node(0).outputs[0].name == last


@pytest.mark.parametrize("what", ["rank 3", "two readers", "scalar", "product is an output"])
def test_matmul_that_is_no_gemm_stays(what: str, net: Any) -> None:
    n = net()
    x = n.input(("N", 7, 16) if what == "rank 3" else ("N", 16))
    product = n.matmul(x, 16, 24)
    n.output(n.op("Add", product, n.const(0.5) if what == "scalar" else n.vector(24)))
    if what == "two readers":
        n.output(n.relu(product))
    if what == "product is an output":
        n.output(product)
    assert not apply(MatMulToGemm(), n.model())[1]


@pytest.mark.parametrize("kind", ["MaxPool", "Flatten", "Transpose"])
def test_a_clip_goes_before_an_operator_that_moves_elements(kind: str, net: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    options = {"MaxPool": {"kernel_shape": [3, 3], "pads": [1] * 4}, "Transpose": {"perm": [0, 2, 3, 1]}}
    last = n.relu(n.op(kind, n.conv(x, 16, 16), **options.get(kind, {})))
    n.output(last)
    model, _ = apply(ClipFirst(), n.model())
    assert ops(model) == ["Conv", "Relu", kind]
    assert model.graph.node(2).outputs[0].name == last


def test_a_clip_goes_before_a_whole_chain(net: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    n.output(n.clip(n.op("Flatten", n.op("MaxPool", n.conv(x, 16, 16), kernel_shape=[2, 2])), -0.5, 0.5))
    assert ops(apply(ClipFirst(), n.model())[0]) == ["Conv", "Clip", "MaxPool", "Flatten"]


@pytest.mark.parametrize("what", ["two readers", "source read twice", "average", "pool is an output", "input"])
def test_a_clip_stays_where_it_is(what: str, net: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    a = x if what == "input" else n.conv(x, 16, 16)
    pooled = n.op("AveragePool" if what == "average" else "MaxPool", a, kernel_shape=[2, 2])
    n.output(n.relu(pooled))
    if what == "two readers":
        n.output(n.op("Tanh", pooled))
    if what == "source read twice":
        n.output(n.op("Tanh", a))
    if what == "pool is an output":
        n.output(pooled)
    assert not apply(ClipFirst(), n.model())[1]


# --- constants and shapes -----------------------------------------------------------------------------------------


def test_a_transposed_weight_becomes_a_weight(net: Any) -> None:
    n = net()
    x = n.input(("N", 16))
    w = n.weight(24, 16, name="w")
    turned = n.op("Transpose", w, perm=[1, 0])
    n.output(n.op("MatMul", x, turned))
    model, _ = apply(FoldConstants(), n.model())
    assert ops(model) == ["MatMul"]
    assert set(model.graph.initializers) == {turned}
    np.testing.assert_array_equal(
        model.graph.initializers[turned].const_value.numpy(), onnx.numpy_helper.to_array(n.initializers[0]).T
    )


def test_a_constant_with_a_second_reader_is_kept(net: Any) -> None:
    n = net()
    x = n.input(("N", 16))
    w = n.weight(16, 16, name="w")
    n.output(n.op("MatMul", n.op("MatMul", x, w), n.op("Transpose", w)))
    model, _ = apply(FoldConstants(), n.model())
    assert ops(model) == ["MatMul", "MatMul"]
    assert "w" in model.graph.initializers


def test_chains_of_constants_fold_to_their_end(net: Any) -> None:
    n = net()
    x = n.input(("N", 16))
    total = n.op("Mul", n.op("Sqrt", n.op("Cast", n.ints(16), to=TensorProto.FLOAT)), n.const(0.5))
    n.output(n.op("Mul", x, total))
    model, _ = apply(FoldConstants(), n.model())
    assert ops(model) == ["Mul"]
    assert model.graph.initializers[total].const_value.numpy().tolist() == [2.0]


def test_operators_with_several_outputs_fold(net: Any) -> None:
    n = net()
    x = n.input(("N", 8))
    first, second = n.ops("Split", n.weight(2, 8), outputs=2, axis=0)
    n.output(n.op("Add", n.op("Mul", x, first), second))
    assert ops(apply(FoldConstants(), n.model())[0]) == ["Mul", "Add"]


def test_an_output_that_nobody_reads_does_not_mix_up_the_others(net: Any) -> None:
    n = net()
    x = n.input(("N", 8))
    _, second = n.ops("Split", n.const(np.arange(16).reshape(2, 8)), outputs=2, axis=0)
    n.output(n.op("Mul", x, second))
    model, _ = apply(FoldConstants(), n.model())
    assert model.graph.initializers[second].const_value.numpy().tolist() == [list(range(8, 16))]


def test_the_shape_of_a_tensor_of_fixed_shape_folds_and_of_a_dynamic_one_does_not(net: Any) -> None:
    n = net()
    x, y = n.input((2, 16), "x"), n.input(("N", 8), "y")
    flat = n.op("Reshape", x, n.op("Shape", x))
    n.output(flat, n.op("Reshape", y, n.op("Shape", y)))
    model, _ = apply(FoldConstants(), n.model())
    assert ops(model) == ["Reshape", "Shape", "Reshape"]


def test_random_numbers_are_never_folded(net: Any) -> None:
    n = net()
    x = n.input(("N", 16))
    n.output(n.op("Mul", x, n.op("Mul", n.op("RandomNormalLike", n.vector(16), seed=1.0), n.const(0.0))))
    model, modified = apply(FoldConstants(), n.model())
    assert not modified
    assert "RandomNormalLike" in ops(model)


def test_what_would_blow_up_the_file_is_left_to_the_runtime(net: Any) -> None:
    n = net()
    x = n.input(("N", 1024, 1024))
    n.output(n.op("Mul", x, n.op("Expand", n.const([1.0]), n.ints(1024, 1024))))
    assert not apply(FoldConstants(), n.model(), batch=1)[1]


def test_a_constant_that_is_an_output_stays_computed(net: Any) -> None:
    n = net()
    x = n.input(("N", 16))
    n.output(n.relu(x), n.op("Transpose", n.weight(4, 4)))
    assert not apply(FoldConstants(), n.model())[1]


def test_a_shape_made_from_the_batch_becomes_a_constant(net: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    batch = n.op("Unsqueeze", n.op("Gather", n.op("Shape", x), n.const(0, dtype=np.int64)), n.ints(0))
    n.output(n.op("Reshape", x, n.op("Concat", batch, n.ints(4, -1), axis=0)))
    model, _ = apply(FixedReshapes(), n.model())
    reshape = next(node for node in model.graph if node.op_type == "Reshape")
    assert reshape.inputs[1].const_value.numpy().tolist() == [0, 4, -1]


def test_two_open_dimensions_stay_the_inputs_own(net: Any) -> None:
    n = net()
    x = n.input(("N", "T", 16))
    shape = n.op("Shape", x)
    sizes = [n.op("Gather", shape, n.ints(i)) for i in (0, 1)]
    n.output(n.op("Reshape", x, n.op("Concat", *sizes, n.ints(4, 4), axis=0)))
    model, _ = apply(FixedReshapes(), n.model())
    reshape = next(node for node in model.graph if node.op_type == "Reshape")
    assert reshape.inputs[1].const_value.numpy().tolist() == [0, 0, 4, 4]


def test_a_shape_that_depends_on_two_open_dimensions_stays_computed(net: Any) -> None:
    n = net()
    x = n.input(("N", "T", 16))
    shape = n.op("Shape", x)
    rows = n.op("Mul", n.op("Gather", shape, n.ints(0)), n.op("Gather", shape, n.ints(1)))
    n.output(n.op("Reshape", x, n.op("Concat", rows, n.ints(16), axis=0)))
    assert not apply(FixedReshapes(), n.model())[1]


# --- all of them --------------------------------------------------------------------------------------------------


def test_every_pass_leaves_a_plain_model_alone_and_is_idempotent(net: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    n.output(
        n.gemm(n.op("Flatten", n.op("MaxPool", n.relu(n.norm(n.conv(x, 16, 16), 16)), kernel_shape=[8, 8])), 16, 4)
    )
    model = ir.from_proto(n.model())
    for _, graph_pass in canonical_passes():
        graph_pass(model)
    once = serialize(model)
    for name, graph_pass in canonical_passes():
        changed = graph_pass(model).modified
        assert not changed or name.startswith("infer_shapes"), name
    assert serialize(model) == once


@pytest.mark.parametrize("opset", [13, 15, 17, 18, 19, 20, 21])
def test_opsets_from_13_on_open_and_compute_the_same(opset: int, net: Any, bench: Any) -> None:
    n = net(opset=opset)
    x = n.input(IMAGE)
    a = n.clip(n.norm(n.conv(x, 16, 16), 16))
    pooled = n.op("ReduceMean", a, axes=[2, 3]) if opset < 18 else n.op("ReduceMean", a, n.ints(2, 3))
    n.output(n.gemm(n.op("Squeeze", pooled, n.ints(2, 3)), 16, 8))
    case = bench.run(n)
    assert case.problems() == []
    assert case.slugs == {}
    assert min(case.sqnr.values()) > 20  # see LEAST_SQNR_DB in tests/targets/test_ort_cpu.py


def test_functions_are_inlined(net: Any, bench: Any) -> None:
    n = net()
    x = n.input(("N", 16))
    a = n.gemm(x, 16, 16)
    n.output(n.gemm(n.op("Act", a, domain="mine"), 16, 8), shape=("N", 8))
    n.imports.append(helper.make_opsetid("mine", 1))
    proto = n.model(checked=False)
    body = [helper.make_node("Sigmoid", ["a"], ["s"]), helper.make_node("Mul", ["a", "s"], ["y"])]
    proto.functions.append(helper.make_function("mine", "Act", ["a"], ["y"], body, [helper.make_opsetid("", 17)]))
    proto.ir_version = 9
    case = bench.run(proto)
    assert case.problems() == []
    assert case.promised == {"QGemm": 2, "QLinearSigmoid": 1, "QLinearMul": 1}
