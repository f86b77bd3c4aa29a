"""``fewbits inspect`` as a stranger sees it: short, on a page, and with all that the file holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import fewbits
from fewbits._base.errors import UsageError

SQUARE = 64 * 64 * 4


def odd_model(path: Path, *, outside: bool = False) -> Path:
    """Writes a model with a tied weight, an If with a weight a branch, an operator of another domain, dynamic axes."""
    rng = np.random.default_rng(0)

    def weight(name: str) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.standard_normal((64, 64)) / 8).astype(np.float32), name)

    def branch(name: str) -> onnx.GraphProto:
        node = helper.make_node("MatMul", ["m2", f"{name}_w"], [f"{name}_out"], name=f"{name}_product")
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["b", "t", 64])
        return helper.make_graph([node], name, [], [out], [weight(f"{name}_w")])

    nodes = [
        helper.make_node("MatMul", ["x", "tied"], ["m1"], name="first"),
        helper.make_node("MatMul", ["m1", "tied"], ["m2"], name="second"),
        helper.make_node("ReduceMean", ["m2"], ["mean_out"], name="mean", keepdims=0),
        helper.make_node("Greater", ["mean_out", "zero"], ["c"], name="greater"),
        helper.make_node("If", ["c"], ["i"], name="choose", then_branch=branch("yes"), else_branch=branch("no")),
        helper.make_node("Gelu", ["i"], ["y"], name="curve", domain="com.microsoft"),
    ]
    shape = ["b", "t", 64]
    graph = helper.make_graph(
        nodes,
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [weight("tied"), numpy_helper.from_array(np.float32(0), "zero")],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    onnx.save(model, str(path), save_as_external_data=outside, location="weights.bin", size_threshold=100)
    return path


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    return odd_model(tmp_path / "odd.onnx")


def test_weights_inside_the_graphs_of_a_node_are_listed_with_their_bytes(odd: Path) -> None:
    found = fewbits.inspect(odd)
    listed = {(w.node, w.op, w.body, w.tensor, w.bytes) for w in found.inner_weights}
    assert listed == {
        ("choose", "If", "then_branch", "yes_w", SQUARE),
        ("choose", "If", "else_branch", "no_w", SQUARE),
    }
    part = next(part for part in found.kept_float if "If" in part.ops)
    assert (part.rule, part.bytes) == ("subgraph", 2 * SQUARE)


def test_a_tied_weight_is_listed_with_its_readers_and_counted_once(odd: Path) -> None:
    found = fewbits.inspect(odd)
    (tied,) = found.shared_weights
    assert (tied.tensor, tied.bytes, tied.readers) == ("tied", SQUARE, ("first", "second"))
    assert found.quantizable_bytes == SQUARE


def test_operators_of_other_domains_are_named(odd: Path) -> None:
    assert fewbits.inspect(odd).custom_operators == {"com.microsoft": {"Gelu": 1}}


def test_all_bytes_are_either_quantizable_or_float_for_a_reason_or_biases(odd: Path, net: Path) -> None:
    for path, biases in ((odd, 0), (net, 4 * (16 + 32 + 10))):
        found = fewbits.inspect(path)
        stays = sum(part.bytes for part in found.kept_float)
        assert found.quantizable_bytes + stays + biases == found.weight_bytes
        floats = sum(node.state == "float" for node in found.nodes)
        assert sum(sum(part.ops.values()) for part in found.kept_float) == floats
        assert sum(part.macs for part in found.kept_float) + found.integer_macs == found.macs


def test_files_of_weights_are_named_with_their_bytes(odd: Path, tmp_path: Path) -> None:
    (tmp_path / "apart").mkdir()
    path = odd_model(tmp_path / "apart" / "odd.onnx", outside=True)
    assert fewbits.inspect(path).data_files == {"weights.bin": (path.parent / "weights.bin").stat().st_size}
    assert fewbits.inspect(odd).data_files == {}


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (["n", 8], "any batch"),
        ([4, 8], "fixed batch of 4"),
        (["n", "t", 8], "any batch; axis 1 may change from run to run"),
        ([1, "h", "w", 8], "fixed batch of 1; axes 1, 2 may change from run to run"),
    ],
)
def test_the_axes_of_an_input_are_told_in_words(
    cli: Callable[..., Any], tmp_path: Path, shape: list[Any], words: str
) -> None:
    weight = numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert fewbits.inspect(tmp_path / "m.onnx").axes == {"x": words}
    assert f"] ({words})" in cli("inspect", tmp_path / "m.onnx").out


@pytest.mark.parametrize("target", ["ort-cpu:vnni", "ort-cpu:avx2", "ort-cpu:arm"])
def test_what_is_printed_fits_a_screen_and_names_what_is_odd(cli: Callable[..., Any], odd: Path, target: str) -> None:
    done = cli("inspect", odd, "--target", target)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    for words in ("com.microsoft: 1 Gelu", "If 'choose'", "32.8 kB", "tied (16.4 kB) is read by first, second"):
        assert words in done.out, words


def test_a_transformer_fits_a_screen_too(cli: Callable[..., Any], real_data: Callable[[str], Path]) -> None:
    done = cli("inspect", real_data("speech_commands/kwt1.onnx"))
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) <= 40
    assert "24 LayerNormalization" in done.out


def test_long_tables_are_cut_and_say_so(cli: Callable[..., Any], tmp_path: Path) -> None:
    kinds = ("Exp", "Log", "Sin", "Cos", "Abs", "Neg", "Sign", "Ceil", "Floor", "Round", "Atan", "Softplus", "Softsign")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["t0"], name="m")]
    nodes += [helper.make_node(op, [f"t{i}"], [f"t{i + 1}"], name=op) for i, op in enumerate(kinds)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info(f"t{len(kinds)}", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "m.onnx"))
    short, long = (cli("inspect", tmp_path / "m.onnx", *more).out for more in ((), ("--all",)))
    assert "... and 3 more rows; --all lists every node" in short
    assert all(f"\n{op} " in long for op in kinds)


def test_one_node_is_told_with_every_condition(cli: Callable[..., Any], odd: Path) -> None:
    done = cli("inspect", odd, "--node", "second", "--json").json
    assert (done["schema_version"], done["facts"]["state"], done["kind"]) == (1, "integer", "weighted")
    assert [condition["holds"] for condition in done["conditions"]] == [True, True, True]
    assert "tied: float32 [64, 64], fixed in the file" in done["reads"]
    assert done["sources"]
    greater = cli("inspect", odd, "--node", "greater").out
    assert "float" in greater and "[no-integer-kernel]" in greater


def test_conditions_behind_one_that_fails_are_not_asked(cli: Callable[..., Any], tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "x"], ["y"], name="square")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 8])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "m.onnx"))
    found = cli("inspect", tmp_path / "m.onnx", "--node", "square", "--json").json
    assert [condition["holds"] for condition in found["conditions"]] == [True, False, None]
    assert found["facts"]["rule"] == found["conditions"][1]["rule"] == "two-changing-matrices"


def test_an_unknown_node_names_the_nearest(cli: Callable[..., Any], odd: Path) -> None:
    cli("inspect", odd, "--node", "secnd").refused(2, "did you mean 'second'?", "[unknown-name]")
    cli("inspect", odd, "--node", "second", "--all").refused(2, "--all and --node")


def test_in_a_notebook_an_inspection_is_short(odd: Path) -> None:
    found = fewbits.inspect(odd, target="ort-cpu:vnni")
    assert repr(found) == (
        "<Inspection of odd.onnx: 6 nodes, 12,289 parameters, 100.0% of the work in integers on ort-cpu:vnni>"
    )
    assert len(str(found).splitlines()) == 3
    assert "16,384 of 49,156 bytes of weights in 8 bits" in str(found)


_VERBS: dict[str, Callable[[Any, Path], object]] = {
    "inspect": lambda model, path: fewbits.inspect(model),
    "quantize": lambda model, path: fewbits.quantize(model),
    "plan": lambda model, path: fewbits.plan(model),
    "measure": lambda model, path: fewbits.measure(model, path, data={}),
    "measure-second": lambda model, path: fewbits.measure(path, model, data={}),
}


@pytest.mark.parametrize("verb", list(_VERBS))
@pytest.mark.parametrize("given", ["proto", "bytes", "none"])
def test_a_model_that_is_no_path_is_refused_in_one_line(net: Path, verb: str, given: str) -> None:
    model: Any = {"proto": onnx.load(str(net)), "bytes": net.read_bytes(), "none": None}[given]
    with pytest.raises(UsageError, match=type(model).__name__) as caught:
        _VERBS[verb](model, net)
    assert caught.value.slug == "model-kind"
    assert "\n" not in str(caught.value)
