"""Attention as torch's exporter writes ``scaled_dot_product_attention``, shape arithmetic included."""

from __future__ import annotations

import numpy as np

from networks_writing import Graph, Tensor

_LARGE = 2**63 - 1


def attention(g: Graph, q: Tensor, k: Tensor, v: Tensor, width: int, mask: Tensor | None = None) -> Tensor:
    """Returns softmax(q k^T / sqrt(d) + mask) v with its heads joined, [N, length, width], from [N, heads, length, d].

    Both q and k are multiplied by d^(-1/4), and k is transposed as a stack of matrices whose shape is computed.
    """
    length, depth = q.value.shape[-2:]
    shape = g.add("Shape", k, start=0)
    rows, columns, front = (
        g.add("Slice", shape, g.constant([start]), g.constant([end]))
        for start, end in ((-2, -1), (-1, _LARGE), (-(2**63) + 1, -2))
    )
    k = g.add("Reshape", k, g.add("Concat", g.constant([-1]), rows, columns, axis=0), allowzero=0)
    k = g.add("Transpose", k, perm=[0, 2, 1])
    k = g.add("Reshape", k, g.add("Concat", front, columns, rows, axis=0), allowzero=0)
    scale = g.constant([depth**-0.25], np.float32)
    scores = g.add("MatMul", g.add("Mul", q, scale), g.add("Mul", k, scale))
    if mask is not None:
        scores = g.add("Add", scores, mask)
    joined = g.add("Transpose", g.add("MatMul", g.add("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    return g.add("Reshape", joined, g.constant([-1, length, width]), allowzero=1)
