"""The cost table: what is read off profiles, what is saved, and that a saved one gives the same file again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import fewbits
from fewbits._base.errors import UsageError
from fewbits.models.onnx.opening import open_model
from fewbits.runtimes.base import ExecutedNode, Numbers
from fewbits.search.costs import CostTable, Form, costs_from_json, node_times, pattern_of, table_of

HERE = {"runtime": "onnxruntime 1.31.1", "target": "ort-cpu:vnni", "threads": 1}


def table(**costs: dict[Form, float]) -> CostTable:
    return CostTable(
        **HERE, microseconds=costs, nodes=dict.fromkeys(costs, 2), chosen=dict.fromkeys(costs, Form.STATIC)
    )


def test_a_table_comes_back_as_it_was_written() -> None:
    made = CostTable(
        **HERE,
        microseconds={"MatMul 1x4,4x4": {Form.FLOAT: 10.0, Form.DYNAMIC: 4.5}, "Conv": {}},
        nodes={"MatMul 1x4,4x4": 3, "Conv": 1},
        chosen={"MatMul 1x4,4x4": Form.DYNAMIC, "Conv": Form.STATIC},
        repairs=("whole_gelu",),
    )
    assert costs_from_json(made.to_json()) == made


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 1, "patterns": [{"pattern": 1}]}', "[" * 99999],
)
def test_what_is_no_table_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        costs_from_json(text, where="x.json")
    assert raised.value.slug == "costs-invalid"
    assert str(raised.value).startswith("cannot read x.json: ")


def test_dearer_patterns_are_those_that_lose_noticeably_and_the_most_wasteful_comes_first() -> None:
    made = table(
        much={Form.FLOAT: 50.0, Form.STATIC: 100.0},
        more={Form.FLOAT: 10.0, Form.STATIC: 90.0},
        gains={Form.FLOAT: 50.0, Form.STATIC: 20.0},
        hardly={Form.FLOAT: 50.0, Form.STATIC: 51.0},
        tiny={Form.FLOAT: 0.1, Form.STATIC: 0.2},
        alone={Form.STATIC: 70.0},
    )
    assert made.dearer_in_integers() == ["more", "much"]


def executed(name: str, microseconds: float) -> ExecutedNode:
    return ExecutedNode(name=name, op="Mul", numbers=Numbers.FLOAT, inputs=(), outputs=(), microseconds=microseconds)


def test_times_go_to_the_nodes_of_the_model_whatever_the_runtime_calls_them(net: Any, tmp_path: Path) -> None:
    n = net()
    x = n.input(("N", 8, 4), "x")
    n.output(
        n.op("MatMul", x, n.weight(4, 4, fan_in=4), name="one"), n.op("Mul", x, x, name="two", out="tensor_of_two")
    )
    view = open_model(str(n.save(tmp_path))).view
    names = {"one_quant": 3.0, "one_integer": 4.0, "tensor_of_two": 5.0, "x_QuantizeLinear": 90.0}
    assert node_times([executed(name, us) for name, us in names.items()], view) == {"one": 7.0, "two": 5.0}


def test_costs_are_medians_over_the_nodes_of_a_pattern_in_the_forms_that_they_really_had() -> None:
    profiles = {Form.FLOAT: {"a": 1.0, "b": 3.0, "c": 5.0, "d": 9.0}, Form.STATIC: {"a": 2.0, "b": 2.0, "d": 1.0}}
    running = {Form.FLOAT: "abcd", Form.STATIC: "ab"}
    made = table_of(profiles, running, {**dict.fromkeys("abc", "p"), "d": "q"}, **HERE)
    assert made.microseconds == {"p": {Form.FLOAT: 3.0, Form.STATIC: 2.0}, "q": {Form.FLOAT: 9.0}}
    assert made.nodes == {"p": 3, "q": 1}


def test_a_pattern_names_what_the_kernel_sees(net: Callable[..., Any], tmp_path: Path) -> None:
    n = net()
    x = n.input(("N", 6, 9, 9), "x")
    n.output(n.conv(x, 6, 6, 3, group=6, strides=[2, 2]))
    view = open_model(str(n.save(tmp_path))).view
    (op,) = view.ops
    shapes = {op.name: ((4, 16, 9, 9),)}  # the runtime's own layout has more channels
    pattern = pattern_of(op, view, shapes)
    assert pattern.startswith("Conv 4x6x9x9,6x1x3x3,6 ")
    assert "group=6" in pattern and "strides=2,2" in pattern


@pytest.fixture
def encoder(net: Callable[..., Any], tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    n = net()
    h = n.input(("N", 32, 64), "x")
    for _ in range(2):
        h = n.op("Tanh", n.op("Add", n.op("MatMul", h, n.weight(64, 64, fan_in=64)), n.weight(64, fan_in=9)))
    n.output(n.op("MatMul", n.op("ReduceMean", h, axes=[1], keepdims=0), n.weight(64, 4, fan_in=64)))
    data = {"x": np.random.default_rng(0).normal(size=(120, 32, 64)).astype(np.float32)}
    return Path(n.save(tmp_path)), data


@pytest.mark.usefixtures("hurried")
def test_a_saved_table_gives_the_same_file_and_nothing_is_timed(
    encoder: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = encoder
    asked = {"data": data, "max_drop": 0.1, "allow_slower": True, "effort": "fast"}
    first = fewbits.quantize(model, **asked)
    first.save(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "costs.json").read_text())
    assert {row["form"] for row in saved["patterns"]} <= {"float", "static", "dynamic"}
    assert any("dynamic" in row["microseconds"] for row in saved["patterns"])
    # The clock would now say otherwise: whatever is tried loses.
    from fewbits.search import repairing

    def refuse(*anything: object, **more: object) -> None:
        raise AssertionError("a replay times nothing")

    monkeypatch.setattr(repairing, "quick_speedup", refuse)
    again = fewbits.quantize(model, **asked, costs=tmp_path / "out" / "costs.json")
    assert again.model_bytes == first.model_bytes
    forms = {row["pattern"]: row for row in saved["patterns"]}
    for row in forms.values():
        row["form"] = "float" if "4x4" not in row["pattern"] and "64x4" not in row["pattern"] else "dynamic"
    (tmp_path / "edited.json").write_text(json.dumps({**saved, "patterns": list(forms.values())}))
    edited = fewbits.quantize(model, **asked, costs=tmp_path / "edited.json")
    kinds = [node.op_type for node in onnx.load_from_string(edited.model_bytes).graph.node]
    assert kinds.count("MatMulInteger") == 1


@pytest.mark.usefixtures("hurried")
def test_a_table_from_elsewhere_and_one_that_nobody_reads_are_refused(
    encoder: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    model, data = encoder
    (tmp_path / "costs.json").write_text(
        CostTable(runtime="onnxruntime 0.1", target="ort-cpu:arm", threads=9).to_json()
    )
    for more, slug in (({}, "costs-other"), ({"scheme": "w8a8"}, "options")):
        with pytest.raises(UsageError) as raised:
            fewbits.quantize(model, data=data, costs=tmp_path / "costs.json", **more)
        assert raised.value.slug == slug


@pytest.mark.usefixtures("hurried")
def test_a_table_of_another_model_is_refused(
    encoder: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, net: Callable[..., Any]
) -> None:
    model, data = encoder
    fewbits.quantize(model, data=data, max_drop=0.1, allow_slower=True, effort="fast").save(tmp_path / "out")
    n = net()
    n.output(n.conv(n.input(("N", 3, 8, 8), "x"), 3, 4, 3))
    other = n.save(tmp_path, "other.onnx")
    pictures = {"x": np.random.default_rng(1).normal(size=(100, 3, 8, 8)).astype(np.float32)}
    with pytest.raises(UsageError) as raised:
        fewbits.quantize(other, data=pictures, max_drop=0.1, costs=tmp_path / "out" / "costs.json")
    assert raised.value.slug == "costs-other-model"
