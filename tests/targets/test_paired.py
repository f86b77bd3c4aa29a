"""Products of two changing matrices in integers: where their codes stand, and that OpenVINO multiplies these."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from fewbits._base.errors import TargetError
from fewbits.flow import check_plan
from fewbits.numerics.format import Int
from fewbits.planning.plan import plan_from_json
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Numbers, Options
from fewbits.search.draft import draft_plan
from fewbits.search.layerwise import integer_layers
from fewbits.targets import FIRST_FORMS, Forms, integer_nodes, may_be_paired, place, place_forms, resolve_target
from fewbits.targets.base import Target

TARGET = "openvino:vnni"
_TOKENS, _WIDTH, _HEADS = 24, 64, 2


def heads(n: Any, x: str) -> str:
    """Returns [N, T, W] cut into heads, [N, H, T, W / H], as PyTorch writes it."""
    cut = n.op("Reshape", x, n.ints(-1, _TOKENS, _HEADS, _WIDTH // _HEADS))
    return str(n.op("Transpose", cut, perm=[0, 2, 1, 3]))


def linear(n: Any, x: str, name: str) -> str:
    return str(n.op("Add", n.matmul(x, _WIDTH, _WIDTH), n.vector(_WIDTH), name=name))


def attention(n: Any, *, scaled: bool = True, masked: bool = False) -> str:
    """One block of attention on [N, T, W]; factors before the product, as ``scaled_dot_product_attention`` exports."""
    x = n.input(("N", _TOKENS, _WIDTH))
    q, k, v = (heads(n, linear(n, x, name)) for name in ("q", "k", "v"))
    k = n.op("Transpose", k, perm=[0, 1, 3, 2])
    if scaled:
        q, k = (n.op("Mul", each, n.const(0.42)) for each in (q, k))
    scores = n.op("MatMul", q, k, name="scores")
    if masked:
        scores = n.op("Add", scores, n.const(np.triu(np.full((_TOKENS, _TOKENS), -1e4), 1)))
    mixed = n.op("MatMul", n.op("Softmax", scores, axis=-1, name="shares"), v, name="mixed")
    joined = n.op("Reshape", n.op("Transpose", mixed, perm=[0, 2, 1, 3]), n.ints(-1, _TOKENS, _WIDTH))
    n.output(n.op("Add", n.matmul(joined, _WIDTH, _WIDTH), n.vector(_WIDTH)))
    return "x"


def agreement(graphs: Any, case: Any) -> float:
    """Returns how far OpenVINO's answer is above its difference to ONNX Runtime's for the same file, in dB.

    Sums are rounded in another order, so that a code here and there may differ by one, of 255.
    """
    plain = RUNTIMES["ort"].open(case.data, Options(optimize=False)).run(case.feeds)
    return float(min(graphs.sqnr_db(plain[name], value) for name, value in case.outputs.items()))


def target() -> Target:
    return resolve_target(TARGET)


def test_they_stay_float_unless_asked_for(net: Any, bench: Any) -> None:
    n = net()
    attention(n)
    view = bench.open(n).view
    assert may_be_paired(view, target()) == ("scores", "mixed")
    placed = place_forms(view, target(), FIRST_FORMS)
    assert not {"scores", "mixed"} & set(placed.integer)
    assert {placed.kept_float[name].slug for name in ("scores", "mixed")} == {"two-changing-matrices"}
    asked = Forms(paired=("scores", "mixed"))
    assert {"scores", "mixed"} <= set(place_forms(view, target(), asked).integer)
    assert "mixed" not in place_forms(view, target(), asked.without(["mixed"])).integer


def test_codes_stand_where_matrices_are_written_signed_where_they_may_be_negative(net: Any, bench: Any) -> None:
    n = net()
    attention(n)
    view = bench.open(n).view
    plain = {p.site.name for p in place(view, target()).sites}
    placed = place(view, target(), paired=("scores", "mixed"))
    added = {p.site.name: p.scheme for p in placed.sites if p.site.name not in plain}
    assert set(added) == {"q_out", "k_out", "v_out", "shares_out"}, "before Reshape, Transpose and Mul"
    assert added["shares_out"].format == Int(bits=8, signed=False)
    assert not added["shares_out"].symmetric
    assert {(added[name].format, added[name].symmetric) for name in ("q_out", "k_out", "v_out")} == {
        (Int(bits=8, signed=True), True)
    }
    assert placed.links == place(view, target()).links, "nothing that moves gets a Q of its own"


def test_a_node_is_in_integers_when_both_of_its_matrices_have_codes_somewhere_before_it(net: Any, bench: Any) -> None:
    n = net()
    attention(n)
    view = bench.open(n).view
    signed = ["q_out", "k_out", "v_out"]
    assert integer_nodes(view, target(), ["q_out", "k_out"], signed=signed) == ("scores",)
    assert integer_nodes(view, target(), ["q_out", "v_out"], signed=signed) == ()
    assert integer_nodes(view, target(), ["v_out", "shares_out"], signed=signed) == ("mixed",)
    # Codes with a zero point are there for other readers: nobody asked for the product.
    assert integer_nodes(view, target(), ["q_out", "k_out", "v_out", "shares_out"]) == ()


@pytest.mark.parametrize("which", ["avx2", "ort-cpu"])
def test_where_pairs_saturate_or_nothing_was_measured_there_are_none(net: Any, bench: Any, which: str) -> None:
    n = net()
    attention(n)
    view = bench.open(n).view
    other = target().for_instruction_set("avx2") if which == "avx2" else resolve_target("ort-cpu:vnni")
    assert may_be_paired(view, other) == ()
    assert place(view, other, paired=("scores", "mixed")) == place(view, other)


def test_a_fixed_matrix_or_other_numbers_make_no_pair(net: Any, bench: Any) -> None:
    n = net(opset=20)
    x = n.input(("N", 8, 16))
    halves = n.op("Cast", x, to=10)
    fixed = n.op("MatMul", n.weight(8, 8), x, name="fixed")
    half = n.op("Cast", n.op("MatMul", halves, n.op("Transpose", halves, perm=[0, 2, 1]), name="half"), to=1)
    n.output(fixed, half)
    assert may_be_paired(bench.open(n).view, target()) == ()


def test_the_plan_says_so_is_checked_and_layers_with_weights_do_not_take_a_matrix_for_one(net: Any, bench: Any) -> None:
    n = net()
    attention(n)
    model = bench.open(n)
    plan = draft_plan(model, target(), forms=Forms(paired=may_be_paired(model.view, target())))
    read = plan_from_json(plan.to_json())
    assert read == plan
    assert {"scores", "mixed"} <= set(check_plan(model, target(), read))
    assert {layer.op.op for layer in integer_layers(model, target(), plan)} == {"MatMul"}
    assert not {"scores", "mixed"} & {layer.op.name for layer in integer_layers(model, target(), plan)}
    shares = plan.by_site()["shares_out"].scheme
    assert shares is not None
    for wrong in (replace(shares, format=Int(bits=8, signed=True)), replace(shares, symmetric=True)):
        decisions = tuple(replace(d, scheme=wrong) if d.site == "q_out" else d for d in plan.decisions)
        with pytest.raises(TargetError, match="format-not-legal"):
            check_plan(model, target(), replace(plan, decisions=decisions))
    with pytest.raises(TargetError, match="format-not-legal"):
        check_plan(model, resolve_target("ort-cpu:vnni"), replace(plan, target="ort-cpu:vnni"))


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_openvino_multiplies_the_codes(net: Any, bench: Any, scaled: bool, masked: bool) -> None:
    pytest.importorskip("openvino", reason="openvino is an extra: pip install fewbits[openvino]")
    n = net()
    attention(n, scaled=scaled, masked=masked)
    case = bench.run(n, target=TARGET, paired=True)
    assert {"scores", "mixed"} <= set(case.placement.integer)
    kernel, *others = [node for node in case.executed if {"scores", "mixed"} & set(node.origins)]
    assert not others, "both products are one kernel"
    assert kernel.numbers is Numbers.INTEGER
    assert [kind for kind, _ in kernel.inputs] == ["int8", "int8", *(["float"] if masked else []), "int8"]
    assert min(case.sqnr.values()) > 20  # as of every pattern of test_openvino.py


def test_openvino_and_onnxruntime_answer_the_same(graphs: Any, net: Any, bench: Any) -> None:
    pytest.importorskip("openvino", reason="openvino is an extra: pip install fewbits[openvino]")
    n = net()
    attention(n, masked=True)
    case = bench.run(n, target=TARGET, paired=True)
    assert agreement(graphs, case) > 35


def test_a_matrix_that_a_float_operator_writes_has_its_codes_carried_by_what_moves_it(net: Any, bench: Any) -> None:
    n = net()
    tanh = n.op("Tanh", n.input(("N", 8, 16)), name="tanh")
    moved = n.op("Transpose", tanh, perm=[0, 2, 1], name="moved")
    n.output(n.op("Add", n.op("MatMul", tanh, moved, name="gram"), n.op("ReduceSum", tanh, keepdims=1)))
    case = bench.run(n, target=TARGET, paired=True)
    reads = {node.name: list(node.input) for node in case.proto.graph.node}
    restored = next(node for node in case.proto.graph.node if node.op_type == "DequantizeLinear").output[0]
    assert reads["moved"] == [restored]
    assert reads["gram"][0] == restored
    assert "tanh_out" in next(reads[name] for name in reads if name.startswith("reducesum")), (
        "float readers read floats"
    )


def test_rows_of_a_fixed_table_are_no_copy_of_it(net: Any, bench: Any) -> None:
    n = net()
    rows = n.op("Gather", n.weight(50, 16, name="table"), n.input(("N", 8), "ids", TensorProto.INT64), name="rows")
    turned = n.op("Mul", n.op("Transpose", rows, perm=[0, 2, 1]), n.const(-2.0), name="turned")
    n.output(n.op("MatMul", rows, turned, name="gram"))
    model = bench.open(n)
    placed = place(model.view, target(), paired=("gram",))
    # A negative factor would turn codes round, and the rows are the first tensor that changes.
    assert {p.site.name for p in placed.sites} == {"rows_out", "turned_out"}
    case = bench.quantize(model, bench.examples({"ids": np.arange(64).reshape(8, 8) % 50}), target=TARGET, paired=True)
    assert min(case.sqnr.values()) > 20


@pytest.mark.parametrize("opset", [17, 20])
def test_a_matrix_that_others_read_too_and_that_is_an_output_comes_out_right(
    graphs: Any, net: Any, bench: Any, opset: int
) -> None:
    pytest.importorskip("openvino", reason="openvino is an extra: pip install fewbits[openvino]")
    n = net(opset=opset)
    x = n.input(("N", _TOKENS, _WIDTH))
    keys = linear(n, x, "keys")
    weights = n.op("Softmax", n.op("MatMul", x, n.op("Transpose", keys, perm=[0, 2, 1]), name="scores"), axis=-1)
    mixed = n.op("MatMul", weights, n.op("Tanh", keys), name="mixed")
    n.output(n.op("Add", n.matmul(mixed, _WIDTH, _WIDTH), n.vector(_WIDTH)), keys, n.op("ReduceSum", weights))
    case = bench.run(n, target=TARGET, paired=True)
    assert {"scores", "mixed"} <= set(case.placement.integer)
    assert min(case.sqnr.values()) > 20
    assert agreement(graphs, case) > 35


def test_codes_that_a_layer_reads_make_no_product_of_what_was_not_asked_for(net: Any, bench: Any) -> None:
    n = net()
    y = n.op("Tanh", n.input(("N", 8, 16)), name="y")
    layer = n.op("Add", n.matmul(y, 16, 16), n.vector(16))
    n.output(layer, n.op("MatMul", y, n.op("Transpose", y, perm=[0, 2, 1]), name="gram"))
    case = bench.run(n, target=TARGET)
    assert "gram" not in check_plan(case.model, case.target, case.plan)
    assert next(node for node in case.proto.graph.node if node.name == "gram").input[0] == "y_out"
    asked = bench.run(n, target=TARGET, paired=True)
    assert "gram" in check_plan(asked.model, asked.target, asked.plan)


@pytest.mark.parametrize("turned", [False, True])
def test_a_second_matrix_is_signed_even_where_it_is_never_negative(net: Any, bench: Any, turned: bool) -> None:
    pytest.importorskip("openvino", reason="openvino is an extra: pip install fewbits[openvino]")
    n = net()
    x = n.input(("N", _TOKENS, _WIDTH))
    a, b = linear(n, x, "a"), n.op("Relu", linear(n, x, "b"), name="positive")
    if turned:
        n.output(n.op("Tanh", n.op("MatMul", b, n.op("Transpose", a, perm=[0, 2, 1]), name="product")))
    else:
        n.output(n.op("Tanh", n.op("MatMul", a, n.op("Transpose", b, perm=[0, 2, 1]), name="product")))
    case = bench.run(n, target=TARGET, paired=True)
    schemes = {p.site.name: p.scheme.symmetric for p in case.placement.sites}
    assert (schemes["a_out"], schemes["positive_out"]) == (True, not turned)
    ran = [node.numbers for node in case.executed if "product" in node.origins]
    assert ran and set(ran) == {Numbers.INTEGER}


def test_a_copy_that_a_layer_reads_too_is_quantized_once_signed(net: Any, bench: Any) -> None:
    n = net()
    x = n.input(("N", _TOKENS, _WIDTH))
    q, k = linear(n, x, "q"), n.op("Mul", linear(n, x, "k"), n.const(0.3), name="scaled")
    n.output(n.op("Tanh", n.op("MatMul", q, n.op("Transpose", k, perm=[0, 2, 1]), name="product")), linear(n, k, "z"))
    case = bench.run(n, target=TARGET, paired=True)
    schemes = {p.site.name: p.scheme.symmetric for p in case.placement.sites}
    assert schemes["scaled_out"]
    assert "k_out" not in schemes
    assert "product" in check_plan(case.model, case.target, case.plan)


def test_a_plan_with_them_is_refused_where_pairs_of_products_saturate(net: Any, bench: Any) -> None:
    n = net()
    attention(n)
    model = bench.open(n)
    plan = draft_plan(model, target(), forms=Forms(paired=may_be_paired(model.view, target())))
    with pytest.raises(TargetError, match="format-not-legal"):
        check_plan(model, target().for_instruction_set("avx2"), replace(plan, target="openvino:avx2"))
