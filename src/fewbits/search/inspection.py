"""What is in a model, and what a target could do with each node."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import final

from fewbits.measurement.executed import count_macs
from fewbits.models.onnx.model import OnnxModel
from fewbits.models.onnx.opening import open_model
from fewbits.planning.site import Role
from fewbits.targets import Placement, place, resolve_target
from fewbits.targets.base import Target


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """One node and its prospects.

    Args:
      node: Name.
      op: Operator, with its domain where that is not the standard one.
      state: ``integer``, ``absorbed``, ``moves codes`` or ``float``.
      rule: Slug of the rule where float; empty otherwise.
      why: In words.
      macs: Multiply-accumulates of one example; 0 for nodes without.
    """

    node: str
    op: str
    state: str
    rule: str
    why: str
    macs: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What is in a model.

    Args:
      name: File name.
      sha256: Of the file.
      opset: Of the standard operators.
      inputs: Name, type and shape of each.
      outputs: Names.
      parameters: Elements of all weights.
      file_bytes: Size of the file.
      quantizable_bytes: Bytes of the weights that the target would store in 8 bits.
      macs: Multiply-accumulates of one example.
      integer_macs: Those that would run in integers.
      target: Target with its instruction set.
      passes: Graph passes that changed something on opening.
      renamed: Node names that were mended: new -> old.
      nodes: Every node.
      sites: Number of quantizable sites by role.
    """

    name: str
    sha256: str
    opset: int
    inputs: tuple[tuple[str, str, tuple[int | None, ...]], ...]
    outputs: tuple[str, ...]
    parameters: int
    file_bytes: int
    quantizable_bytes: int
    macs: int
    integer_macs: int
    target: str
    passes: tuple[str, ...]
    renamed: dict[str, str]
    nodes: tuple[NodeFacts, ...]
    sites: dict[str, int]

    @property
    def states(self) -> dict[str, int]:
        """Nodes by state."""
        return dict(Counter(node.state for node in self.nodes).most_common())


def inspect_model(path: str, *, target: str) -> Inspection:
    """Returns what is in the model at a path, and what the target could do with it."""
    model, chosen = open_model(path), resolve_target(target)
    placement = place(model.view, chosen)
    macs = count_macs(model.view)
    running = set(placement.integer)
    weights = [p.site for p in placement.sites if p.site.role in (Role.WEIGHT, Role.CONSTANT)]
    return Inspection(
        name=model.name,
        sha256=model.sha256,
        opset=model.view.opset,
        inputs=tuple((spec.name, spec.dtype, spec.shape) for spec in model.inputs),
        outputs=model.view.outputs,
        parameters=model.parameters,
        file_bytes=len(model.original),
        quantizable_bytes=sum(4 * model.view.tensors[site.name].elements for site in weights),
        macs=sum(macs.values()),
        integer_macs=sum(count for name, count in macs.items() if name in running),
        target=chosen.full_name,
        passes=tuple(step.name for step in model.steps),
        renamed=dict(model.renamed),
        nodes=_nodes(model, placement, chosen, macs),
        sites=dict(Counter(p.site.role.value for p in placement.sites)),
    )


def _nodes(model: OnnxModel, placement: Placement, target: Target, macs: dict[str, int]) -> tuple[NodeFacts, ...]:
    running, moved = set(placement.integer), set(placement.moved)
    found = []
    for op in model.view.ops:
        rule, why = "", ""
        if op.name in running:
            state, why = "integer", f"runs as {target.rules[op.op].runs_as}"
        elif op.name in placement.absorbed:
            state, why = "absorbed", f"done by the saturation of {placement.absorbed[op.name]}"
        elif op.name in moved:
            state, why = "moves codes", "moves 8-bit codes; no arithmetic"
        else:
            reason = placement.kept_float[op.name]
            state, rule, why = "float", reason.slug, reason.text
        found.append(NodeFacts(node=op.name, op=op.label, state=state, rule=rule, why=why, macs=macs.get(op.name, 0)))
    return tuple(found)
