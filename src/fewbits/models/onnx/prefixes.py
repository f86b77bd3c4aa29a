"""Runs ever longer prefixes of a model over the same examples, every part of it once.

Layers that learn one after the other look at what the layers before them make of the examples. What a look has
computed, and no later change can reach, is kept where the rest of the model reads it; the next look starts there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, final

import numpy as np

from fewbits.runtimes.base import Session

if TYPE_CHECKING:
    import onnx

Feeds = Mapping[str, np.ndarray]


@final
class PrefixRuns:
    """Looks at inner tensors of one model whose layers change from look to look, first those in front.

    Args:
      batches: Returns the feeds of the model's inputs and how many of their rows count, batch by batch, the same each
        time.
      open: Opens the bytes of a model file.
      limit: Bytes of tensors beyond which a look keeps no more; the next one starts where the one before did.
    """

    def __init__(
        self,
        batches: Callable[[], Iterable[tuple[Feeds, int]]],
        open: Callable[[bytes], Session],
        *,
        limit: int,
    ) -> None:
        self._batches = batches
        self._open = open
        self._limit = limit
        self._kept: list[tuple[Feeds, int]] | None = None

    def look(
        self, data: bytes, inputs: Mapping[str, int], changing: Iterable[str]
    ) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        """Yields what nodes read, by the name of the node, and how many rows of it count, batch by batch.

        Args:
          data: The model with all that is known by now; what earlier looks took for settled is as it was then.
          inputs: Which input is looked at, by the node that reads it.
          changing: Names of the nodes whose constants may change after this look.
        """
        import onnx

        model = onnx.load_from_string(data)
        graph = model.graph
        sources = {node.name: node.input[inputs[node.name]] for node in graph.node if node.name in inputs}
        fixed = {each.name for each in graph.initializer}
        known = {each.name for each in graph.input} - fixed if self._kept is None else set(self._kept[0][0])
        ahead = _crossing(graph, set(changing))
        computed = [name for name in dict.fromkeys((*sources.values(), *ahead)) if name not in known]
        run = self._running(_part(model, computed, known, self._kept)) if computed else _nothing
        kept: list[tuple[Feeds, int]] = []
        room = self._limit if ahead else 0
        for feeds, count in self._batches() if self._kept is None else self._kept:
            outputs = {**feeds, **run(feeds)}
            yield {node: outputs[name] for node, name in sources.items()}, count
            room -= sum(_bytes(outputs[name], self._limit) for name in ahead)
            kept = [*kept, ({name: outputs[name] for name in ahead}, count)] if room > 0 else []
        self._kept = kept or self._kept

    def _running(self, part: onnx.ModelProto) -> Callable[[Feeds], Feeds]:
        session = self._open(part.SerializeToString(deterministic=True))
        taken = [value.name for value in part.graph.input]
        return lambda feeds: session.run({name: feeds[name] for name in taken})


def _bytes(value: object, limit: int) -> int:
    """Returns what keeping a value takes: more than the limit where it is no tensor of numbers."""
    return value.nbytes if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" else limit


def _nothing(feeds: Feeds) -> Feeds:
    return {}


def _crossing(graph: onnx.GraphProto, changing: set[str]) -> list[str]:
    """Returns the tensors that changing nodes, and all that follows them, read of the rest of the graph.

    What does not depend on the graph's inputs counts as read anew, and so do dequantized tensors: their codes are kept,
    a quarter of the size, and the runtime finds a DequantizeLinear where it found it before.
    """
    moving = {value.name for value in graph.input}
    reached: set[str] = set()
    settled: dict[str, bool] = dict.fromkeys(moving, True)
    reads_of: dict[str, set[str]] = {}
    seeds: dict[str, None] = {}
    for node in graph.node:
        reads = _reads(node)
        if moving & reads:
            moving.update(node.output)
        if node.name in changing or reached & reads:
            reached.update(node.output)
            seeds.update(dict.fromkeys(sorted(reads)))
        for name in node.output:
            reads_of[name] = reads
            settled[name] = name in moving and name not in reached and node.op_type != "DequantizeLinear"
    crossing: dict[str, None] = {}
    waiting, seen = list(seeds), set(seeds)
    while waiting:
        name = waiting.pop()
        if settled.get(name, False):
            crossing[name] = None
            continue
        fresh = sorted(reads_of.get(name, set()) - seen)
        seen.update(fresh)
        waiting.extend(fresh)
    return sorted(crossing)


def _part(
    model: onnx.ModelProto, names: list[str], known: set[str], kept: list[tuple[Feeds, int]] | None
) -> onnx.ModelProto:
    """Returns the model that computes tensors from those that are known."""
    import onnx

    needed, nodes = set(names), []
    for node in reversed(model.graph.node):
        if needed & (set(node.output) - known):
            nodes.append(node)
            needed |= _reads(node)
    inputs = {value.name: value for value in model.graph.input}
    part = onnx.ModelProto()
    part.CopyFrom(_without_graph(model))
    part.graph.name = model.graph.name
    part.graph.node.extend(reversed(nodes))
    part.graph.initializer.extend(each for each in model.graph.initializer if each.name in needed)
    part.graph.sparse_initializer.extend(each for each in model.graph.sparse_initializer if each.values.name in needed)
    part.graph.input.extend(inputs[name] if kept is None else _input(name, kept) for name in sorted(known & needed))
    part.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    return part


def _without_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    bare = onnx.ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    return bare


def _input(name: str, kept: list[tuple[Feeds, int]]) -> onnx.ValueInfoProto:
    """Returns a graph input for a kept tensor; axes whose lengths differ between batches are left open."""
    import onnx

    first = kept[0][0][name]
    shapes = {each[name].shape for each, _ in kept}
    shape = [length if len({each[i] for each in shapes}) == 1 else None for i, length in enumerate(first.shape)]
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(first.dtype), shape)


def _reads(node: onnx.NodeProto) -> set[str]:
    """Returns what a node reads, the nodes of its bodies included."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            inner = set().union(*(_reads(each) for each in body.node)) | {value.name for value in body.output}
            own = {value.name for value in body.input} | {name for each in body.node for name in each.output}
            names |= inner - own - {each.name for each in body.initializer}
    return names
