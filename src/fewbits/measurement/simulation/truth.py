"""The executed graph's integer nodes, each held to what it must answer to the runtime's own input codes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from fewbits.measurement.simulation.kernels import KERNELS, Simulated, simulate
from fewbits.runtimes._ort_told import ToldGraph
from fewbits.runtimes.base import Options, Tensors

# Operators that carry codes and compute nothing: worked out by the reference evaluator of the ONNX project.
_MOVES = {
    "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Concat", "Expand", "Tile", "Split",
    "DepthToSpace", "SpaceToDepth", "Pad", "Resize", "ReduceMax", "ReduceMin",
}  # fmt: skip
# Kernels that read floats and compute on codes.
_FROM_FLOAT = {"QuantizeLinear", "DynamicQuantizeMatMul", "MatMulNBits"}
# Operators that may read small integers, shapes and masks, that are no codes.
_NO_CODES = {"Shape", "Size", "Cast"}
# Of a code. Kernels add and scale terms of up to 2**13 codes (8 bits, scaled by up to 32) with up to 8 roundings of
# float32, each 2**-24 of them.
_NEAR_TIE = 8 * 2.0**-24 * 2**13
_CODES = ("int8", "uint8", "int16", "uint16")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTruth:
    """One executed node beside its simulation.

    Args:
      node: The runtime's name for it.
      kernel: Operator.
      outputs: Elements that were compared.
      equal: Elements that are equal; of floats, those equal to the bit.
      within: Elements at most one code off; of floats, those inside the bound of float32 rounding.
      worst: Largest difference in codes; of floats, in multiples of the bound.
      codes: Whether the output holds codes.
      ties: Elements one code off whose exact value lies halfway between the two, but for rounding of float32: either
        code is as near.
    """

    node: str
    kernel: str
    outputs: int
    equal: int
    within: int
    worst: float
    codes: bool
    ties: int = 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTruth:
    """All executed nodes of one kernel; as in ``NodeTruth``."""

    kernel: str
    codes: bool
    nodes: int
    outputs: int
    equal: int
    within: int
    worst: float
    ties: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What ``check_kernels`` found.

    Args:
      nodes: Each integer node, in order.
      unknown: Kernels that read or write codes and have no simulation, with their count.
      told_as_shipped: Whether the session whose tensors were told answered to the bit as the one that ships.
    """

    nodes: tuple[NodeTruth, ...]
    unknown: Mapping[str, int]
    told_as_shipped: bool


def by_kernel(nodes: Iterable[NodeTruth]) -> tuple[KernelTruth, ...]:
    """Returns the nodes added up by kernel and kind of output, most outputs first."""
    groups: dict[tuple[str, bool], list[NodeTruth]] = {}
    for node in nodes:
        groups.setdefault((node.kernel, node.codes), []).append(node)
    found = [
        KernelTruth(
            kernel=kernel,
            codes=codes,
            nodes=len({n.node for n in group}),
            outputs=sum(n.outputs for n in group),
            equal=sum(n.equal for n in group),
            within=sum(n.within for n in group),
            worst=max(n.worst for n in group),
            ties=sum(n.ties for n in group),
        )
        for (kernel, codes), group in groups.items()
    ]
    return tuple(sorted(found, key=lambda row: -row.outputs))


def check_kernels(model: bytes | Path, feeds: Iterable[Tensors], options: Options | None = None) -> Truth:
    """Returns how far each executed integer node lies from what it must answer.

    The simulation gets the input tensors that the runtime's kernel got, and nothing of its output.

    Args:
      model: The quantized file.
      feeds: Inputs, one mapping a run.
      options: Of the session that ships; those of ``Options()`` where None.
    """
    told = ToldGraph(model, options or Options())
    graph = _Executed(told.proto)
    session = told.telling(graph.tensors_wanted())
    nodes: dict[str, NodeTruth] = {}
    same = True
    for feed in feeds:
        tensors = {**graph.constants, **feed, **session.run(feed)}
        shipped = told.answers(feed)
        same = same and all(tensors[n].tobytes() == v.tobytes() for n, v in shipped.items())
        for name, (kernel, found, simulated) in graph.simulated(tensors):
            one = compare(name, kernel, found, simulated)
            nodes[name] = one if name not in nodes else _added(nodes[name], one)
    return Truth(nodes=tuple(nodes.values()), unknown=graph.unknown, told_as_shipped=same)


def compare(name: str, kernel: str, found: np.ndarray, simulated: Simulated) -> NodeTruth:
    """Returns how far a runtime's output lies from the simulated one.

    Args:
      name: Of the node.
      kernel: Its operator.
      found: The runtime's output.
      simulated: What it must be.
    """
    assert found.shape == simulated.values.shape, f"{name}: {found.shape} is not {simulated.values.shape}"
    if simulated.tolerance is None:
        off = np.abs(found.astype(np.int64) - simulated.values)
        equal, within, worst = off == 0, off <= 1, float(off.max(initial=0))
    else:
        off = np.abs(found.astype(np.float64) - simulated.values)
        bound = np.broadcast_to(simulated.tolerance, off.shape)
        equal, within = found == simulated.values.astype(found.dtype), off <= bound
        ratio = np.divide(off, bound, out=np.where(off > 0, np.inf, 0.0), where=bound > 0)
        worst = float(ratio.max(initial=0.0))
    return NodeTruth(
        node=name,
        kernel=kernel,
        outputs=found.size,
        equal=int(equal.sum()),
        within=int(within.sum()),
        worst=worst,
        codes=simulated.tolerance is None,
        ties=_ties(off == 1, simulated.steps),
    )


def _ties(off: np.ndarray, steps: np.ndarray | None) -> int:
    """Returns how many outputs that are one code off lie halfway between two codes, but for rounding of float32."""
    if steps is None:
        return 0
    near = np.abs(steps - np.floor(steps) - 0.5) <= _NEAR_TIE
    return int((off & near).sum())


def _added(a: NodeTruth, b: NodeTruth) -> NodeTruth:
    return NodeTruth(
        node=a.node,
        kernel=a.kernel,
        outputs=a.outputs + b.outputs,
        equal=a.equal + b.equal,
        within=a.within + b.within,
        worst=max(a.worst, b.worst),
        codes=a.codes,
        ties=a.ties + b.ties,
    )


def answer(node: Any, inputs: list[np.ndarray | None], opset: int) -> tuple[Simulated, ...] | None:
    """Returns what a node of an executed graph must give to its inputs; None for one that does not work on codes.

    Args:
      node: NodeProto.
      inputs: In its order, None where one is left out.
      opset: Of the graph's standard operators.
    """
    from onnx import helper

    kernel = node.op_type
    if kernel not in KERNELS and kernel not in _MOVES:
        return None
    first = next((value for value in inputs if value is not None and value.ndim), inputs[0])
    on_codes = first is not None and first.dtype.name in _CODES
    if not on_codes and kernel not in _FROM_FLOAT and kernel != "QLinearWhere":
        return None
    if kernel in _MOVES:
        return tuple(Simulated(values=moved.astype(np.int64)) for moved in _moved(node, inputs, opset))
    made = simulate(kernel, inputs, {a.name: helper.get_attribute_value(a) for a in node.attribute})
    assert made is not None
    return (made,)


def _moved(node: Any, inputs: list[np.ndarray | None], opset: int) -> list[np.ndarray]:
    from onnx import TypeProto, helper
    from onnx.reference import ReferenceEvaluator

    values = {name: value for name, value in zip(node.input, inputs, strict=True) if value is not None}
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_value_info(name, TypeProto()) for name in values],
        [helper.make_value_info(name, TypeProto()) for name in node.output if name],
    )
    alone = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    found: Any = ReferenceEvaluator(alone).run(None, values)
    return [np.asarray(one) for one in found]


@final
class _Executed:
    """The executed graph, and which of its nodes are worked out anew."""

    def __init__(self, proto: Any) -> None:
        from onnx import numpy_helper

        self._proto = proto
        self.constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        self.unknown: dict[str, int] = {}
        self._opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))

    def _nodes(self) -> list[Any]:
        return [node for node in self._proto.graph.node if node.op_type in KERNELS or node.op_type in _MOVES]

    def tensors_wanted(self) -> list[str]:
        """Returns the inner tensors that these nodes read and write."""
        made = {name for node in self._proto.graph.node for name in node.output if name}
        wanted = [name for node in self._nodes() for name in (*node.input, *node.output)]
        return [name for name in dict.fromkeys(wanted) if name in made]

    def simulated(self, tensors: Mapping[str, np.ndarray]) -> Iterable[tuple[str, tuple[str, np.ndarray, Simulated]]]:
        """Yields (node, (kernel, what the runtime gave, what it must be)) for each output of each node on codes."""
        self.unknown = self._without_simulation(tensors)
        for node in self._nodes():
            made = answer(node, [tensors[name] if name else None for name in node.input], self._opset)
            for output, one in zip(node.output, made or (), strict=False):
                if output in tensors:
                    yield node.name or node.output[0], (node.op_type, tensors[output], one)

    def _without_simulation(self, tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
        known, found = {*KERNELS, *_MOVES, *_NO_CODES}, dict[str, int]()
        for node in self._proto.graph.node:
            codes = any(tensors[n].dtype.name in _CODES for n in (*node.input, *node.output) if n in tensors)
            if node.op_type not in known and codes:
                found[node.op_type] = found.get(node.op_type, 0) + 1
        return found
