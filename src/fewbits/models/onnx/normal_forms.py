"""Passes that write the same computation in the one form that targets know."""

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
    int_attribute,
    int_list,
    is_standard,
    only_reader,
    take_place,
)

# Weight channel axis of the layers whose weights are quantized; readers of a shared weight must agree on it.
_WEIGHT_AXIS: dict[str, Callable[[ir.Node], int]] = {
    "Conv": lambda node: 0,
    "Gemm": lambda node: 0 if int_attribute(node, "transB", 0) else 1,
    "MatMul": lambda node: 1,
}
# Operators that move elements without looking at them: a clip before or behind them gives the same values.
_CLIP_COMMUTES = {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"}


@final
class UnshareBiases(CountingPass):
    """Gives each layer a bias of its own: quantized biases have the scale of their layer.

    Ensures: one reader a bias.
    """

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        seen: set[str] = set()
        for node in graph:
            if node.op_type not in ("Conv", "Gemm") or len(node.inputs) < 3:
                continue
            bias = node.inputs[2]
            array = constant_of(bias)
            if bias is None or array is None or bias.name is None:
                continue
            if bias.name in seen or any(use.idx != 2 for use in bias.uses()):
                node.replace_input_with(2, add_initializer(graph, f"{bias.name}_copy", array))
                count += 1
            else:
                seen.add(bias.name)
        return count

    def ensures(self, model: ir.Model) -> None:
        layers = [n for n in model.graph if n.op_type in ("Conv", "Gemm") and len(n.inputs) > 2]
        names = [n.inputs[2].name for n in layers if n.inputs[2] is not None and constant_of(n.inputs[2]) is not None]
        if len(set(names)) != len(names):
            raise PostconditionError("a bias is still shared")


@final
class UnshareWeights(CountingPass):
    """Gives readers that need a scale along another axis, or no scale at all, a copy of the weight.

    Ensures: all that read the weight of a layer are layers with that weight, along one axis.
    """

    def _groups(self, value: ir.Value) -> list[list[ir.Node]]:
        """Returns the layers that read a constant as weight, by channel axis; the group that may keep it left out."""
        layers: dict[int, list[ir.Node]] = {}
        others = value.is_graph_output()
        for use in value.uses():
            if use.idx == 1 and use.node.op_type in _WEIGHT_AXIS and is_standard(use.node):
                layers.setdefault(_WEIGHT_AXIS[use.node.op_type](use.node), []).append(use.node)
            else:
                others = True
        groups = list(layers.values())
        return groups if others else groups[1:]

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        for value in list(graph.initializers.values()):
            array = constant_of(value)
            if array is None or array.ndim < 2 or array.dtype != np.float32:
                continue
            for nodes in self._groups(value):
                copy = add_initializer(graph, f"{value.name}_copy", array)
                for node in nodes:
                    node.replace_input_with(1, copy)
                count += 1
        return count

    def ensures(self, model: ir.Model) -> None:
        for value in model.graph.initializers.values():
            array = constant_of(value)
            if array is not None and array.ndim > 1 and array.dtype == np.float32 and self._groups(value):
                raise PostconditionError(f"weight {value.name!r} is read along two axes")


@final
class RowBiases(CountingPass):
    """Writes the constant C of a Gemm, broadcast in whichever way, as one number a column. Ensures: none is left."""

    def _row(self, node: ir.Node) -> np.ndarray | None:
        if node.op_type != "Gemm" or not is_standard(node) or len(node.inputs) < 3:
            return None
        bias, weight = constant_of(node.inputs[2]), node.inputs[1]
        if bias is None or weight is None or weight.shape is None or len(weight.shape) != 2:
            return None
        columns = weight.shape[0 if int_attribute(node, "transB", 0) else 1]
        if not isinstance(columns, int) or bias.shape == (columns,):
            return None
        if bias.size != 1 and bias.shape != (1, columns):
            return None  # a number a row of the output, or a whole matrix
        return np.broadcast_to(bias.reshape(-1), (columns,))

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        for node in graph:
            row = self._row(node)
            if row is None:
                continue
            old = node.inputs[2]
            assert old is not None
            node.replace_input_with(2, add_initializer(graph, f"{old.name}_row", row))
            drop_unread(graph, [old])
            count += 1
        return count

    def ensures(self, model: ir.Model) -> None:
        if any(self._row(node) is not None for node in model.graph):
            raise PostconditionError("a broadcast bias is left")


@final
class MatMulToGemm(CountingPass):
    """Writes MatMul of a matrix with a weight, then Add of a row, as Gemm: the bias joins the int32 accumulator.

    Requires: the input's rank is known to be 2. Ensures: no such pair is left.
    """

    def _match(self, node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
        if node.op_type != "MatMul" or not is_standard(node) or node.inputs[0] is None:
            return None
        shape, weight = node.inputs[0].shape, constant_of(node.inputs[1])
        add = only_reader(node.outputs[0])
        if shape is None or len(shape) != 2 or weight is None or weight.ndim != 2 or weight.dtype != np.float32:
            return None
        if add is None or add.op_type != "Add" or not is_standard(add):
            return None
        other = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
        row = constant_of(other)
        if other is None or row is None or row.dtype != np.float32:
            return None
        return (add, other) if row.shape in ((weight.shape[1],), (1, weight.shape[1])) else None

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        for node in list(graph):
            found = self._match(node)
            if found is None:
                continue
            add, row = found
            bias = row
            array = constant_of(row)
            assert array is not None
            if array.ndim != 1:
                bias = add_initializer(graph, f"{row.name}_row", array.reshape(-1))
            gemm = ir.node("Gemm", [node.inputs[0], node.inputs[1], bias], name=node.name)
            gemm.doc_string = node.doc_string
            gemm.metadata_props.update(node.metadata_props)
            graph.insert_before(add, gemm)
            take_place(add, gemm.outputs[0])
            graph.remove(node, safe=True)
            drop_unread(graph, [row])
            count += 1
        return count

    def ensures(self, model: ir.Model) -> None:
        if any(self._match(node) is not None for node in model.graph):
            raise PostconditionError("a MatMul with a row added is left")


@final
class ClipFirst(CountingPass):
    """Lets Relu and Clip change places with an operator before them that only moves elements.

    Behind a layer the clip is then done by saturation. Requires: the moving operator has no other reader.
    Ensures: no layer is followed by a moving operator and then a clip.
    """

    def _match(self, clip: ir.Node) -> ir.Node | None:
        if clip.op_type not in ("Relu", "Clip") or not is_standard(clip) or clip.inputs[0] is None:
            return None
        if any(constant_of(bound) is None for bound in clip.inputs[1:] if bound is not None):
            return None
        move = clip.inputs[0].producer()
        if move is None or move.op_type not in _CLIP_COMMUTES or not is_standard(move) or len(move.outputs) != 1:
            return None
        source = move.inputs[0]
        if source is None or source.producer() is None or only_reader(source) is not move:
            return None
        return move if only_reader(move.outputs[0]) is clip else None

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        for clip in list(graph):
            while (move := self._match(clip)) is not None:
                _swap(graph, move, clip)
                count += 1
        return count

    def ensures(self, model: ir.Model) -> None:
        if any(self._match(node) is not None for node in model.graph):
            raise PostconditionError("a clip behind an operator that moves elements is left")


@final
class MeanToPool(CountingPass):
    """Writes ReduceMean over all spatial axes as GlobalAveragePool, which runtimes run in integers.

    With keepdims=0 a Flatten follows. Requires: a known rank of 3 to 5. Ensures: no such ReduceMean is left.
    """

    def _match(self, node: ir.Node) -> int | None:
        if node.op_type != "ReduceMean" or not is_standard(node) or node.inputs[0] is None:
            return None
        shape = node.inputs[0].shape
        axes = int_list(node, "axes")
        if axes is None and len(node.inputs) > 1:
            array = constant_of(node.inputs[1])
            axes = None if array is None else tuple(int(a) for a in array)
        if shape is None or axes is None or not 3 <= len(shape) <= 5:
            return None
        wanted = set(range(2, len(shape)))
        return len(shape) if {a % len(shape) for a in axes} == wanted else None

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        for node in list(graph):
            if self._match(node) is None:
                continue
            pool = ir.node("GlobalAveragePool", [node.inputs[0]], name=node.name)
            pool.doc_string = node.doc_string
            stale = list(node.inputs[1:])
            graph.insert_before(node, pool)
            last = pool
            if not int_attribute(node, "keepdims", 1):
                pool.outputs[0].name = fresh_name(graph, f"{node.outputs[0].name}_pooled")
                last = ir.node("Flatten", [pool.outputs[0]], attributes={"axis": 1}, name=f"{node.name}_flatten")
                graph.insert_before(node, last)
            take_place(node, last.outputs[0])
            drop_unread(graph, stale)
            count += 1
        return count

    def ensures(self, model: ir.Model) -> None:
        if any(self._match(node) is not None for node in model.graph):
            raise PostconditionError("a spatial ReduceMean is left")


def _swap(graph: ir.Graph, move: ir.Node, clip: ir.Node) -> None:
    """Turns source -> move -> clip into source -> clip -> move; the last tensor keeps its name."""
    source, inner, last = move.inputs[0], move.outputs[0], clip.outputs[0]
    assert source is not None
    inner_name, last_name, shape = inner.name, last.name, last.shape
    ir.convenience.replace_all_uses_with(last, inner, replace_graph_outputs=True)
    clip.replace_input_with(0, source)
    move.replace_input_with(0, last)
    graph.remove(clip)
    graph.insert_before(move, clip)
    last.name = fresh_name(graph, f"{inner_name}_clipped")  # frees the old name
    inner.name, last.name = last_name, inner_name
    inner.shape, last.shape = shape, source.shape
    inner.type, last.type = source.type, source.type
