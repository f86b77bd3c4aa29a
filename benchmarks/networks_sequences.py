"""MiniLM-L6, and an LSTM and a GRU of two layers, as torch's exporter writes them; and inputs for them.

Sources: Wang et al., MiniLM, arXiv 2002.10957 (the 6-layer, 384-wide size that sentence-transformers publishes, here
with a classifier of the mean token); Sainath and Parada, keyword spotting of 40 features per frame, Interspeech 2015.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from networks_attention import attention
from networks_writing import Array, Graph, Tensor

VOCABULARY, LENGTH, WIDTH, HIDDEN, LAYERS, HEADS, INTENTS = 30522, 128, 384, 1536, 6, 12, 64
STEPS, FEATURES, STATE, WORDS = 100, 40, 256, 35
_EPSILON = 1e-12
_LOWEST = float(np.finfo(np.float32).min)


def sentences(n: int, seed: int, *, start: int = 0) -> dict[str, Array]:
    """Returns ids and mask, [n, 128] int64: each example repeats words of its own among common ones, 16 to 128 of them.

    Example i depends on (seed, start + i) alone.
    """
    ids, mask = np.zeros((n, LENGTH), np.int64), np.zeros((n, LENGTH), np.int64)
    for i in range(n):
        rng = np.random.default_rng([seed, start + i])
        length = int(rng.integers(16, LENGTH + 1))
        common = 1000 + np.minimum(rng.zipf(1.3, length), VOCABULARY - 1001)
        own = rng.integers(1000, VOCABULARY, 12)[rng.integers(0, 12, length)]
        ids[i, :length] = np.where(rng.random(length) < 0.5, own, common)
        ids[i, 0], ids[i, length - 1], mask[i, :length] = 101, 102, 1
    return {"input_ids": ids, "attention_mask": mask}


def tracks(n: int, seed: int, *, start: int = 0) -> NDArray[np.float32]:
    """Returns features like log-mel frames of a word, [n, 100, 40]: moving formants in a loud span, and noise."""
    step, band = np.linspace(0, 1, STEPS)[:, None], np.linspace(0, 1, FEATURES)[None, :]
    values = np.empty((n, STEPS, FEATURES), np.float32)
    for i in range(n):
        rng = np.random.default_rng([seed, start + i])
        loud = 1 / (1 + np.exp(-40 * (0.5 * rng.uniform(0.5, 1.0) - np.abs(step - rng.uniform(0.4, 0.7)))))
        frame = rng.normal(0.0, 0.3) + rng.normal(0.0, 0.4, (STEPS, FEATURES))
        for _ in range(4):
            height = rng.uniform(0, 1) + rng.normal(0, 0.4) * step + 0.1 * np.sin(rng.uniform(3, 12) * step)
            frame = frame + rng.uniform(1, 3) * loud * np.exp(
                -((band - height) ** 2) / (2 * rng.uniform(0.03, 0.1) ** 2)
            )
        values[i] = frame - 0.8
    return values


def minilm(g: Graph, ids: Tensor, mask: Tensor) -> None:
    words = g.weight(g.rng.normal(0.0, 1.0, (VOCABULARY, WIDTH)), "embeddings.words")
    kind = g.weight(g.rng.normal(0.0, 0.1, (1, 1, WIDTH)), "embeddings.kind")
    place = g.weight(g.rng.normal(0.0, 0.5, (1, LENGTH, WIDTH)), "embeddings.positions")
    g.parameters += words.value.size + kind.value.size + place.value.size
    x = g.add("Add", g.add("Add", g.add("Gather", words, ids, axis=0), kind), place)
    x = g.norm(x, "embeddings.norm", epsilon=_EPSILON)
    seen = g.add("Cast", g.add("Unsqueeze", mask, g.constant([1, 2])), to=1)
    hidden = g.add("Mul", g.add("Sub", g.constant(1.0, np.float32), seen), g.constant(_LOWEST, np.float32))
    for i in range(LAYERS):
        q, k, v = (_heads(g, g.linear(x, WIDTH, f"layer{i}.{part}", std=1.5 / np.sqrt(WIDTH))) for part in "qkv")
        y = g.linear(attention(g, q, k, v, WIDTH, hidden), WIDTH, f"layer{i}.out")
        x = g.norm(g.add("Add", y, x), f"layer{i}.norm1", epsilon=_EPSILON)
        y = g.add("Gelu", g.linear(x, HIDDEN, f"layer{i}.up"), approximate="none")
        x = g.norm(g.add("Add", g.linear(y, WIDTH, f"layer{i}.down"), x), f"layer{i}.norm2", epsilon=_EPSILON)
    seen = g.add("Cast", g.add("Unsqueeze", mask, g.constant([-1])), to=1)
    total = g.add("ReduceSum", g.add("Mul", x, seen), g.constant([1]), keepdims=0)
    g.head(g.add("Div", total, g.add("ReduceSum", seen, g.constant([1]), keepdims=0)), INTENTS)


def _heads(g: Graph, x: Tensor) -> Tensor:
    split = g.add("Reshape", x, g.constant([-1, LENGTH, HEADS, WIDTH // HEADS]), allowzero=1)
    return g.add("Transpose", split, perm=[0, 2, 1, 3])


def lstm(g: Graph, x: Tensor) -> None:
    _recurrent(g, x, "LSTM", gates=4, states=2)


def gru(g: Graph, x: Tensor) -> None:
    _recurrent(g, x, "GRU", gates=3, states=1, linear_before_reset=1)


def _recurrent(g: Graph, x: Tensor, op: str, *, gates: int, states: int, **attributes: int) -> None:
    zeros = g.add("Concat", g.constant([2]), g.add("Shape", x, start=0, end=1), g.constant([STATE]), axis=0)
    zeros = g.add("Expand", g.constant(0.0, np.float32), zeros)
    y = g.add("Transpose", x, perm=[1, 0, 2])
    for i in range(2):
        width = y.value.shape[-1]
        w = g.rng.normal(0.0, 1 / np.sqrt(width), (1, gates * STATE, width))
        r = g.rng.normal(0.0, 1 / np.sqrt(STATE), (1, gates * STATE, STATE))
        b = g.rng.normal(0.0, 0.1, (1, 2 * gates * STATE))
        g.parameters += w.size + r.size + b.size
        learned = [g.weight(value, f"layer{i}.{name}") for name, value in (("w", w), ("r", r), ("b", b))]
        state = g.add("Slice", zeros, g.constant([i]), g.constant([i + 1]), g.constant([0]))
        y = g.add(op, y, *learned, None, *[state] * states, hidden_size=STATE, direction="forward", **attributes)
        y = g.add("Transpose", y, perm=[0, 2, 1, 3])
        shape = g.add("Shape", y, start=0)
        sizes = [g.add("Slice", shape, g.constant([k]), g.constant([k + 1])) for k in range(4)]
        last = g.add("Reshape", g.add("Mul", sizes[2], sizes[3]), g.constant([-1]), allowzero=0)
        y = g.add("Reshape", y, g.add("Concat", sizes[0], sizes[1], last, axis=0), allowzero=0)
    y = g.add("Transpose", y, perm=[1, 0, 2])
    g.head(g.add("Gather", y, g.constant(STEPS - 1), axis=1), WORDS)
