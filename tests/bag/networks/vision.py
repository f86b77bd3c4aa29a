"""Convolutional networks for pictures: classifiers, maps, detectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from .writing import EXAMPLES, Made, Net, classifier, finish, images, run_float, silu, squeeze_excite

Act = Callable[[Any, str], str]
Arrays = dict[str, np.ndarray]


def plain_cnn() -> Made:
    g = Net(seed=1)
    x = g.input(["batch", 3, 24, 24])
    for cin, cout in ((3, 16), (16, 32)):
        x = g.op("MaxPool", g.relu(g.conv(x, cin, cout)), kernel_shape=[2, 2], strides=[2, 2])
    x = g.op("GlobalAveragePool", g.relu(g.conv(x, 32, 64)))
    return classifier(g, x, 64, images())


def resnet() -> Made:
    g = Net(seed=2)
    x = g.relu(g.norm(g.conv(g.input(["batch", 3, 24, 24]), 3, 16, bias=False), 16))
    for cin, cout, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)):
        y = g.relu(g.norm(g.conv(x, cin, cout, bias=False, strides=[stride, stride]), cout))
        y = g.norm(g.conv(y, cout, cout, bias=False), cout)
        if stride > 1:
            x = g.norm(g.conv(x, cin, cout, 1, bias=False, strides=[stride, stride]), cout)
        x = g.relu(g.op("Add", y, x))
    return classifier(g, g.op("GlobalAveragePool", x), 64, images(seed=2))


def _inverted(g: Any, x: str, widths: tuple[int, int, int], stride: int, act: Act, gate: str | None = None) -> str:
    """Adds an inverted residual: 1x1 to the middle width, depthwise, perhaps a gate, 1x1 to the outer width."""
    cin, middle, cout = widths
    y = act(g, g.norm(g.conv(x, cin, middle, 1, bias=False), middle))
    y = g.norm(g.conv(y, middle, middle, group=middle, bias=False, strides=[stride, stride]), middle)
    y = act(g, y)
    if gate:
        y = squeeze_excite(g, y, middle, gate)
    y = g.norm(g.conv(y, middle, cout, 1, bias=False), cout)
    return str(g.op("Add", y, x)) if stride == 1 and cin == cout else y


def _mobile(g: Any, act: Act, gate: str | None, seed: int) -> Made:
    x = g.input(["batch", 3, 24, 24])
    x = act(g, g.norm(g.conv(x, 3, 16, bias=False, strides=[2, 2]), 16))
    x = _inverted(g, x, (16, 48, 16), 1, act, gate)
    x = _inverted(g, x, (16, 48, 24), 2, act)
    x = _inverted(g, x, (24, 96, 24), 1, act, gate)
    x = act(g, g.norm(g.conv(x, 24, 96, 1, bias=False), 96))
    return classifier(g, g.op("GlobalAveragePool", x), 96, images(seed=seed))


def mobilenet_v2() -> Made:
    return _mobile(Net(seed=3), lambda g, x: str(g.clip(x)), None, 3)


def mobilenet_v3() -> Made:
    return _mobile(Net(seed=4), lambda g, x: str(g.op("HardSwish", x)), "HardSigmoid", 4)


def _hard_swish_parts(g: Any, x: str) -> str:
    inner = g.clip(g.op("Add", x, g.const(3.0)))
    return str(g.op("Div", g.op("Mul", x, inner), g.const(6.0)))


def mobilenet_v3_opset11() -> Made:
    return _mobile(Net(seed=5, opset=11), _hard_swish_parts, "HardSigmoid", 5)


def efficientnet() -> Made:
    return _mobile(Net(seed=6), silu, "Sigmoid", 6)


def densenet() -> Made:
    g = Net(seed=7)
    x = g.conv(g.input(["batch", 3, 24, 24]), 3, 16, strides=[2, 2], bias=False)
    width = 16
    for block in range(2):
        for layer in range(3):
            y = g.conv(g.relu(g.norm(x, width)), width, 32, 1, bias=False)
            y = g.conv(g.relu(g.norm(y, 32)), 32, 8, bias=False)
            # Layers of unequal loudness: what meets in the Concat has unequal ranges.
            y = g.op("Mul", y, g.const(0.25 * 2.0**layer))
            x = g.op("Concat", x, y, axis=1)
            width += 8
        if block == 0:
            x = g.conv(g.relu(g.norm(x, width)), width, width // 2, 1, bias=False)
            x = g.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
            width //= 2
    x = g.op("GlobalAveragePool", g.relu(g.norm(x, width)))
    return classifier(g, x, width, images(seed=7))


def squeezenet() -> Made:
    g = Net(seed=8)
    x = g.relu(g.conv(g.input(["batch", 3, 24, 24]), 3, 32))
    x = g.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    for cin, squeeze, expand in ((32, 16, 32), (64, 24, 48)):
        y = g.relu(g.conv(x, cin, squeeze, 1))
        one, three = g.relu(g.conv(y, squeeze, expand, 1)), g.relu(g.conv(y, squeeze, expand, group=4))
        x = g.op("Concat", one, three, axis=1)
    pooled = g.op("AveragePool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1], count_include_pad=1)
    branch = g.relu(g.conv(pooled, 96, 16, 1))
    maxed = g.op("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    x = g.op("Concat", g.relu(g.conv(x, 96, 32, group=4)), branch, g.relu(g.conv(maxed, 96, 16, 1)), axis=1)
    return classifier(g, g.op("GlobalAveragePool", x), 64, images(seed=8))


def unet() -> Made:
    g = Net(seed=9)
    roi, twice = "", [1.0, 1.0, 2.0, 2.0]
    x = g.input(["batch", 3, 32, 32])
    a = g.relu(g.conv(x, 3, 16))
    b = g.relu(g.conv(g.op("MaxPool", a, kernel_shape=[2, 2], strides=[2, 2]), 16, 32))
    c = g.relu(g.conv(g.op("MaxPool", b, kernel_shape=[2, 2], strides=[2, 2]), 32, 48))
    up = g.op("ConvTranspose", c, g.weight(48, 32, 2, 2, fan_in=48), g.vector(32), strides=[2, 2], kernel_shape=[2, 2])
    d = g.relu(g.conv(g.op("Concat", up, b, axis=1), 64, 32))
    near = g.op("Resize", d, roi, g.const(twice), mode="nearest")
    line = g.op(
        "Resize", g.conv(d, 32, 8, 1), roi, g.const(twice), mode="linear", coordinate_transformation_mode="half_pixel"
    )
    e = g.relu(g.conv(g.op("Concat", near, line, a, axis=1), 56, 16))
    g.output(g.op("Identity", g.conv(e, 16, 3, 1), out="classes"), shape=["batch", 3, 32, 32])
    return _labelled(finish(g), images(size=32, seed=9), lambda found: found["classes"].argmax(axis=1))


def super_resolution() -> Made:
    g = Net(seed=10)
    x = g.input(["batch", 1, 20, 20])
    for cin, cout, k in ((1, 24, 5), (24, 24, 3)):
        x = g.conv(x, cin, cout, k)
        x = g.op("PRelu", x, g.const(g.rng.uniform(0.1, 0.3, (cout, 1, 1))))
    x = g.op("DepthToSpace", g.conv(x, 24, 9), blocksize=3, mode="CRD", out="picture")
    g.output(x, shape=["batch", 1, 60, 60])
    noise = np.random.default_rng(10).standard_normal((EXAMPLES, 1, 60, 60)) / 4
    return _labelled(finish(g), images(1, 20, seed=10), lambda found: (found["picture"] + noise).astype(np.float32))


def _labelled(model: onnx.ModelProto, arrays: Arrays, label: Callable[[Arrays], np.ndarray]) -> Made:
    """Returns the model with labels that are made of what it answers itself: a network that is right."""
    found = run_float(model.SerializeToString(), arrays, EXAMPLES)
    return Made(model=model, arrays=arrays | {"labels": label(found)})


_ANCHORS = np.array([[10.0, 13.0], [30.0, 61.0]], np.float32)
_DETECTED = 3


def _detect(g: Any, x: str, cin: int, cells: int, stride: int) -> tuple[str, str]:
    """Adds the head of one scale: centres from a grid, sizes from anchors; returns rows and the raw map."""
    kinds = 5 + _DETECTED
    raw = g.conv(x, cin, 2 * kinds, 1)
    y = g.op("Reshape", raw, g.ints(-1, 2, kinds, cells, cells))
    y = g.op("Sigmoid", g.op("Transpose", y, perm=[0, 1, 3, 4, 2]))
    centre, size, scores = g.ops("Split", y, g.ints(2, 2, kinds - 4), outputs=3, axis=4)
    grid = np.stack(np.meshgrid(np.arange(cells), np.arange(cells)), axis=-1)[None, None]
    centre = g.op("Add", g.op("Mul", centre, g.const(2.0)), g.const(grid - 0.5))
    centre = g.op("Mul", centre, g.const(float(stride)))
    size = g.op("Pow", g.op("Mul", size, g.const(2.0)), g.const(2.0))
    size = g.op("Mul", size, g.const(_ANCHORS[None, :, None, None, :] * stride / 8))
    rows = g.op("Concat", centre, size, scores, axis=4)
    return g.op("Reshape", rows, g.ints(-1, 2 * cells * cells, kinds)), raw


def yolo() -> Made:
    g = Net(seed=11)
    x = g.input(["batch", 3, 32, 32], name="images")
    x = g.op("LeakyRelu", g.norm(g.conv(x, 3, 16, strides=[2, 2], bias=False), 16), alpha=0.1)
    x = silu(g, g.conv(x, 16, 32, strides=[2, 2]))
    left, right = g.ops("Split", x, g.ints(16, 16), outputs=2, axis=1)
    right = g.op("Add", right, silu(g, g.conv(right, 16, 16)))
    fine = silu(g, g.conv(g.op("Concat", left, right, axis=1), 32, 32, 1))
    coarse = g.op("LeakyRelu", g.conv(fine, 32, 48, strides=[2, 2]), alpha=0.1)
    up = g.op("Resize", g.conv(coarse, 48, 16, 1), "", g.const([1.0, 1.0, 2.0, 2.0]), mode="nearest")
    fine = silu(g, g.conv(g.op("Concat", up, fine, axis=1), 48, 32))
    rows8, raw8 = _detect(g, fine, 32, 8, 4)
    rows4, raw4 = _detect(g, coarse, 48, 4, 8)
    g.output(g.op("Concat", rows8, rows4, axis=1, out="detections"), shape=["batch", 160, 5 + _DETECTED])
    g.output(raw8, shape=["batch", 2 * (5 + _DETECTED), 8, 8])
    g.output(raw4, shape=["batch", 2 * (5 + _DETECTED), 4, 4])
    return _labelled(
        finish(g), images(size=32, seed=11, name="images"), lambda found: found["detections"][:, :, :4].copy()
    )
