"""The table of targets/ort_cpu.py against what ONNX Runtime executes: every pattern is built, exported and profiled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fewbits.planning.site import Role
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Numbers, Options
from fewbits.targets import resolve_target

Build = Callable[[Any], None]
IMAGE = ("N", 16, 8, 8)
# One 8-bit rounding of a normal tensor costs about 40 dB (6.02 * 8 - 7.3 for a range of 5.5 sigma); the graphs here
# stack up to eight of them. What falls below 20 dB is not noise but a wrong scale, axis or zero point.
LEAST_SQNR_DB = 20.0

CASES: dict[str, tuple[Build, dict[str, str]]] = {}


def case(**floats: str) -> Callable[[Build], Build]:
    """Registers a graph with the operators that stay float and the slug of the rule for each."""

    def register(build: Build) -> Build:
        CASES[build.__name__] = build, floats
        return build

    return register


def between(name: str, middle: Callable[[Any, str], str], channels: int = 16, **floats: str) -> None:
    """Registers conv -> relu -> middle -> conv."""

    def build(n: Any) -> None:
        x = n.input(IMAGE)
        n.output(n.conv(middle(n, n.relu(n.conv(x, 16, 16))), channels, 16))

    CASES[name] = build, floats


def before_gemm(name: str, middle: Callable[[Any, str], str], features: int, **floats: str) -> None:
    """Registers conv -> relu -> middle -> gemm."""

    def build(n: Any) -> None:
        x = n.input(IMAGE)
        n.output(n.gemm(middle(n, n.relu(n.conv(x, 16, 16))), features, 10))

    CASES[name] = build, floats


# --- weighted operators -------------------------------------------------------------------------------------------


@case()
def conv_1d(n: Any) -> None:
    x = n.input(("N", 16, 20))
    n.output(n.conv(n.conv(x, 16, 16, dims=1), 16, 16, dims=1, bias=False))


@case()
def conv_2d_strided_dilated_same(n: Any) -> None:
    x = n.input(IMAGE)
    n.output(
        n.op("Conv", n.conv(x, 16, 16, dilations=[2, 2]), n.weight(16, 16, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2])
    )


@case()
def conv_3d(n: Any) -> None:
    x = n.input(("N", 8, 6, 6, 6))
    n.output(n.conv(n.conv(x, 8, 8, dims=3), 8, 8, dims=3, bias=False))


@case()
def conv_grouped(n: Any) -> None:
    x = n.input(IMAGE)
    n.output(n.conv(n.conv(x, 16, 16, group=4), 16, 16, group=4, bias=False))


@case()
def conv_depthwise_separable(n: Any) -> None:
    x = n.input(IMAGE)
    n.output(n.conv(n.clip(n.conv(x, 16, 16, group=16)), 16, 16, 1))


@case()
def conv_relu(n: Any) -> None:
    x = n.input(IMAGE)
    n.output(n.relu(n.conv(n.relu(n.conv(x, 16, 16)), 16, 16)))


@case()
def conv_relu6(n: Any) -> None:
    x = n.input(IMAGE)
    # The factor drives the convolution far into both ends of the clip.
    n.output(n.conv(n.clip(n.conv(n.op("Mul", x, n.const(8.0)), 16, 16)), 16, 16))


@case()
def conv_clip_without_upper_end(n: Any) -> None:
    x = n.input(IMAGE)
    n.output(n.conv(n.op("Clip", n.conv(x, 16, 16), n.const(0.0)), 16, 16))


@case(Clip="clip-not-from-zero")
def conv_clip_from_minus_one(n: Any) -> None:
    x = n.input(IMAGE)
    n.output(n.conv(n.clip(n.conv(x, 16, 16), -1, 1), 16, 16))


@case()
def relu_with_a_second_reader_before_it(n: Any) -> None:
    x = n.input(IMAGE)
    a = n.conv(x, 16, 16)
    n.output(n.conv(n.op("Add", n.conv(n.relu(a), 16, 16), a), 16, 16))


@case(Conv="weight-not-constant")
def conv_with_a_weight_from_an_input(n: Any) -> None:
    x, w = n.input(IMAGE), n.input(("N", 16, 3, 3), "w")
    n.output(n.op("Conv", n.conv(x, 16, 16), w, pads=[1] * 4))


@case()
def gemm_in_both_layouts(n: Any) -> None:
    x = n.input(("N", 32))
    n.output(n.gemm(n.gemm(n.gemm(x, 32, 24), 24, 16, trans=0), 16, 10, trans=0, bias=False))


@case()
def gemm_alone_writes_floats_itself(n: Any) -> None:
    x = n.input(("N", 32))
    n.output(n.gemm(x, 32, 16))


@case(Tanh="no-integer-kernel")
def gemm_before_a_float_operator(n: Any) -> None:
    x = n.input(("N", 32))
    n.output(n.gemm(n.op("Tanh", n.gemm(x, 32, 16)), 16, 10))


@case()
def gemm_relu_at_the_end(n: Any) -> None:
    x = n.input(("N", 32))
    n.output(n.relu(n.gemm(x, 32, 16)))


@case(Erf="no-integer-kernel")
def gemm_relu_before_a_float_operator(n: Any) -> None:
    # Without a Q behind the Relu the runtime fuses both into a float FusedGemm and restores the weights every run.
    x = n.input(("N", 32))
    n.output(n.op("Erf", n.relu(n.gemm(x, 32, 16))))


@case()
def gemm_with_one_bias_for_all(n: Any) -> None:
    x = n.input(("N", 32))
    n.output(n.op("Gemm", x, n.weight(32, 16, fan_in=32), n.const([0.3])))


@case()
def gemm_with_a_row_as_bias(n: Any) -> None:
    x = n.input(("N", 32))
    n.output(n.op("Gemm", x, n.weight(32, 16, fan_in=32), n.const(n.rng.standard_normal((1, 16)))))


@case(Gemm="gemm-factors")
def gemm_with_alpha(n: Any) -> None:
    x = n.input(("N", 32))
    n.output(n.gemm(n.gemm(x, 32, 16, alpha=0.5), 16, 10))


@case()
def matmul_2d_and_3d(n: Any) -> None:
    x = n.input(("N", 7, 32))
    n.output(n.matmul(n.matmul(x, 32, 16), 16, 10))


@case(Add="chain-end")
def matmul_add_at_the_end(n: Any) -> None:
    x = n.input(("N", 7, 32))
    n.output(n.op("Add", n.matmul(x, 32, 16), n.vector(16)))


@case()
def matmul_add_relu_matmul(n: Any) -> None:
    x = n.input(("N", 7, 32))
    n.output(n.matmul(n.relu(n.op("Add", n.vector(16), n.matmul(x, 32, 16))), 16, 10))


@case(
    Add="chain-end",
    Mul="chain-end",
    MatMul="two-changing-matrices",
    Softmax="no-integer-kernel",
    Transpose="moves-float",
)
def attention(n: Any) -> None:
    x = n.input(("N", 8, 16))
    q, k, v = (n.op("Add", n.matmul(x, 16, 16), n.vector(16)) for _ in range(3))
    scores = n.op("Mul", n.op("MatMul", q, n.op("Transpose", k, perm=[0, 2, 1])), n.const(0.25))
    n.output(n.op("Add", x, n.matmul(n.op("MatMul", n.op("Softmax", scores, axis=-1), v), 16, 16)))


# --- light operators ----------------------------------------------------------------------------------------------


@case()
def add_of_a_residual(n: Any) -> None:
    x = n.input(IMAGE)
    a = n.relu(n.conv(x, 16, 16))
    n.output(n.conv(n.relu(n.op("Add", a, n.conv(a, 16, 16))), 16, 16))


@case()
def add_of_a_tensor_to_itself(n: Any) -> None:
    x = n.input(IMAGE)
    a = n.conv(x, 16, 16)
    n.output(n.conv(n.op("Add", a, a), 16, 16))


@case()
def mul_of_two(n: Any) -> None:
    x = n.input(IMAGE)
    n.output(n.conv(n.op("Mul", n.conv(x, 16, 16), n.conv(x, 16, 16)), 16, 16))


@case(Add="mask-constant")
def add_of_a_mask(n: Any) -> None:
    x = n.input(IMAGE)
    n.output(n.conv(n.op("Clip", n.op("Add", n.conv(x, 16, 16), n.const(-1e4)), n.const(-1.0)), 16, 16))


CASES["add_of_a_mask"] = CASES["add_of_a_mask"][0], {"Add": "mask-constant", "Clip": "clip-not-from-zero"}

between("add_of_a_constant", lambda n, a: n.op("Add", a, n.const(n.rng.standard_normal((1, 16, 1, 1)))))
between("add_of_a_scalar_in_front", lambda n, a: n.op("Add", n.const(1.0), a))
between("mul_by_a_negative_scalar", lambda n, a: n.op("Mul", a, n.const(-0.5)))
between("mul_by_a_constant", lambda n, a: n.op("Mul", a, n.const(n.rng.standard_normal((16, 1, 1)))))
between("leaky_relu", lambda n, a: n.op("LeakyRelu", a, alpha=0.1))
between("sigmoid", lambda n, a: n.op("Sigmoid", a))
between(
    "average_pool",
    lambda n, a: n.op("AveragePool", a, kernel_shape=[2, 2], strides=[2, 2]),
    AveragePool="no-integer-kernel",
)
between(
    "average_pool_padded",
    lambda n, a: n.op("AveragePool", a, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
    AveragePool="no-integer-kernel",
)
between(
    "average_pool_ceil",
    lambda n, a: n.op("AveragePool", a, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    AveragePool="no-integer-kernel",
)
between("softmax_inside_a_chain", lambda n, a: n.op("Softmax", a, axis=1), Softmax="no-integer-kernel")
between(
    "where_with_a_constant",
    lambda n, a: n.op("Where", n.const(np.arange(64).reshape(1, 1, 8, 8) % 3 > 0, dtype=bool), a, n.const(0.5)),
)


@case()
def where_of_two(n: Any) -> None:
    x = n.input(IMAGE)
    mask = n.const(n.rng.integers(0, 2, (1, 16, 8, 8)), dtype=bool)
    n.output(n.conv(n.op("Where", mask, n.conv(x, 16, 16), n.conv(x, 16, 16)), 16, 16))


@case(Where="mask-constant")
def where_with_a_mask_value(n: Any) -> None:
    x = n.input(("N", 16))
    mask = n.const(np.arange(16) % 3 == 0, dtype=bool)
    n.output(n.gemm(n.op("Softmax", n.op("Where", mask, n.const(-1e9), n.gemm(x, 16, 16))), 16, 8))


CASES["where_with_a_mask_value"] = where_with_a_mask_value, {"Where": "mask-constant", "Softmax": "no-integer-kernel"}


@case()
def concat_of_different_ranges(n: Any) -> None:
    x = n.input(IMAGE)
    a, b = n.relu(n.conv(x, 16, 8)), n.op("Sigmoid", n.conv(x, 16, 8))
    n.output(n.conv(n.op("Concat", a, b, axis=1), 16, 16))


@case(Tanh="no-integer-kernel")
def concat_with_a_float_arm(n: Any) -> None:
    x = n.input(IMAGE)
    a = n.relu(n.conv(x, 16, 16))
    n.output(n.conv(n.op("Concat", a, n.op("Tanh", a), axis=1), 32, 16))


@case(Concat="chain-end")
def concat_at_the_end(n: Any) -> None:
    x = n.input(IMAGE)
    n.output(n.op("Concat", n.conv(x, 16, 16), n.conv(x, 16, 16), axis=1))


@case()
def silu(n: Any) -> None:
    x = n.input(IMAGE)
    a = n.conv(x, 16, 16)
    n.output(n.conv(n.op("Mul", a, n.op("Sigmoid", a)), 16, 16))


@case()
def squeeze_and_excite(n: Any) -> None:
    x = n.input(IMAGE)
    a = n.relu(n.conv(x, 16, 16))
    gate = n.conv(n.relu(n.conv(n.op("GlobalAveragePool", a), 16, 4, 1)), 4, 16, 1)
    n.output(n.conv(n.op("Mul", a, n.op("Sigmoid", gate)), 16, 16))


@case(Softmax="no-integer-kernel")
def pooled_classifier_with_softmax(n: Any) -> None:
    x = n.input(IMAGE)
    pooled = n.op("GlobalAveragePool", n.relu(n.conv(x, 16, 16)))
    n.output(n.op("Softmax", n.gemm(n.op("Flatten", pooled), 16, 10)))


# --- operators that move elements ---------------------------------------------------------------------------------


def _resize(mode: str, how: str) -> Callable[[Any, str], str]:
    return lambda n, a: n.op("Resize", a, "", n.const([1, 1, 2, 2]), mode=mode, coordinate_transformation_mode=how)


between("max_pool", lambda n, a: n.op("MaxPool", a, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4))
between("transpose", lambda n, a: n.op("Transpose", a, perm=[0, 1, 3, 2]))
between("slice", lambda n, a: n.op("Slice", a, n.ints(0, 0), n.ints(8, 8), n.ints(2, 3), n.ints(2, 2)))
between("gather", lambda n, a: n.op("Gather", a, n.ints(*range(15, -1, -1)), axis=1))
between("expand", lambda n, a: n.op("Expand", n.op("GlobalAveragePool", a), n.ints(1, 16, 4, 4)))
between("tile", lambda n, a: n.op("Tile", a, n.ints(1, 1, 2, 2)))
between("depth_to_space", lambda n, a: n.op("DepthToSpace", a, blocksize=2), 4)
between("reshape", lambda n, a: n.op("Reshape", a, n.ints(-1, 16, 4, 16)))
between("unsqueeze_squeeze", lambda n, a: n.op("Squeeze", n.op("Unsqueeze", a, n.ints(2)), n.ints(2)))
between("resize_nearest", _resize("nearest", "asymmetric"))
between("resize_linear", _resize("linear", "half_pixel"), Resize="resize-not-nearest")
between("pad_channels", lambda n, a: n.op("Pad", a, n.ints(0, 2, 0, 0, 0, 2, 0, 0)), 20)
between("pad_reflect", lambda n, a: n.op("Pad", a, n.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect"))
between("pad_with_one", lambda n, a: n.op("Pad", a, n.ints(0, 0, 1, 1, 0, 0, 1, 1), n.const(1.0)), Pad="pad-not-zero")
between(
    "pad_before_max_pool",
    lambda n, a: n.op("MaxPool", n.op("Pad", a, n.ints(0, 0, 0, 0, 0, 0, 1, 1)), kernel_shape=[2, 2]),
)
between(
    "channel_shuffle",
    lambda n, a: n.op(
        "Reshape",
        n.op("Transpose", n.op("Reshape", a, n.ints(-1, 4, 4, 8, 8)), perm=[0, 2, 1, 3, 4]),
        n.ints(-1, 16, 8, 8),
    ),
)
before_gemm("flatten", lambda n, a: n.op("Flatten", a), 1024)
before_gemm("squeeze_after_pooling", lambda n, a: n.op("Squeeze", n.op("GlobalAveragePool", a), n.ints(2, 3)), 16)
before_gemm("spatial_mean", lambda n, a: n.op("ReduceMean", a, axes=[2, 3], keepdims=0), 16)
before_gemm("reduce_max", lambda n, a: n.op("ReduceMax", a, axes=[2, 3], keepdims=0), 16)
before_gemm("reduce_min", lambda n, a: n.op("ReduceMin", a, axes=[2, 3], keepdims=0), 16)
before_gemm(
    "mean_over_channels",
    lambda n, a: n.op("Flatten", n.op("ReduceMean", a, axes=[1])),
    64,
    ReduceMean="no-integer-kernel",
    Flatten="moves-float",
)


@case()
def split_and_concat(n: Any) -> None:
    x = n.input(IMAGE)
    a, b = n.ops("Split", n.relu(n.conv(x, 16, 16)), n.ints(8, 8), outputs=2, axis=1)
    n.output(n.conv(n.op("Concat", n.conv(a, 8, 8), b, axis=1), 16, 16))


@case()
def moves_at_the_end_run_on_codes(n: Any) -> None:
    x = n.input(IMAGE)
    n.output(n.op("Flatten", n.op("MaxPool", n.conv(x, 16, 16), kernel_shape=[2, 2], strides=[2, 2])))


@case()
def transpose_of_an_input(n: Any) -> None:
    x = n.input(("N", 8, 8, 16))
    n.output(n.conv(n.op("Transpose", x, perm=[0, 3, 1, 2]), 16, 16))


@case(Tanh="no-integer-kernel")
def a_move_read_by_float_and_integers(n: Any) -> None:
    x = n.input(IMAGE)
    a = n.op("MaxPool", n.conv(x, 16, 16), kernel_shape=[2, 2], strides=[2, 2])
    n.output(n.conv(a, 16, 16), n.op("Tanh", a))


# --- operators without an integer kernel --------------------------------------------------------------------------

for _op in ("HardSwish", "Tanh", "Elu", "HardSigmoid", "Erf", "Softplus"):
    between(_op.lower(), lambda n, a, op=_op: n.op(op, a), **{_op: "no-integer-kernel"})  # type: ignore[misc]
between("prelu", lambda n, a: n.op("PRelu", a, n.const(np.full((16, 1, 1), 0.1))), PRelu="no-integer-kernel")
between("space_to_depth", lambda n, a: n.op("SpaceToDepth", a, blocksize=2), 64, SpaceToDepth="no-integer-kernel")
before_gemm(
    "global_max_pool",
    lambda n, a: n.op("Flatten", n.op("GlobalMaxPool", a)),
    16,
    GlobalMaxPool="no-integer-kernel",
    Flatten="moves-float",
)


@case(LayerNormalization="no-integer-kernel")
def layer_normalization(n: Any) -> None:
    x = n.input(("N", 7, 32))
    a = n.op("LayerNormalization", n.matmul(x, 32, 32), n.const(np.ones(32)), n.const(np.zeros(32)))
    n.output(n.matmul(a, 32, 16))


@case(Sub="no-integer-kernel")
def sub_of_two(n: Any) -> None:
    x = n.input(IMAGE)
    n.output(n.conv(n.op("Sub", n.conv(x, 16, 16), n.conv(x, 16, 16)), 16, 16))


@case(BatchNormalization="no-integer-kernel")
def batch_normalization_of_an_input(n: Any) -> None:
    x = n.input(IMAGE)
    n.output(n.conv(n.norm(x, 16), 16, 16))


# --- outputs, sharing, constants ----------------------------------------------------------------------------------


@case()
def two_outputs(n: Any) -> None:
    x = n.input(IMAGE)
    a = n.relu(n.conv(x, 16, 16))
    n.output(n.conv(a, 16, 16), n.gemm(n.op("Flatten", n.op("GlobalAveragePool", a)), 16, 10))


@case()
def an_inner_tensor_is_an_output_too(n: Any) -> None:
    x = n.input(IMAGE)
    a = n.relu(n.conv(x, 16, 16))
    n.output(a, n.conv(a, 16, 16))


@case()
def the_tensor_before_a_relu_is_an_output_too(n: Any) -> None:
    x = n.input(IMAGE)
    a = n.conv(x, 16, 16)
    n.output(a, n.conv(n.relu(a), 16, 16))


@case()
def shared_weight_and_shared_bias(n: Any) -> None:
    x = n.input(IMAGE)
    w, b = n.weight(16, 16, 3, 3), n.vector(16)
    a = n.op("Conv", x, w, b, pads=[1] * 4)
    n.output(n.op("Conv", n.relu(a), w, b, pads=[1] * 4))


@case()
def a_weight_shared_along_different_axes(n: Any) -> None:
    x = n.input(("N", 16))
    w = n.weight(16, 16)
    n.output(n.op("Gemm", n.relu(n.op("Gemm", x, w, transB=1)), w, transB=0))


@case(ReduceSum="no-integer-kernel", Add="chain-end")
def a_weight_read_by_a_float_operator_too(n: Any) -> None:
    x = n.input(IMAGE)
    w = n.weight(1, 16, 3, 3)
    a = n.op("Conv", x, w, n.vector(1), pads=[1] * 4)
    n.output(n.op("Add", a, n.op("ReduceSum", n.op("Mul", w, n.input(("N", 1, 1, 1), "s")), keepdims=0)))


CASES["a_weight_read_by_a_float_operator_too"] = (
    a_weight_read_by_a_float_operator_too,
    {"ReduceSum": "no-integer-kernel", "Add": "chain-end", "Mul": "chain-end"},
)


@case()
def a_weight_listed_as_input(n: Any) -> None:
    x = n.input(IMAGE)
    w = n.weight(16, 16, 3, 3, name="W")
    n.input((16, 16, 3, 3), "W")
    n.output(n.op("Conv", x, w, pads=[1] * 4))


@case()
def constants_as_nodes(n: Any) -> None:
    x = n.input(IMAGE)
    value = onnx.numpy_helper.from_array((n.rng.standard_normal((16, 16, 3, 3)) * 0.1).astype(np.float32))
    n.output(n.conv(n.clip(n.op("Conv", x, n.op("Constant", value=value), pads=[1] * 4)), 16, 16))


@case()
def a_reshape_to_a_shape_computed_at_run_time(n: Any) -> None:
    x = n.input(IMAGE)
    a = n.relu(n.conv(x, 16, 16))
    batch = n.op("Gather", n.op("Shape", a), n.ints(0))
    n.output(n.gemm(n.op("Reshape", a, n.op("Concat", batch, n.ints(-1), axis=0)), 1024, 10))


@pytest.mark.parametrize("name", CASES)
def test_the_table_keeps_its_word(name: str, net: Any, bench: Any) -> None:
    build, floats = CASES[name]
    writer = net()
    build(writer)
    case = bench.run(writer)

    assert case.slugs == floats
    assert case.problems() == []
    assert min(case.sqnr.values()) > LEAST_SQNR_DB
    onnx.checker.check_model(case.proto, full_check=True)
    plain = RUNTIMES["ort"].open(case.data, Options(optimize=False)).run(case.feeds)
    for output, value in case.float_outputs.items():
        noise = np.square(value - plain[output]).sum(dtype=np.float64)
        assert 10 * np.log10(np.square(value).sum(dtype=np.float64) / max(noise, 1e-30)) > LEAST_SQNR_DB


@pytest.mark.parametrize("high", [1e-3, 0.1, 0.7, 1.0, 2.5, 3.3, 5.9, 6.0, 7.7, 20.0])
def test_a_clip_vanishes_at_any_upper_end(high: float, net: Any, bench: Any) -> None:
    # The range of the quantized tensor must lie inside the clip to the last bit, or a float FusedConv runs.
    n = net()
    x = n.input(IMAGE)
    n.output(n.conv(n.clip(n.conv(n.op("Mul", x, n.const(10 * high)), 16, 16), 0, high), 16, 16))
    assert bench.run(n).ops["QLinearConv"] == 2


def test_every_rule_of_the_table_is_built_by_some_case(net: Any) -> None:
    built: set[str] = set()
    for build, _ in CASES.values():
        n = net()
        build(n)
        built |= {node.op_type for node in n.nodes}
    assert set(resolve_target("ort-cpu").rules) <= built


def test_float64_stays_float_with_its_reason(net: Any, bench: Any) -> None:
    n = net()
    x = n.input(("N", 16), dtype=TensorProto.DOUBLE)
    w = n.const(n.rng.standard_normal((16, 16)) * 0.1, dtype=np.float64)
    n.output(n.op("MatMul", x, w, name="c"), dtype=TensorProto.DOUBLE)
    case = bench.run(n)
    assert case.placement.kept_float["c"].slug == "not-float32"
    assert case.placement.sites == ()


def test_a_custom_domain_stays_float_with_its_reason(net: Any, bench: Any) -> None:
    n = net()
    x = n.input(("N", 16))
    n.output(
        n.gemm(n.op("FusedGemm", x, n.weight(16, 16), activation="Relu", domain="com.microsoft"), 16, 8), shape=("N", 8)
    )
    n.imports.append(helper.make_opsetid("com.microsoft", 1))
    proto = n.model(checked=False)
    case = bench.run(proto)
    assert case.slugs == {"FusedGemm": "custom-domain"}
    assert case.problems() == []


def test_matmul_of_two_integer_results_runs_in_integers_though_never_promised(net: Any, bench: Any) -> None:
    # Its operands and its result are quantized for their neighbours, so the runtime fuses it: no rounding is added.
    n = net()
    x = n.input(("N", 8, 8))
    a, b = n.matmul(x, 8, 8), n.matmul(x, 8, 8)
    n.output(n.matmul(n.op("MatMul", a, b), 8, 8), n.matmul(a, 8, 8), n.matmul(b, 8, 8))
    case = bench.run(n)
    assert case.slugs == {"MatMul": "two-changing-matrices"}
    assert case.promised["QLinearMatMul"] == 5
    assert case.ran(Numbers.INTEGER)["QLinearMatMul"] == 6
    assert case.ran(Numbers.FLOAT) == Counter()


def test_two_weight_codes_of_a_channel_never_saturate_a_16_bit_lane_without_vnni(net: Any, bench: Any) -> None:
    # 255 * (|a| + |b|) <= 32767 holds for |a| + |b| <= 128.
    n = net()
    x = n.input(IMAGE)
    n.output(n.conv(n.relu(n.conv(x, 16, 16)), 16, 16, group=16))
    case = bench.run(n, target="ort-cpu:avx2")
    weights = [d.site for d in case.plan.quantized if d.role is Role.WEIGHT]
    codes = {t.name: onnx.numpy_helper.to_array(t) for t in case.proto.graph.initializer if t.name.endswith("_q")}
    assert len(weights) == 2
    for name in weights:
        magnitudes = np.sort(np.abs(codes[f"{name}_q"].astype(np.int64)).reshape(16, -1), axis=1)
        assert (magnitudes[:, -2:].sum(axis=1) <= 128).all()
    assert case.problems() == []


def test_arm_activations_are_signed(net: Any, bench: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    n.output(n.conv(n.relu(n.conv(x, 16, 16)), 16, 16))
    case = bench.run(n, target="ort-cpu:arm")
    zero_points = {t.data_type for t in case.proto.graph.initializer if t.name.startswith("zp_int8")}
    assert zero_points == {TensorProto.INT8}
    assert min(case.sqnr.values()) > LEAST_SQNR_DB
