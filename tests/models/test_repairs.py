"""Repairs: each leaves the function as it is, and what it promises runs in integers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewbits._base.errors import ModelError
from fewbits.models.onnx.model import OnnxModel
from fewbits.models.onnx.opening import open_model
from fewbits.models.onnx.repairs import BY_NAME, REPAIRS, repaired, repeated
from fewbits.planning.plan import TransformStep
from fewbits.runtimes.base import Numbers, Options
from fewbits.runtimes.ort import RUNTIME

IMAGE = ("N", 16, 8, 8)


def same_function(before: OnnxModel, after: OnnxModel, *, rows: int = 3) -> None:
    """Asserts equal outputs but for float32 rounding: 1e-5 of the largest is 100 roundings of 2**-24 each."""
    rng = np.random.default_rng(7)
    feeds = {
        spec.name: rng.standard_normal([rows if d is None else d for d in spec.shape]).astype(np.float32)
        for spec in before.inputs
    }
    old, new = (RUNTIME.open(m.serialized(), Options()).run(feeds) for m in (before, after))
    assert old.keys() == new.keys()
    for name, value in old.items():
        assert new[name].shape == value.shape
        np.testing.assert_allclose(new[name], value, atol=1e-5 * np.abs(value).max())


def ops(model: OnnxModel) -> Counter[str]:
    return Counter(op.op for op in model.view.ops)


def mend(n: Any, name: str, tmp_path: Path) -> tuple[OnnxModel, OnnxModel]:
    model = open_model(n.save(tmp_path))
    made = repaired(model, BY_NAME[name])
    assert made is not None
    assert made.steps[-1] == TransformStep(name=name)
    same_function(model, made)
    return model, made


@pytest.mark.parametrize("op", ["HardSwish", "HardSigmoid"])
def test_hard_swish_and_hard_sigmoid_become_sums_that_saturate(op: str, net: Any, bench: Any, tmp_path: Path) -> None:
    n = net()
    x = n.input(IMAGE)
    n.output(n.conv(n.op(op, n.conv(x, 16, 16)), 16, 16))
    _, made = mend(n, "saturating_swish", tmp_path)
    assert op not in ops(made)
    case = bench.quantize(
        made, bench.examples({"x": np.random.default_rng(0).standard_normal((8, 16, 8, 8), np.float32)})
    )
    assert case.ran(Numbers.FLOAT) == Counter()
    assert case.problems() == []
    assert min(case.sqnr.values()) > 20


@pytest.mark.parametrize("alpha", [0.2, 1 / 6, 0.05])
def test_any_hard_sigmoid_with_positive_factors(alpha: float, net: Any, tmp_path: Path) -> None:
    n = net()
    x = n.input(IMAGE)
    n.output(n.conv(n.op("HardSigmoid", n.conv(x, 16, 16), alpha=alpha, beta=0.3), 16, 16))
    mend(n, "saturating_swish", tmp_path)


def test_a_falling_hard_sigmoid_is_left(net: Any, tmp_path: Path) -> None:
    n = net()
    x = n.input(IMAGE)
    n.output(n.conv(n.op("HardSigmoid", n.conv(x, 16, 16), alpha=-0.2), 16, 16))
    assert repaired(open_model(n.save(tmp_path)), BY_NAME["saturating_swish"]) is None


def test_a_fixed_subtrahend_is_added(net: Any, bench: Any, tmp_path: Path) -> None:
    n = net()
    x = n.input(IMAGE)
    n.output(n.conv(n.op("Sub", n.conv(x, 16, 16), n.const(0.5)), 16, 16))
    _, made = mend(n, "sub_to_add", tmp_path)
    case = bench.quantize(
        made, bench.examples({"x": np.random.default_rng(0).standard_normal((8, 16, 8, 8), np.float32)})
    )
    assert case.ran(Numbers.FLOAT) == Counter()


@pytest.mark.parametrize("shape", [("N", 7, 32), (2, 7, 32), ("N", 3, 7, 32)])
def test_a_linear_layer_of_rank_three_becomes_a_gemm_with_the_bias_inside(
    shape: tuple[Any, ...], net: Any, bench: Any, tmp_path: Path
) -> None:
    n = net()
    x = n.input(shape)
    h = n.op("Tanh", n.op("Add", n.vector(16), n.matmul(x, 32, 16)))
    n.output(n.op("Add", n.matmul(h, 16, 10), n.const(n.rng.standard_normal((1, 1, 10)))))
    _, made = mend(n, "linear_to_gemm", tmp_path)
    assert (ops(made)["Gemm"], ops(made)["MatMul"], ops(made)["Add"]) == (2, 0, 0)
    rows = [2 if d == "N" else d for d in shape]
    case = bench.quantize(
        made, bench.examples({"x": np.random.default_rng(0).standard_normal(rows).astype(np.float32)})
    )
    assert case.ran(Numbers.INTEGER)["QGemm"] == 2
    assert case.ran(Numbers.FLOAT) == Counter({"Tanh": 1})


def test_two_open_dimensions_leave_the_linear_layer(net: Any, tmp_path: Path) -> None:
    n = net()
    x = n.input(("N", "T", 32))
    n.output(n.op("Add", n.matmul(x, 32, 16), n.vector(16)))
    assert repaired(open_model(n.save(tmp_path)), BY_NAME["linear_to_gemm"]) is None


def test_a_sum_before_a_layer_normalization_is_not_fused(net: Any, tmp_path: Path) -> None:
    n = net()
    x = n.input(("N", 7, 32))
    a = n.matmul(x, 32, 32)
    n.output(n.op("LayerNormalization", n.op("Add", x, a), n.const(np.ones(32)), n.const(np.zeros(32))))
    _, made = mend(n, "sum_before_norm", tmp_path)
    path = tmp_path / "made.onnx"
    path.write_bytes(made.serialized())
    feeds = {"x": np.ones((1, 7, 32), np.float32)}
    kernels = [node.op.split(".")[-1] for node in RUNTIME.executed(path, Options(), feeds)]
    assert "SkipLayerNormalization" not in kernels
    assert "LayerNormalization" in kernels


def _tanh_cubes(n: Any, x: str) -> str:
    cube = n.op("Mul", x, n.op("Mul", x, x))
    inner = n.op("Mul", n.const(0.7978845608), n.op("Add", x, n.op("Mul", n.const(0.044715), cube)))
    return n.op("Mul", n.const(0.5), n.op("Mul", x, n.op("Add", n.const(1.0), n.op("Tanh", inner))))


def _tanh_power(n: Any, x: str) -> str:
    inner = n.op("Add", x, n.op("Mul", n.op("Pow", x, n.const(3.0)), n.const(0.044715)))
    both = n.op("Add", n.op("Tanh", n.op("Mul", inner, n.const(0.7978846))), n.const(1.0))
    return n.op("Mul", n.op("Mul", x, n.const(0.5)), both)


def _erf(n: Any, x: str) -> str:
    both = n.op("Add", n.op("Erf", n.op("Div", x, n.const(1.4142135))), n.const(1.0))
    return n.op("Mul", n.op("Mul", x, both), n.const(0.5))


@pytest.mark.parametrize(("write", "kind"), [(_tanh_cubes, "tanh"), (_tanh_power, "tanh"), (_erf, "none")])
def test_a_written_out_gelu_becomes_one_node(write: Any, kind: str, net: Any, tmp_path: Path) -> None:
    n = net()
    x = n.input(("N", 32))
    n.output(n.gemm(write(n, n.gemm(x, 32, 24)), 24, 8))
    _, made = mend(n, "whole_gelu", tmp_path)
    assert ops(made) == Counter({"Gemm": 2, "Gelu": 1})
    gelu = next(op for op in made.view.ops if op.op == "Gelu")
    assert gelu.attributes["approximate"] in (kind, kind.encode())
    assert made.view.opset == 20


def test_what_only_looks_like_gelu_is_left(net: Any, tmp_path: Path) -> None:
    n = net()
    x = n.input(("N", 32))
    h = n.gemm(x, 32, 24)
    both = n.op("Add", n.op("Tanh", n.op("Mul", h, n.const(0.9))), n.const(1.0))
    n.output(n.gemm(n.op("Mul", n.op("Mul", h, n.const(0.5)), both), 24, 8))
    assert repaired(open_model(n.save(tmp_path)), BY_NAME["whole_gelu"]) is None


def test_an_inner_tensor_that_others_read_keeps_a_gelu_as_it_is(net: Any, tmp_path: Path) -> None:
    n = net()
    x = n.input(("N", 32))
    h = n.gemm(x, 32, 24)
    part = n.op("Div", h, n.const(1.4142135))
    both = n.op("Add", n.op("Erf", part), n.const(1.0))
    n.output(n.gemm(n.op("Mul", n.op("Mul", h, both), n.const(0.5)), 24, 8), n.relu(part))
    assert repaired(open_model(n.save(tmp_path)), BY_NAME["whole_gelu"]) is None


def test_a_model_without_the_pattern_is_left_by_every_repair(net: Any, tmp_path: Path) -> None:
    n = net()
    x = n.input(IMAGE)
    n.output(n.conv(n.relu(n.conv(x, 16, 16)), 16, 16))
    model = open_model(n.save(tmp_path))
    assert [r.name for r in REPAIRS if repaired(model, r) is not None] == []
    with pytest.raises(ModelError, match="another's plan"):
        repeated(model, (TransformStep(name="sub_to_add"),))
    assert repeated(model, (TransformStep(name="fold_batchnorm"),)) is model


# --- codes that are clipped or scaled ---------------------------------------------------------------------------------


def test_a_clip_whose_input_others_read_clips_codes(net: Any, bench: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    a = n.conv(n.op("Mul", x, n.const(4.0)), 16, 16)
    n.output(n.conv(n.op("Add", n.conv(n.clip(a), 16, 16), n.conv(n.relu(a), 16, 16)), 16, 16), n.conv(a, 16, 16))
    case = bench.run(n)
    assert case.ops["Clip"] == 2
    assert case.ran(Numbers.FLOAT) == Counter()
    assert case.problems() == []
    assert min(case.sqnr.values()) > 20


@pytest.mark.parametrize(("op", "factor"), [("Mul", 0.125), ("Div", 6.0), ("Mul", 1.702)])
def test_a_factor_goes_into_the_next_scale(op: str, factor: float, net: Any, bench: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    a = n.op(op, n.relu(n.conv(x, 16, 16)), n.const(factor))
    n.output(n.conv(a, 16, 16))
    case = bench.run(n)
    link = next(link for link in case.plan.links if link.member == a)
    assert link.factor == pytest.approx(factor if op == "Mul" else 1 / factor)
    assert op not in case.ops and f"QLinear{op}" not in case.ops
    assert case.ran(Numbers.FLOAT) == Counter()
    assert case.problems() == []
    assert min(case.sqnr.values()) > 30


def test_factors_and_moves_in_a_row_multiply(net: Any, bench: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    a = n.op("Mul", n.relu(n.conv(x, 16, 16)), n.const(3.0))
    b = n.op("Div", n.op("Transpose", a, perm=[0, 1, 3, 2]), n.const(2.0))
    n.output(n.conv(b, 16, 16), b)
    case = bench.run(n)
    assert {link.member: link.factor for link in case.plan.links}[b] == pytest.approx(1.5)
    assert case.ran(Numbers.FLOAT) == Counter()
    assert min(case.sqnr.values()) > 30
