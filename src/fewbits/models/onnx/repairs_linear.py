"""Repairs for transformers: layers of rank 3 with their bias in the accumulator, GELU as one node, sums left alone."""

from __future__ import annotations

from collections.abc import Callable
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
    only_reader,
    take_place,
)

# Nodes between the input of a written-out GELU and its output; the longest exports have nine.
_MOST_NODES = 12
# How far a chain may be from GELU on [-8, 8]: constants such as 0.79788 are written with five to seven digits.
_GELU_TOLERANCE = 2e-4
_GRID = np.linspace(-8, 8, 1601)


@final
class LinearToGemm(CountingPass):
    """Writes MatMul of rank 3 or more with a weight, then Add of a row, as Reshape, Gemm, Reshape.

    ONNX Runtime fuses the written form into a float Gemm that dequantizes its weight at each run; this one runs as
    QGemm with the bias in the int32 accumulator. Requires: at most one open dimension. Ensures: no such pair is left.
    """

    def _match(self, node: ir.Node) -> tuple[ir.Node, ir.Value, list[int]] | None:
        if node.op_type != "MatMul" or not is_standard(node) or node.inputs[0] is None:
            return None
        shape, weight = node.inputs[0].shape, constant_of(node.inputs[1])
        add = only_reader(node.outputs[0])
        if shape is None or len(shape) < 3 or weight is None or weight.ndim != 2 or weight.dtype != np.float32:
            return None
        if add is None or add.op_type != "Add" or not is_standard(add):
            return None
        row = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
        array = constant_of(row)
        if row is None or array is None or array.dtype != np.float32 or array.size != weight.shape[1]:
            return None
        wanted = [d if isinstance(d, int) else -1 for d in list(shape)[:-1]] + [weight.shape[1]]
        return (add, row, wanted) if array.shape[-1] == array.size and wanted.count(-1) <= 1 else None

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        for node in list(graph):
            found = self._match(node)
            if found is None:
                continue
            add, row, wanted = found
            weight, array = constant_of(node.inputs[1]), constant_of(row)
            assert weight is not None and array is not None
            flat = add_initializer(graph, f"{node.name}_rows", np.array([-1, weight.shape[0]], np.int64))
            whole = add_initializer(graph, f"{node.name}_whole", np.array(wanted, np.int64))
            bias = row if array.ndim == 1 else add_initializer(graph, f"{row.name}_row", array.reshape(-1))
            rows = _made(graph, "Reshape", [node.inputs[0], flat], f"{node.name}_flat", [None, weight.shape[0]])
            gemm = _made(graph, "Gemm", [rows.outputs[0], node.inputs[1], bias], node.name, [None, weight.shape[1]])
            back = _made(graph, "Reshape", [gemm.outputs[0], whole], f"{node.name}_back", None)
            for made in (rows, gemm, back):
                graph.insert_before(add, made)
            take_place(add, back.outputs[0])
            graph.remove(node, safe=True)
            drop_unread(graph, [row])
            count += 1
        return count

    def ensures(self, model: ir.Model) -> None:
        if any(self._match(node) is not None for node in model.graph):
            raise PostconditionError("a layer of rank 3 with a row added is left")


@final
class SumBeforeNorm(CountingPass):
    """Writes the Add before a LayerNormalization as Sum.

    ONNX Runtime 1.31 fuses the two into SkipLayerNormalization, whose CPU kernel takes 3 to 7 times as long as both.
    Ensures: no Add of two changing tensors feeds a LayerNormalization.
    """

    def _match(self, node: ir.Node) -> bool:
        if node.op_type != "Add" or not is_standard(node) or len(node.inputs) != 2:
            return False
        if any(constant_of(value) is not None for value in node.inputs):
            return False
        return any(use.node.op_type == "LayerNormalization" and use.idx == 0 for use in node.outputs[0].uses())

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        for node in list(graph):
            if self._match(node):
                made = ir.node("Sum", list(node.inputs), name=node.name)
                graph.insert_before(node, made)
                take_place(node, made.outputs[0])
                count += 1
        return count

    def ensures(self, model: ir.Model) -> None:
        if any(self._match(node) for node in model.graph):
            raise PostconditionError("an Add before a LayerNormalization is left")


@final
class WholeGelu(CountingPass):
    """Writes a GELU that was exported operator by operator as one Gelu node, whatever the order of its operators.

    The chain is recognized by what it computes on a grid. Requires: opset 20. Ensures: none is left whose chain is
    made of arithmetic with constants around one Tanh.
    """

    def _match(self, node: ir.Node) -> tuple[ir.Node, ir.Value, str] | None:
        if node.op_type not in ("Tanh", "Erf") or not is_standard(node):
            return None
        last: ir.Node | None = node
        found = None
        for _ in range(_MOST_NODES):
            last = _next(last)
            if last is None:
                break
            source = _source(last)
            kind = None if source is None else _gelu(last, source)
            if source is not None and kind is not None:
                found = last, source, kind
        return found

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        for node in list(graph):
            found = self._match(node) if node.graph is graph else None
            if found is None:
                continue
            last, source, kind = found
            made = ir.node("Gelu", [source], attributes={"approximate": kind}, name=last.name)
            graph.insert_before(last, made)
            take_place(last, made.outputs[0])
            _drop_dead(graph, node)
            count += 1
        return count

    def ensures(self, model: ir.Model) -> None:
        if any(self._match(node) is not None for node in model.graph):
            raise PostconditionError("a written-out GELU is left")


def _made(
    graph: ir.Graph, op: str, inputs: list[ir.Value | None], name: str | None, shape: list[int | None] | None
) -> ir.Node:
    node = ir.node(op, inputs, name=name)
    output = node.outputs[0]
    output.name = fresh_name(graph, f"{name}_out")
    output.type = ir.TensorType(ir.DataType.FLOAT)
    output.shape = None if shape is None else ir.Shape(shape)
    return node


# --- GELU by what it computes -----------------------------------------------------------------------------------------

_ARITHMETIC: dict[str, Callable[..., np.ndarray]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Tanh": np.tanh,
    "Neg": np.negative,
    "Sqrt": np.sqrt,
}


def _next(node: ir.Node | None) -> ir.Node | None:
    """Returns the one arithmetic node that reads a node's result."""
    if node is None or node.outputs[0].is_graph_output():
        return None
    readers = {use.node for use in node.outputs[0].uses()}
    reader = readers.pop() if len(readers) == 1 else None
    return reader if reader is not None and reader.op_type in _ARITHMETIC and is_standard(reader) else None


def _source(last: ir.Node) -> ir.Value | None:
    """Returns the one tensor from which arithmetic with single constants computes a node's result."""
    found: set[ir.Value] = set()
    _, leaves = _cone(last)
    for leaf in leaves:
        array = constant_of(leaf)
        if array is None:
            found.add(leaf)
        elif array.size != 1:
            return None
    return found.pop() if len(found) == 1 else None


def _cone(last: ir.Node, stop: ir.Value | None = None) -> tuple[list[ir.Node], list[ir.Value]]:
    """Returns the arithmetic nodes before a node, the node included, in order, and the tensors that they start from.

    A tensor that others outside of the cone read too is a start: a chain's inner tensors are its own.
    """
    inside: dict[ir.Node, None] = {}
    leaves: dict[ir.Value, None] = {}
    waiting = [last]
    while waiting and len(inside) < 2 * _MOST_NODES:
        node = waiting.pop()
        if node in inside:
            continue
        inside[node] = None
        for value in node.inputs:
            if value is None:
                continue
            before = value.producer()
            wanted = before is not None and _is_arithmetic(before)
            if value is stop or not wanted or before is None or not _is_inner(value, last):
                leaves[value] = None
            else:
                waiting.append(before)
    return list(inside), list(leaves)


def _is_arithmetic(node: ir.Node) -> bool:
    """Returns whether a node computes with single constants only; adding one number a channel is a layer's bias."""
    if node.op_type not in (*_ARITHMETIC, "Erf") or not is_standard(node):
        return False
    return all(array is None or array.size == 1 for array in map(constant_of, node.inputs))


def _is_inner(value: ir.Value, last: ir.Node) -> bool:
    """Returns whether every way from a tensor leads through arithmetic to the last node."""
    waiting, seen = [value], {value}
    while waiting:
        one = waiting.pop()
        if one.is_graph_output() or len(seen) > 2 * _MOST_NODES:
            return False
        for use in one.uses():
            if use.node is last:
                continue
            if use.node.op_type not in (*_ARITHMETIC, "Erf") or not is_standard(use.node):
                return False
            output = use.node.outputs[0]
            if output not in seen:
                seen.add(output)
                waiting.append(output)
        if not one.uses():
            return False
    return True


def _gelu(last: ir.Node, source: ir.Value) -> str | None:
    """Returns which GELU the arithmetic between two tensors is: ``tanh``, ``none`` (exact), or None for neither."""
    from scipy.special import erf

    exact = 0.5 * _GRID * (1 + erf(_GRID / np.sqrt(2)))
    rounded = 0.5 * _GRID * (1 + np.tanh(np.sqrt(2 / np.pi) * (_GRID + 0.044715 * _GRID**3)))
    values = _evaluate(last.outputs[0], source, depth=0)
    if values is None or values.shape != _GRID.shape:
        return None
    for kind, wanted in (("tanh", rounded), ("none", exact)):
        if np.abs(values - wanted).max() < _GELU_TOLERANCE:
            return kind
    return None


def _evaluate(value: ir.Value, source: ir.Value, *, depth: int) -> np.ndarray | None:
    if value is source:
        return _GRID
    array = constant_of(value)
    if array is not None:
        return array.astype(np.float64).reshape(()) if array.size == 1 else None
    node = value.producer()
    if node is None or depth > _MOST_NODES or node.op_type not in (*_ARITHMETIC, "Erf"):
        return None
    parts = [None if v is None else _evaluate(v, source, depth=depth + 1) for v in node.inputs]
    if any(part is None for part in parts):
        return None
    with np.errstate(all="ignore"):
        if node.op_type == "Erf":
            from scipy.special import erf

            return np.asarray(erf(parts[0]))
        return np.asarray(_ARITHMETIC[node.op_type](*parts))


def _drop_dead(graph: ir.Graph, last: ir.Node) -> None:
    """Removes a node that nothing reads, and what then is read no more, and their constants."""
    waiting = list(graph)[::-1]
    for node in waiting:
        dead = not any(output.uses() or output.is_graph_output() for output in node.outputs)
        if dead and node.op_type in (*_ARITHMETIC, "Erf"):
            stale = list(node.inputs)
            graph.remove(node, safe=True)
            drop_unread(graph, stale)
