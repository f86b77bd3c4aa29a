"""What stands inside the graphs of If, Loop and Scan: nodes and fixed tensors, by names that nothing else bears.

``loop1/body/w`` is the tensor ``w`` of the graph ``body`` of the node ``loop1``. Two bodies may use one name for two
things, so the place is part of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import onnx_ir as ir


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Body:
    """A graph inside a node.

    Args:
      scope: Its place, e.g. ``loop1/body``.
      graph: It.
      nodes: Its nodes, in order, by their names with the place.
    """

    scope: str
    graph: ir.Graph
    nodes: tuple[tuple[str, ir.Node], ...]


def bodies(graph: ir.Graph, scope: str = "") -> Iterator[Body]:
    """Yields the graphs inside a graph's nodes, each before those inside it."""
    for node in graph:
        for attribute in node.attributes.values():
            kind = attribute.type.name
            held = (attribute.value,) if kind == "GRAPH" else attribute.value if kind == "GRAPHS" else ()
            for number, inner in enumerate(held):
                place = f"{scope}{node.name}/{attribute.name}" + (f"{number}" if kind == "GRAPHS" else "")
                names: dict[str, ir.Node] = {}
                for inside in inner:
                    name = f"{place}/{inside.name or inside.op_type}"
                    names[name if name not in names else f"{name}_{len(names)}"] = inside
                yield Body(scope=place, graph=inner, nodes=tuple(names.items()))
                yield from bodies(inner, f"{place}/")


def inner_names(graph: ir.Graph) -> dict[ir.Value, str]:
    """Returns the names, with their places, of all tensors that belong to graphs inside a graph's nodes."""
    found = {}
    for body in bodies(graph):
        own = [*body.graph.inputs, *body.graph.initializers.values()]
        own += [output for _, node in body.nodes for output in node.outputs]
        found.update({value: f"{body.scope}/{value.name}" for value in own if value.name})
    return found


def inner_initializers(graph: ir.Graph) -> dict[str, ir.Value]:
    """Returns the fixed tensors inside bodies by their names with the place."""
    return {name: value for value, name in inner_names(graph).items() if value.is_initializer()}
