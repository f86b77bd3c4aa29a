"""What is in a model, and what a target could do with each node."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import final

from fewbits._base.catalog import nearest
from fewbits._base.errors import UnknownNameError
from fewbits.models.onnx.model import OnnxModel
from fewbits.models.onnx.opening import open_model
from fewbits.numerics.granularity import PerGroup
from fewbits.numerics.schemes import SCHEMES
from fewbits.planning.macs import count_macs
from fewbits.planning.site import OpView, Role
from fewbits.search.holdings import (
    InnerWeight,
    SharedWeight,
    axes_in_words,
    custom_operators,
    data_files,
    inner_weights,
    shared_weights,
)
from fewbits.targets import (
    Placement,
    not_written,
    place_dynamic,
    place_forms,
    place_stored,
    resolve_target,
    stored_scheme,
)
from fewbits.targets.base import Target

# Rule and words for weights whose reader runs in integers, or moves codes, without being quantized itself.
_SMALL = ("constant-operand", "numbers beside the weights, e.g. the ends of a Clip")
# The same for weights of a function that stayed one.
_INNER = ("subgraph", "inside a function")


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
class FloatPart:
    """What stays float for one reason.

    Args:
      rule: Slug of the rule.
      why: In words.
      ops: Nodes by operator.
      bytes: Of the weights that these nodes read, and no site quantizes.
      macs: Multiply-accumulates of one example.
    """

    rule: str
    why: str
    ops: dict[str, int]
    bytes: int
    macs: int


@final
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
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
      quantizable_bytes: Bytes of the weights that the target would store in codes.
      codes_bytes: Bytes of their codes; with the scales where those belong to blocks.
      macs: Multiply-accumulates of one example.
      integer_macs: Those that would run in integers.
      target: Target with its instruction set.
      passes: Graph passes that changed something on opening.
      renamed: Node names that were mended: new -> old.
      nodes: Every node.
      sites: Number of quantizable sites by role.
      weight_bytes: Bytes of all floating-point tensors that are fixed in the file, inner graphs included.
      kept_float: What stays float, by reason, the largest weights and most work first.
      inner_weights: Weights inside the graphs of nodes, and in functions, that stay as they are.
      shared_weights: Weights that several nodes read.
      custom_operators: Operators of other domains than ONNX's own: domain -> operator -> how many.
      axes: By input, which of its axes may change, in words.
      data_files: Bytes of the files beside the model that hold its weights.
    """

    name: str
    sha256: str
    opset: int
    inputs: tuple[tuple[str, str, tuple[int | None, ...]], ...]
    outputs: tuple[str, ...]
    parameters: int
    file_bytes: int
    quantizable_bytes: int
    codes_bytes: int
    macs: int
    integer_macs: int
    target: str
    passes: tuple[str, ...]
    renamed: dict[str, str]
    nodes: tuple[NodeFacts, ...]
    sites: dict[str, int]
    weight_bytes: int
    kept_float: tuple[FloatPart, ...]
    inner_weights: tuple[InnerWeight, ...]
    shared_weights: tuple[SharedWeight, ...]
    custom_operators: dict[str, dict[str, int]]
    axes: dict[str, str]
    data_files: dict[str, int]

    def __str__(self) -> str:
        states = ", ".join(f"{count} {state}" for state, count in self.states.items())
        return (
            f"{self.name}: opset {self.opset}, {self.parameters:,} parameters, {self.file_bytes:,} bytes\n"
            f"{self.target}: {100 * self.integer_share:.1f}% of {self.macs:,} multiply-accumulates in integers, "
            f"{self.quantizable_bytes:,} of {self.weight_bytes:,} bytes of weights in 8 bits\n"
            f"nodes: {states}"
        )

    def __repr__(self) -> str:
        return (
            f"<Inspection of {self.name}: {len(self.nodes)} nodes, {self.parameters:,} parameters, "
            f"{100 * self.integer_share:.1f}% of the work in integers on {self.target}>"
        )

    @property
    def integer_share(self) -> float:
        """Share of the multiply-accumulates that would run in integers; 0 where there are none."""
        return self.integer_macs / self.macs if self.macs else 0.0

    @property
    def states(self) -> dict[str, int]:
        """Nodes by state."""
        return dict(Counter(node.state for node in self.nodes).most_common())


def inspect_model(path: str, *, target: str, scheme: str | None = None, max_memory: int | None = None) -> Inspection:
    """Returns what is in the model at a path, and what the target could do with it, under a scheme if one is named."""
    chosen = resolve_target(target)
    wanted = None if scheme is None else stored_scheme(scheme, SCHEMES[scheme], chosen)
    if scheme is not None and wanted is None and scheme not in chosen.schemes:
        raise not_written(scheme, chosen)
    model = open_model(path, max_memory=max_memory)
    dynamic = scheme is not None and SCHEMES[scheme].dynamic
    plain = place_dynamic(model.view, chosen) if dynamic else place_forms(model.view, chosen)
    placement = plain if wanted is None else place_stored(model.view, chosen, wanted)
    macs = count_macs(model.view)
    running = set(placement.running)
    weights = [p.site for p in placement.sites if p.site.role in (Role.WEIGHT, Role.CONSTANT)]
    inner, stored = inner_weights(model), {placed.site.name for placed in placement.sites}
    left = tuple(weight for weight in inner if weight.site not in stored)
    return Inspection(
        name=model.name,
        sha256=model.sha256,
        opset=model.opset,
        inputs=tuple((spec.name, spec.dtype, spec.shape) for spec in model.inputs),
        outputs=model.view.outputs,
        parameters=model.parameters,
        file_bytes=model.file_bytes,
        quantizable_bytes=sum(4 * model.view.tensors[site.name].elements for site in weights),
        codes_bytes=_codes_bytes(model, placement),
        macs=sum(macs.values()),
        integer_macs=sum(count for name, count in macs.items() if name in running),
        target=chosen.full_name,
        passes=tuple(step.name for step in model.steps),
        renamed=dict(model.renamed),
        nodes=_nodes(model, placement, chosen, macs),
        sites=dict(Counter(p.site.role.value for p in placement.sites)),
        weight_bytes=sum(_weight_bytes(model).values()) + sum(weight.bytes for weight in inner),
        kept_float=_kept_float(model, placement, macs, left),
        inner_weights=left,
        shared_weights=shared_weights(model),
        custom_operators=custom_operators(model),
        axes={spec.name: axes_in_words(spec) for spec in model.inputs},
        data_files=data_files(model, Path(path)),
    )


def _codes_bytes(model: OnnxModel, placement: Placement) -> int:
    """Returns the bytes of the codes of all weights; with the scales where those belong to blocks."""
    bits = 0
    for placed in placement.sites:
        if placed.site.role in (Role.WEIGHT, Role.CONSTANT):
            tensor = model.view.tensors[placed.site.name]
            blocks = isinstance(placed.scheme.granularity, PerGroup)
            shape = tuple(size or 1 for size in tensor.shape or ())
            whole = blocks or not placed.scheme.scaled
            bits += placed.scheme.stored_bits(shape) if whole else 8 * tensor.elements
    return -(-bits // 8)


def _weight_bytes(model: OnnxModel) -> dict[str, int]:
    """Returns the bytes of each floating-point tensor that is fixed in the main graph."""
    values = model.ir_model.graph.initializers.items()
    constants = ((name, value.const_value) for name, value in values)
    return {name: int(c.nbytes) for name, c in constants if c is not None and c.dtype.is_floating_point()}


def _kept_float(
    model: OnnxModel, placement: Placement, macs: dict[str, int], inner: tuple[InnerWeight, ...]
) -> tuple[FloatPart, ...]:
    """Returns what stays float by reason; a weight counts for the first node that reads it."""
    ops: dict[tuple[str, str], Counter[str]] = {}
    sizes: Counter[tuple[str, str]] = Counter()
    work: Counter[tuple[str, str]] = Counter()
    reasons = {name: (reason.slug, reason.text) for name, reason in placement.kept_float.items()}
    for op in model.view.ops:
        if op.name in reasons:
            ops.setdefault(reasons[op.name], Counter())[op.label] += 1
            work[reasons[op.name]] += macs.get(op.name, 0)
    quantized = {placed.site.name for placed in placement.sites}
    for name, size in _weight_bytes(model).items():
        readers = model.view.consumers.get(name, ())
        if name not in quantized:
            sizes[reasons.get(readers[0].name, _SMALL) if readers else _SMALL] += size
    for weight in inner:
        sizes[reasons.get(weight.node, _INNER)] += weight.bytes
    parts = [
        FloatPart(rule=key[0], why=key[1], ops=dict(ops.get(key, Counter())), bytes=sizes[key], macs=work[key])
        for key in dict.fromkeys((*ops, *sizes))
    ]
    return tuple(sorted(parts, key=lambda part: (-part.bytes, -part.macs, -sum(part.ops.values()))))


def _nodes(model: OnnxModel, placement: Placement, target: Target, macs: dict[str, int]) -> tuple[NodeFacts, ...]:
    running, dynamic, moved = set(placement.integer), set(placement.dynamic), set(placement.moved)
    found = []
    for op in model.view.ops:
        rule, why = "", ""
        if op.name in running:
            state, why = "integer", f"runs as {target.rules[op.op].runs_as}"
        elif op.name in dynamic:
            state, why = "integer", f"runs as {target.dynamic[op.op].runs_as}: its input is quantized as it comes"
        elif op.name in placement.absorbed:
            state, why = "absorbed", f"done by the saturation of {placement.absorbed[op.name]}"
        elif op.name in moved:
            state, why = "moves codes", "moves 8-bit codes; no arithmetic"
        else:
            reason = placement.kept_float[op.name]
            state, rule, why = "float", reason.slug, reason.text
        found.append(NodeFacts(node=op.name, op=op.label, state=state, rule=rule, why=why, macs=macs.get(op.name, 0)))
    return tuple(found)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One condition of a rule, and what became of it.

    Args:
      rule: Slug.
      text: In words.
      holds: Whether it does; None where it was not asked, because one before it does not.
    """

    rule: str
    text: str
    holds: bool | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInspection:
    """One node, and everything that its target says of it.

    Args:
      facts: What it would do, and why.
      reads: Name, type and shape of each input, and whether it is fixed in the file; in words.
      writes: The same of each output.
      kind: Kind of the operator's rule; empty without one.
      runs_as: Kernel that runs it in integers; empty without a rule.
      conditions: Of the rule, in the order in which they are asked.
      target: Target with its instruction set.
      sources: Where the target's rules come from.
    """

    facts: NodeFacts
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    kind: str
    runs_as: str
    conditions: tuple[Asked, ...]
    target: str
    sources: tuple[str, ...]


def inspect_node(path: str, name: str, *, target: str) -> NodeInspection:
    """Returns what a target says of one node of a model.

    Raises: UnknownNameError(slug="unknown-name") where the model has no such node, with the nearest name.
    """
    model, chosen = open_model(path), resolve_target(target)
    op = model.view.by_name.get(name)
    if op is None:
        known = sorted(model.view.by_name)
        hint = (
            nearest(name, known) if len(known) <= 20 or "did you mean" in nearest(name, known) else "--all lists them"
        )
        raise UnknownNameError(f"{model.name} has no node {name!r}; {hint}", slug="unknown-name")
    nodes = _nodes(model, place_forms(model.view, chosen), chosen, count_macs(model.view))
    standard = op.domain in ("", "ai.onnx")
    rule = chosen.rules.get(op.op) if standard and not op.has_subgraph else None
    return NodeInspection(
        facts=next(facts for facts in nodes if facts.node == name),
        reads=tuple(_tensor(model, tensor) for tensor in op.inputs if tensor),
        writes=tuple(_tensor(model, tensor) for tensor in op.outputs if tensor),
        kind="" if rule is None else rule.kind.value,
        runs_as="" if rule is None else rule.runs_as,
        conditions=_asked(op, model, chosen) if rule is not None else (),
        target=chosen.full_name,
        sources=chosen.sources,
    )


def _asked(op: OpView, model: OnnxModel, target: Target) -> tuple[Asked, ...]:
    """Returns the conditions up to the first that fails; those behind it may rest on it, and are not asked."""
    found, failed = [], False
    for condition in target.rules[op.op].conditions:
        holds = None if failed else condition.holds(op, model.view)
        failed = failed or holds is False
        found.append(Asked(rule=condition.slug, text=condition.text, holds=holds))
    return tuple(found)


def _tensor(model: OnnxModel, name: str) -> str:
    tensor = model.view.tensors[name]
    shape = "of unknown shape" if tensor.shape is None else f"[{', '.join(str(d or '?') for d in tensor.shape)}]"
    return f"{name}: {tensor.dtype or 'unknown'} {shape}{', fixed in the file' if tensor.constant else ''}"
