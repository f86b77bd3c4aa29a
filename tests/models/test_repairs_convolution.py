"""Operators written as convolutions: the same function, in a form that runs in integers; what does not fit stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx_ir.passes import common

from fewbits._base.errors import ModelError
from fewbits.models.onnx.model import OnnxModel, serialize
from fewbits.models.onnx.normal_forms import ClipFirst
from fewbits.models.onnx.passes import FoldBatchNorm
from fewbits.models.onnx.repairs_convolution import DeconvToConv, NormToConv, PoolToConv
from fewbits.runtimes.base import Numbers, Options
from fewbits.runtimes.ort import RUNTIME

# One rounding to float32.
ROUNDING = 2.0**-24
# What the repair of a ConvTranspose is made of.
INTERLEAVED = ["Conv", "Transpose", "Reshape", "Transpose", "Reshape", "Transpose"]


def apply(
    graph_pass: Any, proto: onnx.ModelProto, atol: float, *, batch: int = 2, free: dict[str, int] | None = None
) -> tuple[ir.Model, bool]:
    """Returns the model after one pass, and whether the pass changed it; run with ``free`` for open dimensions.

    Asserts that it computes the same to within ``atol``, that outputs and their shapes stay, that what is not modified
    stays to the byte, and that every tensor of it has a name of its own, a type and a shape that is true.
    """
    model = ir.from_proto(proto)
    common.ShapeInferencePass()(model)
    feeds = {
        value.name: np.random.default_rng(7)
        .standard_normal([d if isinstance(d, int) else (free or {}).get(d.value, batch) for d in value.shape])
        .astype(value.dtype.numpy())
        for value in model.graph.inputs
    }
    start = serialize(model)
    before = RUNTIME.open(start, Options(optimize=False)).run(feeds)
    outputs = [(o.name, o.shape, o.dtype) for o in model.graph.outputs]
    result = graph_pass(model)  # runs requires and ensures too
    data = serialize(result.model)
    assert result.modified == (data != start)
    assert [(o.name, o.shape, o.dtype) for o in model.graph.outputs] == outputs
    onnx.checker.check_model(data, full_check=True)  # infers shapes, and compares them with those that are stated
    after = RUNTIME.open(data, Options(optimize=False)).run(feeds)
    assert list(after) == list(before)
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=0, atol=atol)
    unread = [name for name, value in model.graph.initializers.items() if not value.uses()]
    assert not unread or not result.modified, f"constants are left that nothing reads: {unread}"
    written = [out for node in model.graph for out in node.outputs if out.name]
    assert len({out.name for out in written}) == len(written)
    if result.modified:
        assert all(out.shape is not None and out.dtype == ir.DataType.FLOAT for out in written)
    return result.model, result.modified


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def repaired(model: OnnxModel, *passes: Any) -> OnnxModel:
    """Returns an opened model after passes."""
    twin = model.ir_model.clone()
    for graph_pass in passes:
        assert graph_pass(twin).modified, f"{type(graph_pass).__name__} found nothing"
    return replace(model, ir_model=twin)


@pytest.fixture
def executed(bench: Any, graphs: ModuleType) -> Callable[..., Any]:
    """Takes a graph the whole way, with passes between opening and placing."""

    def run(net: Any, *passes: Any, target: str = "ort-cpu") -> Any:
        model = repaired(bench.open(net), *passes)
        return bench.quantize(model, graphs.live_examples(model, 8), target=target)

    return run


# --- BatchNormalization -------------------------------------------------------------------------------------------

# |a| <= 1.5 / sqrt(0.5) = 2.2, |x| < 5, |b| < 2: no value is above 16; either side rounds at most eight times.
NORM_ATOL = 2 * 8 * ROUNDING * 16


@pytest.mark.parametrize("shape", [("N", 6, 9), ("N", 6, 5, 7), (3, 6, 1, 1), ("N", 6, None, "W"), ("N", 6, 3, 4, 5)])
def test_a_norm_of_an_input_becomes_a_depthwise_conv(shape: tuple[Any, ...], net: Any) -> None:
    n = net()
    n.output(n.norm(n.input(shape), 6, name="norm"))
    n.nodes[0].doc_string = "said by the exporter"
    model, modified = apply(NormToConv(), n.model(), NORM_ATOL)
    assert modified and ops(model) == ["Conv"]
    (conv,) = model.graph
    assert (conv.name, conv.doc_string) == ("norm", "said by the exporter")
    assert conv.attributes["group"].value == 6
    assert conv.inputs[1].shape == (6, 1, *[1] * (len(shape) - 2))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), channels=st.integers(1, 9), epsilon=st.sampled_from([None, 1e-3, 0.5]))
def test_factor_and_offset_are_those_of_float64_rounded_once(
    seed: int, channels: int, epsilon: float | None, graphs: ModuleType
) -> None:
    n = graphs.Net(seed=seed)
    x = n.input((2, channels, 3, 3))
    gamma, beta, mean = (n.rng.standard_normal(channels).astype(np.float32) for _ in range(3))
    variance = n.rng.uniform(1e-6, 4, channels).astype(np.float32)
    more = {} if epsilon is None else {"epsilon": epsilon}
    n.output(n.op("BatchNormalization", x, *[n.const(a) for a in (gamma, beta, mean, variance)], **more))
    model = ir.from_proto(n.model())
    assert NormToConv()(model).modified
    (conv,) = model.graph
    # The file holds epsilon as float32.
    spread = variance.astype(np.float64) + float(np.float32(1e-5 if epsilon is None else epsilon))
    factor = gamma / np.sqrt(spread)
    weight, bias = (value.const_value.numpy() for value in conv.inputs[1:])
    np.testing.assert_allclose(weight.reshape(-1), factor, rtol=ROUNDING * 1.01, atol=0)
    np.testing.assert_allclose(bias, beta - mean * factor, rtol=ROUNDING * 1.01, atol=1e-15)


def _pre_activation(n: Any, *, inner_outputs: bool = False) -> None:
    """A dense block: each Concat is read by a norm and by the next Concat."""
    a = n.relu(n.conv(n.input(("N", 8, 11, 9)), 8, 8))
    b = n.conv(n.relu(n.norm(a, 8)), 8, 8)
    joined = n.op("Concat", a, b, axis=1)
    norm = n.norm(joined, 16)
    c = n.conv(n.relu(norm), 16, 8)
    n.output(n.conv(n.op("Concat", joined, c, axis=1), 24, 8, 1))
    if inner_outputs:
        n.output(joined, norm)


@pytest.mark.parametrize("inner_outputs", [False, True])
def test_norms_of_tensors_with_several_readers_are_written_as_conv(inner_outputs: bool, net: Any) -> None:
    n = net()
    _pre_activation(n, inner_outputs=inner_outputs)
    # The layers behind hold up to 144 products; 2 * 144 roundings of sums of magnitudes below 200.
    model, modified = apply(NormToConv(), n.model(), 2 * 144 * ROUNDING * 200)
    assert modified and "BatchNormalization" not in ops(model)


def test_statistics_that_two_norms_share_serve_both(net: Any) -> None:
    n = net()
    x = n.input(("N", 6, 4, 4))
    statistics = [n.const(n.rng.uniform(0.5, 1.5, 6)) for _ in range(4)]
    # The factor of the second is also read by another node, and must stay for it.
    scaled = n.op("Mul", x, n.op("Reshape", statistics[0], n.ints(1, 6, 1, 1)))
    n.output(*[n.op("BatchNormalization", of, *statistics) for of in (x, scaled)])
    model, modified = apply(NormToConv(), n.model(), 4 * NORM_ATOL)
    assert modified and ops(model).count("Conv") == 2
    assert statistics[0] in model.graph.initializers and statistics[1] not in model.graph.initializers


def _norm_of_a_matrix(n: Any) -> None:
    n.output(n.norm(n.input(("N", 6)), 6))


def _norm_with_statistics_of_a_run(n: Any) -> None:
    x, gamma = n.input(("N", 6, 4, 4)), n.input((6,), name="gamma")
    n.output(n.op("BatchNormalization", x, gamma, *[n.const(np.ones(6)) for _ in range(3)]))


def _norm_in_float64(n: Any) -> None:
    x = n.input(("N", 6, 4, 4), dtype=TensorProto.DOUBLE)
    n.output(
        n.op("BatchNormalization", x, *[n.const(np.ones(6), dtype=np.float64) for _ in range(4)]),
        dtype=TensorProto.DOUBLE,
    )


def _norm_of_no_variance(n: Any) -> None:
    one = n.const(np.ones(6))
    variance = n.const([1, 1, 1, 1, 1, 0])
    n.output(n.op("BatchNormalization", n.input(("N", 6, 4, 4)), one, one, one, variance, epsilon=0.0))


@pytest.mark.parametrize(
    "build",
    [_norm_of_a_matrix, _norm_with_statistics_of_a_run, _norm_in_float64, _norm_of_no_variance],
    ids=lambda f: f.__name__.strip("_"),
)
def test_a_norm_that_is_not_fixed_float32_over_space_stays(build: Callable[[Any], None], net: Any) -> None:
    n = net()
    build(n)
    assert not apply(NormToConv(), n.model(), 0.0)[1]


@pytest.mark.parametrize("kind", ["unknown rank", "training", "training as opset 13 writes it"])
def test_a_norm_of_unknown_rank_or_in_training_stays(kind: str, net: Any) -> None:
    n = net(opset=13 if kind.endswith("it") else 17)
    x = n.input(("N", 6, 4, 4))
    statistics = [n.const(np.ones(6)) for _ in range(4)]
    if kind == "training":
        n.output(n.ops("BatchNormalization", x, *statistics, outputs=3, training_mode=1)[0])
    elif kind == "unknown rank":
        n.output(n.op("BatchNormalization", x, *statistics))
    else:
        value, mean = n.ops("BatchNormalization", x, *statistics, outputs=5)[:2]
        n.output(value)
        n.output(mean, shape=[6])
    model = ir.from_proto(n.model())
    if kind == "unknown rank":
        model.graph.inputs[0].shape = None
    assert not NormToConv()(model).modified


def test_a_norm_behind_an_add_or_concat_runs_in_integers_with_its_relu(net: Any, executed: Any) -> None:
    n = net()
    _pre_activation(n)
    case = executed(n, NormToConv())
    assert case.problems() == []
    assert dict(case.ran(Numbers.INTEGER)) == {"QLinearConv": 6, "QLinearConcat": 2}
    assert not case.ran(Numbers.FLOAT)
    assert min(case.sqnr.values()) > 25


def test_without_the_repair_the_norm_is_a_float_island(net: Any, bench: Any) -> None:
    n = net()
    _pre_activation(n)
    assert bench.run(n).slugs["BatchNormalization"] == "no-integer-kernel"


def test_what_folds_is_folded_first(net: Any) -> None:
    n = net()
    n.output(n.relu(n.norm(n.conv(n.input(("N", 8, 5, 5)), 8, 8), 8)))
    model = ir.from_proto(n.model())
    common.ShapeInferencePass()(model)
    FoldBatchNorm()(model)
    assert not NormToConv()(model).modified and ops(model) == ["Conv", "Relu"]


# --- AveragePool --------------------------------------------------------------------------------------------------


def pool_atol(kernel: tuple[int, int]) -> float:
    """Returns how far two float32 means of standard normal values may lie apart: |x| < 6, a rounding a term and two."""
    return 2 * (kernel[0] * kernel[1] + 2) * ROUNDING * 6


@st.composite
def pools(draw: Any) -> dict[str, Any]:
    """Returns attributes of an AveragePool whose divisor is the same everywhere."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = draw(st.sampled_from(["none", "explicit", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    attributes: dict[str, Any] = {"kernel_shape": kernel, "count_include_pad": 0}
    if draw(st.booleans()):
        # ONNX Runtime refuses SAME with gaps between the windows.
        most = kernel if padding.startswith("SAME") else (3, 3)
        attributes["strides"] = draw(st.tuples(st.integers(1, most[0]), st.integers(1, most[1])))
    if padding in ("SAME_UPPER", "SAME_LOWER"):
        attributes |= {"auto_pad": padding, "count_include_pad": 1}
    elif padding == "explicit":
        widths = [draw(st.integers(0, kernel[i % 2] - 1)) for i in range(4)]
        attributes |= {"pads": widths, "count_include_pad": int(any(widths)) or draw(st.integers(0, 1))}
    elif padding == "VALID":
        attributes |= {"auto_pad": "VALID"}
    return attributes


@settings(max_examples=60, deadline=None)
@given(
    attributes=pools(),
    batch=st.sampled_from(["N", 2]),
    channels=st.integers(1, 5),
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
)
def test_an_average_with_one_divisor_is_a_depthwise_conv(
    attributes: dict[str, Any], batch: Any, channels: int, size: tuple[int, int], graphs: ModuleType
) -> None:
    n = graphs.Net()
    x = n.input((batch, channels, *size))
    n.output(n.op("AveragePool", x, name="pool", **attributes))
    model, modified = apply(PoolToConv(), n.model(), pool_atol(attributes["kernel_shape"]))
    assert modified and ops(model) == ["Conv"]
    (conv,) = model.graph
    assert conv.name == "pool" and conv.attributes["group"].value == channels


@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        (("N", 4, None, "W"), {"kernel_shape": [3, 2], "strides": [2, 1]}),
        (("N", 4, None, "W"), {"kernel_shape": [3, 4], "auto_pad": "SAME_UPPER", "count_include_pad": 1}),
        (("N", 4, None, "W"), {"kernel_shape": [3, 4], "auto_pad": "SAME_LOWER", "count_include_pad": 1}),
        # 8 is 4 windows of 2 side by side: SAME pads nothing, so it does not matter whether padding counts.
        (("N", 4, 8, 8), {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        (("N", 4, 8, 8), {"kernel_shape": [1, 4], "strides": [1, 4], "auto_pad": "SAME_LOWER"}),
    ],
)
def test_padding_is_resolved_where_it_does_not_depend_on_an_open_size(
    shape: tuple[Any, ...], attributes: dict[str, Any], net: Any
) -> None:
    n = net()
    n.output(n.op("AveragePool", n.input(shape), **attributes))
    model, modified = apply(PoolToConv(), n.model(), pool_atol((3, 4)), batch=6)
    assert modified and ops(model) == ["Conv"]


@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        (("N", 4, 8, 8), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        (("N", 4, 8, 8), {"kernel_shape": [3, 3], "pads": [0, 0, 0, 1]}),
        (("N", 4, 8, 8), {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"}),
        (("N", 4, 8, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        (("N", 4, 8, 8), {"kernel_shape": [2, 2], "dilations": [2, 2]}),
        (("N", 4, 8), {"kernel_shape": [2]}),
        (("N", 4, 4, 4, 4), {"kernel_shape": [2, 2, 2]}),
        (("N", "C", 8, 8), {"kernel_shape": [2, 2]}),
        (("N", 4, "H", 8), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ],
    ids=[
        "padding not counted", "padding at one end not counted", "padding of SAME not counted", "ceil", "dilated",
        "rank 3", "rank 5", "channels open", "padding depends on an open size",
    ],
)  # fmt: skip
def test_any_other_average_stays(shape: tuple[Any, ...], attributes: dict[str, Any], net: Any) -> None:
    n = net(opset=19 if "dilations" in attributes else 17)
    n.output(n.op("AveragePool", n.input(shape), **attributes))
    assert not apply(PoolToConv(), n.model(), 0.0, batch=6)[1]


def test_pools_between_layers_keep_their_readers_and_outputs(net: Any) -> None:
    n = net()
    a = n.relu(n.conv(n.input(("N", 6, 9, 7)), 6, 6))
    pool = n.op("AveragePool", a, kernel_shape=[2, 2], name="pool")
    n.output(n.conv(pool, 6, 4), n.op("MaxPool", pool, kernel_shape=[2, 2]), pool)
    # 54 products behind the mean, sums of magnitudes below 100.
    model, modified = apply(PoolToConv(), n.model(), 2 * 54 * ROUNDING * 100)
    assert modified and ops(model) == ["Conv", "Relu", "Conv", "Conv", "MaxPool"]


@pytest.mark.parametrize("attributes", [{"strides": [2, 2]}, {"pads": [1, 1, 1, 1], "count_include_pad": 1}])
def test_an_average_runs_in_integers_as_conv(attributes: dict[str, Any], net: Any, executed: Any) -> None:
    n = net()
    a = n.relu(n.conv(n.input(("N", 8, 9, 11)), 8, 16))
    n.output(n.conv(n.op("AveragePool", a, kernel_shape=[3, 3], **attributes), 16, 8))
    case = executed(n, PoolToConv())
    assert case.problems() == []
    assert dict(case.ran(Numbers.INTEGER)) == {"QLinearConv": 3} and not case.ran(Numbers.FLOAT)
    assert min(case.sqnr.values()) > 25


def test_the_weights_of_an_average_are_exact_as_codes(net: Any, executed: Any) -> None:
    n = net()
    a = n.conv(n.input(("N", 8, 9, 11)), 8, 16)
    n.output(n.op("AveragePool", a, kernel_shape=[3, 3], name="pool"))
    case = executed(n, PoolToConv(), target="ort-cpu:vnni")
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in case.proto.graph.initializer}
    codes = [v for k, v in constants.items() if k.startswith("pool_weight") and v.dtype == np.int8]
    assert len(codes) == 1 and np.all(codes[0] == 127)


# --- ConvTranspose ------------------------------------------------------------------------------------------------


def deconv(n: Any, x: str, cin: int, cout: int, kernel: tuple[int, int], **attributes: Any) -> str:
    weight = n.weight(cin, cout, *kernel, fan_in=cin)
    extra = [n.vector(cout)] if attributes.pop("bias", True) else []
    return n.op("ConvTranspose", x, weight, *extra, **attributes)


def deconv_atol(cin: int, kernel: tuple[int, int]) -> float:
    """Returns how far two sums of cin * kernel products and a bias may lie apart: |x| < 6, |w| < 6 sqrt(2 / cin)."""
    terms = cin * kernel[0] * kernel[1] + 1
    return 2 * terms * ROUNDING * terms * 6 * 6 * np.sqrt(2 / cin)


@st.composite
def enlargements(draw: Any) -> tuple[tuple[int, int], dict[str, Any]]:
    """Returns kernel and attributes of a ConvTranspose whose output is the stride times its input."""
    stride = draw(st.integers(2, 4))
    starts, ends, extra, kernel = [], [], [], []
    for _ in range(2):
        extra.append(draw(st.integers(0, stride - 1)))
        starts.append(draw(st.integers(0, 5)))
        ends.append(draw(st.integers(0, 5)))
        kernel.append(stride + starts[-1] + ends[-1] - extra[-1])
    attributes: dict[str, Any] = {"strides": [stride, stride], "bias": draw(st.booleans())}
    if any(starts) or any(ends) or draw(st.booleans()):
        attributes["pads"] = [*starts, *ends]
    if any(extra) or draw(st.booleans()):
        attributes["output_padding"] = extra
    return (kernel[0], kernel[1]), attributes


@settings(max_examples=60, deadline=None)
@given(
    form=enlargements(),
    batch=st.sampled_from(["N", 2]),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    opened=st.sampled_from([(), (0,), (1,), (0, 1)]),
)
def test_an_enlargement_is_a_conv_to_all_phases_and_moves(
    form: tuple[tuple[int, int], dict[str, Any]],
    batch: Any,
    channels: tuple[int, int],
    size: tuple[int, int],
    opened: tuple[int, ...],
    graphs: ModuleType,
) -> None:
    kernel, attributes = form
    stride = attributes["strides"][0]
    n = graphs.Net()
    dims = tuple("HW"[axis] if axis in opened else size[axis] for axis in (0, 1))
    n.output(deconv(n, n.input((batch, channels[0], *dims)), *channels, kernel, name="up", **attributes))
    proto = n.model()
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    model, modified = apply(
        DeconvToConv(), proto, deconv_atol(channels[0], kernel), free=dict(zip("HW", size, strict=True))
    )
    assert modified and ops(model) == INTERLEAVED
    conv = model.graph[0]
    assert conv.name == "up"
    taps = conv.inputs[1].const_value.numpy()
    assert sorted(taps[taps != 0]) == sorted(weight.reshape(-1)), "every weight stands in one place"
    assert taps.shape[0] == stride**2 * channels[1]
    assert all(t <= -(-k // stride) + 1 for t, k in zip(taps.shape[2:], kernel, strict=True))


COMMON = {
    "k2 s2": ((2, 2), {"strides": [2, 2]}),
    "k2 s2 VALID": ((2, 2), {"strides": [2, 2], "auto_pad": "VALID"}),
    "k4 s2 p1": ((4, 4), {"strides": [2, 2], "pads": [1] * 4}),
    "k3 s2 p1 op1": ((3, 3), {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}),
    "k6 s2 p2": ((6, 6), {"strides": [2, 2], "pads": [2] * 4}),
    "k5 s3 p1": ((5, 5), {"strides": [3, 3], "pads": [1] * 4}),
    "k8 s4 p2": ((8, 8), {"strides": [4, 4], "pads": [2] * 4}),
    "k1 s2 op1": ((1, 1), {"strides": [2, 2], "output_padding": [1, 1]}),
}


@pytest.mark.parametrize("size", [(7, 5), ("H", "W"), (7, "W")], ids=["known size", "open size", "open width"])
@pytest.mark.parametrize("name", COMMON)
def test_the_common_enlargements_run_in_integers(name: str, size: tuple[Any, ...], net: Any, executed: Any) -> None:
    kernel, attributes = COMMON[name]
    n = net()
    a = n.relu(n.conv(n.input(("N", 8, *size)), 8, 8))
    up = n.relu(deconv(n, a, 8, 6, kernel, **attributes))
    n.output(n.conv(up, 6, 4))
    case = executed(n, DeconvToConv(), ClipFirst())
    assert case.problems() == []
    assert case.ran(Numbers.INTEGER)["QLinearConv"] == 3 and not case.ran(Numbers.FLOAT)
    assert len(case.placement.absorbed) == 2, "both clips are saturation"
    assert min(case.sqnr.values()) > 25


@pytest.mark.parametrize("size", [(5, 6), ("H", "W")])
def test_a_clip_moves_in_front_of_the_moves(size: tuple[Any, ...], net: Any) -> None:
    n = net()
    x = n.input(("N", 8, *size))
    n.output(n.clip(deconv(n, x, 8, 6, (4, 4), strides=[2, 2], pads=[1] * 4)))
    model = ir.from_proto(n.model())
    common.ShapeInferencePass()(model)
    DeconvToConv()(model)
    assert ops(model) == [*INTERLEAVED, "Clip"]
    moved, _ = apply(ClipFirst(), ir.to_proto(model), 0.0)
    assert ops(moved) == ["Conv", "Clip", *INTERLEAVED[1:]]


def test_weights_that_two_layers_share_serve_both(net: Any) -> None:
    n = net()
    x = n.input(("N", 4, 5, 3))
    weight, bias = n.weight(4, 6, 4, 4, fan_in=4), n.vector(6)
    first = n.op("ConvTranspose", x, weight, bias, strides=[2, 2], pads=[1] * 4)
    # The second enlarges by another amount than its stride: it stays, and keeps the weight.
    second = n.op("ConvTranspose", x, weight, bias, strides=[2, 2])
    n.output(first, second, n.relu(first))
    model, modified = apply(DeconvToConv(), n.model(), deconv_atol(4, (4, 4)))
    assert modified and sorted(ops(model)) == sorted([*INTERLEAVED, "ConvTranspose", "Relu"])
    assert {weight, bias} <= set(model.graph.initializers)


def test_a_decoder_with_several_of_them_stays_the_same(net: Any) -> None:
    n = net()
    a = n.relu(n.conv(n.input(("N", 4, 6, 8)), 4, 8))
    b = n.relu(n.conv(a, 8, 8, strides=[2, 2]))
    up = deconv(n, b, 8, 8, (2, 2), strides=[2, 2])
    c = n.conv(n.op("Concat", a, up, axis=1), 16, 4)
    n.output(deconv(n, n.relu(c), 4, 3, (4, 4), strides=[2, 2], pads=[1] * 4), up)
    # 144 products and less in a layer, five layers, sums of magnitudes below 500.
    model, modified = apply(DeconvToConv(), n.model(), 5 * 2 * 144 * ROUNDING * 500)
    assert modified and "ConvTranspose" not in ops(model) and ops(model).count("Reshape") == 4


def test_new_nodes_and_tensors_avoid_the_names_that_are_taken(net: Any) -> None:
    n = net()
    up = deconv(n, n.input(("N", 4, 3, 3)), 4, 4, (2, 2), name="up", strides=[2, 2])
    taken = n.op("Relu", up, name="up_last", out="up_out_last")
    n.output(n.op("Add", taken, n.const(1.0, name="up_weight"), name="up_split", out="up_out_phases"))
    model, modified = apply(DeconvToConv(), n.model(), deconv_atol(4, (2, 2)))
    names = [node.name for node in model.graph]
    assert modified and len(set(names)) == len(names)


OTHER = {
    "output larger by one": ((3, 3), {"strides": [2, 2], "pads": [0] * 4}),
    "output smaller by one": ((3, 3), {"strides": [2, 2], "pads": [1] * 4}),
    "larger along one axis": ((2, 3), {"strides": [2, 2]}),
    "stride 1": ((3, 3), {"strides": [1, 1], "pads": [1] * 4}),
    "stride 5": ((5, 5), {"strides": [5, 5]}),
    "two strides": ((2, 3), {"strides": [2, 3]}),
    "dilated": ((2, 2), {"strides": [2, 2], "dilations": [2, 2]}),
    "output_shape": ((2, 2), {"strides": [2, 2], "output_shape": [14, 10]}),
    "auto_pad": ((4, 4), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
}


@pytest.mark.parametrize("name", OTHER)
def test_any_other_transposed_convolution_stays(name: str, net: Any) -> None:
    kernel, attributes = OTHER[name]
    n = net()
    n.output(deconv(n, n.input(("N", 4, 7, 5)), 4, 6, kernel, **attributes))
    assert not apply(DeconvToConv(), n.model(), 0.0)[1]


def _grouped(n: Any) -> None:
    n.output(n.op("ConvTranspose", n.input(("N", 4, 7, 5)), n.weight(4, 3, 2, 2), strides=[2, 2], group=2))


def _of_a_line(n: Any) -> None:
    n.output(n.op("ConvTranspose", n.input(("N", 4, 7)), n.weight(4, 3, 2), strides=[2]))


def _with_a_weight_of_a_run(n: Any) -> None:
    x, weight = n.input(("N", 4, 7, 5)), n.input((4, 3, 2, 2), name="w")
    n.output(n.op("ConvTranspose", x, weight, strides=[2, 2]))


def _with_a_bias_of_a_run(n: Any) -> None:
    x, bias = n.input(("N", 4, 7, 5)), n.input((3,), name="b")
    n.output(n.op("ConvTranspose", x, n.weight(4, 3, 2, 2), bias, strides=[2, 2]))


@pytest.mark.parametrize(
    "build",
    [_grouped, _of_a_line, _with_a_weight_of_a_run, _with_a_bias_of_a_run],
    ids=lambda f: f.__name__.strip("_"),
)
def test_a_transposed_convolution_that_is_not_fixed_stays(build: Callable[[Any], None], net: Any) -> None:
    n = net()
    build(n)
    assert not apply(DeconvToConv(), n.model(), 0.0, batch=3)[1]


# --- What the runtime refuses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gaps between padded windows", "output padding of a whole stride"])
def test_what_the_runtime_refuses_to_run_stays_for_it_to_refuse(kind: str, net: Any) -> None:
    n = net()
    x = n.input(("N", 4, 8, 8))
    if kind.startswith("gaps"):
        n.output(
            n.op("AveragePool", x, kernel_shape=[1, 1], strides=[3, 3], auto_pad="SAME_UPPER", count_include_pad=1)
        )
    else:
        n.output(deconv(n, x, 4, 6, (2, 2), strides=[2, 2], pads=[1] * 4, output_padding=[2, 2]))
    model = ir.from_proto(n.model())
    with pytest.raises(ModelError, match="run-failed"):
        RUNTIME.open(serialize(model), Options(optimize=False)).run({"x": np.zeros((1, 4, 8, 8), np.float32)})
    assert not PoolToConv()(model).modified and not DeconvToConv()(model).modified
