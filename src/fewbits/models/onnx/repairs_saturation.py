"""Repairs by saturation: what clips is written with a Clip, which costs nothing between Q and DQ.

relu6(x + 3) is an Add whose result saturates; the factor behind it goes into the next scale.
"""

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
    fresh_name,
    is_standard,
    take_place,
)

# HardSwish(x) = x * HardSigmoid(x) with these (ONNX HardSwish-14).
_SWISH = 1 / 6, 0.5


def _factors(node: ir.Node) -> tuple[float, float] | None:
    """Returns alpha and beta of a HardSigmoid or HardSwish, None for other nodes."""
    if not is_standard(node) or node.outputs[0].dtype not in (ir.DataType.FLOAT, None):
        return None
    if node.op_type == "HardSwish":
        return _SWISH
    if node.op_type != "HardSigmoid":
        return None
    defaults = (("alpha", 0.2), ("beta", 0.5))
    alpha, beta = (float(node.attributes[n].value) if n in node.attributes else d for n, d in defaults)
    return (alpha, beta) if alpha > 0 and beta > 0 else None


@final
class SaturatingSwish(CountingPass):
    """Writes HardSigmoid as Add, Clip, Mul by a number, and HardSwish as the same times its input.

    Ensures: none with positive factors is left.
    """

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        for node in list(graph):
            found = _factors(node)
            if found is None:
                continue
            alpha, beta = found
            name, source = node.name, node.inputs[0]
            shift = self._number(graph, f"{name}_shift", beta / alpha)
            low, high = self._number(graph, f"{name}_low", 0.0), self._number(graph, f"{name}_high", 1 / alpha)
            factor = self._number(graph, f"{name}_factor", alpha)
            moved = self._like(graph, node, "Add", [source, shift], f"{name}_add")
            clipped = self._like(graph, node, "Clip", [moved.outputs[0], low, high], f"{name}_clip")
            last = clipped
            if node.op_type == "HardSwish":
                last = self._like(graph, node, "Mul", [source, clipped.outputs[0]], f"{name}_mul")
            scaled = self._like(graph, node, "Mul", [last.outputs[0], factor], name or "")
            take_place(node, scaled.outputs[0])
            count += 1
        return count

    def _number(self, graph: ir.Graph, name: str, value: float) -> ir.Value:
        return add_initializer(graph, name, np.array(value, np.float32))

    def _like(self, graph: ir.Graph, node: ir.Node, op: str, inputs: list[ir.Value | None], name: str) -> ir.Node:
        made = ir.node(op, inputs, name=name)
        output = made.outputs[0]
        output.name = fresh_name(graph, f"{name}_out")
        output.shape, output.type = node.outputs[0].shape, ir.TensorType(ir.DataType.FLOAT)
        graph.insert_before(node, made)
        return made

    def ensures(self, model: ir.Model) -> None:
        if any(_factors(node) is not None for node in model.graph):
            raise PostconditionError("a HardSigmoid or HardSwish is left")


@final
class SubToAdd(CountingPass):
    """Writes Sub of a fixed tensor as Add of its negative, for which there is an integer kernel. Ensures: none left."""

    def _match(self, node: ir.Node) -> np.ndarray | None:
        if node.op_type != "Sub" or not is_standard(node) or constant_of(node.inputs[0]) is not None:
            return None
        array = constant_of(node.inputs[1])
        return None if array is None or array.dtype != np.float32 else array

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        for node in list(graph):
            array = self._match(node)
            if array is None:
                continue
            stale = node.inputs[1]
            negative = add_initializer(graph, f"{node.name}_negative", -array)
            made = ir.node("Add", [node.inputs[0], negative], name=node.name)
            graph.insert_before(node, made)
            take_place(node, made.outputs[0])
            drop_unread(graph, [stale])
            count += 1
        return count

    def ensures(self, model: ir.Model) -> None:
        if any(self._match(node) is not None for node in model.graph):
            raise PostconditionError("a Sub of a fixed tensor is left")
