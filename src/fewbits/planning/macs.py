"""How much arithmetic a graph is, from its shapes alone."""

from __future__ import annotations

from math import prod

from fewbits.planning.site import GraphView


def count_macs(graph: GraphView) -> dict[str, int]:
    """Returns the multiply-accumulates of one example by node; dynamic dimensions count as 1.

    Convolution: output elements * weight elements of one output channel. Matrix product: output elements * inner size.
    """
    found = {}
    for op in graph.ops:
        if op.domain or op.op not in ("Conv", "Gemm", "MatMul", "ConvTranspose"):
            continue
        out = graph.tensors[op.outputs[0]]
        weight = graph.tensors[op.inputs[1]].shape
        source = graph.tensors[op.inputs[0]]
        if out.shape is None or weight is None or not weight:
            continue
        positions = prod(d or 1 for d in out.shape[1:]) if len(out.shape) > 1 else 1
        if op.op == "Conv":
            found[op.name] = positions * prod(d or 1 for d in weight[1:])
        elif op.op == "ConvTranspose":
            inner = prod(d or 1 for d in (source.shape or ())[1:])
            found[op.name] = inner * prod(d or 1 for d in weight[1:])
        else:
            axis = (1 if op.attributes.get("transB", 0) else 0) if op.op == "Gemm" else max(0, len(weight) - 2)
            found[op.name] = positions * (weight[axis] or 1)
    return found
