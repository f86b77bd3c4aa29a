"""Factors between layers: the folded model is the same function, and what is no link is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewbits.models.onnx.equalizing import folded, links_of, smoothed_name
from fewbits.models.onnx.model import OnnxModel
from fewbits.models.onnx.opening import open_model
from fewbits.planning.plan import TransformStep
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Options

STEP = TransformStep(name="smoothing")
# Operators that let a positive factor of a channel through, as the drawn graphs have them.
BETWEEN = {
    "nothing": lambda n, x: x,
    "Relu": lambda n, x: n.relu(x),
    "LeakyRelu": lambda n, x: n.op("LeakyRelu", x, alpha=0.25),
    "PRelu": lambda n, x: n.op("PRelu", x, n.const(n.rng.uniform(0.1, 0.5, (6, 1, 1)))),
    "MaxPool": lambda n, x: n.op("MaxPool", x, kernel_shape=[2, 2]),
    "AveragePool": lambda n, x: n.op("AveragePool", x, kernel_shape=[2, 2], pads=[1, 1, 0, 0], count_include_pad=1),
}


def outputs(model: OnnxModel, x: np.ndarray) -> list[bytes]:
    found = RUNTIMES["ort"].open(model.serialized(), Options()).run({"x": x})
    return [np.asarray(value).tobytes() for value in found.values()]


def random_factors(model: OnnxModel, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {link.giver: np.exp2(rng.integers(-4, 5, link.channels)).astype(np.float32) for link in links_of(model)}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    between=st.lists(st.sampled_from(sorted(BETWEEN)), max_size=2), kind=st.sampled_from("cdgp"), seed=st.integers(0)
)
def test_a_folded_model_gives_the_same_bits(
    graphs: Any, tmp_path: Path, between: list[str], kind: str, seed: int
) -> None:
    n = graphs.Net(seed=seed % 2**32)
    h = n.conv(n.input(("N", 4, 8, 8)), 4, 6)
    for name in between:
        h = BETWEEN[name](n, h)
    if kind == "c":
        n.output(n.conv(h, 6, 5), n.conv(h, 6, 3, k=1))
    elif kind == "d":
        n.output(n.conv(n.relu(n.conv(h, 6, 6, group=6)), 6, 4))
    elif kind == "g":
        n.output(n.conv(h, 6, 4, group=2))
    else:
        pooled = n.op("Flatten", n.op("GlobalAveragePool", h))
        n.output(n.gemm(n.relu(n.gemm(pooled, 6, 8, trans=0)), 8, 3))
    model = open_model(str(n.save(tmp_path)))
    links = links_of(model)
    assert len([link for link in links if link.input_axis is None]) == {"c": 1, "d": 2, "g": 1, "p": 2}[kind]
    made = folded(model, random_factors(model, seed % 1000), links, STEP)
    assert made is not None
    assert made.serialized() != model.serialized()
    x = np.random.default_rng(seed % 1000 + 1).standard_normal((3, 4, 8, 8), np.float32)
    assert outputs(made, x) == outputs(model, x)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(between=st.sampled_from(["nothing", "Relu", "LeakyRelu", "PRelu", "MaxPool"]), seed=st.integers(0, 2**32 - 1))
def test_with_any_factors_a_folded_model_is_the_same_but_for_the_last_bits(
    graphs: Any, tmp_path: Path, between: str, seed: int
) -> None:
    n = graphs.Net(seed=seed)
    h = BETWEEN[between](n, n.conv(n.input(("N", 4, 8, 8)), 4, 6))
    n.output(n.conv(h, 6, 5))
    model = open_model(str(n.save(tmp_path)))
    links = links_of(model)
    rng = np.random.default_rng(seed)
    factors = {k.giver: np.exp(rng.normal(0, 1, k.channels)).astype(np.float32) for k in links if k.input_axis is None}
    made = folded(model, factors, links, STEP)
    assert made is not None
    x = rng.standard_normal((3, 4, 8, 8), np.float32)
    found, wanted = (RUNTIMES["ort"].open(m.serialized(), Options()).run({"x": x}) for m in (made, model))
    assert any(not np.array_equal(found[name], wanted[name]) for name in wanted)
    # Error analysis of float32: with u = 2**-24 a sum of k products is off by (k + 1) u of the sum of their sizes. Here
    # 4 * 9 products and a bias, then 6 * 9 and a bias, with an activation between; folded, each weight is rounded once
    # more. The sum of sizes is what the same graph gives of the sizes of everything, its activation left out.
    sizes = {"x": np.abs(x)}
    (tmp_path / "sizes").mkdir(exist_ok=True)
    whole = graphs.Net(seed=seed)
    whole.output(whole.conv(whole.conv(whole.input(("N", 4, 8, 8)), 4, 6), 6, 5))
    positive = open_model(str(whole.save(tmp_path / "sizes")))
    weights = {w: np.abs(positive.weight(w)) for w in positive.ir_model.graph.initializers}
    for name, values in weights.items():
        positive.ir_model.graph.initializers[name].const_value = ir.tensor(values, name=name)
    (bound,) = RUNTIMES["ort"].open(positive.serialized(), Options()).run(sizes).values()
    if between == "MaxPool":  # the size behind a pool is at most the largest of all
        bound = np.full_like(next(iter(wanted.values())), bound.max())
    (ours,), (theirs,) = found.values(), wanted.values()
    steps = 2 * (4 * 9 + 2 + 6 * 9 + 2) + 2 + 2
    assert (np.abs(ours - theirs) <= steps * 2.0**-24 * bound * 1.001).all()


def test_a_transformers_norm_gives_to_all_that_read_it(graphs: Any, tmp_path: Path) -> None:
    n = graphs.Net()
    x = n.input(("N", 7, 8))
    h = n.op("LayerNormalization", x, n.const(n.rng.uniform(0.5, 2, 8)), n.vector(8), axis=-1)
    rows = n.op("Add", n.matmul(h, 8, 6), n.vector(6))
    n.output(n.matmul(n.relu(rows), 6, 5), n.matmul(h, 8, 4))
    model = open_model(str(n.save(tmp_path)))
    links = links_of(model)
    assert [(len(link.divided), len(link.takers)) for link in links] == [(2, 2), (2, 1)]
    made = folded(model, random_factors(model, 0), links, STEP)
    assert made is not None
    x = np.random.default_rng(0).standard_normal((3, 7, 8), np.float32)
    assert outputs(made, x) == outputs(model, x)
    assert made.steps[-1] == TransformStep(name="smoothing", where=tuple(link.giver for link in links))


def test_an_input_gets_a_division_by_a_row(graphs: Any, tmp_path: Path) -> None:
    n = graphs.Net()
    n.output(n.matmul(n.input(("N", 7, 8)), 8, 6))
    model = open_model(str(n.save(tmp_path)))
    (link,) = links_of(model)
    assert (link.input_axis, link.free) == (2, ((0, 8),))
    factors = np.exp2(np.arange(8, dtype=np.float32))
    made = folded(model, {"x": factors}, (link,), STEP)
    assert made is not None
    assert [op.op for op in made.view.ops] == ["Div", "MatMul"]
    assert made.view.ops[0].outputs == (smoothed_name("x"),)
    x = np.random.default_rng(0).standard_normal((3, 7, 8), np.float32)
    seen = RUNTIMES["ort"].open(made.serialized(extra_outputs=(smoothed_name("x"),)), Options()).run({"x": x})
    assert np.array_equal(seen[smoothed_name("x")] * factors, x)
    assert outputs(made, x) == outputs(model, x)


def refusing(n: Any, why: str) -> None:
    """Writes a graph with a layer whose channels no factor may go through, beside no other link."""
    x = n.input(("N", 6, 8, 8))
    x = n.op("Sigmoid", x)
    h = n.conv(x, 6, 6)
    if why == "clip":
        n.output(n.conv(n.clip(h), 6, 4))
    elif why == "another reader":
        n.output(n.op("Add", n.conv(h, 6, 6), n.op("Sigmoid", h)))
    elif why == "graph output":
        n.output(h, n.conv(h, 6, 4))
    elif why == "weight of two layers":
        weight = n.weight(6, 6, 3, 3)
        n.output(n.op("Conv", n.op("Conv", x, weight, pads=[1] * 4), weight, pads=[1] * 4))
    elif why == "residual":
        n.output(n.op("Add", n.conv(h, 6, 6), h))
    elif why == "changing weight":
        n.output(n.op("Conv", h, n.op("Reshape", n.op("GlobalAveragePool", x), n.ints(-1, 6, 1, 1))))
    elif why == "flattened places":
        n.output(n.gemm(n.op("Flatten", h), 6 * 64, 4))
    elif why == "softmax":
        n.output(n.conv(n.op("Softmax", h, axis=1), 6, 4))


WHYS = (
    "clip", "another reader", "graph output", "weight of two layers", "residual", "changing weight",
    "flattened places", "softmax",
)  # fmt: skip


@pytest.mark.parametrize("why", WHYS)
def test_what_no_factor_goes_through_is_no_link(graphs: Any, tmp_path: Path, why: str) -> None:
    n = graphs.Net()
    refusing(n, why)
    assert links_of(open_model(str(n.save(tmp_path)))) == ()


def test_factors_of_one_change_nothing(graphs: Any, tmp_path: Path) -> None:
    n = graphs.Net()
    n.output(n.conv(n.relu(n.conv(n.input(("N", 4, 8, 8)), 4, 6)), 6, 4))
    model = open_model(str(n.save(tmp_path)))
    links = links_of(model)
    ones = {link.giver: np.ones(link.channels, np.float32) for link in links}
    assert folded(model, ones, links, STEP) is None
    assert folded(model, {}, links, STEP) is None


def test_a_link_whose_weights_would_lose_bits_is_left_out(graphs: Any, tmp_path: Path) -> None:
    n = graphs.Net()
    h = n.relu(n.op("Conv", n.input(("N", 2, 8, 8)), n.const(np.full((3, 2, 1, 1), 3e-38))))
    n.output(n.conv(h, 3, 4))
    model = open_model(str(n.save(tmp_path)))
    links = links_of(model)
    giver = next(link.giver for link in links if link.input_axis is None)
    assert folded(model, {giver: np.full(3, 2.0**12, np.float32)}, links, STEP) is None


def two_branches(n: Any, kind: str) -> str:
    """Writes a Concat of two layers' channels, and a layer behind it; returns that layer's output."""
    x = n.input(("N", 4, 8, 8))
    left, right = n.relu(n.conv(x, 4, 3)), n.op("MaxPool", n.conv(x, 4, 5), kernel_shape=[3, 3], pads=[1] * 4)
    if kind == "branch with two readers":
        n.output(n.op("Sigmoid", right))
    elif kind == "branch of no layer":
        right = n.op("Sigmoid", right)
    elif kind == "one branch twice":
        left = right
    width = {"one branch twice": 10}.get(kind, 8)
    joined = n.op("Concat", left, right, axis=1)
    if kind == "concat is read":
        n.output(n.op("Sigmoid", joined))
    return n.conv(n.relu(joined), width, 6)


@pytest.mark.parametrize(
    ("kind", "free"),
    [
        ("plain", ((0, 3), (3, 8))),
        ("branch with two readers", ((0, 3),)),
        ("branch of no layer", ((0, 3),)),
        ("one branch twice", None),
        ("concat is read", None),
    ],
)
def test_branches_of_a_concat_take_factors_where_a_layer_gives_them_alone(
    graphs: Any, tmp_path: Path, kind: str, free: tuple[tuple[int, int], ...] | None
) -> None:
    n = graphs.Net()
    n.output(two_branches(n, kind))
    model = open_model(str(n.save(tmp_path)))
    links = [link for link in links_of(model) if link.input_axis is None]
    assert [link.free for link in links] == ([] if free is None else [free])
    if free is None:
        return
    factors = np.ones(8, np.float32)
    for start, stop in free:
        factors[start:stop] = np.exp2(np.arange(start, stop) - 3)
    made = folded(model, {links[0].giver: factors}, tuple(links), STEP)
    assert made is not None
    x = np.random.default_rng(0).standard_normal((3, 4, 8, 8), np.float32)
    assert outputs(made, x) == outputs(model, x)
