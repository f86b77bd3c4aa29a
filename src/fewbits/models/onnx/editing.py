"""Small edits of an onnx-ir graph, and the base of passes that are made of them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult


def is_standard(node: ir.Node) -> bool:
    """Returns whether an operator is of the standard domain."""
    return node.domain in ("", "ai.onnx")


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """Returns an integer attribute, or its default."""
    attr = node.attributes.get(name)
    return default if attr is None else int(attr.value)


def int_list(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """Returns an attribute that is a list of integers, None without one."""
    attr = node.attributes.get(name)
    return None if attr is None else tuple(int(v) for v in attr.value)


def constant_of(value: ir.Value | None) -> np.ndarray | None:
    """Returns the values of a tensor that is fixed in the file, None where it is not."""
    if value is None or not value.is_initializer() or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def only_reader(value: ir.Value) -> ir.Node | None:
    """Returns the one node that reads a tensor, None where there are several, none, or the graph's output does."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def fresh_name(graph: ir.Graph, base: str) -> str:
    """Returns a name that no tensor bears."""
    taken = set(graph.initializers) | {v.name for v in graph.inputs} | {o.name for n in graph for o in n.outputs}
    name, count = base, 1
    while name in taken:
        name, count = f"{base}_{count}", count + 1
    return name


def add_initializer(graph: ir.Graph, base: str, array: np.ndarray) -> ir.Value:
    """Returns a new initializer with a name that nothing else bears."""
    name = fresh_name(graph, base)
    tensor = ir.Tensor(np.array(array, order="C"), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def drop_unread(graph: ir.Graph, values: Iterable[ir.Value | None]) -> None:
    """Removes those initializers that nothing reads any more."""
    for value in values:
        if value is not None and value.is_initializer() and not value.uses() and not value.is_graph_output():
            graph.initializers.pop(value.name or "", None)


def bypass(node: ir.Node, source: ir.Value) -> None:
    """Removes a node of one output; ``source`` takes over its readers and, so that outputs keep it, its name."""
    graph = node.graph
    assert graph is not None and isinstance(graph, ir.Graph)
    old = node.outputs[0]
    name, shape = old.name, old.shape
    ir.convenience.replace_all_uses_with(old, source, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    source.name = name
    if source.shape is None:
        source.shape = shape


def take_place(node: ir.Node, value: ir.Value) -> None:
    """Removes a node of one output; another value takes over its readers, name, shape and type."""
    graph, old = node.graph, node.outputs[0]
    assert isinstance(graph, ir.Graph)
    name, shape, kind = old.name, old.shape, old.type
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    value.name, value.shape, value.type = name, shape, kind


class CountingPass(InPlacePass):
    """An in-place pass that counts what it changed."""

    def rewrite(self, graph: ir.Graph) -> int:
        """Returns how many nodes were rewritten."""
        raise NotImplementedError

    def call(self, model: ir.Model) -> PassResult:
        return PassResult(model, modified=self.rewrite(model.graph) > 0)
