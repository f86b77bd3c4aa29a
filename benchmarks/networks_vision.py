"""MobileNetV3-large, EfficientNet-B0 and ViT-tiny as torch's exporter writes them: BatchNorm folded, HardSwish and Gelu
one op each, SiLU as Sigmoid and Mul, pooling as ReduceMean, attention as Slice, Reshape, Transpose, MatMul and Softmax.

Sources: Howard et al., MobileNetV3, arXiv 1905.02244, table 1; Tan and Le, EfficientNet, arXiv 1905.11946, table 1;
Touvron et al., DeiT, arXiv 2012.12877, table 1 (the tiny size of the Vision Transformer, arXiv 2010.11929).
"""

from __future__ import annotations

import numpy as np

from networks_attention import attention
from networks_writing import Graph, Tensor

CLASSES = 1000
# What a block adds, over what passes it by. At 1 a random network of this depth is chaotic: what 8 bits change at the
# input decides the answer, and any picture that it was not built on leaves the ranges. Trained networks are not.
BRANCH = 0.3
BOTTLENECKS = (  # kernel, hidden, out, squeeze-and-excite, HardSwish (else ReLU), stride
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
MBCONV = (  # expansion, kernel, stride, out, repeats
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
WIDTH, LAYERS, HEADS, PATCH = 192, 12, 3, 16


def mobilenetv3(g: Graph, x: Tensor) -> None:
    x = g.add("HardSwish", g.convolution(x, 16, "stem", kernel=3, stride=2))
    for i, (kernel, hidden, out, squeeze, hard, stride) in enumerate(BOTTLENECKS):
        name, act, y = f"block{i}", "HardSwish" if hard else "Relu", x
        if hidden != x.value.shape[1]:
            y = g.add(act, g.convolution(y, hidden, f"{name}.expand", kernel=1))
        y = g.add(act, g.convolution(y, hidden, f"{name}.depthwise", kernel=kernel, stride=stride, groups=hidden))
        if squeeze:
            z = g.convolution(_pooled(g, y), _divisible(hidden // 4), f"{name}.squeeze", kernel=1, folded=False)
            z = g.convolution(g.add("Relu", z), hidden, f"{name}.excite", kernel=1, folded=False)
            y = g.add("Mul", g.add("HardSigmoid", z, alpha=1 / 6, beta=0.5), y)
        same = stride == 1 and out == x.value.shape[1]
        y = g.convolution(y, out, f"{name}.project", kernel=1, gain=BRANCH if same else 1.0)
        x = g.add("Add", y, x) if y.value.shape == x.value.shape else y
    x = g.add("HardSwish", g.convolution(x, 960, "last", kernel=1))
    x = g.add("Reshape", _pooled(g, x), g.constant([-1, 960]), allowzero=1)
    weight = g.weight(g.rng.normal(0.0, np.sqrt(2 / 960), (1280, 960)), "pre_head.weight")
    centre = weight.value @ x.value.mean(axis=0)
    bias = g.weight(g.rng.normal(0.0, 0.3, 1280) - centre, "pre_head.bias")
    g.parameters += weight.value.size + bias.value.size
    g.head(g.add("HardSwish", g.add("Gemm", x, weight, bias, transB=1)), CLASSES)


def efficientnet_b0(g: Graph, x: Tensor) -> None:
    x = _silu(g, g.convolution(x, 32, "stem", kernel=3, stride=2))
    i = 0
    for expansion, kernel, first_stride, out, repeats in MBCONV:
        for repeat in range(repeats):
            name, y, stride = f"block{i}", x, first_stride if repeat == 0 else 1
            i += 1
            narrow = x.value.shape[1]
            hidden = narrow * expansion
            if expansion != 1:
                y = _silu(g, g.convolution(y, hidden, f"{name}.expand", kernel=1))
            y = g.convolution(y, hidden, f"{name}.depthwise", kernel=kernel, stride=stride, groups=hidden)
            y = _silu(g, y)
            z = _silu(g, g.convolution(_pooled(g, y), narrow // 4, f"{name}.squeeze", kernel=1, folded=False))
            z = g.convolution(z, hidden, f"{name}.excite", kernel=1, folded=False)
            y, gain = g.add("Mul", g.add("Sigmoid", z), y), BRANCH if stride == 1 and out == narrow else 1.0
            y = g.convolution(y, out, f"{name}.project", kernel=1, gain=gain)
            x = g.add("Add", y, x) if y.value.shape == x.value.shape else y
    x = _silu(g, g.convolution(x, 1280, "last", kernel=1))
    g.head(g.add("Reshape", _pooled(g, x), g.constant([-1, 1280]), allowzero=1), CLASSES)


def vit_tiny(g: Graph, x: Tensor) -> None:
    side = x.value.shape[-1] // PATCH
    weight = g.weight(g.rng.normal(0.0, 1 / (PATCH * np.sqrt(3)), (WIDTH, 3, PATCH, PATCH)), "patches.weight")
    bias = g.weight(g.rng.normal(0.0, 0.1, WIDTH), "patches.bias")
    g.parameters += weight.value.size + bias.value.size
    x = g.add("Conv", x, weight, bias, kernel_shape=[PATCH] * 2, strides=[PATCH] * 2, pads=[0] * 4, group=1)
    x = g.add("Reshape", x, g.constant([-1, WIDTH, side**2]), allowzero=1)
    x = g.add("Transpose", x, perm=[0, 2, 1])
    first = g.weight(g.rng.normal(0.0, 0.5, (1, 1, WIDTH)), "first_token")
    place = g.weight(g.rng.normal(0.0, 0.5, (1, side**2 + 1, WIDTH)), "positions")
    g.parameters += first.value.size + place.value.size
    batch = g.add("Shape", x, start=0, end=1)
    first = g.add("Expand", first, g.add("Concat", batch, g.constant([1]), g.constant([WIDTH]), axis=0))
    x = g.add("Add", g.add("Concat", first, x, axis=1), place)
    for i in range(LAYERS):
        y = g.linear(g.norm(x, f"layer{i}.norm1", epsilon=1e-6), 3 * WIDTH, f"layer{i}.qkv", std=1.5 / np.sqrt(WIDTH))
        y = g.add("Reshape", y, g.constant([-1, side**2 + 1, 3, HEADS, WIDTH // HEADS]), allowzero=1)
        y = g.add("Transpose", y, perm=[2, 0, 3, 1, 4])
        q, k, v = (_unbound(g, y, part) for part in range(3))
        x = g.add("Add", x, g.linear(attention(g, q, k, v, WIDTH), WIDTH, f"layer{i}.out"))
        y = g.linear(g.norm(x, f"layer{i}.norm2", epsilon=1e-6), 4 * WIDTH, f"layer{i}.up")
        x = g.add("Add", x, g.linear(g.add("Gelu", y, approximate="none"), WIDTH, f"layer{i}.down"))
    g.head(g.add("Gather", g.norm(x, "norm", epsilon=1e-6), g.constant(0), axis=1), CLASSES)


def _unbound(g: Graph, x: Tensor, part: int) -> Tensor:
    sliced = g.add("Slice", x, g.constant([part]), g.constant([part + 1]), g.constant([0]))
    return g.add("Squeeze", sliced, g.constant([0]))


def _pooled(g: Graph, x: Tensor) -> Tensor:
    return g.add("ReduceMean", x, g.constant([-1, -2]), keepdims=1, noop_with_empty_axes=0)


def _silu(g: Graph, x: Tensor) -> Tensor:
    return g.add("Mul", x, g.add("Sigmoid", x))


def _divisible(channels: int, by: int = 8) -> int:
    """Returns the nearest multiple of ``by``, at most a tenth smaller (the rule of the MobileNet papers' code)."""
    nearest = max(by, (channels + by // 2) // by * by)
    return nearest + by if nearest < 0.9 * channels else nearest
