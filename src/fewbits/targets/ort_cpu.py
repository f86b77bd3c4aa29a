"""ONNX Runtime's CPU provider: which operators of a QDQ graph it runs in integers, and under which conditions.

On x64: unsigned activations, signed weights with a scale a channel, every zero point explicit. Signed activations lose
fusion wherever a tensor has two readers (QDQS8ToU8Transformer converts only a Q with one edge); unsigned weights run at
a tenth of the speed. On Arm: signed both.

Measured on ONNX Runtime 1.31.1 by building each pattern and reading the executed graph; the fan-out rule was found
unchanged from 1.17 on. tests/targets/test_ort_cpu.py builds the patterns again and holds this table to what runs.
"""

from __future__ import annotations

from dataclasses import replace

from fewbits.numerics.format import Int
from fewbits.planning.site import GraphView, OpView
from fewbits.targets.base import BlockRule, Condition, DynamicRule, Kind, OpRule, Output, StoredRule, Target, Variant

# Attention masks are written as -1e4, -1e9 or -3.4e38; 255 steps from there to 0 are wider than any data.
_LARGEST_OPERAND = 1e3


def _constant(index: int) -> Condition:
    return Condition(
        slug="weight-not-constant",
        text="the weight is fixed in the file",
        holds=lambda op, graph: len(op.inputs) > index and graph.is_constant(op.inputs[index]),
    )


def _bias_holds(op: OpView, graph: GraphView) -> bool:
    if len(op.inputs) < 3 or not op.inputs[2]:
        return True
    bias, weight = graph.tensors[op.inputs[2]], graph.tensors[op.inputs[1]]
    axis = 1 if op.op == "Gemm" and not op.attributes.get("transB", 0) else 0
    return bias.constant and weight.shape is not None and bias.shape == (weight.shape[axis],)


_BIAS = Condition(slug="bias-not-constant", text="the bias is one fixed number a channel", holds=_bias_holds)
_WEIGHT_2D = Condition(
    slug="weight-not-2d",
    text="the weight is a matrix",
    holds=lambda op, graph: graph.rank(op.inputs[1]) == 2,
)
_GEMM_PLAIN = Condition(
    slug="gemm-factors",
    text="alpha and beta are 1 and the input is not transposed",
    holds=lambda op, graph: (
        op.attributes.get("alpha", 1.0) == 1.0
        and op.attributes.get("beta", 1.0) == 1.0
        and op.attributes.get("transA", 0) == 0
    ),
)
_FLOAT32 = Condition(
    slug="not-float32",
    text="the data are float32",
    holds=lambda op, graph: all(
        graph.tensors[name].dtype in ("float32", None) for name in (*op.inputs[:1], *op.outputs[:1])
    ),
)
_WHERE_FLOAT32 = Condition(
    slug="not-float32",
    text="the data are float32",
    holds=lambda op, graph: graph.tensors[op.outputs[0]].dtype in ("float32", None),
)
_TWO_INPUTS = Condition(
    slug="constant-only",
    text="at least one input changes at run time",
    holds=lambda op, graph: any(not graph.is_constant(name) for name in op.inputs),
)
_NO_MASK = Condition(
    slug="mask-constant",
    text="no fixed operand is a mask value, beside which a scale would leave nothing of the data",
    holds=lambda op, graph: all(
        abs(graph.tensors[name].value or 0.0) <= _LARGEST_OPERAND for name in op.inputs if graph.is_constant(name)
    ),
)
_CLIP_FROM_ZERO = Condition(
    slug="clip-not-from-zero",
    text="the clip starts at 0 and its ends are fixed, so that the zero point at the lowest code does the same",
    holds=lambda op, graph: _clip_low(op, graph) == 0.0 and _clip_high_fixed(op, graph),
)
_ONE_OUTPUT = Condition(
    slug="indices-read",
    text="only the values are read, not their indices",
    holds=lambda op, graph: not any(op.outputs[1:]),
)
_ONE_CONSTANT_MATRIX = Condition(
    slug="two-changing-matrices",
    text="one matrix is fixed in the file (u8 x u8 of two changing ones took 0.7 to 1.1 of the float time)",
    holds=lambda op, graph: graph.is_constant(op.inputs[1]),
)
_RESIZE_NEAREST = Condition(
    slug="resize-not-nearest",
    text="the resize takes nearest neighbours; interpolation makes new values",
    holds=lambda op, graph: op.attributes.get("mode", "nearest") == "nearest",
)
_PAD_ZERO = Condition(
    slug="pad-not-zero",
    text="the padding is a constant 0 or repeats elements",
    holds=lambda op, graph: (
        op.attributes.get("mode", "constant") != "constant"
        or len(op.inputs) < 3
        or not op.inputs[2]
        or graph.tensors[op.inputs[2]].value == 0.0
    ),
)


def _positive(op: OpView, graph: GraphView) -> bool:
    value = graph.tensors[op.inputs[1]].value
    return value is not None and 0 < value < float("inf")


def _clip_low(op: OpView, graph: GraphView) -> float | None:
    return graph.tensors[op.inputs[1]].value if len(op.inputs) > 1 and op.inputs[1] else None


def _clip_high_fixed(op: OpView, graph: GraphView) -> bool:
    return len(op.inputs) < 3 or not op.inputs[2] or graph.tensors[op.inputs[2]].value is not None


def _gemm_axis(op: OpView) -> int:
    return 0 if op.attributes.get("transB", 0) else 1


_MOVES = OpRule(kind=Kind.MOVES, runs_as="on codes", activations=(0,))

_SCALES = OpRule(
    kind=Kind.SCALES,
    runs_as="another scale",
    activations=(0,),
    conditions=(
        _FLOAT32,
        Condition(
            slug="factor-not-positive",
            text="the second operand is one fixed positive number",
            holds=lambda op, graph: _positive(op, graph) and not graph.is_constant(op.inputs[0]),
        ),
    ),
)

_RULES = {
    "Conv": OpRule(
        kind=Kind.WEIGHTED,
        runs_as="QLinearConv",
        weight=1,
        bias=2,
        activations=(0,),
        conditions=(_FLOAT32, _constant(1), _BIAS),
    ),
    "Gemm": OpRule(
        kind=Kind.WEIGHTED,
        runs_as="QGemm",
        weight=1,
        bias=2,
        axis=_gemm_axis,
        activations=(0,),
        output=Output.OPTIONAL,
        conditions=(_FLOAT32, _constant(1), _WEIGHT_2D, _BIAS, _GEMM_PLAIN),
    ),
    "MatMul": OpRule(
        kind=Kind.WEIGHTED,
        runs_as="QLinearMatMul",
        weight=1,
        axis=lambda op: 1,
        activations=(0,),
        output=Output.UNLESS_ADDED,
        conditions=(_FLOAT32, _ONE_CONSTANT_MATRIX, _WEIGHT_2D),
    ),
    "Add": OpRule(kind=Kind.LIGHT, runs_as="QLinearAdd", conditions=(_FLOAT32, _TWO_INPUTS, _NO_MASK)),
    "Mul": OpRule(kind=Kind.LIGHT, runs_as="QLinearMul", conditions=(_FLOAT32, _TWO_INPUTS)),
    "Where": OpRule(kind=Kind.LIGHT, runs_as="QLinearWhere", activations=(1, 2), conditions=(_WHERE_FLOAT32, _NO_MASK)),
    "Concat": OpRule(kind=Kind.LIGHT, runs_as="QLinearConcat", conditions=(_FLOAT32,)),
    "GlobalAveragePool": OpRule(kind=Kind.LIGHT, runs_as="QLinearGlobalAveragePool", conditions=(_FLOAT32,)),
    "LeakyRelu": OpRule(kind=Kind.LIGHT, runs_as="QLinearLeakyRelu", conditions=(_FLOAT32,)),
    "Sigmoid": OpRule(kind=Kind.LIGHT, runs_as="QLinearSigmoid", conditions=(_FLOAT32,)),
    "Relu": OpRule(kind=Kind.CLIPS, runs_as="the saturation of the operator before it"),
    "Clip": OpRule(kind=Kind.CLIPS, runs_as="the saturation of the operator before it", conditions=(_CLIP_FROM_ZERO,)),
    "MaxPool": OpRule(kind=Kind.MOVES, runs_as="on codes", activations=(0,), conditions=(_ONE_OUTPUT,)),
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
    "Tile": _MOVES,
    "DepthToSpace": _MOVES,
    "Resize": OpRule(kind=Kind.MOVES, runs_as="on codes", activations=(0,), conditions=(_RESIZE_NEAREST,)),
    "Pad": OpRule(kind=Kind.MOVES_CODES, runs_as="Pad on codes", activations=(0,), conditions=(_PAD_ZERO,)),
}

# int8 inside: about twice as fast as level 1 in 4 bits, a hundred times in 2 and 8 (and in 4 with blocks of 128), which
# have no other fast kernel; the output is off by about half a percent of its norm. Measured on 1.31.1.
_ACCURACY_LEVEL = 4
_N_BITS = f"MatMulNBits at accuracy_level {_ACCURACY_LEVEL}: activations rounded to 8 bits inside"
_ROWS = Condition(
    slug="weights-only",
    text="the input has rows",
    holds=lambda op, graph: (graph.rank(op.inputs[0]) or 2) >= 2,
)
_HAS_ROWS = replace(_ROWS, slug="no-rows")
_MATMUL_BLOCKS = BlockRule(
    axis=lambda op: 0, bits=(2, 4, 8), runs_as=_N_BITS, conditions=(_FLOAT32, _ROWS), multiplies=0
)
_GEMM_BLOCKS = BlockRule(
    axis=lambda op: 1 - _gemm_axis(op),
    bits=(2, 4, 8),
    runs_as=_N_BITS,
    conditions=(_FLOAT32, _GEMM_PLAIN),
    multiplies=0,
)
# The kernel tells the length of a row from its bytes: 3 codes of 4 bits would come back as 4.
_GATHER_BLOCKS = BlockRule(
    axis=lambda op: 1,
    bits=(2, 4, 8),
    runs_as="GatherBlockQuantized: rows of codes, dequantized as they are picked",
    conditions=(
        Condition(
            slug="weights-only",
            text="rows are picked: axis 0",
            holds=lambda op, graph: op.attributes.get("axis", 0) == 0,
        ),
        Condition(
            slug="weights-only",
            text="a row is a multiple of 4 elements, whole bytes at every width",
            holds=lambda op, graph: ((graph.tensors[op.inputs[0]].shape or (1,))[-1] or 1) % 4 == 0,
        ),
    ),
)

_EACH_RUN = "float, its weight dequantized at each run: smaller, not faster"
# Measured on 1.31.1: DequantizeLinear (int8, a scale a column) + MatMul or Gemm without transB becomes MatMulNBits,
# which at default session options rounds activations to 8 bits, block by block; all else dequantizes at each run.
_STORED = {
    "MatMul": StoredRule(
        weights=(1,), axis=lambda op: 1, runs_as="MatMulNBits, activations rounded inside", blocks=_MATMUL_BLOCKS
    ),
    "Gemm": StoredRule(
        weights=(1,), axis=_gemm_axis, runs_as="MatMulNBits, activations rounded inside", blocks=_GEMM_BLOCKS
    ),
    "Conv": StoredRule(weights=(1,), axis=lambda op: 0, runs_as=_EACH_RUN),
    "ConvTranspose": StoredRule(weights=(1,), axis=lambda op: 1, runs_as=_EACH_RUN),
    "LSTM": StoredRule(weights=(1, 2), axis=lambda op: 1, runs_as=_EACH_RUN),
    "GRU": StoredRule(weights=(1, 2), axis=lambda op: 1, runs_as=_EACH_RUN),
    "RNN": StoredRule(weights=(1, 2), axis=lambda op: 1, runs_as=_EACH_RUN),
    "Gather": StoredRule(
        weights=(0,), axis=lambda op: 0, runs_as="Gather of codes, then their scales", blocks=_GATHER_BLOCKS
    ),
}

# Measured on 1.31.1, AVX-512 VNNI, one thread: 1.6 to 3.3 times as fast as the float MatMul with its bias, where the
# same product with fixed ranges and a quantized input reached 1.4 to 3.0; an LSTM 2.2 to 2.9. A Conv so is 5 to 10
# times as slow as float, and there is no such kernel of a GRU.
_DYNAMIC = {
    "MatMul": DynamicRule(
        weights=(1,),
        axis=lambda op: 1,
        runs_as="DynamicQuantizeMatMul",
        conditions=(_FLOAT32, _ONE_CONSTANT_MATRIX, _WEIGHT_2D, _HAS_ROWS),
    ),
    "Gemm": DynamicRule(
        weights=(1,),
        axis=_gemm_axis,
        runs_as="DynamicQuantizeMatMul",
        conditions=(_FLOAT32, _constant(1), _WEIGHT_2D, _GEMM_PLAIN),
    ),
    "LSTM": DynamicRule(
        weights=(1, 2),
        axis=lambda op: 1,
        runs_as="DynamicQuantizeLSTM",
        conditions=(_FLOAT32, _constant(1), _constant(2)),
        coarse=True,  # by a tenth
    ),
}

_FLOAT_REASONS = {
    "Softmax": "QLinearSoftmax between the matrix products of attention took 1.2 to 2.7 times as long as float",
    "AveragePool": "QLinearAveragePool took 1.4 to 4 times as long as float",
    "BatchNormalization": "no layer before it could take it in",
    "LayerNormalization": "ONNX Runtime has no integer kernel for it",
    "ConvTranspose": "ONNX Runtime has no integer kernel for it",
    "HardSwish": "ONNX Runtime does not fuse it between Q and DQ",
    "HardSigmoid": "ONNX Runtime does not fuse it between Q and DQ",
    "Gelu": "ONNX Runtime has no integer kernel for it",
    "Tanh": "ONNX Runtime has no integer kernel for it",
    "LSTM": "integers only with inputs quantized as they come: tried in a search, and by w8a8-dynamic",
    "GRU": "ONNX Runtime has no integer kernel for it, with fixed ranges or without",
    "Erf": "ONNX Runtime has no integer kernel for it",
    "Sub": "ONNX Runtime does not fuse it between Q and DQ",
    "Div": "ONNX Runtime does not fuse it between Q and DQ",
    "ReduceMean": "ONNX Runtime does not fuse it between Q and DQ",
    "InstanceNormalization": "ONNX Runtime has no integer kernel for it",
}

_U8 = Int(bits=8, signed=False)
_S8 = Int(bits=8, signed=True)

TARGET = Target(
    name="ort-cpu",
    runtime="ort",
    exporter="onnx-qdq",
    summary="ONNX Runtime, CPU provider, standard QDQ file",
    rules=_RULES,
    scaling={"Mul": _SCALES, "Div": _SCALES},
    float_reasons=_FLOAT_REASONS,
    stored=_STORED,
    dynamic=_DYNAMIC,
    # 16-bit floats: a Cast of a fixed tensor is folded at every level of optimization but none at all, in bodies of If,
    # Loop and Scan too; the session holds float32, and runs as the float model does. Measured on 1.31.1.
    schemes=("w8a8", "w8a8-dynamic", "w8a16", "fp16", "bf16"),
    block_sizes=(16, 32, 64, 128, 256),
    accuracy_level=_ACCURACY_LEVEL,
    variants={
        "vnni": Variant(
            activation=_U8, weight=_S8, pair_limit=None, note="x64 with VNNI or AMX: u8 x s8 products are exact"
        ),
        # 2 * 255 * 64 = 32640 <= 32767: any two products of a channel fit the 16-bit lane of VPMADDUBSW.
        "avx2": Variant(
            activation=_U8,
            weight=_S8,
            pair_limit=128,
            note="x64 without VNNI: pairs of products saturate at 16 bits; weights reduced so that none can",
        ),
        "arm": Variant(activation=_S8, weight=_S8, pair_limit=None, note="Arm: signed activations and weights"),
    },
    isa="vnni",
    sources=(
        "onnxruntime/core/optimizer/qdq_transformer (selectors and actions), 1.31.1",
        "executed graphs of ONNX Runtime 1.31.1, read by fewbits",
    ),
)
