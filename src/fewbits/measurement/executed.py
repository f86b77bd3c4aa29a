"""The truth of the executed graph: what ran in which numbers, what was moved, and why each float island is one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import final

from fewbits.planning.macs import count_macs
from fewbits.planning.site import GraphView
from fewbits.runtimes.base import ExecutedNode, Numbers
from fewbits.targets import Placement

_BYTES = {
    "float": 4, "float16": 2, "bfloat16": 2, "double": 8, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2,
    "int32": 4, "uint32": 4, "int64": 8, "uint64": 8, "bool": 1,
}  # fmt: skip
# Endings that ONNX Runtime's optimizer puts behind a node's name; and ours, of products with inputs as they come.
_ENDINGS = ("_nchwc", "_nhwc", "_quant", "_token", "_pre_q", "_integer")
# Operators that it fuses into the one before.
_FUSED_BEHIND = {"Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "Add"}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FloatIsland:
    """A node that computes on floats although the file is quantized.

    Args:
      node: Its name in the model.
      op: Kernel family.
      rule: Slug of the rule that keeps it float.
      why: The rule in words.
    """

    node: str
    op: str
    rule: str
    why: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutedGraph:
    """The executed graph in figures.

    Args:
      nodes: The executed nodes.
      islands: Float nodes of a quantized file with their rules.
    """

    nodes: tuple[ExecutedNode, ...]
    islands: tuple[FloatIsland, ...]

    def count(self, numbers: Numbers) -> int:
        """Returns how many nodes ran in these numbers."""
        return sum(node.numbers is numbers for node in self.nodes)

    @property
    def kernels(self) -> dict[str, int]:
        """Executed nodes by kernel family, most frequent first."""
        return dict(Counter(node.op for node in self.nodes).most_common())

    @property
    def by_dtype(self) -> dict[str, int]:
        """Executed nodes by the element type of what they read first, most frequent first."""
        kinds = ((node.inputs or node.outputs or (("none", ()),))[0][0] for node in self.nodes)
        return dict(Counter("float32" if kind == "float" else kind for kind in kinds).most_common())

    @property
    def by_numbers(self) -> dict[str, int]:
        """Executed nodes by the numbers they ran in."""
        return dict(Counter(node.numbers.value for node in self.nodes).most_common())

    @property
    def bytes_moved(self) -> int:
        """Bytes read and written by all nodes in one run, weights included."""
        return sum(
            _BYTES.get(kind, 4) * prod(shape) for node in self.nodes for kind, shape in (*node.inputs, *node.outputs)
        )


def read_executed(
    nodes: tuple[ExecutedNode, ...], placement: Placement | None, graph: GraphView | None = None
) -> ExecutedGraph:
    """Returns the executed graph with its float islands named by the placement's rules.

    Args:
      nodes: As executed.
      placement: Of the quantized file; None for a float model, which has no islands.
      graph: The model, by which nodes are found again that the runtime has renamed.
    """
    islands = () if placement is None else tuple(_islands(nodes, placement, graph))
    return ExecutedGraph(nodes=nodes, islands=islands)


def _islands(nodes: tuple[ExecutedNode, ...], placement: Placement, graph: GraphView | None) -> list[FloatIsland]:
    found = []
    for node in nodes:
        if node.numbers is not Numbers.FLOAT:
            continue
        names = _model_names(node, placement, graph)
        kept = [name for name in names if name in placement.kept_float]
        for name in kept:  # a kernel may do the work of several nodes
            reason = placement.kept_float[name]
            found.append(FloatIsland(node=name, op=node.op, rule=reason.slug, why=reason.text))
        if kept:
            continue
        name = names[0]
        if name in placement.running:
            why = "was placed to run in integers, but this runtime version runs it in float; please report it"
            found.append(FloatIsland(node=name, op=node.op, rule="runtime-differs", why=why))
        else:
            why = "made by the runtime's own optimizer around float operators"
            found.append(FloatIsland(node=name, op=node.op, rule="made-by-runtime", why=why))
    return found


def _model_names(node: ExecutedNode, placement: Placement, graph: GraphView | None) -> list[str]:
    """Returns the model's names of what a kernel does: those that the runtime tells, else the one like its own."""
    known = {*placement.kept_float, *placement.running}
    found = []
    for origin in node.origins:
        writer = None if graph is None else graph.producer.get(origin)
        name = origin if origin in known or writer is None else writer.name
        if name in known:
            found.append(name)
    return found or [_inner_name(node, placement, graph) or model_name(node, known, graph)]


def _inner_name(node: ExecutedNode, placement: Placement, graph: GraphView | None) -> str | None:
    """Returns the model's name of a node inside a body, which the runtime names without its place; None of others.

    Bodies may hold nodes of one name, and a profile does not tell them apart: then it is the first of that operator.
    """
    if graph is None or node.name in placement.kept_float:
        return None
    own = {node.name, *(node.name.split(ending)[0] for ending in _ENDINGS)}
    return next(
        (
            op.name
            for op in graph.inner
            if op.name.removeprefix(f"{op.scope}/") in own
            and op.name in placement.kept_float
            and op.op == node.op.split(".")[-1].removeprefix("Fused")
        ),
        None,
    )


def model_name(node: ExecutedNode, known: set[str], graph: GraphView | None) -> str:
    """Returns the model's name of a node that the optimizer renamed, or named after the tensor that it writes.

    Args:
      node: As executed.
      known: Names of the model's nodes.
      graph: The model, for names of tensors.
    """
    base = node.name
    for ending in ("", *_ENDINGS):
        base = base.split(ending)[0] if ending else base
        if base in known or graph is None:
            if base in known:
                return base
            continue
        writer = graph.producer.get(base)
        while writer is not None:  # a fused node bears the name of its last tensor: look back for its first operator
            if writer.op == node.op.split(".")[-1].removeprefix("Fused"):
                return writer.name
            writer = graph.producer.get(writer.inputs[0]) if writer.op in _FUSED_BEHIND else None
    return base if base in known else node.name


def mac_bits(graph: GraphView, integer: set[str], *, activation_bits: int, weight_bits: int) -> dict[str, int]:
    """Returns multiply-accumulates by operand bits: ``8x8`` for the integer nodes, ``32x32`` for the others."""
    totals: Counter[str] = Counter()
    for name, macs in count_macs(graph).items():
        totals[f"{activation_bits}x{weight_bits}" if name in integer else "32x32"] += macs
    return dict(sorted(totals.items()))
