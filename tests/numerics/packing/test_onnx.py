"""ONNX: a scalar decoder of raw_data, the package's own reading of the bytes, and DequantizeLinear where it runs."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import fewbits
from fewbits._base.errors import NumericsError, TargetError
from fewbits.numerics.format import Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import PerChannel, PerGroup, PerTensor
from fewbits.numerics.packing.onnx import LAYOUT, element_type, opset_of
from fewbits.numerics.qtensor import QParams, QTensor
from fewbits.numerics.scheme import Scheme

SHAPES = [(7, 100), (5, 33), (3, 1)]
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def tensor(scheme: str, shape: tuple[int, ...] = (7, 100)) -> QTensor:
    return fewbits.quantize_array(np.random.default_rng(5).standard_normal(shape).astype(np.float32), scheme)


def scalar_values(raw: bytes, fmt: str, count: int) -> list[float]:
    """onnx.proto, raw_data: sub-byte types from the lowest bits up, over the flat order; E2M1 is sign, two, one bit."""
    bits = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "fp4_e2m1": 4, "int8": 8, "uint8": 8}[fmt]
    values = []
    for i in range(count):
        code = (raw[i * bits // 8] >> (i * bits % 8)) & ((1 << bits) - 1)
        if fmt == "fp4_e2m1":
            values.append(E2M1[code & 7] * (-1 if code & 8 else 1))
        else:
            signed = not fmt.startswith("u") and code >> (bits - 1)
            values.append(code - (1 << bits) if signed else code)
    return values


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", ["int2-g16", "uint2-asym", "int4-g32", "uint4-g32-asym", "uint8-asym", "fp4_e2m1"])
def test_a_scalar_decoder_reads_the_same_values(scheme, shape):
    q = tensor(scheme, shape)
    packed = LAYOUT.pack(q)
    name = q.scheme.format.name
    codes = scalar_values(packed["x"].tobytes(), name, q.codes.size)
    assert codes == q.scheme.format.decode(q.codes).ravel().tolist()
    if "x_zero_point" in packed:
        zero = scalar_values(packed["x_zero_point"].tobytes(), name, q.zero_point.size)
        assert zero == q.zero_point.ravel().tolist()


def proto(name: str, kind: str, dims: tuple[int, ...], array: np.ndarray) -> TensorProto:
    return helper.make_tensor(name, getattr(TensorProto, kind), dims, array.tobytes(), raw=True)


EVERY_CODE = ("int2", "uint2", "int4", "uint4", "int8", "uint8", "int16", "uint16", "fp8_e4m3", "fp8_e5m2", "fp4_e2m1")


@pytest.mark.parametrize("name", EVERY_CODE)
@pytest.mark.parametrize("extra", [0, 1, 3])
def test_onnx_reads_every_code_from_our_bytes_and_writes_the_same(name, extra):
    fmt = FORMATS[name]
    codes = np.concatenate([fmt.codes(), fmt.codes()[:extra]])  # lengths that end inside a byte
    scheme = Scheme(format=fmt, granularity=PerTensor(), symmetric=True)
    one = np.ones(1, np.float32)
    zero = np.full(1, 1 << (fmt.bits - 1) if isinstance(fmt, Int) and not fmt.signed else 0, np.float32)
    q = QTensor(codes=codes, params=QParams(scheme=scheme, scale=one, zero_point=zero))
    ours = LAYOUT.pack(q)["x"]
    theirs = numpy_helper.to_array(proto("x", element_type(fmt), codes.shape, ours))
    assert np.array_equal(theirs.astype(np.float32), fmt.decode(codes), equal_nan=True)
    assert numpy_helper.from_array(theirs).raw_data == ours.tobytes()


def dequantize_linear(q: QTensor, **attributes: int) -> onnx.ModelProto:
    """Returns a model of one DequantizeLinear over our bytes."""
    packed, fmt = LAYOUT.pack(q), q.scheme.format
    stored = q.scheme.scale if q.scheme.scale is not None else FORMATS["fp32"]
    scale = packed["x_scale"]
    inits = [proto("x", element_type(fmt), q.shape, packed["x"])]
    inits.append(proto("x_scale", element_type(stored), scale.shape, scale))
    if "x_zero_point" in packed:
        inits.append(proto("x_zero_point", element_type(fmt), scale.shape, packed["x_zero_point"]))
    match q.scheme.granularity:
        case PerChannel(axis=axis):
            attributes["axis"] = axis
        case PerGroup(axis=axis, size=size):
            attributes.update(axis=axis % 2, block_size=size)
    node = helper.make_node("DequantizeLinear", list(packed), ["y"], **attributes)
    kind = TensorProto.FLOAT16 if scale.dtype == np.float16 else TensorProto.FLOAT
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", kind, q.shape)], inits)
    opset = opset_of(q.scheme)
    ir_version = {21: 10, 23: 11, 24: 12, 25: 13}[opset]
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.checker.check_model(model)
    return model


def runs(model: onnx.ModelProto) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {})[0]


RUN = [
    "int4-g32",
    "uint4-g32-asym",
    "int4-channel",
    "uint4-channel-asym",
    "int4",
    "uint4-asym",
    "int2-g16",
    "uint2-g16-asym",
    "int2",
    "uint2-asym",
    "uint2-channel-asym",
    "int8-g32",
    "uint8-g16-asym",
    "int16-channel",
    "uint16-asym",
    "fp8_e4m3-channel",
    "fp8_e4m3-g32",
    "fp8_e5m2",
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", RUN)
def test_onnx_runtime_dequantizes_to_our_bits(scheme, shape):
    # One subtraction of small integers, which is exact, and one float32 multiplication on both sides: 0 ulp apart.
    q = tensor(scheme, shape)
    assert runs(dequantize_linear(q)).tobytes() == q.dequantize().tobytes()


@pytest.mark.parametrize("scheme", ["int4-g32-scale-fp16", "uint8-channel-asym-scale-fp16"])
def test_under_float16_scales_onnx_runtime_rounds_our_values_to_float16(scheme):
    q = tensor(scheme)
    assert runs(dequantize_linear(q)).tobytes() == q.dequantize().astype(np.float16).tobytes()


# No kernel of ONNX Runtime 1.31's CPU provider reads these: the operator's reference implementation judges.
@pytest.mark.parametrize("scheme", ["fp4_e2m1-channel", "fp4_e2m1"])
def test_the_reference_dequantizes_4_bit_floats_to_our_bits(scheme):
    q = tensor(scheme)
    theirs = ReferenceEvaluator(dequantize_linear(q)).run(None, {})[0]
    assert np.asarray(theirs).tobytes() == q.dequantize().tobytes()


def test_microscaling_scales_are_the_bytes_that_onnx_calls_float8e8m0():
    q = tensor("mxfp4", (3, 64))
    packed = LAYOUT.pack(q)
    assert opset_of(q.scheme) == 24
    theirs = numpy_helper.to_array(proto("x_scale", "FLOAT8E8M0", packed["x_scale"].shape, packed["x_scale"]))
    assert np.array_equal(theirs.astype(np.float32), q.scale)


def test_the_two_levels_of_nvfp4_are_two_tensors_packed_one_by_one():
    q = tensor("nvfp4", (4, 64))
    with pytest.raises(TargetError, match="second DequantizeLinear"):
        LAYOUT.pack(q)
    inner = q.scale
    assert isinstance(inner, QTensor)
    packed = LAYOUT.pack(inner)
    theirs = numpy_helper.to_array(proto("x", element_type(inner.scheme.format), inner.shape, packed["x"]))
    assert (theirs.astype(np.float32) * packed["x_scale"]).tobytes() == inner.dequantize().tobytes()
    assert LAYOUT.unpack(packed, inner.scheme, inner.shape).same(inner)


def test_zero_points_are_not_left_aside_when_a_file_is_read_as_symmetric():
    q = tensor("int4-g32")
    asymmetric = Scheme(format=q.scheme.format, granularity=q.scheme.granularity, symmetric=False)
    for zero, refused in ((1.0, True), (0.0, False)):
        params = QParams(scheme=asymmetric, scale=q.scale, zero_point=np.full_like(q.zero_point, zero))
        packed = LAYOUT.pack(QTensor(codes=q.codes, params=params))
        if refused:
            with pytest.raises(NumericsError, match="packed-symmetry"):
                LAYOUT.unpack(packed, q.scheme, q.shape)
        else:
            assert LAYOUT.unpack(packed, q.scheme, q.shape).same(q)


def test_int32_biases_are_held_without_a_zero_point():
    fmt = Int(bits=32, signed=True)
    codes = np.array([fmt.min_code, -1, 0, fmt.max_code], np.int32)
    scheme = Scheme(format=fmt, granularity=PerChannel(0), symmetric=True)
    scale = np.array([1e-3, 1e-4, 2.0, 1e-9], np.float32)
    q = QTensor(codes=codes, params=QParams(scheme=scheme, scale=scale, zero_point=np.zeros(4, np.float32)))
    packed = LAYOUT.pack(q)
    assert sorted(packed) == ["x", "x_scale"] and LAYOUT.unpack(packed, scheme, q.shape).same(q)
    assert runs(dequantize_linear(q)).tobytes() == q.dequantize().tobytes()


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ("int3-g32", "no element type for int3; use int4"),
        ("uint5-g32-asym", "no element type for uint5; use uint8"),
        ("fp6_e3m2-g32", "use int8"),
        ("nf4", "use int4"),
        ("ternary", "use int2"),
        ("int4-b4x8", "blocks along one axis; use int4-g128 or int4-channel"),
        ("int4-f64", "blocks along one axis; use int4-g128"),
        ("fp16", "no element type for fp16; use int16"),
    ],
)
def test_what_onnx_cannot_say_is_refused_with_the_nearest(scheme, words):
    with pytest.raises(TargetError, match=words):
        LAYOUT.pack(tensor(scheme))


def test_an_element_type_that_is_not_there_is_refused():
    with pytest.raises(NumericsError, match="no-element-type"):
        element_type(FORMATS["int3"])
