"""Every packing layout of the catalog, ours and third parties', and each of its variants, is judged here."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import fewbits
from fewbits._base.arrays import Array
from fewbits._base.errors import FewbitsError, NumericsError, TargetError
from fewbits.numerics.packing import LAYOUTS
from fewbits.numerics.packing.base import Layout
from fewbits.numerics.packing.compressed_tensors import invertible
from fewbits.numerics.qtensor import QParams, QTensor
from fewbits.numerics.schemes import SCHEMES

EVERY = {layout.name: layout for name in LAYOUTS for layout in LAYOUTS[name].variants}
each = pytest.mark.parametrize("name", EVERY)
# Odd sizes, single elements, rows that begin inside a byte; and sides that every word, group and block divides.
SHAPES = [(1, 1), (3, 33), (7, 100), (32, 96), (64, 256)]
GROUPS = ("g16", "g32", "g64", "g100", "g128", "channel", "tensor")
INTEGERS = [
    f"{sign}int{bits}-{groups}{symmetry}{scale}"
    for bits in (2, 3, 4, 5, 8)
    for sign in ("", "u")
    for groups in GROUPS
    for symmetry in ("", "-asym")
    for scale in ("", "-scale-fp16")
]
OTHERS = ["int16-channel", "uint16-asym", "fp8_e5m2", "fp8_e4m3-g32-scale-bf16", "fp4_e2m1-g32", "int8-b4x8"]
NAMES = [*SCHEMES, *INTEGERS, *OTHERS]
# Schemes that a layout must take in at least one of the shapes: a layout that refuses all passes everything else.
MUST_TAKE = {
    "gguf": {"q4_0", "q8_0", "q4_k", "q6_k", "mxfp4", "nvfp4"},
    "onnx": {"int2-g16", "uint4-g32-asym", "int8-channel", "uint8-tensor-asym", "int16-channel", "fp8", "mxfp4"},
    "ort-matmulnbits": {"int2-g16", "uint4-g32-asym", "int8-g64", "uint8-g128-asym-scale-fp16", "int4-g32"},
    "gptq": {"int2-g16-scale-fp16", "int3-channel-scale-fp16", "int4-g128-scale-fp16", "uint8-channel-scale-fp16"},
    "gptq-v2": {"int3-g32-scale-fp16", "uint4-g32-asym-scale-fp16", "int8-g64-scale-fp16"},
    "awq": {"int4-g128-scale-fp16", "uint4-g32-asym-scale-fp16", "uint4-channel-asym-scale-fp16"},
    "compressed-tensors": {
        "int4-g128",
        "uint4-g32-asym",
        "int8-channel",
        "fp8",
        "fp8-block",
        "mxfp8",
        "mxfp4",
        "nvfp4",
    },
    "compressed-tensors:int-quantized": {"int8-channel", "int8-tensor", "uint8-channel-asym"},
}


@cache
def tensors_of(scheme: str) -> list[QTensor]:
    """Returns a tensor of each shape that the scheme can have."""
    made = []
    for number, shape in enumerate(SHAPES):
        values = np.random.default_rng(number).standard_normal(shape).astype(np.float32)
        values[0, 0] = -1.5
        try:
            q = fewbits.quantize_array(values, scheme)
        except NumericsError:  # blocks that must divide
            continue
        # A zero point of -0 is stored as 0.
        params = QParams(scheme=q.scheme, scale=q.scale, zero_point=q.zero_point + np.float32(0), offset=q.offset)
        made.append(invertible(QTensor(codes=q.codes, params=params)))
    return made


@cache
def packed(name: str) -> list[tuple[str, QTensor, dict[str, np.ndarray]]]:
    """Returns everything that a layout takes, packed."""
    return [
        (scheme, q, tensors)
        for scheme in NAMES
        for q in tensors_of(scheme)
        if isinstance(tensors := packed_or_refused(name, q), dict)
    ]


def packed_or_refused(name: str, q: QTensor) -> dict[str, np.ndarray] | TargetError:
    try:
        return EVERY[name].pack(q)
    except TargetError as error:
        return error


@each
def test_what_is_refused_is_refused_in_one_line_with_the_next_step(name):
    for scheme in NAMES:
        for q in tensors_of(scheme):
            refusal = packed_or_refused(name, q)
            if isinstance(refusal, TargetError):
                why, _, instead = refusal.message.rpartition("; ")
                assert re.fullmatch(r"layout-[a-z-]+", refusal.slug), refusal
                assert why.startswith(name) and instead and "\n" not in refusal.message, refusal


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_a_layout_bears_the_name_under_which_it_is_found_and_its_variants_names_of_their_own(name):
    layout = LAYOUTS[name]
    assert layout.name == layout.variants[0].name == name
    assert len({variant.name for variant in layout.variants}) == len(layout.variants)
    assert all(variant.name.startswith(name) and variant.reader for variant in layout.variants)


@each
def test_it_takes_what_its_reader_is_known_for(name):
    taken = {scheme for scheme, _, _ in packed(name)}
    assert taken and MUST_TAKE.get(name, set()) <= taken


@each
def test_unpacking_gives_back_every_bit(name):
    for scheme, q, tensors in packed(name):
        back = EVERY[name].unpack(tensors, q.scheme, q.shape)
        assert back.same(q), (scheme, q.shape)
        again = EVERY[name].pack(back)
        assert {k: (v.dtype, v.shape, v.tobytes()) for k, v in again.items()} == {
            k: (v.dtype, v.shape, v.tobytes()) for k, v in tensors.items()
        }


@each
def test_tensors_lie_in_the_order_of_memory(name):
    assert all(tensor.flags.c_contiguous for _, _, tensors in packed(name) for tensor in tensors.values())


def last_cut(tensor: np.ndarray) -> np.ndarray:
    return tensor[..., :-1] if tensor.ndim else np.concatenate([tensor[None]] * 2)


@each
def test_a_short_a_missing_and_a_retyped_tensor_is_refused(name):
    layout, seen = EVERY[name], set()
    for _, q, tensors in packed(name):
        kind = (q.scheme.format, frozenset(tensors))
        if kind in seen:
            continue
        seen.add(kind)
        for key, tensor in tensors.items():
            rest = {k: v for k, v in tensors.items() if k != key}
            for bad in (last_cut(tensor), tensor.astype(np.float64)):
                with pytest.raises(FewbitsError) as caught:
                    layout.unpack({**rest, key: bad}, q.scheme, q.shape)
                assert caught.value.slug and "\n" not in caught.value.message
            if key not in ("g_idx", "zero_points"):  # what a reader can do without
                with pytest.raises(FewbitsError, match=key):
                    layout.unpack(rest, q.scheme, q.shape)


@each
def test_codes_that_would_wrap_are_refused(name):
    for scheme, q, _ in packed(name):
        if not scheme.startswith("int4-g32"):
            continue
        beyond = np.array(q.codes)
        beyond[0, 0] = 8
        with pytest.raises(FewbitsError):
            EVERY[name].pack(QTensor(codes=beyond, params=q.params))


@each
def test_unpack_refuses_the_schemes_that_pack_refuses(name):
    layout: Layout = EVERY[name]
    for scheme in ("nf4", "ternary", "mxint8", "fp16", "mxfp6", "int5-g32"):
        for q in tensors_of(scheme):
            with pytest.raises(TargetError, match="layout-"):
                layout.unpack({}, q.scheme, q.shape)


@each
def test_array_api_strict_packs_the_same_bytes(name):
    import array_api_strict as strict

    seen = set()
    for scheme, q, ours in packed(name):
        if (q.scheme.format, q.scheme.scale) in seen or q.shape == (1, 1):
            continue
        seen.add((q.scheme.format, q.scheme.scale))
        turned = turned_to(strict.asarray, q)
        theirs = EVERY[name].pack(turned)
        # Small floats, which the library does not know, are bit patterns.
        assert {key: np.asarray(tensor).tobytes() for key, tensor in theirs.items()} == {
            key: tensor.tobytes() for key, tensor in ours.items()
        }, scheme
        assert EVERY[name].unpack(theirs, q.scheme, q.shape).same(turned)


@pytest.mark.torch
@each
def test_torch_packs_the_same_bytes(name):
    torch = pytest.importorskip("torch", reason="torch is an extra: make test TORCH=1")
    seen = set()
    for scheme, q, ours in packed(name):
        kind = (q.scheme, q.shape[0])
        if kind in seen or q.shape == (1, 1):
            continue
        seen.add(kind)
        turned = turned_to(torch.from_numpy, q)
        theirs = EVERY[name].pack(turned)
        assert list(ours) == list(theirs)
        for key, tensor in theirs.items():
            assert isinstance(tensor, torch.Tensor) and tensor.is_contiguous()
            assert str(tensor.dtype) == f"torch.{ours[key].dtype.name}", (scheme, key)
            assert tuple(tensor.shape) == ours[key].shape
            assert bytes(tensor.reshape(-1).view(torch.uint8).numpy()) == ours[key].tobytes(), (scheme, key)
        assert EVERY[name].unpack(theirs, q.scheme, q.shape).same(turned)


def turned_to(library: Callable[[np.ndarray], Array], q: QTensor) -> QTensor:
    """Returns the tensor with arrays of another library."""

    def of(array):
        if isinstance(array, QTensor):
            return turned_to(library, array)
        return None if array is None else library(np.array(array))

    params = QParams(scheme=q.scheme, scale=of(q.scale), zero_point=of(q.zero_point), offset=of(q.offset))
    return QTensor(codes=of(q.codes), params=params)


PAGE = Path(__file__).parents[2] / "docs" / "packing.md"


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    exec(compile(example, "packing.md", "exec"), {})
    assert (tmp_path / "gptq.safetensors").stat().st_size > 64 * 256 // 2


@each
def test_the_page_names_every_tensor(name):
    page = PAGE.read_text(encoding="utf-8")
    assert f"`{name.partition(':')[2] or name}`" in page
    for key in {key for _, _, tensors in packed(name) for key in tensors}:
        assert f"`{key}`" in page, key
