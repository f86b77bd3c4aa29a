"""Passes that make shapes plain: a Reshape to a constant shape, a Pad of all axes."""

from __future__ import annotations

from typing import final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PostconditionError

from fewbits.models.onnx.editing import (
    CountingPass,
    add_initializer,
    constant_of,
    drop_unread,
    int_attribute,
    is_standard,
)

# A dimension: a number, the name of an open one, or unknown.
Dimension = int | str | None


@final
class FixedReshapes(CountingPass):
    """Writes the shape of a Reshape as a constant: 0 where a dimension is the input's own, -1 for one that follows.

    Exporters compute it at run time from the batch (Shape, Gather, Concat), and such a Shape reads a tensor that is
    then dequantized for it alone. Requires: inferred shapes. Ensures: no such Reshape is left.
    """

    def _match(self, node: ir.Node) -> list[int] | None:
        if node.op_type != "Reshape" or not is_standard(node) or constant_of(node.inputs[1]) is not None:
            return None
        source, wanted = node.inputs[0], _dimensions(node.inputs[1])
        if source is None or source.shape is None or wanted is None or int_attribute(node, "allowzero", 0):
            return None
        own = [_dimension(d) for d in source.shape]
        fixed: list[int] = []
        for index, dimension in enumerate(wanted):
            if isinstance(dimension, int):
                fixed.append(dimension)
            elif dimension is not None and index < len(own) and own[index] == dimension:
                fixed.append(0)
            else:
                fixed.append(-1)
        return fixed if fixed.count(-1) <= 1 else None

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        for node in graph:
            wanted = self._match(node)
            if wanted is None:
                continue
            shape = add_initializer(graph, f"{node.name}_shape", np.array(wanted, dtype=np.int64))
            node.replace_input_with(1, shape)
            count += 1
        return count

    def ensures(self, model: ir.Model) -> None:
        if any(self._match(node) is not None for node in model.graph):
            raise PostconditionError("a Reshape to a known shape computes it")


@final
class WholePads(CountingPass):
    """Writes a Pad of chosen axes as a Pad of all axes.

    ONNX Runtime 1.31 fails on the short form where it pushes a Transpose through it ("indices element out of data
    bounds"). Requires: fixed pads, axes and rank. Ensures: no such Pad has axes.
    """

    def _match(self, node: ir.Node) -> list[int] | None:
        if node.op_type != "Pad" or not is_standard(node) or len(node.inputs) < 4 or node.inputs[0] is None:
            return None
        amounts, axes, shape = constant_of(node.inputs[1]), constant_of(node.inputs[3]), node.inputs[0].shape
        if amounts is None or axes is None or shape is None:
            return None
        whole = [0] * (2 * len(shape))
        for place, axis in enumerate(axes):
            whole[int(axis) % len(shape)] = int(amounts[place])
            whole[int(axis) % len(shape) + len(shape)] = int(amounts[place + len(axes)])
        return whole

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        for node in graph:
            whole = self._match(node)
            if whole is None:
                continue
            stale = [node.inputs[1], node.inputs[3]]
            node.replace_input_with(1, add_initializer(graph, f"{node.name}_pads", np.array(whole, dtype=np.int64)))
            node.resize_inputs(3 if node.inputs[2] is not None else 2)
            drop_unread(graph, stale)
            count += 1
        return count

    def ensures(self, model: ir.Model) -> None:
        if any(self._match(node) is not None for node in model.graph):
            raise PostconditionError("a Pad with axes is left")


def _dimension(dim: int | ir.SymbolicDim) -> Dimension:
    return dim if isinstance(dim, int) else dim.value


def _dimensions(value: ir.Value | None) -> list[Dimension] | None:
    """Returns what a computed shape holds, None where its operators are not understood."""
    array = constant_of(value)
    if array is not None:
        return [int(v) for v in array.reshape(-1)] if array.dtype == np.int64 else None
    node = None if value is None else value.producer()
    if node is None or not is_standard(node):
        return None
    if node.op_type == "Shape" and "start" not in node.attributes and "end" not in node.attributes:
        source = node.inputs[0]
        return None if source is None or source.shape is None else [_dimension(d) for d in source.shape]
    if node.op_type in ("Unsqueeze", "Squeeze", "Identity"):
        return _dimensions(node.inputs[0])
    if node.op_type == "Gather":
        known, indices = _dimensions(node.inputs[0]), constant_of(node.inputs[1])
        return None if known is None or indices is None else [known[int(i)] for i in indices.reshape(-1)]
    if node.op_type == "Concat":
        parts = [_dimensions(part) for part in node.inputs]
        return None if any(p is None for p in parts) else [d for part in parts if part is not None for d in part]
    return None
