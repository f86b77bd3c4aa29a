"""Graphs that together hold every operator which ONNX Runtime's CPU provider executes on codes.

Not a test module: tests/measurement/test_truth.py and benchmarks/bench_truth.py load it by path. Each function writes
into a ``Net`` of tests/support/graphs.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Build = Callable[[Any], None]
IMAGE = ("N", 16, 12, 12)


def convolutions(n: Any) -> None:
    """Kernels of 1, 3 and 5, strides, dilations, unequal pads, SAME_UPPER."""
    x = n.relu(n.conv(n.input(IMAGE), 16, 24, 5, strides=[2, 1]))
    x = n.relu(n.conv(x, 24, 32, 3, dilations=[2, 3], pads=[2, 3, 2, 3]))
    x = n.relu(n.conv(x, 32, 16, 3, pads=[0, 1, 2, 1], bias=False))
    x = n.op("Conv", x, n.weight(24, 16, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2])
    n.output(n.conv(x, 24, 8, 1))


def grouped(n: Any) -> None:
    """Groups of 4, depthwise of 3 x 3 and 5 x 5, a depthwise multiplier of 2, ReLU6."""
    x = n.clip(n.conv(n.input(IMAGE), 16, 32, group=4))
    x = n.clip(n.conv(x, 32, 32, group=32))
    x = n.relu(n.conv(x, 32, 32, 5, group=32, strides=[2, 2]))
    x = n.relu(n.conv(x, 32, 64, group=32))
    n.output(n.conv(x, 64, 8, 1))


def sequences(n: Any) -> None:
    """Conv of one axis of space."""
    x = n.relu(n.conv(n.input(("N", 12, 40)), 12, 16, 5, dims=1, strides=[2]))
    n.output(n.conv(x, 16, 8, 3, dims=1, dilations=[2], pads=[2, 2]))


def volumes(n: Any) -> None:
    """Conv of three axes of space."""
    x = n.relu(n.conv(n.input(("N", 4, 6, 8, 8)), 4, 8, 3, dims=3))
    n.output(n.conv(x, 8, 8, 3, dims=3, strides=[2, 2, 2]))


def upsampled(n: Any) -> None:
    """ConvTranspose, which is rewritten as a Conv and a DepthToSpace; Resize of nearest neighbours; a skip Concat."""
    x = n.relu(n.conv(n.input(IMAGE), 16, 16))
    low = n.relu(n.conv(x, 16, 32, strides=[2, 2]))
    weight = n.weight(32, 16, 2, 2, fan_in=32)
    up = n.relu(n.op("ConvTranspose", low, weight, n.vector(16), kernel_shape=[2, 2], strides=[2, 2]))
    wide = n.op("Resize", n.relu(n.conv(low, 32, 8, 1)), "", n.const([1, 1, 2, 2]), mode="nearest")
    n.output(n.conv(n.op("Concat", x, up, wide, axis=1), 40, 8))


def residual(n: Any) -> None:
    """QLinearAdd and QLinearMul of two tensors, and with a constant; pooling; QGemm with codes and with floats."""
    x = n.relu(n.conv(n.input(IMAGE), 16, 16))
    y = n.relu(n.op("Add", n.conv(n.relu(n.conv(x, 16, 16)), 16, 16), x))
    gate = n.op("Sigmoid", n.conv(n.op("GlobalAveragePool", y), 16, 16, 1))
    y = n.conv(n.op("Mul", y, gate), 16, 16)
    y = n.op("Add", y, n.const(n.rng.standard_normal((1, 16, 1, 1))))
    y = n.op("MaxPool", n.relu(n.conv(y, 16, 32)), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = n.op("Flatten", n.op("GlobalAveragePool", n.relu(n.conv(y, 32, 32))))
    n.output(n.gemm(n.relu(n.gemm(y, 32, 24)), 24, 10, trans=0))


def activations(n: Any) -> None:
    """LeakyRelu, SiLU in parts, Where of two, Concat of unequal ranges, Split."""
    x = n.op("LeakyRelu", n.conv(n.input(IMAGE), 16, 16), alpha=0.1)
    a = n.conv(x, 16, 16)
    a = n.conv(n.op("Mul", a, n.op("Sigmoid", a)), 16, 16)
    b = n.conv(n.op("LeakyRelu", n.conv(x, 16, 16, 1), alpha=0.3), 16, 16)
    mask = n.const(n.rng.integers(0, 2, (1, 16, 12, 12)), dtype=bool)
    joined = n.op("Concat", n.op("Where", mask, a, b), n.conv(b, 16, 8), axis=1)
    left, right = n.ops("Split", n.conv(joined, 24, 16), n.ints(8, 8), outputs=2, axis=1)
    n.output(n.conv(left, 8, 8), n.conv(right, 8, 8))


def gates(n: Any) -> None:
    """HardSwish in parts: x * clip(x + 3, 0, 6); of 255 steps from 0 to 6, 3 lies halfway between two."""
    x = n.relu(n.conv(n.input(IMAGE), 16, 16))
    for _ in range(2):
        x = n.relu(n.conv(x, 16, 16))
        x = n.conv(n.op("Mul", x, n.clip(n.op("Add", x, n.const(3.0)))), 16, 16)
    n.output(x)


def products(n: Any) -> None:
    """QLinearMatMul of a changing and a fixed matrix in two and three axes, MatMulIntegerToFloat, moves on codes."""
    x = n.relu(n.matmul(n.input(("N", 10, 32)), 32, 48))
    x = n.relu(n.matmul(x, 48, 32))
    x = n.op("Transpose", x, perm=[0, 2, 1])
    x = n.matmul(n.relu(n.matmul(x, 10, 24)), 24, 16)
    n.output(n.op("Softmax", x))


def moves(n: Any) -> None:
    """What only carries codes: Pad, DepthToSpace, Slice, Transpose, Reshape, ReduceMax, Squeeze, Unsqueeze, Gather."""
    x = n.relu(n.conv(n.input(IMAGE), 16, 16))
    x = n.relu(n.conv(n.op("Pad", x, n.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="edge"), 16, 16, pads=[0, 0, 0, 0]))
    x = n.relu(n.conv(n.op("DepthToSpace", x, blocksize=2), 4, 16))
    x = n.op("Slice", x, n.ints(0, 0), n.ints(8, 8), n.ints(2, 3))
    x = n.op(
        "Reshape",
        n.op("Transpose", n.op("Reshape", x, n.ints(0, 4, 4, 8, 8)), perm=[0, 2, 1, 3, 4]),
        n.ints(0, 16, 8, 8),
    )
    x = n.relu(n.conv(n.op("Gather", x, n.ints(*range(15, -1, -1)), axis=1), 16, 16))
    x = n.op("Unsqueeze", n.op("Squeeze", n.op("ReduceMax", x, axes=[2, 3], keepdims=1), n.ints(2, 3)), n.ints(2, 3))
    n.output(n.conv(x, 16, 8, 1))


GRAPHS: dict[str, Build] = {
    build.__name__: build
    for build in (convolutions, grouped, sequences, volumes, upsampled, residual, activations, gates, products, moves)
}
