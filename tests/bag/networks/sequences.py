"""Transformers, recurrent networks, tables, sound, recommendation."""

from __future__ import annotations

from typing import Any

import numpy as np

from .writing import (
    CLASSES,
    EXAMPLES,
    INT64,
    Made,
    Net,
    classifier,
    finish,
    fitted,
    head,
    images,
    run_float,
    signals,
    tokens,
)

_WIDTH, _HEADS = 32, 4


def _dense(g: Any, x: str, cin: int, cout: int, scale: float = 1.0) -> str:
    """Adds x W + b with Xavier weights, as a MatMul and an Add."""
    w = g.const(g.rng.standard_normal((cin, cout)) * scale * np.sqrt(1 / cin))
    return str(g.op("Add", g.op("MatMul", x, w), g.vector(cout)))


def _norm_op(g: Any, x: str) -> str:
    return str(g.op("LayerNormalization", x, g.const(g.rng.uniform(0.7, 1.3, _WIDTH)), g.vector(_WIDTH), axis=-1))


def _norm_parts(g: Any, x: str) -> str:
    centred = g.op("Sub", x, g.op("ReduceMean", x, axes=[-1]))
    variance = g.op("ReduceMean", g.op("Pow", centred, g.const(2.0)), axes=[-1])
    y = g.op("Div", centred, g.op("Sqrt", g.op("Add", variance, g.const(1e-12))))
    return str(g.op("Add", g.op("Mul", y, g.const(g.rng.uniform(0.7, 1.3, _WIDTH))), g.vector(_WIDTH)))


def _gelu_parts(g: Any, x: str) -> str:
    inner = g.op("Add", g.op("Erf", g.op("Div", x, g.const(np.sqrt(2.0)))), g.const(1.0))
    return str(g.op("Mul", g.op("Mul", x, inner), g.const(0.5)))


def _heads(g: Any, x: str, shape: str, perm: list[int]) -> str:
    return str(g.op("Transpose", g.op("Reshape", x, shape), perm=perm))


def _attention(g: Any, x: str, split: str, join: str, mask: str | None) -> str:
    """Adds softmax attention; ``split`` and ``join`` name the shapes [batch, length, heads, part] and back."""
    q, k, v = (_dense(g, x, _WIDTH, _WIDTH, 1.5) for _ in range(3))
    q, v = _heads(g, q, split, [0, 2, 1, 3]), _heads(g, v, split, [0, 2, 1, 3])
    scores = g.op("MatMul", q, _heads(g, k, split, [0, 2, 3, 1]))
    scores = g.op("Div", scores, g.const(np.sqrt(_WIDTH / _HEADS)))
    if mask:
        scores = g.op("Add", scores, mask)
    y = g.op("MatMul", g.op("Softmax", scores, axis=-1), v)
    return _dense(g, g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), join), _WIDTH, _WIDTH)


def vit() -> Made:
    g = Net(seed=21, opset=20)
    x = g.conv(g.input(["batch", 3, 24, 24]), 3, _WIDTH, 6, pads=[0, 0, 0, 0], strides=[6, 6])
    x = g.op("Transpose", g.op("Reshape", x, g.ints(0, _WIDTH, 16)), perm=[0, 2, 1])
    x = g.op("Add", x, g.const(0.2 * g.rng.standard_normal((1, 16, _WIDTH))))
    split, join = g.ints(0, 0, _HEADS, _WIDTH // _HEADS), g.ints(0, 0, _WIDTH)
    for _ in range(2):
        x = g.op("Add", x, _attention(g, _norm_op(g, x), split, join, None))
        y = g.op("Gelu", _dense(g, _norm_op(g, x), _WIDTH, 4 * _WIDTH))
        x = g.op("Add", x, _dense(g, y, 4 * _WIDTH, _WIDTH))
    x = g.op("ReduceMean", _norm_op(g, x), g.ints(1), keepdims=0)
    return classifier(g, x, _WIDTH, images(seed=21))


def bert() -> Made:
    """Shapes are computed in the graph, as exporters do for dynamic axes."""
    g = Net(seed=22, opset=14)
    ids = g.input(["batch", "sequence"], "input_ids", INT64)
    attended = g.input(["batch", "sequence"], "attention_mask", INT64)
    shape = g.op("Shape", ids)
    batch, length = (
        g.op("Unsqueeze", g.op("Gather", shape, g.const(i, dtype=np.int64), axis=0), g.ints(0)) for i in (0, 1)
    )
    split = g.op("Concat", batch, length, g.ints(_HEADS), g.ints(_WIDTH // _HEADS), axis=0)
    join = g.op("Concat", batch, length, g.ints(_WIDTH), axis=0)
    mask = g.op("Cast", g.op("Unsqueeze", attended, g.ints(1, 2)), to=1)
    mask = g.op("Mul", g.op("Sub", g.const(1.0), mask), g.const(-1e4))
    place = g.op("Slice", g.const(0.2 * g.rng.standard_normal((1, 64, _WIDTH))), g.ints(0), length, g.ints(1))
    x = g.op("Gather", g.const(g.rng.standard_normal((100, _WIDTH)), "embedding"), ids, axis=0)
    x = _norm_parts(g, g.op("Add", x, place))
    for _ in range(2):
        x = _norm_parts(g, g.op("Add", x, _attention(g, x, split, join, mask)))
        y = _dense(g, _gelu_parts(g, _dense(g, x, _WIDTH, 4 * _WIDTH)), 4 * _WIDTH, _WIDTH)
        x = _norm_parts(g, g.op("Add", x, y))
    first = g.op("Gather", x, g.const(0, dtype=np.int64), axis=1)
    pooled = g.op("Tanh", _dense(g, first, _WIDTH, _WIDTH), out="pooled")
    g.output(head(g, pooled, _WIDTH), shape=["batch", CLASSES])
    values, truth = tokens(100, 24, seed=22)
    keep = np.arange(24) < np.random.default_rng(22).integers(12, 25, (len(truth), 1))
    arrays = {"input_ids": np.where(keep, values, 0), "attention_mask": keep.astype(np.int64), "labels": truth}
    return fitted(finish(g), arrays, features=pooled, head="head")


def tabular() -> Made:
    g = Net(seed=23)
    x = g.relu(g.gemm(g.input(["batch", 40]), 40, 96, trans=0))
    x = g.op("Dropout", x)
    x = g.op("Identity", g.relu(g.gemm(x, 96, 96, trans=1)))
    return classifier(g, x, 96, signals((40,), seed=23))


def recommender() -> Made:
    """Two ids look two tables up; how much this user likes this item is a number."""
    g = Net(seed=24)
    user, item = (g.input(["batch"], name, INT64) for name in ("user", "item"))
    tables = [g.const(g.rng.standard_normal((size, 24)), f"{name}s") for name, size in (("user", 200), ("item", 500))]
    x = g.op("Concat", *(g.op("Gather", t, i, axis=0) for t, i in zip(tables, (user, item), strict=True)), axis=1)
    x = g.relu(g.gemm(g.relu(g.gemm(x, 48, 96)), 96, 48))
    g.output(g.op("Sigmoid", g.gemm(x, 48, 1), out="liked"), shape=["batch", 1])
    rng = np.random.default_rng(24)
    arrays = {"user": rng.integers(0, 200, EXAMPLES), "item": rng.integers(0, 500, EXAMPLES)}
    model = finish(g)
    liked = run_float(model.SerializeToString(), arrays, EXAMPLES)["liked"][:, 0]
    return Made(model=model, arrays=arrays | {"labels": (rng.random(EXAMPLES) < liked).astype(np.int64)})


def audio() -> Made:
    g = Net(seed=25)
    x = g.input(["batch", 1, 400], name="wave")
    for cin, cout, k in ((1, 16, 9), (16, 32, 5), (32, 48, 3)):
        x = g.relu(g.norm(g.conv(x, cin, cout, k, dims=1, bias=False, strides=[2]), cout))
        x = g.op("MaxPool", x, kernel_shape=[2], strides=[2])
    return classifier(g, g.op("GlobalAveragePool", x), 48, signals((1, 400), seed=25, name="wave"))


def recurrent() -> Made:
    """An LSTM, then a GRU; both want the axis of time first."""
    g = Net(seed=26)
    x = g.op("Transpose", g.input(["batch", 20, 16]), perm=[1, 0, 2])
    for kind, gates, cin, hidden in (("LSTM", 4, 16, 24), ("GRU", 3, 24, 24)):
        w, r, b = (
            g.const(g.rng.standard_normal((1, gates * hidden, n)) / np.sqrt(n)) for n in (cin, hidden, 2 * hidden)
        )
        b = g.op("Reshape", g.op("ReduceMean", b, axes=[2]), g.ints(1, -1))
        bias = g.op("Concat", b, b, axis=1)
        x = g.op("Squeeze", g.ops(kind, x, w, r, bias, outputs=1, hidden_size=hidden)[0], g.ints(1))
    last = g.op("Gather", x, g.const(-1, dtype=np.int64), axis=0)
    return classifier(g, last, 24, signals((20, 16), seed=26))


def two_tower() -> Made:
    """One encoder, used on both inputs with the same weights."""
    g = Net(seed=27)
    names = ("query", "document")
    inputs = [g.input(["batch", 40], name) for name in names]
    w1, w2 = g.weight(40, 64, fan_in=40, name="encoder_w1"), g.weight(64, 32, fan_in=64, name="encoder_w2")
    b1, b2 = g.vector(64, "encoder_b1"), g.vector(32, "encoder_b2")
    query, document = (g.op("Gemm", g.relu(g.op("Gemm", x, w1, b1)), w2, b2) for x in inputs)
    both = g.op("Mul", query, document)
    joined = g.op("Relu", g.gemm(g.op("Concat", query, document, both, axis=1), 96, 32), out="joined")
    g.output(head(g, joined, 32), shape=["batch", CLASSES])
    g.output(g.op("ReduceSum", both, g.ints(1), keepdims=1, out="likeness"), shape=["batch", 1])
    both_halves = signals((80,), seed=27)
    arrays = {
        name: np.ascontiguousarray(half) for name, half in zip(names, np.split(both_halves["x"], 2, 1), strict=True)
    }
    return fitted(finish(g), arrays | {"labels": both_halves["labels"]}, features=joined, head="head")
