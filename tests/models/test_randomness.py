"""A float model that differs from itself is refused, with the node that draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import fewbits
from fewbits import ModelError
from fewbits.models.onnx import opening
from fewbits.models.onnx.opening import open_model
from fewbits.models.onnx.randomness import random_node, refuse_unsteady
from fewbits.search.preparing import Request, prepare


def _noise(n: Any, x: str) -> str:
    return n.op("Add", x, n.op("RandomNormalLike", x, name="noise"))


def _seeded(n: Any, x: str) -> str:
    return n.op("Add", x, n.op("RandomUniformLike", x, name="noise", seed=3.0))


def _coin(n: Any, x: str) -> str:
    return n.op("Bernoulli", n.op("Sigmoid", x), name="coin")


def _dropout(n: Any, x: str) -> str:
    return n.op("Dropout", x, n.const(0.5), n.const(True, dtype=bool), name="drop")


def _told_by_a_constant_node(n: Any, x: str) -> str:
    value = helper.make_tensor("v", TensorProto.BOOL, [], [True])
    return n.op("Dropout", x, "", n.op("Constant", value=value), name="drop")


def _in_a_branch(n: Any, x: str) -> str:
    def branch(kind: str) -> Any:
        node = helper.make_node(kind, [x], [f"{kind}_out"], name=f"in_{kind}")
        return helper.make_graph(
            [node], kind, [], [helper.make_tensor_value_info(f"{kind}_out", TensorProto.FLOAT, None)]
        )

    total = n.op("ReduceSum", x, keepdims=0)
    branches = {"then_branch": branch("RandomNormalLike"), "else_branch": branch("Relu")}
    return n.op("If", n.op("Greater", total, n.const(0.0)), **branches)


def _quiet(n: Any, x: str) -> str:
    n.op("RandomNormalLike", x, name="unread")
    return n.op("Dropout", x, n.const(0.5), n.const(False, dtype=bool))


def _nothing_dropped(n: Any, x: str) -> str:
    return n.op("Dropout", x, n.const(0.0), n.const(True, dtype=bool))


def _small(net: Any, middle: Any, folder: Path) -> Path:
    n = net()
    x = n.gemm(n.input((4, 16)), 16, 16)
    n.output(n.gemm(middle(n, x), 16, 4), shape=[4, 4])
    return n.save(folder, checked=False)


@pytest.mark.parametrize(
    ("middle", "node"),
    [
        (_noise, "RandomNormalLike 'noise'"),
        (_seeded, "RandomUniformLike 'noise'"),
        (_coin, "Bernoulli 'coin'"),
        (_dropout, "Dropout 'drop'"),
        (_told_by_a_constant_node, "Dropout 'drop'"),
        (_in_a_branch, "RandomNormalLike 'in_RandomNormalLike'"),
    ],
)
def test_what_draws_on_the_way_to_an_output_is_refused_by_name(
    middle: Any, node: str, net: Any, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="no two runs of the float model agree") as caught:
        open_model(_small(net, middle, tmp_path))
    assert caught.value.slug == "not-deterministic"
    assert node in str(caught.value)


@pytest.mark.parametrize("middle", [_quiet, _nothing_dropped])
def test_what_draws_and_is_not_read_is_no_reason(middle: Any, net: Any, tmp_path: Path) -> None:
    open_model(_small(net, middle, tmp_path))


def test_what_a_function_draws_is_found() -> None:
    body = helper.make_function(
        "own", "Noisy", ["a"], ["b"], [helper.make_node("RandomNormalLike", ["a"], ["b"], name="inside")],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Noisy", ["x"], ["y"], domain="own")], "net",
        [value("x", TensorProto.FLOAT, [2])], [value("y", TensorProto.FLOAT, [2])],
    )  # fmt: skip
    proto = helper.make_model(graph, functions=[body], opset_imports=[helper.make_opsetid("", 17)])
    found = random_node(proto)
    assert found is not None
    assert found[0].name == "inside"


def test_an_example_that_is_answered_twice_differently_names_the_node(net: Any, bench: Any, tmp_path: Path) -> None:
    n = net()
    x = n.gemm(n.input((None, 16)), 16, 16)
    n.output(n.gemm(n.op("Bernoulli", n.op("Sigmoid", x), name="coin"), 16, 4), shape=[None, 4])
    model = open_model(n.save(tmp_path, checked=False), to_quantize=False)
    data = bench.examples({"x": np.zeros((3, 16), np.float32)})
    with pytest.raises(ModelError, match="when the same example is run again") as caught:
        refuse_unsteady(model, data, np.arange(3))
    assert "Bernoulli 'coin'" in str(caught.value)
    assert caught.value.slug == "not-deterministic"


def test_a_steady_model_passes(net: Any, bench: Any, tmp_path: Path) -> None:
    n = net()
    n.output(n.gemm(n.input((None, 16)), 16, 4))
    model = open_model(n.save(tmp_path))
    refuse_unsteady(model, bench.examples({"x": np.ones((2, 16), np.float32)}), np.arange(2))
    refuse_unsteady(model, bench.examples({"x": np.ones((2, 16), np.float32)}), np.arange(0))


def test_a_request_for_such_a_model_is_refused_before_any_work(net: Any, tmp_path: Path) -> None:
    path = _small(net, _noise, tmp_path)
    with pytest.raises(ModelError, match="RandomNormalLike 'noise'") as caught:
        prepare(Request(model=str(path), data={"x": np.zeros((40, 16), np.float32)}, scheme="w8a8", metric="agreement"))
    assert caught.value.exit_code == 4


def test_a_request_is_refused_where_only_running_it_tells(net: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(opening, "refuse_drawing", lambda *args: None)
    n = net()
    x = n.gemm(n.input((None, 16)), 16, 16)
    n.output(n.gemm(n.op("Bernoulli", n.op("Sigmoid", x), name="coin"), 16, 4), shape=[None, 4])
    path = n.save(tmp_path, checked=False)
    data = {"x": np.random.default_rng(0).standard_normal((60, 16)).astype(np.float32)}
    with pytest.raises(ModelError, match="Bernoulli 'coin' gives other values"):
        prepare(Request(model=str(path), data=data, scheme="w8a8", metric="agreement"))


def test_measuring_a_model_that_differs_from_itself_is_refused_too(net: Any, tmp_path: Path) -> None:
    path = _small(net, _noise, tmp_path)
    with pytest.raises(ModelError, match="gives other values when the same example is run again"):
        fewbits.measure(path, path, data={"x": np.zeros((40, 16), np.float32)}, metric="agreement")


def test_an_inspection_of_what_draws_is_refused_as_its_quantization_is(net: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="RandomNormalLike 'noise'"):
        fewbits.inspect(_small(net, _noise, tmp_path))
