"""OpenVINO's CPU plugin: which operators of a QDQ graph it runs in integers, and under which conditions.

Q/DQ stand before weighted operators and pooling; what lies between (activations, sums, products) the integer kernel
before it computes in float on its way out, and writes codes. So fewer tensors are rounded than ONNX Runtime needs.
Weights are int8 with a scale a channel, activations uint8 with any zero point.

Measured on OpenVINO 2026.4.1 by building each pattern and reading the executed graph: tests/targets/test_openvino.py
builds the patterns again and holds this table to what runs.
"""

from __future__ import annotations

from dataclasses import replace

from fewbits.numerics.format import Int
from fewbits.planning.site import GraphView, OpView
from fewbits.targets.base import Condition, Kind, OpRule, Output, Target, Variant
from fewbits.targets.ort_cpu import TARGET as _ORT_CPU

# What must hold of a node (fixed weight, one bias a channel, no alpha or beta) is the same for both runtimes.
_ORT = _ORT_CPU.rules
_FUSED = OpRule(kind=Kind.FUSED, runs_as="part of the kernel before it, or of the Q behind it")
_MOVES = OpRule(kind=Kind.MOVES, runs_as="on codes", activations=(0,))


def _sum_survives(op: OpView, graph: GraphView) -> bool:
    """Returns whether codes do not follow straight behind a matrix product that adds no bias."""
    if graph.rank(op.inputs[0]) not in (2, None) or (op.op == "Gemm" and len(op.inputs) > 2 and op.inputs[2]):
        return True
    waiting = [op]
    while waiting:
        for reader in graph.consumers.get(waiting.pop().outputs[0], ()):
            if reader.op in _WEIGHTED:
                return False
            if reader.op in _SEEN_THROUGH:
                waiting.append(reader)
    return True


_WEIGHTED = ("Conv", "Gemm", "MatMul")
_SEEN_THROUGH = ("Relu", "Clip", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")
# Several small products in a row become one kernel (up to 15 rows), which reads the int32 sums of one without a bias
# as floats: its outputs are of the order of 1e9. Seen with OpenVINO 2026.4.1.
_SUM = Condition(
    slug="sum-lost",
    text="a bias is added, or no other product follows straight behind (OpenVINO gives wrong sums there)",
    holds=_sum_survives,
)
_FIXED = Condition(
    slug="two-changing-matrices",
    text="one matrix is fixed in the file (of two changing ones attention is made: one kernel, float unless a search "
    "finds it faster in integers)",
    holds=lambda op, graph: graph.is_constant(op.inputs[1]),
)
_BOTH_CHANGE = Condition(
    slug="weight-constant",
    text="both matrices change, and both are float32",
    holds=lambda op, graph: (
        not any(graph.is_constant(name) for name in op.inputs)
        and all(graph.tensors[name].dtype in ("float32", None) for name in op.inputs)
    ),
)

_FLOOR = Condition(
    slug="pool-ceil",
    text="the pooling rounds its shape down",
    holds=lambda op, graph: op.attributes.get("ceil_mode", 0) == 0,
)


def _product(op: str) -> OpRule:
    rule = _ORT[op]
    own = tuple(_FIXED if c.slug == _FIXED.slug else c for c in rule.conditions)
    return replace(rule, runs_as="FullyConnected", output=Output.OPTIONAL, conditions=(*own, _SUM))


_RULES = {
    "Conv": replace(_ORT["Conv"], runs_as="Convolution", output=Output.OPTIONAL),
    "Gemm": _product("Gemm"),
    "MatMul": _product("MatMul"),
    "AveragePool": OpRule(kind=Kind.LIGHT, runs_as="Pooling", conditions=(*_ORT["Concat"].conditions, _FLOOR)),
    "GlobalAveragePool": OpRule(kind=Kind.LIGHT, runs_as="Reduce", conditions=_ORT["Concat"].conditions),
    "Relu": _FUSED,
    "Clip": _FUSED,
    "Concat": replace(_FUSED, runs_as="on codes: OpenVINO moves the Q behind it before it"),
    "Add": _FUSED,
    "Sub": _FUSED,
    "Mul": _FUSED,
    "Div": _FUSED,
    "LeakyRelu": _FUSED,
    "PRelu": _FUSED,
    "Elu": _FUSED,
    "Sigmoid": _FUSED,
    "HardSwish": _FUSED,
    "Tanh": _FUSED,
    "Gelu": _FUSED,
    "Softplus": _FUSED,
    "MaxPool": _ORT["MaxPool"],
    "ReduceMax": _MOVES,
    "ReduceMin": _MOVES,
    "Split": _MOVES,
    "Reshape": _MOVES,
    "Transpose": _MOVES,
    "Flatten": _MOVES,
    "Squeeze": _MOVES,
    "Unsqueeze": _MOVES,
    "Slice": _MOVES,
    "Gather": _MOVES,
    "Expand": _MOVES,
    "DepthToSpace": _MOVES,
    "Resize": _ORT["Resize"],
    "Pad": replace(_ORT["Pad"], kind=Kind.MOVES, runs_as="on codes"),
}

_FLOAT_REASONS = {
    "Softmax": "OpenVINO computes it in float, where it can in one kernel with the products of attention",
    "LayerNormalization": "OpenVINO computes it in float",
    "HardSigmoid": "OpenVINO computes it in a float kernel of its own",
    "Tile": "OpenVINO carries no codes through it",
    "ConvTranspose": "OpenVINO ran it in float between Q and DQ",
}

_U8 = Int(bits=8, signed=False)
_S8 = Int(bits=8, signed=True)

TARGET = Target(
    name="openvino",
    runtime="openvino",
    exporter="onnx-qdq",
    summary="OpenVINO, CPU plugin, standard QDQ file",
    rules=_RULES,
    float_reasons=_FLOAT_REASONS,
    # With Q/DQ where its matrices are written, not behind what moves them, and signed codes without a zero point,
    # attention is one kernel on int8: OpenVINO runs the moves on codes, and the factor before the product inside.
    paired={
        "MatMul": OpRule(
            kind=Kind.PAIRED,
            runs_as="part of attention's kernel",
            activations=(0, 1),
            output=Output.OPTIONAL,
            conditions=(_BOTH_CHANGE,),
        )
    },
    # 16-bit floats behind a Cast are its own form of compressed weights: decompressed when the model is compiled.
    schemes=("w8a8", "fp16", "bf16"),
    # One that two weights of different axes share keeps OpenVINO from folding either.
    weight_zero_points=False,
    seizes_float=False,
    variants={
        "vnni": Variant(
            activation=_U8,
            weight=_S8,
            pair_limit=None,
            note="x64 with VNNI: u8 x s8 products are exact; the rest float32",
        ),
        "bf16": Variant(
            activation=_U8,
            weight=_S8,
            pair_limit=None,
            precision="bf16",
            note="x64 with AVX512_BF16 or AMX: u8 x s8 products are exact; the rest bfloat16, OpenVINO's default",
        ),
        "avx2": Variant(
            activation=_U8,
            weight=_S8,
            pair_limit=128,
            note="x64 without VNNI: pairs of products saturate at 16 bits; weights reduced so that none can",
        ),
        "arm": Variant(
            activation=_U8, weight=_S8, pair_limit=None, note="Arm: as on x64; nothing of it was measured by fewbits"
        ),
    },
    isa="vnni",
    sources=("executed graphs of OpenVINO 2026.4.1 (CPU plugin), read by fewbits",),
)
