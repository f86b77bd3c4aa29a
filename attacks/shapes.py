"""Tensors that claim other sizes, types or places than their bytes have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper

from attacks.case import INERT, REFUSED, RESOURCES, Case
from attacks.parts import (
    CLASSES,
    HIDDEN,
    WIDTH,
    any_size,
    constant,
    graph,
    honest,
    info,
    layers,
    model,
    save,
    weights,
    with_extra,
)

_NO = frozenset({REFUSED})
_NO_OR_LARGE = frozenset({REFUSED, RESOURCES})
_ANY = INERT | _NO


def _raw(dims: Sequence[int], raw: bytes, kind: int = TensorProto.FLOAT) -> TensorProto:
    return TensorProto(name="w1", data_type=kind, dims=dims, raw_data=raw)


def _first(make: Callable[[], TensorProto]) -> Callable[[Path], Path]:
    """Returns what writes the honest net with another first weight."""

    def write(folder: Path) -> Path:
        nodes, held = layers()
        return save(folder, model(graph(nodes, [make(), *held[1:]])))

    return write


def _unused(make: Callable[[], TensorProto]) -> Callable[[Path], Path]:
    """Returns what writes the honest net, in operators of opset 21, with one more tensor, which is an output too."""

    def write(folder: Path) -> Path:
        tensor = make()
        tensor.name = "held"
        node = helper.make_node("Identity", ["held"], ["extra"], name="passing")
        proto = with_extra([node], [tensor], rank=len(tensor.dims), kind=tensor.data_type)
        proto.opset_import[0].version, proto.ir_version = 21, 10
        return save(folder, proto)

    return write


def _typed(kind: int, dims: Sequence[int], **fields: Sequence[object]) -> Callable[[], TensorProto]:
    def make() -> TensorProto:
        return TensorProto(name="w1", data_type=kind, dims=dims, **fields)  # type: ignore[arg-type]

    return make


def _attribute_tensor(folder: Path) -> Path:
    nodes, held = layers()
    tensor = _raw([2**31, 2**31], b"0123456789abcdef")
    return save(folder, model(graph([helper.make_node("Constant", [], ["w1"], value=tensor), *nodes], held[1:])))


def _declared(edit: Callable[[ModelProto], None]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        proto = honest()
        edit(proto)
        return save(folder, proto)

    return write


def _input(*dims: int | str) -> Callable[[ModelProto], None]:
    return lambda proto: proto.graph.input[0].CopyFrom(info("x", dims))


def _output(*dims: int | str) -> Callable[[ModelProto], None]:
    return lambda proto: proto.graph.output[0].CopyFrom(info("y", dims))


def _value(*dims: int | str) -> Callable[[ModelProto], None]:
    return lambda proto: proto.graph.value_info.append(info("h", dims))


def _sparse(dims: Sequence[int], values: Sequence[float], indices: Sequence[int]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        nodes, held = layers()
        proto = model(graph(nodes, held[1:]))
        sparse = proto.graph.sparse_initializer.add(dims=dims)
        sparse.values.CopyFrom(constant("w1", values))
        sparse.indices.CopyFrom(constant("w1_places", indices, np.int64))
        return save(folder, proto)

    return write


def _sparse_constant(folder: Path) -> Path:
    sparse = helper.make_sparse_tensor(constant("v", [1.0]), constant("i", [0], np.int64), [2**20, 2**20])
    node = helper.make_node("Constant", [], ["extra"], name="sparse", sparse_value=sparse)
    return save(folder, with_extra([node], rank=2))


def _input_too(folder: Path) -> Path:
    """Returns a model in which an initializer is an input of another shape."""
    nodes, held = layers()
    inputs = [info("x", ["N", WIDTH]), info("w1", [2**31, 2**31])]
    return save(folder, model(graph(nodes, held, inputs=inputs)))


def _doubled(folder: Path) -> Path:
    nodes, held = layers()
    return save(folder, model(graph(nodes, [*held, constant("w1", weights(CLASSES, HIDDEN))])))


def _many_dims(folder: Path) -> Path:
    nodes, held = layers()
    tensor = _raw([1] * 5_000_000, b"\0\0\0\0")
    tensor.name = "held"
    passing = helper.make_node("Identity", ["held"], ["extra"], name="passing")
    return save(
        folder, model(graph([*nodes, passing], [*held, tensor], [info("y", ["N", CLASSES]), any_size("extra", 1)]))
    )


_SIXTEEN = b"0123456789abcdef"
CASES = [
    Case(name=f"shapes/{name}", kind="model", allowed=allowed, make=make, what=what)
    for name, allowed, make, what in [
        ("huge-raw", _NO, _first(lambda: _raw([2**31, 2**31], _SIXTEEN)), "2^31 x 2^31 with 16 bytes"),
        ("huge-typed", _NO, _first(_typed(1, [2**31, 2**31], float_data=[1.0] * 4)), "the same in `float_data`"),
        ("huge-one-axis", _NO, _first(lambda: _raw([2**62], _SIXTEEN)), ""),
        ("overflow-to-zero", _NO, _first(lambda: _raw([2**32, 2**32], b"")), "the product is 0 in 64 bits"),
        ("overflow-to-four", _NO, _first(lambda: _raw([2**62, 4, 4, 1], _SIXTEEN)), ""),
        ("zero-and-huge", _ANY, _unused(lambda: _raw([0, 2**62], b"")), "no element, and yet an axis of 2^62"),
        ("in-attribute", _NO, _attribute_tensor, "2^31 x 2^31 in a Constant"),
        ("negative", _NO, _first(lambda: _raw([-WIDTH, -HIDDEN], weights(WIDTH, HIDDEN).tobytes())), ""),
        ("minus-one", _NO, _first(lambda: _raw([-1, HIDDEN], weights(WIDTH, HIDDEN).tobytes())), ""),
        ("short", _NO, _first(lambda: _raw([WIDTH, HIDDEN], weights(WIDTH, HIDDEN).tobytes()[:-1])), "a byte less"),
        ("long", _NO, _first(lambda: _raw([WIDTH, HIDDEN], weights(WIDTH, HIDDEN).tobytes() + b"\0")), "a byte more"),
        ("typed-short", _NO, _first(_typed(1, [WIDTH, HIDDEN], float_data=[1.0] * 511)), "511 of 512 floats"),
        ("wrong-field", _NO, _first(_typed(1, [WIDTH, HIDDEN], int32_data=[1] * 512)), "floats in `int32_data`"),
        ("two-fields", _NO, _first(_typed(1, [1, 1], float_data=[1.0], int32_data=[1])), ""),
        ("empty", _NO, _first(_typed(1, [WIDTH, HIDDEN])), "no data at all"),
        ("no-type", _NO, _first(lambda: _raw([WIDTH, HIDDEN], weights(WIDTH, HIDDEN).tobytes(), 0)), ""),
        ("unknown-type", _NO, _first(lambda: _raw([WIDTH, HIDDEN], weights(WIDTH, HIDDEN).tobytes(), 999)), ""),
        ("text-weight", _NO, _first(_typed(8, [WIDTH, HIDDEN], string_data=[b"1"] * 512)), "a weight of strings"),
        ("text-not-utf-8", _ANY, _unused(_typed(8, [2], string_data=[b"\xff\xfe", b"\x00"])), ""),
        ("text-short", _NO, _unused(_typed(8, [2**40], string_data=[b"a"])), "2^40 strings, one is there"),
        ("int4-odd", _ANY, _unused(lambda: _raw([3], b"\x21\x03", TensorProto.INT4)), "3 elements in 2 bytes"),
        ("int4-odd-short", _NO, _unused(lambda: _raw([5], b"\x21\x03", TensorProto.INT4)), "5 elements in 2 bytes"),
        ("complex", _ANY, _unused(lambda: _raw([2], b"\0" * 16, TensorProto.COMPLEX64)), ""),
        ("segment", _NO, _first(lambda: TensorProto(name="w1", data_type=1, dims=[WIDTH, HIDDEN], raw_data=b"",
                                segment=TensorProto.Segment(begin=0, end=2**62))), ""),
        ("rank-5000000", _NO_OR_LARGE, _many_dims, "5 million axes of 1"),
        ("input-huge", _NO_OR_LARGE, _declared(_input(2**62, WIDTH)), "an input of 2^62 rows"),
        ("input-wide", _NO_OR_LARGE, _declared(_input("N", 2**40)), ""),
        ("input-negative", _ANY, _declared(_input(-5, WIDTH)), ""),
        ("input-zero", _ANY, _declared(_input(0, WIDTH)), ""),
        ("input-rank-300", _NO, _declared(_input(*[1] * 300, WIDTH)), ""),
        ("output-lie", _ANY, _declared(_output(1000, 2**40)), "the output is declared [1000, 2^40]"),
        ("value-lie", _ANY, _declared(_value("N", 2**40)), "an inner tensor is declared [N, 2^40]"),
        ("value-overflow", _ANY, _declared(_value(*[2**62] * 8)), ""),
        ("initializer-is-input", _ANY, _input_too, "of another shape"),
        ("initializer-twice", _NO, _doubled, "two of one name"),
        ("sparse-huge", _NO_OR_LARGE, _sparse([2**31, 2**31], [1.0], [0]), "2^62 elements, one is given"),
        ("sparse-6-gb", INERT | _NO_OR_LARGE, _sparse([WIDTH, 10**8], [1.0], [0]), ""),
        ("sparse-outside", _NO, _sparse([WIDTH, HIDDEN], [1.0], [10**9]), "an index beyond the shape"),
        ("sparse-negative", _NO, _sparse([WIDTH, HIDDEN], [1.0], [-(2**40)]), ""),
        ("sparse-mismatch", _NO, _sparse([WIDTH, HIDDEN], [1.0, 2.0], [0]), "more values than indices"),
        ("sparse-constant", INERT | _NO_OR_LARGE, _sparse_constant, "4 TB when written out, in a Constant"),
    ]
]  # fmt: skip
