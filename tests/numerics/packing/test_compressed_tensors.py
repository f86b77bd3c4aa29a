"""compressed-tensors: scalar decoders from its README, and the package itself, both ways, where it is installed."""

from __future__ import annotations

from types import ModuleType

import ml_dtypes
import numpy as np
import pytest

import fewbits
from fewbits._base.errors import NumericsError, TargetError
from fewbits.numerics.packing.compressed_tensors import LAYOUT, CompressedTensors, invertible
from fewbits.numerics.qtensor import QParams, QTensor

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
INT = CompressedTensors("int-quantized")


def values(shape: tuple[int, int] = (24, 96)) -> np.ndarray:
    return np.random.default_rng(6).standard_normal(shape).astype(np.float32)


def tensor(scheme: str, shape: tuple[int, int] = (24, 96)) -> QTensor:
    return invertible(fewbits.quantize_array(values(shape), scheme))


def from_stream(words: np.ndarray, bits: int, index: int) -> int:
    stream = sum((int(word) % (1 << 32)) << (32 * place) for place, word in enumerate(words))
    return (stream >> (index * bits)) % (1 << bits)


@pytest.mark.parametrize("scheme", ["int4-g32", "uint4-g32-asym", "int2-g16", "uint2-channel-asym", "uint8-g32-asym"])
@pytest.mark.parametrize("rows", [24, 7])
def test_a_scalar_decoder_reads_our_bits_of_packed_integers(scheme, rows):
    q = tensor(scheme, (rows, 96))
    packed, bits = LAYOUT.pack(q), q.scheme.format.stored_bits
    assert packed["weight_shape"].tolist() == [rows, 96] and packed["weight_shape"].dtype == np.int64
    groups = packed["weight_scale"].shape[1]
    weight = np.empty(q.shape, np.float32)
    for n in range(rows):
        for k in range(96):
            g = k * groups // 96
            zero = 1 << (bits - 1)
            if "weight_zero_point" in packed:
                zero = from_stream(packed["weight_zero_point"][:, g], bits, n)
            code = from_stream(packed["weight_packed"][n], bits, k)
            weight[n, k] = np.float32(code - zero) * packed["weight_scale"][n, g]
    assert weight.tobytes() == (q.dequantize() + np.float32(0)).tobytes()


@pytest.mark.parametrize("scheme", ["nvfp4", "mxfp4"])
def test_a_scalar_decoder_reads_4_bit_floats(scheme):
    q = tensor(scheme)
    packed = LAYOUT.pack(q)
    group = 16 if scheme == "nvfp4" else 32
    for n in range(24):
        for k in range(96):
            code = (int(packed["weight_packed"][n, k // 2]) >> (4 * (k % 2))) & 15
            element = E2M1[code & 7] * (-1.0 if code & 8 else 1.0)
            stored = packed["weight_scale"][n, k // group]
            scale = float(stored) if scheme == "nvfp4" else 2.0 ** (int(stored) - 127)
            divisor = float(packed["weight_global_scale"][0]) if scheme == "nvfp4" else 1.0
            assert abs(element * scale / divisor - float(q.dequantize()[n, k])) <= 4 * 2.0**-24 * abs(
                element * scale / divisor
            )


@pytest.mark.parametrize("scheme", ["fp8", "fp8_e4m3-tensor", "fp8-block", "mxfp8", "fp8_e4m3-g32-scale-bf16"])
def test_8_bit_floats_are_a_plain_matrix(scheme):
    q = tensor(scheme, (130, 160))
    packed = LAYOUT.pack(q)
    assert packed["weight"].dtype == ml_dtypes.float8_e4m3fn and packed["weight"].shape == q.shape
    assert np.array_equal(packed["weight"].astype(np.float32), q.scheme.format.decode(q.codes))
    expected = {"fp8": (130, 1), "fp8_e4m3-tensor": (1,), "fp8-block": (2, 2)}.get(scheme, (130, 5))
    assert packed["weight_scale"].shape == expected
    assert packed["weight_scale"].dtype == {"mxfp8": np.uint8, "fp8_e4m3-g32-scale-bf16": ml_dtypes.bfloat16}.get(
        scheme, np.float32
    )


@pytest.mark.parametrize("scheme", ["int8-channel", "int8-tensor", "uint8-channel-asym", "uint8-asym", "uint8-channel"])
def test_8_bit_integers_beside_integer_activations_are_a_plain_signed_matrix(scheme):
    q = tensor(scheme)
    packed = INT.pack(q)
    assert packed["weight"].dtype == np.int8 and ("weight_zero_point" in packed) == scheme.endswith("asym")
    zero = packed.get("weight_zero_point", np.zeros(1, np.int8)).astype(np.float32)
    weight = (packed["weight"].astype(np.float32) - zero) * packed["weight_scale"]
    assert np.array_equal(weight, q.dequantize())


def one_scale(q: QTensor, scale: float) -> QTensor:
    """Returns an NVFP4 tensor with another scale of the whole tensor."""
    inner = q.scale
    assert isinstance(inner, QTensor)
    changed = QParams(
        scheme=inner.scheme, scale=np.full_like(inner.scale, scale), zero_point=np.array(inner.zero_point)
    )
    moved = QTensor(codes=inner.codes, params=changed)
    return QTensor(codes=q.codes, params=QParams(scheme=q.scheme, scale=moved, zero_point=q.zero_point))


# The last float32 below 2: its reciprocal rounds to 0.5, that of its neighbour.
LOST = 2.0 - 2.0**-23


def test_a_scale_of_nvfp4_whose_reciprocal_does_not_lead_back_is_refused_and_mended_by_one_place():
    q = one_scale(tensor("nvfp4"), LOST)
    assert np.float32(1) / (np.float32(1) / np.float32(LOST)) != np.float32(LOST)
    with pytest.raises(TargetError, match="layout-global-scale"):
        LAYOUT.pack(q)
    mended = invertible(q)
    assert abs(mended.scale.scale.item() - LOST) <= 2.0**-23
    assert LAYOUT.unpack(LAYOUT.pack(mended), q.scheme, q.shape).same(mended)


def test_every_scale_has_an_invertible_neighbour_that_stays_where_it_is():
    # Every mantissa of float32: one binade stands for all, as 1/(2**k * m) = 2**-k * (1/m).
    every = (np.arange(1 << 23, dtype=np.uint32) + np.uint32(0x3F800000)).view(np.float32)
    one = np.float32(1)
    there = one / (one / every)
    assert np.array_equal(one / (one / there), there)
    assert np.max(np.abs(there - every)) == np.float32(2.0**-23)
    # One in six, (sqrt(2) - 1)**2 = 0.1716: where 1/m takes steps of less than one place, some are skipped.
    assert abs(np.mean(there != every) - (2**0.5 - 1) ** 2) < 1e-3


@pytest.mark.parametrize("scheme", ["int4-g32", "mxfp4", "nf4-dq", "q4_k", "q6_k"])
def test_tensors_of_other_schemes_are_invertible_as_they_are(scheme):
    q = fewbits.quantize_array(values((24, 256)), scheme)
    assert invertible(q) is q


def test_widths_whose_layout_changed_between_versions_are_refused_by_name():
    for bits, near in ((3, 4), (5, 8), (6, 8), (7, 8)):
        with pytest.raises(TargetError, match=rf"how {bits} bits are packed changed .* use int{near}"):
            LAYOUT.pack(tensor(f"int{bits}-g32"))


@pytest.mark.parametrize(
    ("layout", "scheme", "words"),
    [
        (LAYOUT, "int4", "use int4-g128 or int4-channel"),
        (LAYOUT, "int4-g64", "groups of 64 do not divide its in 96; pad it to 128, or use int4-channel"),
        (LAYOUT, "int4-g32-scale-fp8_e5m2", "its scales are fp32 or bf16 or fp16"),
        (LAYOUT, "nf4", "use int4-g128, fp8, mxfp8, nvfp4 or mxfp4"),
        (LAYOUT, "mxfp8_e5m2", "use int4-g128, fp8, mxfp8, nvfp4 or mxfp4"),
        (LAYOUT, "fp4_e2m1-g16", "its scales are ue4m3 under one float32 scale of the tensor; use nvfp4"),
        (INT, "int4-g32", "codes of 8 bits; use int8"),
        (CompressedTensors("float-quantized"), "int8-channel", "its codes are fp8_e4m3; use fp8_e4m3-channel"),
        (CompressedTensors("mxfp4-pack-quantized"), "nvfp4", "its scales are e8m0"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_with_the_nearest(layout, scheme, words):
    with pytest.raises(TargetError, match=words):
        layout.pack(tensor(scheme))


def test_a_stored_shape_that_is_another_is_refused():
    q = tensor("int4-g32")
    packed = {**LAYOUT.pack(q), "weight_shape": np.array([96, 24])}
    with pytest.raises(NumericsError, match=r"'weight_shape' says \[96, 24\]"):
        LAYOUT.unpack(packed, q.scheme, q.shape)


@pytest.mark.parametrize(("layout", "scheme"), [(LAYOUT, "uint4-channel"), (INT, "uint8-channel")])
def test_zero_points_are_not_left_aside_when_a_file_is_read_as_symmetric(layout, scheme):
    asymmetric, symmetric = tensor(f"{scheme}-asym"), tensor(scheme)
    with pytest.raises(NumericsError, match="packed-symmetry"):
        layout.unpack(layout.pack(asymmetric), symmetric.scheme, symmetric.shape)
    # Zero points that say nothing are taken: those of the middle.
    q = QTensor(
        codes=symmetric.codes,
        params=QParams(scheme=asymmetric.scheme, scale=symmetric.scale, zero_point=symmetric.zero_point),
    )
    assert layout.unpack(layout.pack(q), symmetric.scheme, symmetric.shape).same(symmetric)


def test_a_file_in_act_order_is_refused():
    q = tensor("int4-g32")
    order = np.arange(96, dtype=np.int32) // 32
    packed = LAYOUT.pack(q)
    assert LAYOUT.unpack({**packed, "weight_g_idx": order}, q.scheme, q.shape).same(q)
    with pytest.raises(NumericsError, match="act-order"):
        LAYOUT.unpack({**packed, "weight_g_idx": order[::-1].copy()}, q.scheme, q.shape)


@pytest.mark.parametrize(
    ("scheme", "name", "bad"),
    [
        ("int4-g32", "weight_scale", np.float32("nan")),
        ("mxfp4", "weight_scale", np.uint8(255)),
        ("nvfp4", "weight_scale", ml_dtypes.float8_e4m3fn(-1.0)),
        ("nvfp4", "weight_global_scale", np.float32(0)),
    ],
)
def test_scales_that_are_no_numbers_are_refused(scheme, name, bad):
    q = tensor(scheme)
    packed = LAYOUT.pack(q)
    packed[name] = np.full_like(packed[name], bad)
    with pytest.raises(NumericsError, match="scale-not-finite"):
        LAYOUT.unpack(packed, q.scheme, q.shape)


# From here on: the package itself.


@pytest.fixture(scope="module")
def package() -> ModuleType:
    pytest.importorskip("torch", reason="torch is an extra: make test TORCH=1")
    return pytest.importorskip("compressed_tensors", reason="compressed-tensors is no dependency: pip install it")


def theirs_of(package: ModuleType, layout: CompressedTensors, q: QTensor):
    """Returns the package's compressor and its scheme for ours."""
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    name = layout.format_of(q.scheme)
    granularity = q.scheme.granularity.name.partition("(")[0].removeprefix("per-")
    floats = not q.scheme.format.name.strip("u").startswith("int")
    strategy = "tensor_group" if name.startswith("nvfp4") else granularity
    arguments = {
        "num_bits": q.scheme.format.stored_bits,
        "type": "float" if floats else "int",
        "symmetric": q.scheme.symmetric,
        "strategy": strategy,
    }
    if granularity == "group":
        arguments["group_size"] = q.scheme.granularity.size
    if granularity == "block":
        arguments["block_structure"] = [128, 128]
    if name == "mxfp8-quantized":
        import torch

        arguments["scale_dtype"] = torch.uint8
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**arguments))
    return BaseCompressor.get_value_from_registry(name), scheme


def to_torch(packed: dict[str, np.ndarray]):
    import torch

    def one(array: np.ndarray):
        kind = getattr(torch, array.dtype.name)
        plain = (
            array.view(f"uint{8 * array.dtype.itemsize}") if array.dtype.kind == "V" or kind.itemsize == 1 else array
        )
        return torch.from_numpy(plain.copy()).view(kind)

    return {name: one(array) for name, array in packed.items()}


def bytes_of(tensor_) -> bytes:
    import torch

    return tensor_.flatten().view(torch.uint8).numpy().tobytes()


def without_negative_zeros(q: QTensor) -> bytes:
    """Returns our bytes but for -0: rounding to 4 bits, the package loses the sign of what becomes 0; we keep it."""
    codes = np.array(q.codes)
    assert np.any(codes == 8)
    codes[codes == 8] = 0
    return LAYOUT.pack(QTensor(codes=codes, params=q.params))["weight_packed"].tobytes()


EXACT = [
    (LAYOUT, "int4-g32"),
    (LAYOUT, "uint4-g32-asym"),
    (LAYOUT, "int4-channel"),
    (LAYOUT, "uint4-channel-asym"),
    (LAYOUT, "int8-g32"),
    (LAYOUT, "uint8-channel-asym"),
    (LAYOUT, "int2-g16"),
    (INT, "int8-channel"),
    (INT, "int8-tensor"),
    (INT, "uint8-channel-asym"),
    (LAYOUT, "fp8"),
    (LAYOUT, "fp8_e4m3-tensor"),
    (LAYOUT, "mxfp8"),
    (LAYOUT, "mxfp4"),
]
each = pytest.mark.parametrize(("layout", "scheme"), EXACT, ids=lambda part: getattr(part, "name", part))


@pytest.mark.torch
@each
def test_the_package_reads_our_bits(package, layout, scheme):
    q = tensor(scheme)
    compressor, theirs = theirs_of(package, layout, q)
    weight = compressor.decompress(to_torch(layout.pack(q)), theirs)["weight"]
    # mxfp4 and mxfp8 come as bfloat16: a power of two times 2 or 4 bits, which bfloat16 holds.
    assert np.array_equal(weight.float().numpy(), q.dequantize())


@pytest.mark.torch
@each
def test_the_package_writes_our_bytes(package, layout, scheme):
    import torch

    q = tensor(scheme)
    ours = layout.pack(q)
    compressor, theirs = theirs_of(package, layout, q)
    shape = ours["weight_scale"].shape
    state = {
        "weight": torch.from_numpy(np.array(q.dequantize())),
        "weight_scale": torch.from_numpy(np.array(q.scale).reshape(shape)),
    }
    if not q.scheme.symmetric:
        bias = 1 << (q.scheme.format.stored_bits - 1)
        state["weight_zero_point"] = torch.from_numpy((q.zero_point.reshape(shape) - bias).astype(np.int8))
    written = compressor.compress(state, theirs)
    assert {*written} - {"weight_zero_point"} == {*ours} - {"weight_zero_point"}
    for name, tensor_ in to_torch(ours).items():
        assert written[name].dtype == tensor_.dtype and written[name].shape == tensor_.shape, name
        packed_floats = scheme == "mxfp4" and name == "weight_packed"
        assert bytes_of(written[name]) == (without_negative_zeros(q) if packed_floats else bytes_of(tensor_)), name


@pytest.mark.torch
def test_the_package_reads_nvfp4_within_five_roundings(package):
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    q = tensor("nvfp4")
    _, theirs = theirs_of(package, LAYOUT, q)
    packed = to_torch(LAYOUT.pack(q))
    codes = unpack_fp4_from_uint8(packed["weight_packed"], *q.shape).float()
    assert np.array_equal(codes.numpy(), q.scheme.format.decode(q.codes))
    scale, divisor = packed["weight_scale"].float(), packed["weight_global_scale"]
    read = dequantize(codes, scale, args=theirs.weights, global_scale=divisor).numpy()
    # They round local/divisor and the product; we round 1/divisor, local * that, and the product: 5 units of 2**-24.
    assert np.all(np.abs(read - q.dequantize()) <= 5.01 * 2.0**-24 * np.abs(read))
    # A tensor scale that is a power of two divides and multiplies exactly: then all agree to the bit.
    exact = one_scale(q, 2.0**-9)
    packed = to_torch(LAYOUT.pack(exact))
    scale, divisor = packed["weight_scale"].float(), packed["weight_global_scale"]
    read = dequantize(codes, scale, args=theirs.weights, global_scale=divisor).numpy()
    assert np.array_equal(read, exact.dequantize())


@pytest.mark.torch
def test_the_package_writes_our_bytes_of_nvfp4(package):
    import torch

    q = tensor("nvfp4")
    ours = LAYOUT.pack(q)
    compressor, theirs = theirs_of(package, LAYOUT, q)
    state = {
        "weight": torch.from_numpy(np.array(q.dequantize())),
        "weight_scale": to_torch(ours)["weight_scale"].float(),
        "weight_global_scale": torch.from_numpy(ours["weight_global_scale"]),
    }
    written = compressor.compress(state, theirs)
    for name, tensor_ in to_torch(ours).items():
        expected = without_negative_zeros(q) if name == "weight_packed" else bytes_of(tensor_)
        assert bytes_of(written[name]) == expected, name
