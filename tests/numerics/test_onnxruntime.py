"""Reality: ONNX Runtime's QuantizeLinear and DequantizeLinear give the same bits on the same values and scales."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from fewbits.numerics.format import Int
from fewbits.numerics.granularity import PerChannel, PerTensor
from fewbits.numerics.qtensor import QParams, QTensor, quantize
from fewbits.numerics.scaling import MIN_SCALE
from fewbits.numerics.scheme import Scheme

TYPES = {
    "int8": onnx.TensorProto.INT8,
    "uint8": onnx.TensorProto.UINT8,
    "int16": onnx.TensorProto.INT16,
    "uint16": onnx.TensorProto.UINT16,
}
FORMATS = [Int(bits=b, signed=s) for b in (8, 16) for s in (True, False)]


def node_runs(op: str, fmt: Int, axis: int | None, scale: np.ndarray, zero: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Returns what one QuantizeLinear or DequantizeLinear node computes, optimizations off."""
    helper = onnx.helper
    zero = zero.astype(fmt.code_dtype)
    inits = [onnx.numpy_helper.from_array(scale, "scale"), onnx.numpy_helper.from_array(zero, "zero")]
    node = helper.make_node(op, ["x", "scale", "zero"], ["y"], **({} if axis is None else {"axis": axis}))
    code, real = TYPES[fmt.name], onnx.TensorProto.FLOAT
    before, after = (real, code) if op == "QuantizeLinear" else (code, real)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", before, x.shape)],
        [helper.make_tensor_value_info("y", after, x.shape)],
        inits,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def params(fmt: Int, scale: np.ndarray, zero: np.ndarray, axis: int | None) -> QParams:
    granularity = PerTensor() if axis is None else PerChannel(axis)
    return QParams(scheme=Scheme(format=fmt, granularity=granularity, symmetric=False), scale=scale, zero_point=zero)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.1, 1 / 3, 2.0**-20, 1e-30, MIN_SCALE, 1e30, 2.6e36])
def test_the_runtime_gives_our_codes_per_tensor(hard_values, fmt, scale):
    # Ties, their neighbours, denormals, values whose quotient overflows: 3,600 values for each case.
    scale32 = np.array(scale, dtype=np.float32)
    values = hard_values(float(scale32))
    if fmt.bits == 16:
        values = np.concatenate([values, values[np.abs(values) < 1e30] * np.float32(97)])
    for zero in (fmt.min_code, 0, fmt.max_code // 2, fmt.max_code):
        zero32 = np.array(zero, dtype=np.float32)
        ours = quantize(values, params(fmt, scale32, zero32, None)).codes
        theirs = node_runs("QuantizeLinear", fmt, None, scale32, zero32, values)
        assert ours.dtype == theirs.dtype
        different = np.flatnonzero(ours != theirs)
        assert different.size == 0, (values[different[:5]], ours[different[:5]], theirs[different[:5]])


@pytest.mark.parametrize("fmt", [Int(bits=8, signed=True), Int(bits=8, signed=False)], ids=lambda f: f.name)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_runtime_gives_our_codes_per_channel(fmt, axis):
    rng = np.random.default_rng(0)
    shape = (7, 5, 33)
    values = rng.standard_normal(shape).astype(np.float32) * np.float32(40)
    values[rng.random(shape) < 0.3] = np.float32(0.5) * rng.integers(-300, 300)  # ties where the scale is 1
    scale = rng.choice(np.array([1.0, 0.25, 0.3, 1e-3, 7.7], np.float32), shape[axis])
    zero = rng.integers(fmt.min_code, fmt.max_code + 1, shape[axis]).astype(np.float32)
    wide = tuple(-1 if i == axis else 1 for i in range(3))
    ours = quantize(values, params(fmt, scale.reshape(wide), zero.reshape(wide), axis))
    assert np.array_equal(ours.codes, node_runs("QuantizeLinear", fmt, axis, scale, zero, values))
    theirs = node_runs("DequantizeLinear", fmt, axis, scale, zero, np.asarray(ours.codes))
    assert ours.dequantize().tobytes() == theirs.tobytes()


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("scale", [1.0, 0.1, 1 / 3, MIN_SCALE, 1e-30, 2.0e33])
def test_the_runtime_dequantizes_every_code_to_our_bits(fmt, scale):
    codes = np.arange(fmt.min_code, fmt.max_code + 1).astype(fmt.code_dtype)
    scale32 = np.array(scale, dtype=np.float32)
    for zero in (fmt.min_code, fmt.max_code // 3, fmt.max_code):
        zero32 = np.array(zero, dtype=np.float32)
        ours = QTensor(codes=codes, params=params(fmt, scale32, zero32, None)).dequantize()
        theirs = node_runs("DequantizeLinear", fmt, None, scale32, zero32, codes)
        # 0 - 0 times a scale is +0 for both; compare bits, so that a sign of zero would show.
        assert ours.tobytes() == theirs.tobytes()
