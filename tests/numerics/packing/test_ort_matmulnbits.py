"""MatMulNBits: a scalar decoder from the operator's text, and ONNX Runtime's own kernels on our bytes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import fewbits
from fewbits._base.errors import TargetError
from fewbits.numerics.packing.ort_matmulnbits import LAYOUT
from fewbits.numerics.qtensor import QTensor

# Rows of whole blocks, of an odd number of blocks, with a short last block, shorter than a block, and of one element.
SHAPES = [(8, 256), (5, 96), (7, 100), (3, 9), (2, 1)]
SCHEMES = [
    f"{'u' if asym else ''}int{bits}-g{block}{asym}"
    for bits in (2, 4, 8)
    for block in (16, 32, 128)
    for asym in ("", "-asym")
]


def tensor(scheme: str, shape: tuple[int, int]) -> QTensor:
    return fewbits.quantize_array(np.random.default_rng(9).standard_normal(shape).astype(np.float32), scheme)


def size_of(q: QTensor) -> int:
    return q.scheme.granularity.size


def scalar_weight(packed: dict[str, np.ndarray], bits: int, block: int, rows: int, columns: int) -> np.ndarray:
    """ContribOperators.md: B [N, k_blocks, blob], zero_points [N, ceil(k_blocks * bits / 8)], default 2**(bits - 1)."""
    per_byte, mask = 8 // bits, (1 << bits) - 1
    weight = np.empty((rows, columns), np.float32)
    for n in range(rows):
        for k in range(columns):
            b, i = divmod(k, block)
            code = (int(packed["B"][n, b, i // per_byte]) >> (i % per_byte * bits)) & mask
            zero = 1 << (bits - 1)
            if "zero_points" in packed:
                zero = (int(packed["zero_points"][n, b // per_byte]) >> (b % per_byte * bits)) & mask
            weight[n, k] = np.float32(code - zero) * np.float32(packed["scales"][n, b])
    return weight


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scalar_decoder_reads_our_bits(scheme, shape):
    q = tensor(scheme, shape)
    weight = scalar_weight(LAYOUT.pack(q), q.scheme.format.stored_bits, size_of(q), *shape)
    assert weight.tobytes() == np.ascontiguousarray(q.dequantize() + np.float32(0)).tobytes()


def product(q: QTensor, x: np.ndarray, accuracy_level: int = 1) -> np.ndarray:
    """Returns what one MatMulNBits node computes from our tensors."""
    packed = LAYOUT.pack(q)
    rows, columns = q.shape
    kind = TensorProto.FLOAT16 if packed["scales"].dtype == np.float16 else TensorProto.FLOAT
    node = helper.make_node(
        "MatMulNBits",
        ["A", *packed],
        ["Y"],
        domain="com.microsoft",
        K=columns,
        N=rows,
        bits=q.scheme.format.stored_bits,
        block_size=size_of(q),
        accuracy_level=accuracy_level,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("A", kind, x.shape)],
        [helper.make_tensor_value_info("Y", kind, (x.shape[0], rows))],
        [onnx.numpy_helper.from_array(array, name) for name, array in packed.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"A": x.astype(packed["scales"].dtype)})[0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_onnx_runtime_reads_our_bits(scheme, shape):
    # Rows of the identity pick single weights: one product with 1 and sums with 0, which are exact, so 0 ulp apart.
    q = tensor(scheme, shape)
    for x in (np.eye(shape[1]), np.eye(shape[1])[-1:]):  # the kernels for many rows and for one
        theirs = product(q, x)
        assert np.array_equal(theirs, x.astype(np.float32) @ q.dequantize().T)


@pytest.mark.parametrize("scheme", ["uint2-g32-asym-scale-fp16", "int4-g32-scale-fp16", "uint8-g16-asym-scale-fp16"])
def test_under_float16_scales_onnx_runtime_rounds_our_values_to_float16(scheme):
    # The output is float16: half a unit in its last place, and nothing beside that.
    q = tensor(scheme, (7, 100))
    theirs = product(q, np.eye(100))
    assert np.array_equal(theirs, q.dequantize().T.astype(np.float16))


@pytest.mark.parametrize("scheme", ["uint4-g32-asym", "int8-g128", "uint2-g16-asym"])
def test_a_real_product_is_ours_but_for_the_order_of_its_sum(scheme):
    q = tensor(scheme, (16, 300))
    x = np.random.default_rng(1).standard_normal((5, 300)).astype(np.float32)
    exact = x.astype(np.float64) @ q.dequantize().T.astype(np.float64)
    # n products summed in float32 in any order: at most n * 2**-24 of the sum of magnitudes (Higham 2002, 4.2), n + 1
    # with the rounding of the products.
    bound = 301 * 2.0**-24 * (np.abs(x).astype(np.float64) @ np.abs(q.dequantize().T))
    assert np.all(np.abs(product(q, x) - exact) <= bound)


def test_the_last_block_is_filled_with_zeros():
    packed = LAYOUT.pack(tensor("int8-g64", (3, 100)))
    assert packed["B"].shape == (3, 2, 64) and not packed["B"][:, 1, 36:].any()


def test_a_symmetric_unsigned_weight_needs_no_third_tensor_and_loses_nothing():
    q = tensor("uint4-g32", (3, 64))
    packed = LAYOUT.pack(q)
    assert sorted(packed) == ["B", "scales"]
    assert LAYOUT.unpack(packed, q.scheme, q.shape).same(q)


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ("int3-g32", "codes of 2 or 4 or 8 bits; use int4"),
        ("int4-g100", "powers of two of at least 16, not 100; use int4-g64"),
        ("int4-g8", "not 8; use int4-g16"),
        ("int4", "use int4-g128"),
        ("int4-g32-scale-bf16", "float32 or float16"),
        ("mxfp4", "codes are not integers; use int4"),
        ("nf4", "places in a list of values"),
    ],
)
def test_what_the_operator_cannot_take_is_refused_with_the_nearest(scheme, words):
    with pytest.raises(TargetError, match=words):
        LAYOUT.pack(tensor(scheme, (4, 128)))


def test_a_vector_is_refused():
    q = fewbits.quantize_array(np.ones(32, np.float32), "int4-g32")
    with pytest.raises(TargetError, match="no matrix"):
        LAYOUT.pack(q)
