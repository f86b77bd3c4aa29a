"""Small parts of models, put together without any check, because what is made here is meant to be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

WIDTH, HIDDEN, CLASSES = 16, 32, 4
OPSET, IR = 17, 8


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    """Returns seeded weights of a fitting size."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def constant(name: str, values: Any, dtype: Any = np.float32) -> TensorProto:
    """Returns a tensor of this name and these values."""
    return numpy_helper.from_array(np.asarray(values, dtype=dtype), name)


def layers(source: str = "x") -> tuple[list[NodeProto], list[TensorProto]]:
    """Returns an honest net of two layers from ``source`` to ``y``, and its weights."""
    nodes = [
        helper.make_node("MatMul", [source, "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
    ]
    return nodes, [
        constant("w1", weights(WIDTH, HIDDEN)),
        constant("w2", weights(HIDDEN, CLASSES, seed=1)),
    ]


def info(name: str, shape: Sequence[Any] | None, kind: int = TensorProto.FLOAT) -> ValueInfoProto:
    """Returns what a graph says of an input or output."""
    return helper.make_tensor_value_info(name, kind, shape)


def any_size(name: str, rank: int, kind: int = TensorProto.FLOAT) -> ValueInfoProto:
    """Returns what a graph says of an output of which only the number of axes is known."""
    return info(name, [f"{name}_{axis}" for axis in range(rank)], kind)


def graph(
    nodes: Sequence[NodeProto],
    tensors: Sequence[TensorProto],
    outputs: Sequence[ValueInfoProto] | None = None,
    inputs: Sequence[ValueInfoProto] | None = None,
) -> GraphProto:
    """Returns a graph; by default from ``x`` [N, WIDTH] to ``y`` [N, CLASSES]."""
    inputs = [info("x", ["N", WIDTH])] if inputs is None else inputs
    outputs = [info("y", ["N", CLASSES])] if outputs is None else outputs
    return helper.make_graph(list(nodes), "net", list(inputs), list(outputs), list(tensors))


def model(of: GraphProto, *, opset: int = OPSET, **more: Any) -> ModelProto:
    """Returns a model; ``more`` as in ``onnx.helper.make_model``."""
    return helper.make_model(of, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR, **more)


def honest() -> ModelProto:
    """Returns the net that is nothing but itself."""
    return model(graph(*layers()))


def with_extra(
    nodes: Sequence[NodeProto], tensors: Sequence[TensorProto] = (), *, rank: int = 1, kind: int = TensorProto.FLOAT
) -> ModelProto:
    """Returns the honest net with further nodes, the result of which, ``extra``, is a second output of so many axes."""
    base, held = layers()
    outputs = [info("y", ["N", CLASSES]), any_size("extra", rank, kind)]
    return model(graph([*nodes, *base], [*tensors, *held], outputs))


def save(folder: Path, proto: ModelProto, name: str = "model.onnx") -> Path:
    """Writes a model as it is and returns its path."""
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


def examples(folder: Path, count: int = 64, **named: np.ndarray) -> Path:
    """Writes data for the honest net, and further arrays; returns their path."""
    rng = np.random.default_rng(7)
    arrays = named or {"x": rng.standard_normal((count, WIDTH)).astype(np.float32)}
    path = folder / "examples.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def attribute(name: str, value: Any) -> AttributeProto:
    """Returns an attribute, the type of which the value decides."""
    return helper.make_attribute(name, value)


def scalar(name: str, value: int) -> TensorProto:
    """Returns one whole number as a tensor without axes."""
    return constant(name, value, np.int64)


def vector(name: str, *values: int) -> TensorProto:
    """Returns whole numbers as a tensor of one axis."""
    return constant(name, values, np.int64)


def varint(value: int) -> bytes:
    """Returns a number as protobuf writes it."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, body: bytes) -> bytes:
    """Returns a protobuf field of bytes: for messages that no library would build."""
    return varint(number << 3 | 2) + varint(len(body)) + body
