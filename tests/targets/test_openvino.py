"""The table of targets/openvino.py against what OpenVINO executes: the patterns of test_ort_cpu.py, built and run."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fewbits._base.errors import TargetError
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import ExecutedNode, Numbers, Options
from fewbits.targets import resolve_target, stored_scheme

pytest.importorskip("openvino", reason="openvino is an extra: pip install fewbits[openvino]")

TARGET = "openvino:vnni"
IMAGE = ("N", 16, 8, 8)


def _patterns() -> Any:
    spec = importlib.util.spec_from_file_location("fewbits_patterns", Path(__file__).with_name("test_ort_cpu.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PATTERNS = _patterns()
# What stays float, by its rule, besides what has no kernel of its own; nothing where a pattern is not listed.
FLOATS = {
    "conv_relu6": {"Mul": "not-fused"},
    "conv_with_a_weight_from_an_input": {"Conv": "weight-not-constant"},
    "gemm_relu_before_a_float_operator": {"Erf": "no-integer-kernel"},
    "gemm_with_alpha": {"Gemm": "gemm-factors"},
    "attention": {
        "Add": "not-fused",
        "Transpose": "moves-float",
        "MatMul": "two-changing-matrices",
        "Mul": "not-fused",
        "Softmax": "no-integer-kernel",
    },
    "average_pool_ceil": {"AveragePool": "pool-ceil"},
    "softmax_inside_a_chain": {"Softmax": "no-integer-kernel"},
    "where_with_a_constant": {"Where": "no-integer-kernel"},
    "where_of_two": {"Where": "no-integer-kernel"},
    "where_with_a_mask_value": {"Where": "no-integer-kernel", "Softmax": "no-integer-kernel"},
    "concat_at_the_end": {"Concat": "not-fused"},
    "pooled_classifier_with_softmax": {"Softmax": "no-integer-kernel"},
    "tile": {"Tile": "no-integer-kernel"},
    "resize_linear": {"Resize": "resize-not-nearest"},
    "pad_with_one": {"Pad": "pad-not-zero"},
    "mean_over_channels": {"ReduceMean": "no-integer-kernel", "Flatten": "moves-float"},
    "moves_at_the_end_run_on_codes": {"MaxPool": "moves-float", "Flatten": "moves-float"},
    "hardsigmoid": {"HardSigmoid": "no-integer-kernel"},
    "erf": {"Erf": "no-integer-kernel"},
    "space_to_depth": {"SpaceToDepth": "no-integer-kernel"},
    "global_max_pool": {"GlobalMaxPool": "no-integer-kernel", "Flatten": "moves-float"},
    "layer_normalization": {"LayerNormalization": "no-integer-kernel"},
    "batch_normalization_of_an_input": {"BatchNormalization": "no-integer-kernel"},
    "a_weight_shared_along_different_axes": {"Gemm": "sum-lost", "Relu": "not-fused"},
    "a_weight_read_by_a_float_operator_too": {
        "Mul": "not-fused",
        "ReduceSum": "no-integer-kernel",
        "Add": "not-fused",
    },
}


def names(node: ExecutedNode, case: Any) -> set[str]:
    """Returns the nodes of the model whose work an executed one does, as far as OpenVINO tells."""
    view = case.model.view
    found = set()
    for origin in node.origins:
        writer = view.producer.get(origin)
        found.add(origin if origin in view.by_name or writer is None else writer.name)
    return found & set(view.by_name)


def problems(case: Any) -> list[str]:
    """Returns every difference between what the table promises and what ran."""
    found = []
    placement = case.placement
    integer = [node for node in case.executed if node.numbers is Numbers.INTEGER]
    told = set().union(*(names(node, case) for node in integer)) if integer else set()
    ran = Counter(node.op for node in integer)
    for family, count in case.promised.items():
        by_name = sum(name in told for name in placement.integer)
        # OpenVINO forgets the name of an operator whose factor it folds into the weights; its kernel still counts.
        if by_name < len(placement.integer) and ran[family] < count:
            found.append(f"{count} x {family} promised, {ran[family]} ran: {dict(ran)}")
    for node in case.executed:
        here = names(node, case)
        writes_codes = any(kind in ("uint8", "int8") for kind, _ in node.outputs)
        if node.numbers is Numbers.FLOAT:
            found += [f"{name} was to run on codes, and ran in float" for name in here & {*placement.integer}]
            alone = {n for n in here if n in placement.kept_float and placement.kept_float[n].slug == "fused"}
            if alone and not writes_codes:
                found.append(f"{alone} were to be part of an integer kernel, or of a Q")
        if here & {*placement.moved} and node.inputs[0][0] != "uint8":
            found.append(f"{here} was to move codes, and moved {node.inputs[0][0]}")
    return found


@pytest.mark.parametrize("name", PATTERNS.CASES)
def test_the_table_keeps_its_word(name: str, net: Any, bench: Any) -> None:
    writer = net()
    PATTERNS.CASES[name][0](writer)
    case = bench.run(writer, target=TARGET)
    assert {op: slug for op, slug in case.slugs.items() if slug != "fused"} == FLOATS.get(name, {})
    assert problems(case) == []
    assert min(case.sqnr.values()) > PATTERNS.LEAST_SQNR_DB
    onnx.checker.check_model(case.proto, full_check=True)


@pytest.mark.parametrize("name", ["add_of_a_residual", "silu", "matmul_add_relu_matmul", "squeeze_and_excite"])
def test_the_same_holds_where_the_rest_is_bfloat16(name: str, net: Any, bench: Any) -> None:
    writer = net()
    PATTERNS.CASES[name][0](writer)
    case = bench.run(writer, target="openvino:bf16")
    assert problems(case) == []
    # 8 bits of mantissa cost about 50 dB each; a handful of them stays far above what a wrong scale leaves.
    assert min(case.sqnr.values()) > PATTERNS.LEAST_SQNR_DB


def test_a_residual_is_one_kernel_with_its_sum_and_nothing_is_rounded_before_it(net: Any, bench: Any) -> None:
    n = net()
    x = n.input((1, 16, 8, 8))
    a = n.relu(n.conv(x, 16, 16))
    n.output(n.conv(n.relu(n.op("Add", n.conv(a, 16, 16, name="b"), a, name="sum")), 16, 16))
    case = bench.run(n, target=TARGET)
    assert "b_out" not in {placed.site.name for placed in case.placement.sites}
    assert case.placement.kept_float["sum"].slug == "fused"
    assert case.ran(Numbers.FLOAT) == Counter()


def test_a_branch_of_a_concat_is_written_with_the_scale_behind_it(net: Any, bench: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    both = n.op("Concat", n.relu(n.conv(x, 16, 8)), n.op("Sigmoid", n.conv(x, 16, 8)), axis=1)
    n.output(n.conv(n.op("MaxPool", both, kernel_shape=[2, 2], strides=[2, 2]), 16, 16))
    case = bench.run(n, target=TARGET)
    kernels = {node.op: {kind for kind, _ in node.outputs} for node in case.executed}
    assert kernels["Concatenation"] == kernels["Pooling"] == {"uint8"}
    assert problems(case) == []


def test_what_is_summed_behind_a_concat_is_rounded_for_products_alone(net: Any, bench: Any) -> None:
    # A vision transformer's first block: a token before the patches, positions added, attention and a residual behind.
    n = net()
    patches = n.op("Add", n.matmul(n.input((1, 20, 16)), 16, 16), n.vector(16))
    tokens = n.op("Add", n.op("Concat", n.weight(1, 1, 16), patches, axis=1), n.weight(1, 21, 16), name="positions")
    inner = n.op("Sigmoid", n.op("Add", n.matmul(tokens, 16, 32), n.vector(32)))
    n.output(n.op("Add", tokens, n.op("Add", n.matmul(inner, 32, 16), n.vector(16)), name="residual"))
    case = bench.run(n, target=TARGET)
    residual = next(node for node in case.proto.graph.node if node.name == "residual")
    assert residual.input[0] == "positions_out"
    kernel = next(node for node in case.executed if "positions" in node.origins)
    assert [kind for kind, _ in kernel.outputs] == ["float", "uint8"], "one kernel writes both"
    assert problems(case) == []


@pytest.mark.parametrize("rows", [1, 15, 16])
@pytest.mark.parametrize("kind", ["gemm", "matmul"])
def test_products_in_a_row_without_a_bias_stay_right(kind: str, rows: int, net: Any, bench: Any) -> None:
    # What OpenVINO makes of them in integers is wrong by 180 dB, for up to 15 rows.
    n = net()
    x = n.input(("N", 16))
    if kind == "gemm":
        n.output(n.gemm(n.relu(n.gemm(x, 16, 24, bias=False)), 24, 16, bias=False))
    else:
        n.output(n.matmul(n.relu(n.matmul(x, 16, 24)), 24, 16))
    case = bench.run(n, target=TARGET, count=rows)
    assert list(case.slugs.values()) == ["sum-lost", "not-fused"]
    assert min(case.sqnr.values()) > PATTERNS.LEAST_SQNR_DB


def test_weights_of_different_axes_share_no_zero_point(net: Any, bench: Any) -> None:
    n = net()
    x = n.input(("N", 16))
    n.output(n.gemm(n.relu(n.gemm(x, 16, 16, trans=1)), 16, 16, trans=0))
    case = bench.run(n, target=TARGET)
    restored = {node.input[0]: node for node in case.proto.graph.node if node.op_type == "DequantizeLinear"}
    weights = [node for name, node in restored.items() if any(a.name == "axis" for a in node.attribute)]
    assert len(weights) >= 2
    assert all(len(node.input) == 2 for node in weights)
    assert problems(case) == []


def test_the_same_file_gives_the_same_answer_in_onnxruntime(net: Any, bench: Any) -> None:
    n = net()
    x = n.input(IMAGE)
    a = n.relu(n.conv(x, 16, 16))
    n.output(n.gemm(n.op("Flatten", n.op("GlobalAveragePool", n.op("Add", a, n.conv(a, 16, 16)))), 16, 10))
    case = bench.run(n, target=TARGET)
    other = RUNTIMES["ort"].open(case.data, Options()).run(case.feeds)
    for name, value in case.outputs.items():
        noise = np.square(value - other[name]).sum(dtype=np.float64)
        # Two runtimes round sums in another order: a code here and there differs by one.
        assert 10 * np.log10(np.square(value).sum(dtype=np.float64) / max(noise, 1e-30)) > 30


def test_every_rule_of_the_table_is_built_by_some_pattern(net: Any) -> None:
    built: set[str] = set()
    for build, _ in PATTERNS.CASES.values():
        n = net()
        build(n)
        built |= {node.op_type for node in n.nodes}
    assert set(resolve_target(TARGET).rules) - built == {"Div", "Gelu"}


@pytest.mark.parametrize("op", ["Div", "Gelu"])
def test_what_no_pattern_builds_is_fused_too(op: str, net: Any, bench: Any) -> None:
    n = net(opset=20)
    x = n.input(IMAGE)
    a = n.conv(x, 16, 16)
    middle = n.op("Div", a, n.const(np.linspace(1, 2, 16).reshape(16, 1, 1))) if op == "Div" else n.op("Gelu", a)
    n.output(n.conv(middle, 16, 16))
    case = bench.run(n, target=TARGET)
    assert problems(case) == []
    assert case.ran(Numbers.FLOAT) == Counter()


def test_bfloat16_is_what_a_machine_gets_that_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewbits.targets.native_bf16", lambda: True)
    assert resolve_target("openvino").full_name == "openvino:bf16"
    assert resolve_target("openvino").variant.precision == "bf16"
    assert resolve_target("openvino:vnni").variant.precision == "f32"
    assert resolve_target("ort-cpu").isa != "bf16"
    monkeypatch.setattr("fewbits.targets.native_bf16", lambda: False)
    assert resolve_target("openvino").variant.precision == "f32"


def test_weights_alone_are_refused_with_what_it_writes() -> None:
    from fewbits.numerics.schemes import SCHEMES

    with pytest.raises(TargetError) as caught:
        stored_scheme("w4a16", SCHEMES["w4a16"], resolve_target(TARGET))
    assert caught.value.slug == "scheme-not-written"
    assert "w8a8" in str(caught.value)
