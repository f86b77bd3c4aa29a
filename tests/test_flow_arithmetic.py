"""The arithmetic of weights and biases in the flow: pairs that fit 16 bits, biases that fit 32, codes that fit both."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fewbits.algorithms.kernel_limits import pair_scale, scale_for_bias
from fewbits.algorithms.ranges import RANGE_RULES
from fewbits.calibration.statistics import NOTHING
from fewbits.flow import _bias, stream
from fewbits.models.onnx.opening import open_model
from fewbits.numerics import oracle
from fewbits.numerics.format import Int
from fewbits.numerics.granularity import PerChannel
from fewbits.numerics.qtensor import QParams, QTensor, quantize
from fewbits.numerics.scaling import MIN_SCALE, affine_from_amax
from fewbits.numerics.scheme import Scheme, parse_scheme
from fewbits.planning.plan import Decision, Plan
from fewbits.planning.site import Role
from fewbits.search.draft import draft_plan
from fewbits.targets import resolve_target

I8, I32 = Int(bits=8, signed=True), Int(bits=32, signed=True)
LIMIT = 128
INT32 = 2**31 - 1


def int8_codes(groups: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Returns the codes that the flow writes: scales rounded to float32, nearest codes."""
    scale = scale.astype(np.float32)[:, None]
    scheme = Scheme(format=I8, granularity=PerChannel(0), symmetric=True)
    p = QParams(scheme=scheme, scale=scale, zero_point=np.zeros_like(scale))
    return np.asarray(quantize(groups, p).codes).astype(np.int64)


def most_of_a_pair(codes: np.ndarray) -> int:
    """Returns the largest |c_i| + |c_j| over all pairs i != j of each row, by asking every pair."""
    size = np.abs(codes)
    if size.shape[1] == 1:
        return int(size.max())
    pairs = size[:, :, None] + size[:, None, :]
    pairs[:, np.arange(size.shape[1]), np.arange(size.shape[1])] = 0
    return int(pairs.max())


def channels(seed: int, kind: str, elements: int = 60) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = {
        "normal": lambda: rng.standard_normal((8, elements)),
        "outlier": lambda: rng.standard_normal((8, elements)) ** 9,
        "two-equal": lambda: np.sign(rng.standard_normal((8, elements))),
        "ties": lambda: rng.integers(-255, 256, (8, elements)) / 2.0,
        "one-left": lambda: np.eye(8, elements) * 3,
    }[kind]()
    return (rows * 10.0 ** rng.integers(-8, 8)).astype(np.float32)


KINDS = ["normal", "outlier", "two-equal", "ties", "one-left"]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(KINDS),
    st.sampled_from([1, 2, 3, 9, 60]),
    st.sampled_from([*RANGE_RULES]),
)
def test_no_two_codes_of_a_channel_exceed_the_limit(seed, kind, elements, rule):
    groups = channels(seed, kind, elements)
    amax = RANGE_RULES[rule].from_groups(groups, I8, parameter=RANGE_RULES[rule].default)
    scale = np.maximum(affine_from_amax(amax, I8)[0].astype(np.float64), pair_scale(groups, LIMIT))
    assert most_of_a_pair(int8_codes(groups, scale)) <= LIMIT


def test_the_limit_is_what_16_bits_hold():
    # vpmaddubsw adds two u8 x s8 products into int16: 255 * 128 fits, 255 * 129 does not.
    assert 255 * LIMIT <= 2**15 - 1 < 255 * (LIMIT + 1)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["normal", "outlier", "two-equal"]))
def test_the_scale_is_within_two_percent_of_the_smallest_that_keeps_the_limit(seed, kind):
    # Codes are at least a/s - 1/2, so with s below (a + b) / (limit + 1) they exceed the limit: 129 / 127 = 1.0157.
    groups = channels(seed, kind)[:1]
    smaller = pair_scale(groups, LIMIT) / 1.0160
    two = np.sort(np.abs(np.round(groups.astype(np.float64) / smaller[:, None])), axis=1)[:, -2:]
    assert two.sum() > LIMIT


@given(st.integers(2, 40))
def test_a_dead_channel_asks_for_no_scale(elements):
    assert pair_scale(np.zeros((3, elements), np.float32), LIMIT).tolist() == [0.0, 0.0, 0.0]


# --- biases ---------------------------------------------------------------------------------------------------------

MAGNITUDES = st.floats(1e-12, 1e12)


def bias_tensor(bias: np.ndarray, weight_scale: np.ndarray, activation_scale: float) -> QTensor:
    """Returns the bias as ``stream`` makes it: the weight's float32 scale times the activation's, in float32."""
    decision = Decision(
        site="b", role=Role.BIAS, op="Conv", node="n", range_rule=None, rounder=None, reason="",
        scheme=Scheme(format=I32, granularity=PerChannel(0), symmetric=True),
    )  # fmt: skip
    scale = weight_scale.astype(np.float32) * np.float32(activation_scale)
    return _bias(decision, bias, scale)


@settings(max_examples=300, deadline=None)
@given(MAGNITUDES, MAGNITUDES, MAGNITUDES, st.booleans())
@example(1e-9, 1.0, 0.01, True)  # N10
@example(1e-12, 1e12, 1e-12, False)
def test_a_bias_never_overflows_and_keeps_its_value(amax, bias, activation, negative):
    bias = -bias if negative else bias
    scale, _ = affine_from_amax(np.array([amax], np.float32), I8)
    fitted = scale_for_bias(scale.astype(np.float64), np.array([amax]), np.array([bias], np.float32), activation)
    tensor = bias_tensor(np.array([bias], np.float32), fitted, activation)
    code = int(tensor.codes[0])
    # Two roundings to float32 on the way: 2**-23 of 2**30 is 128 codes.
    assert abs(code) <= 2**30 + 129
    back = code * float(tensor.scale[0])
    # Half a step of the accumulator; 2**-24 of the value once more for the float32 bias itself is hidden in 1.001.
    assert abs(back - float(np.float32(bias))) <= float(tensor.scale[0]) / 2 * 1.001


@settings(max_examples=200, deadline=None)
@given(MAGNITUDES, MAGNITUDES)
def test_a_dead_channel_keeps_its_bias(bias, activation):
    # 20 bits: half a code of 2**20 is 4.8e-7; float32 scales add 2**-23.
    scale, _ = affine_from_amax(np.zeros(1, np.float32), I8)
    fitted = scale_for_bias(scale.astype(np.float64), np.zeros(1), np.array([bias], np.float32), activation)
    tensor = bias_tensor(np.array([bias], np.float32), fitted, activation)
    assert abs(int(tensor.codes[0]) * float(tensor.scale[0]) - bias) < 1e-5 * bias


@given(MAGNITUDES, MAGNITUDES)
def test_a_channel_whose_bias_fits_keeps_its_scale(amax, activation):
    scale = np.array([amax / 127])
    bias = np.array([scale[0] * activation * 2.0**29])
    assert scale_for_bias(scale, np.array([amax]), bias, activation).tolist() == scale.tolist()
    assert scale_for_bias(scale, np.array([amax]), np.zeros(1), activation).tolist() == scale.tolist()
    assert scale_for_bias(np.ones(1), np.zeros(1), np.zeros(1), activation).tolist() == [1.0]


@given(st.floats(-1e6, 1e6, width=32), st.floats(2.0**-10, 2.0**7).map(lambda s: float(np.float32(s))))
@example(2.5, 1.0)
@example(3.5, 1.0)
@example(16777217.0, 1.0)  # an odd number beyond float32's 24 bits: the quotient must not be rounded twice
def test_bias_codes_are_the_exactly_rounded_quotients(bias, scale):
    codes = bias_tensor(np.array([bias], np.float32), np.array([scale]), 1.0).codes
    assert int(codes[0]) == oracle.round_half_even(Fraction(float(np.float32(bias))) / Fraction(scale))


@pytest.mark.parametrize(
    ("amax", "activation", "bias"),
    [(1e-30, 1e-12, 0.0), (1e-38, MIN_SCALE, 0.0), (1e-36, 1e-3, 0.0), (1.0, MIN_SCALE, 1e12)],
    ids=["zero", "least", "denormal", "infinite"],
)
def test_a_bias_scale_is_never_zero_denormal_or_infinite(amax, activation, bias):
    # N8, N9: weight scale * activation scale leaves float32 although both are normal.
    scale, _ = affine_from_amax(np.array([amax], np.float32), I8)
    fitted = scale_for_bias(scale.astype(np.float64), np.array([amax]), np.array([bias], np.float32), activation)
    with np.errstate(all="ignore"):
        narrow = fitted.astype(np.float32)
        product = narrow * np.float32(activation)
    assert np.all(np.isfinite(narrow))
    assert np.all(product >= np.float32(MIN_SCALE))


# --- the stream -----------------------------------------------------------------------------------------------------


def quantized(
    net: Callable[..., Any], folder: Path, target: str, *, edit: dict[str, str] | None = None
) -> tuple[Any, Plan, dict[str, Any]]:
    """Returns model, plan and stream of a convolution with a dead, a tiny, a huge-bias and an ordinary channel."""
    n = net(seed=3)
    weight = n.rng.standard_normal((5, 3, 3, 3))
    weight[0] = 0
    weight[1] *= 1e-9
    weight[2] *= 1e-3
    bias = np.array([0.37, 1.0, 50.0, -0.1, 0.0])
    x = n.input(["n", 3, 8, 8])
    y = n.op("Conv", x, n.const(weight, "w"), n.const(bias, "b"), name="conv", pads=[1, 1, 1, 1])
    n.output(n.op("Relu", y, name="relu"))
    model = open_model(n.save(folder))
    resolved = resolve_target(target)
    plan = draft_plan(model, resolved)
    if edit:
        decisions = (replace(d, scheme=parse_scheme(edit[d.site])) if d.site in edit else d for d in plan.decisions)
        plan = replace(plan, decisions=tuple(decisions))
    # Statistics as if observed: what flows through the layer is not the point here.
    rng = np.random.default_rng(0)
    sites = [d.site for d in plan.quantized if d.role is Role.ACTIVATION]
    statistics = NOTHING.update({s: rng.standard_normal((16, 192)).astype(np.float32) for s in sites}, examples=16)
    return model, plan, {site.name: value for site, value in stream(model, plan, resolved, statistics)}


@pytest.mark.parametrize("target", ["ort-cpu:vnni", "ort-cpu:avx2"])
def test_the_stream_keeps_every_promise_of_its_numbers(net, tmp_path, target):
    model, plan, values = quantized(net, tmp_path, target)
    assert list(values) and values.keys() == {d.site for d in plan.quantized}
    weight, bias, x = values["w"], values["b"], values["x"]
    assert bias.codes.dtype == np.int32
    assert np.array_equal(np.asarray(bias.scale), np.asarray(weight.scale).reshape(-1) * np.asarray(x.scale))
    assert np.abs(np.asarray(bias.codes).astype(np.int64)).max() <= 2**30 + 129
    wrong = np.abs(bias.dequantize().astype(np.float64) - model.weight("b"))
    assert np.all(wrong <= np.asarray(bias.scale) * 0.51), "every bias within half a step of its accumulator"
    assert wrong[0] <= 0.37e-5, "the dead channel"
    assert np.all(np.asarray(weight.codes)[0] == 0)
    sums = np.abs(np.asarray(weight.codes).astype(np.int64)).reshape(5, -1).sum(axis=1)
    assert np.all(sums * 255 + np.abs(np.asarray(bias.codes).astype(np.int64)) <= INT32)
    if target.endswith("avx2"):
        assert most_of_a_pair(np.asarray(weight.codes).astype(np.int64).reshape(5, -1)) <= LIMIT


def test_the_same_inputs_give_the_same_bits(net, tmp_path):
    one, other = (quantized(net, tmp_path, "ort-cpu:vnni")[2] for _ in range(2))
    assert all(one[name].same(other[name]) for name in one)


def test_an_edit_to_a_per_tensor_weight_is_carried_out(net, tmp_path):
    # One scale for all channels: it must be the largest that any bias needs.
    _, _, values = quantized(net, tmp_path, "ort-cpu:vnni", edit={"w": "int8 per-tensor symmetric"})
    assert np.asarray(values["w"].scale).size == 1
    assert np.abs(np.asarray(values["b"].codes).astype(np.int64)).max() <= 2**30 + 129


def test_the_accumulator_of_a_long_layer_cannot_overflow(net, tmp_path):
    # N18: 70,000 products of 127 and 255 are 2.27e9, beyond int32.
    n = net(seed=0)
    length = 70_000
    x = n.input(["n", length])
    n.output(n.op("Gemm", x, n.const(np.full((1, length), 0.01), "w"), n.const([0.0], "b"), name="fc", transB=1))
    model = open_model(n.save(tmp_path))
    resolved = resolve_target("ort-cpu:vnni")
    plan = draft_plan(model, resolved)
    seen = {"x": np.ones((1, length), np.float32), "fc_out": np.full((1, 1), 700.0, np.float32)}
    sites = [d.site for d in plan.quantized if d.role is Role.ACTIVATION]
    statistics = NOTHING.update({site: seen.get(site, seen["fc_out"]) for site in sites}, examples=1)
    values = {site.name: value for site, value in stream(model, plan, resolved, statistics)}
    if "w" not in values:
        return  # left in float: as good
    reach = np.abs(np.asarray(values["w"].codes).astype(np.int64)).sum() * 255
    assert reach + abs(int(values["b"].codes[0])) <= INT32
