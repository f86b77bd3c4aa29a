"""The formats beside other libraries' casts, bit for bit: ml_dtypes, NumPy, torch, ONNX Runtime.

Over all float16 and all bfloat16 values and every tie. What differs is listed in deviations.py, and shown to differ.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from fewbits._base.errors import NumericsError
from fewbits.numerics.floating import Float
from fewbits.numerics.format import Format, Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import PerTensor
from fewbits.numerics.qtensor import QParams, QTensor
from fewbits.numerics.scheme import Scheme


def _beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"fewbits_test_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


DEVIATIONS, COUNTERPARTS = _beside("deviations").DEVIATIONS, _beside("deviations").COUNTERPARTS
Codes = np.ndarray
Cast = Callable[[np.ndarray], Codes]


@cache
def inputs(name: str) -> np.ndarray:
    """Returns every float16 and bfloat16 pattern, each tie of the format, the float32 beside it, and extremes."""
    patterns = np.arange(1 << 16, dtype=np.uint32)
    every = [patterns.astype(np.uint16).view(np.float16).astype(np.float32), (patterns << 16).view(np.float32)]
    grid = FORMATS[name].grid.astype(np.float64)
    if len(grid) > 1 << 12:
        grid = grid[np.unique(np.concatenate([np.arange(0, len(grid), 37), np.arange(1, len(grid), 37), [-2, -1]]))]
    ends = [1.5 * grid[-1] - 0.5 * grid[-2], 1.5 * grid[0] - 0.5 * grid[1]]
    with np.errstate(over="ignore"):
        ties = np.concatenate([grid[:-1] / 2 + grid[1:] / 2, grid, ends]).astype(np.float32)
        near = [ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))]
    extremes = [464.0, 465.0, 1e6, 65519.996, 65520.0, 2.0**31, 2.0**63, 1e30, 3.4028235e38, np.inf, 1e-45, 1e-44, 0.0]
    some = np.array(extremes, np.float32)
    values = np.concatenate([*every, *near, some, -some])
    return np.unique(values.view(np.uint32)).view(np.float32)


# --- the others' casts, each a function from float32 to codes -----------------------------------------------------

ML_DTYPES = {
    "fp8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
    "e8m0": "float8_e8m0fnu",
    "fp6_e3m2": "float6_e3m2fn",
    "fp6_e2m3": "float6_e2m3fn",
    "fp4_e2m1": "float4_e2m1fn",
    "bf16": "bfloat16",
    **{name: name for name in ("int2", "int4", "uint2", "uint4")},
}
TORCH = {
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
    "e8m0": "float8_e8m0fnu",
}
ORT = {
    "int8": ("INT8", 21), "uint8": ("UINT8", 21), "int16": ("INT16", 21), "uint16": ("UINT16", 21),
    "int4": ("INT4", 21), "uint4": ("UINT4", 21), "int2": ("INT2", 25), "uint2": ("UINT2", 25),
    "fp8_e4m3": ("FLOAT8E4M3FN", 21), "fp8_e5m2": ("FLOAT8E5M2", 21),
}  # fmt: skip
IR_VERSIONS = {21: 10, 25: 13}


def cast_by_ml_dtypes(name: str) -> Cast:
    dtype = np.dtype(getattr(ml_dtypes, ML_DTYPES[name]))

    def cast(values: np.ndarray) -> Codes:
        with np.errstate(all="ignore"):
            codes = values.astype(dtype)
        if isinstance(FORMATS[name], Int):
            return codes.astype(FORMATS[name].code_dtype)
        return codes.view(np.uint16 if dtype.itemsize == 2 else np.uint8)

    return cast


def cast_by_numpy(name: str) -> Cast:
    assert name == "fp16"

    def cast(values: np.ndarray) -> Codes:
        with np.errstate(all="ignore"):
            return values.astype(np.float16).view(np.uint16)

    return cast


def cast_by_torch(name: str) -> Cast:
    torch = pytest.importorskip("torch", reason="torch is an extra: make test TORCH=1")
    dtype = getattr(torch, TORCH[name])

    def cast(values: np.ndarray) -> Codes:
        codes = torch.from_numpy(values.copy()).to(dtype)
        return codes.view(torch.uint16 if codes.itemsize == 2 else torch.uint8).numpy()

    return cast


def session_of(nodes: list[onnx.NodeProto], opset: int, types: tuple[int, int], inits: list) -> ort.InferenceSession:
    helper = onnx.helper
    shape = ["n"]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", types[0], shape)],
        [helper.make_tensor_value_info("y", types[1], shape)],
        inits,
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSIONS[opset])
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as problem:
        if opset < 25:
            raise
        pytest.skip(f"this ONNX Runtime does not know opset {opset}: {str(problem)[:80]}")


def cast_by_ort(name: str, *, saturate: int = 1) -> Cast:
    """Returns QuantizeLinear under the scale 1; codes without a type in NumPy come as wider integers, or as floats."""
    helper, proto = onnx.helper, onnx.TensorProto
    word, opset = ORT[name]
    code, fmt = getattr(proto, word), FORMATS[name]
    inits = [onnx.numpy_helper.from_array(np.float32(1), "scale"), helper.make_tensor("zero", code, [], [0])]
    options = {} if isinstance(fmt, Int) else {"saturate": saturate}
    nodes = [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"], **options)]
    # Sub-byte types and float8_e5m2 have no type of NumPy's in the runtime's binding.
    after = {"i": proto.INT16, "u": proto.UINT16, "f": proto.FLOAT}[name[0]]
    nodes.append(helper.make_node("Cast", ["codes"], ["y"], to=after))
    if fmt.stored_bits == 16 or name == "fp8_e4m3":
        nodes.pop()
        nodes[0].output[0], after = "y", code
    session = session_of(nodes, opset, (proto.FLOAT, after), inits)

    def cast(values: np.ndarray) -> Codes:
        found = session.run(None, {"x": values})[0]
        if isinstance(fmt, Int):
            return found.astype(fmt.code_dtype)
        if found.dtype != np.float32:
            return found.view(np.uint8)
        return cast_by_ml_dtypes(name)(found)  # exact: float32 of a float8, infinity and NaN among them

    return cast


CASTS: dict[tuple[str, str], Callable[[], Cast]] = {
    **{("ml_dtypes", name): lambda name=name: cast_by_ml_dtypes(name) for name in ML_DTYPES},
    ("numpy", "fp16"): lambda: cast_by_numpy("fp16"),
    **{("torch", name): lambda name=name: cast_by_torch(name) for name in TORCH},
    **{("onnxruntime", name): lambda name=name: cast_by_ort(name) for name in ORT},
    ("onnxruntime, saturate=0", "fp8_e4m3"): lambda: cast_by_ort("fp8_e4m3", saturate=0),
}


def _case(library: str, name: str) -> object:
    marks = [pytest.mark.torch] if library == "torch" else []
    return pytest.param(library, name, id=f"{library}-{name}", marks=marks)


each_cast = pytest.mark.parametrize(("library", "name"), [_case(*key) for key in CASTS])


# --- which inputs a deviation speaks of, and what the library gives there ---------------------------------------------


def overflows(fmt: Format, values: np.ndarray) -> np.ndarray:
    """Returns where rounding with a further exponent would leave the largest value, ties to even."""
    assert isinstance(fmt, Float)
    last, largest = fmt.grid[-2:].astype(np.float64)
    half = largest + (largest - last) / 2
    return (np.abs(values) >= half) if fmt.max_code % 2 else (np.abs(values) > half)


def tie_of_powers(fmt: Format, values: np.ndarray) -> np.ndarray:
    """Returns where a value is 1.5 * 2**k, k = code - 127, with the code even; but for what other predicates hold."""
    mantissa, exponent = np.frexp(np.where(np.isfinite(values), values, 0).astype(np.float64))
    return (mantissa == 0.75) & ((exponent - 1 + 127) % 2 == 0) & (values > 2.0**-126) & (values < 1.5 * 2.0**127)


def power_by_pattern(fmt: Format, values: np.ndarray) -> Codes:
    """Returns the exponent field of float32, one more from half of its mantissa on (above it, where the field is 0)."""
    pattern = values.view(np.int32)
    exponent, mantissa, half = (pattern >> 23) & 0xFF, pattern & 0x7FFFFF, 1 << 22
    return np.minimum(exponent + ((mantissa > half) | ((mantissa == half) & (exponent > 0))), 255)


def truncates(fmt: Format, values: np.ndarray) -> np.ndarray:
    known = np.where(np.isnan(values), np.float32(0), values)
    return ~outside(fmt, values) & (np.trunc(known) != np.clip(np.rint(known), fmt.min_value, fmt.max_value))


def outside(fmt: Format, values: np.ndarray) -> np.ndarray:
    """Returns where truncation leaves the integers of the format."""
    whole = np.trunc(np.where(np.isnan(values), np.float32(0), values))
    return (whole < fmt.min_value) | (whole > fmt.max_value)


Where = Callable[[Format, np.ndarray], np.ndarray]
WHERE: dict[str, Where] = {
    "NaN": lambda fmt, v: np.isnan(v),
    "NaN with a sign": lambda fmt, v: np.isnan(v) & np.signbit(v),
    "beyond the rounding of the largest value": overflows,
    "beyond 464, but for magnitudes from 480 to below 496": lambda fmt, v: (
        overflows(fmt, v) & ~((np.abs(v) >= 480) & (np.abs(v) < 496))
    ),
    "zero and below": lambda fmt, v: v <= 0,
    "negative values": lambda fmt, v: (v < 0) & (power_by_pattern(fmt, v) > 0),
    "ties whose lower code is even": tie_of_powers,
    "above 2**-127, up to the middle of it and 2**-126": lambda fmt, v: (v > 2.0**-127) & (v <= 1.5 * 2.0**-127),
    "from 1.5 times the largest power": lambda fmt, v: v >= 1.5 * 2.0**127,
    "inside the ends, where truncation and rounding differ": truncates,
    "outside the ends": outside,
    "from 2**31": lambda fmt, v: v >= 2.0**31,
}


def signed_code(fmt: Format, code: int, values: np.ndarray) -> Codes:
    assert isinstance(fmt, Float)
    return code | (np.signbit(values).astype(np.int64) << (fmt.exponent_bits + fmt.mantissa_bits))


def infinite(fmt: Format, values: np.ndarray) -> Codes:
    assert isinstance(fmt, Float)
    return signed_code(fmt, ((1 << fmt.exponent_bits) - 1) << fmt.mantissa_bits, values)


# None: some code, of which nothing is claimed. A NaN "of its own" is any pattern that decodes to NaN.
GIVES: dict[str, Callable[[Format, np.ndarray], Codes] | None] = {
    "NaN of that sign": lambda fmt, v: signed_code(fmt, 0x7F, v),
    "infinity of that sign": infinite,
    "zero, of the opposite sign": lambda fmt, v: signed_code(fmt, 0, -v),
    "NaN": lambda fmt, v: np.full(v.shape, 255),
    "the code of their magnitude": power_by_pattern,
    "the larger power of two": lambda fmt, v: np.frexp(v.astype(np.float64))[1] - 1 + 127 + 1,
    "2**-126": lambda fmt, v: np.ones(v.shape, np.int64),
    "the integer towards zero": lambda fmt, v: np.trunc(v),
    "the smallest value": lambda fmt, v: np.full(v.shape, fmt.min_value),
    "some code": None,
    "some code: the low bits, or what the processor makes of it": None,
}


def held_of(library: str, name: str) -> list:
    return [d for d in DEVIATIONS if d.library == library and name in d.formats]


def our_codes(fmt: Format, values: np.ndarray) -> Codes:
    """Returns our codes, those of NaN where the format has none being any: they are refused, see the other test."""
    known = values if fmt.nan_code is not None else np.where(np.isnan(values), np.float32(0), values)
    return np.asarray(fmt.encode(known))


@each_cast
def test_every_cast_agrees_bit_for_bit_outside_of_the_named_deviations(library, name):
    fmt, values = FORMATS[name], inputs(name)
    theirs, ours = CASTS[library, name]()(values), our_codes(fmt, values)
    named = np.zeros(values.shape, bool)
    for deviation in held_of(library, name):
        named |= WHERE[deviation.inputs](fmt, values)
    bad = np.flatnonzero(~named & (theirs.astype(np.int64) != ours.astype(np.int64)))
    assert bad.size == 0, (values[bad[:8]].tolist(), theirs[bad[:8]].tolist(), ours[bad[:8]].tolist())
    # Every library that has finite values agrees on most of them.
    assert np.count_nonzero(~named) > 50_000


def _deviation_case(deviation: object, name: str) -> object:
    marks = [pytest.mark.torch] if deviation.library == "torch" else []  # type: ignore[attr-defined]
    words = f"{deviation.library}-{name}-{deviation.inputs}"  # type: ignore[attr-defined]
    return pytest.param(deviation, name, id=words, marks=marks)


@pytest.mark.parametrize(("deviation", "name"), [_deviation_case(d, name) for d in DEVIATIONS for name in d.formats])
def test_a_deviation_is_really_there(deviation, name):
    fmt, values = FORMATS[name], inputs(name)
    values = values[WHERE[deviation.inputs](fmt, values)]
    assert values.size > 0, "the inputs hold none of what the deviation speaks of"
    theirs = CASTS[deviation.library, name]()(values)
    refused = deviation.ours.startswith("refused")
    if refused:
        with pytest.raises(NumericsError) as caught:
            fmt.encode(values)
        assert caught.value.slug == "nan-has-no-code"
    differ = theirs.astype(np.int64) != our_codes(fmt, values).astype(np.int64)
    if deviation.theirs == "a NaN of its own":
        assert np.all(np.isnan(np.asarray(fmt.decode(theirs))))
        assert np.any(differ) or not deviation.everywhere
        return
    gives = GIVES[deviation.theirs]
    if gives is None:
        assert refused or np.any(differ)
    elif deviation.everywhere or np.any(differ):
        expected = np.asarray(gives(fmt, values)).astype(np.int64)
        other = np.flatnonzero(theirs.astype(np.int64) != expected)
        assert other.size == 0, (values[other[:8]].tolist(), theirs[other[:8]].tolist(), expected[other[:8]].tolist())
        assert refused or np.all(differ)


def test_no_deviation_is_named_twice():
    said = [(d.library, name, d.inputs) for d in DEVIATIONS for name in d.formats]
    assert len(said) == len(set(said))
    assert {(library, name) for library, name, _ in said} <= set(CASTS)


# --- every code ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ML_DTYPES))
def test_every_code_stands_for_what_ml_dtypes_says(name):
    fmt = FORMATS[name]
    codes = np.asarray(fmt.codes())
    dtype = np.dtype(getattr(ml_dtypes, ML_DTYPES[name]))
    theirs = codes.astype(dtype) if isinstance(fmt, Int) else codes.view(dtype)
    assert_same_bits(np.asarray(fmt.decode(codes)), theirs.astype(np.float32))


@pytest.mark.torch
@pytest.mark.parametrize("name", list(TORCH))
def test_every_code_stands_for_what_torch_says(name):
    torch = pytest.importorskip("torch", reason="torch is an extra: make test TORCH=1")
    fmt = FORMATS[name]
    codes = np.asarray(fmt.codes())
    theirs = torch.from_numpy(codes).view(getattr(torch, TORCH[name])).to(torch.float32).numpy()
    assert_same_bits(np.asarray(fmt.decode(codes)), theirs)


@pytest.mark.parametrize("name", list(ORT))
@pytest.mark.parametrize("scale", [1.0, 0.1, 1 / 3, 2.0**-100])
def test_every_code_is_dequantized_to_the_runtimes_bits(name, scale):
    helper, proto = onnx.helper, onnx.TensorProto
    word, opset = ORT[name]
    kind, fmt = getattr(proto, word), FORMATS[name]
    codes = np.asarray(fmt.codes())
    held = codes
    if name in ML_DTYPES:
        dtype = np.dtype(getattr(ml_dtypes, ML_DTYPES[name]))
        held = codes.astype(dtype) if isinstance(fmt, Int) else codes.view(dtype)
    raw = onnx.numpy_helper.from_array(held, "codes")
    assert raw.data_type == kind
    scale32 = np.float32(scale)
    inits = [raw, onnx.numpy_helper.from_array(scale32, "scale"), helper.make_tensor("zero", kind, [], [0])]
    nodes = [helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["real"])]
    nodes.append(helper.make_node("Add", ["real", "x"], ["y"]))  # an input, as a session wants one: -0 changes nothing
    session = session_of(nodes, opset, (proto.FLOAT, proto.FLOAT), inits)
    theirs = session.run(None, {"x": np.full(1, -0.0, np.float32)})[0]
    scheme = Scheme(format=fmt, granularity=PerTensor(), symmetric=True)
    params = QParams(scheme=scheme, scale=np.reshape(scale32, (1,)), zero_point=np.zeros(1, np.float32))
    assert_same_bits(np.asarray(QTensor(codes=codes, params=params).dequantize()), theirs)


def assert_same_bits(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Compares every bit but those of NaN, which only has to be one."""
    assert ours.dtype == theirs.dtype == np.float32
    assert ours.shape == theirs.shape
    different = (ours.view(np.int32) != theirs.view(np.int32)) & ~(np.isnan(ours) & np.isnan(theirs))
    bad = np.flatnonzero(different)
    assert bad.size == 0, (ours[bad[:5]].tolist(), theirs[bad[:5]].tolist())


def test_the_page_of_formats_names_the_casts_that_are_compared():
    named = {(library, name) for name, libraries in COUNTERPARTS.items() for library in libraries}
    assert named == {(library, name) for library, name in CASTS if "," not in library}
