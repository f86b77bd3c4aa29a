"""Which tensors get Q/DQ: a target's rules applied to a graph view. Pure functions on values.

The unit of choice is the node. Given the nodes that shall stay float, the sites follow:
a weighted operator whose conditions hold runs in integers; a light one does where it keeps a chain unbroken (an integer
operator before it, one behind it); a tensor is quantized where an integer operator reads it, or where the integer
operator that writes it needs a quantized output; a clip behind an integer operator is absorbed by its saturation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

from fewbits.numerics.format import Int
from fewbits.numerics.granularity import PerChannel, PerTensor
from fewbits.numerics.scheme import Scheme
from fewbits.planning.site import GraphView, Link, OpView, Role, Site
from fewbits.targets._candidates import Reason, candidate
from fewbits.targets._paired import multiplies_codes, must_be_signed, source_of
from fewbits.targets.base import Kind, OpRule, Output, Target

# Operators through which codes pass: what stands before them and behind them is one chain.
_PASSED_THROUGH = (Kind.MOVES, Kind.MOVES_CODES, Kind.CLIPS, Kind.SCALES)
_COMPUTING = (Kind.WEIGHTED, Kind.LIGHT, Kind.PAIRED)
_BIAS_FORMAT = Int(bits=32, signed=True)


# Why an operator through which codes could pass stays float, by whether it multiplies.
_PASSED_BY = {
    False: Reason(slug="moves-float", text="moves elements between operators that are float"),
    True: Reason(
        slug="chain-end", text="no integer operator before it and behind it, so integers would only add conversions"
    ),
}
# Nodes are kept float by whoever asks for a placement; what the budget needs in float gets words of its own.
_NO_SLOWER_SO = "left float: the file runs no slower so"
_UNPAIRED = Reason(
    slug="two-changing-matrices",
    text="both of its matrices change, and both would be rounded: a search has it in integers where that is clearly "
    "faster and the budget bears it",
)
_FUSED = Reason(
    slug="fused",
    text="float without a kernel of its own: part of the integer operator before it, or of the Q behind it",
)
_NOT_FUSED = Reason(slug="not-fused", text="no integer operator before it, or no Q behind it, that could take it in")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedSite:
    """A site that is quantized, how, and why.

    Args:
      site: The tensor.
      scheme: How.
      reason: Why, in words.
      stored: Whether the codes are only how it is stored.
      dynamic: Whether the inputs of its node are quantized as they come.
    """

    site: Site
    scheme: Scheme
    reason: str
    stored: bool = False
    dynamic: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a target wants Q/DQ.

    Args:
      sites: Quantized sites in graph order.
      links: Sites that share parameters.
      integer: Names of the nodes that run in integers, in graph order.
      absorbed: Clips that vanish, with the node that takes them in.
      moved: Nodes that move codes.
      kept_float: Every other node, with its reason.
      dynamic: Names of the nodes that quantize their inputs as they come, in graph order.
    """

    sites: tuple[PlacedSite, ...]
    links: tuple[Link, ...]
    integer: tuple[str, ...]
    absorbed: Mapping[str, str]
    moved: tuple[str, ...]
    kept_float: Mapping[str, Reason]
    dynamic: tuple[str, ...] = ()

    @property
    def running(self) -> tuple[str, ...]:
        """Names of all nodes that multiply integers."""
        return (*self.integer, *self.dynamic)


@final
class _Placer:
    """The working state of one placement; built, run and dropped by ``place``."""

    def __init__(self, graph: GraphView, target: Target, keep_float: Iterable[str], paired: Iterable[str]) -> None:
        self.graph = graph
        self.target = target
        self.rules: dict[str, OpRule] = {}
        self.reasons: dict[str, Reason] = {}
        asked, pairs = set(keep_float), set(paired)
        for op in graph.ops:
            found = candidate(op, graph, target)
            if isinstance(found, OpRule) and found.kind is Kind.PAIRED and op.name not in pairs:
                found = _UNPAIRED
            if isinstance(found, Reason):
                self.reasons[op.name] = found
            elif op.name in asked:
                self.reasons[op.name] = Reason(slug="kept-by-choice", text=_NO_SLOWER_SO)
            else:
                self.rules[op.name] = found
        self.integer: set[str] = set()
        self.absorbed: dict[str, str] = {}
        self.quantized: set[str] = set()
        self.links: dict[str, Link] = {}
        self._sources: dict[str, bool] = {}  # of products of two changing matrices, and whether their codes are signed
        self._written: set[str] = set()

    def kind(self, op: OpView) -> Kind | None:
        rule = self.rules.get(op.name)
        return None if rule is None else rule.kind

    def run(self) -> Placement:
        self.integer = {op.name for op in self.graph.ops if self.kind(op) in _COMPUTING}
        self._drop_lonely_light()
        self._absorb()
        self._quantize_tensors()
        return self._result()

    def _absorb(self) -> None:
        """Lets each clip vanish into the integer operator before it, where it is that operator's only reader."""
        self.absorbed = {}
        for op in self.graph.ops:
            if self.kind(op) is not Kind.CLIPS:
                continue
            source = self.graph.producer.get(op.inputs[0])
            alone = len(self.graph.consumers.get(op.inputs[0], ())) == 1 and op.inputs[0] not in self.graph.outputs
            if source is not None and source.name in self.integer and alone:
                self.absorbed[op.name] = source.name

    def unit_output(self, op: OpView) -> str:
        """Returns the tensor that carries the operator's result, behind a clip that it absorbs."""
        for reader in self.graph.consumers.get(op.outputs[0], ()):
            if self.absorbed.get(reader.name) == op.name:
                return reader.outputs[0]
        return op.outputs[0]

    def _before(self) -> None:
        """Finds the tensors that integer operators write, seen through moves; light ones without any go float."""
        self._written = set()
        for op in self.graph.ops:  # in topological order: what stands before is decided
            if op.name in self.integer and self.kind(op) is Kind.LIGHT:
                names = self.rules[op.name].activation_inputs(op)
                if not any(name in self._written for name in names if not self.graph.is_constant(name)):
                    self._leave_float(op, "before it")
            passed = self.kind(op) in _PASSED_THROUGH and op.inputs[0] in self._written
            passed |= self.kind(op) is Kind.FUSED and any(name in self._written for name in op.inputs)
            if (op.name in self.integer and self.kind(op) is not Kind.PAIRED) or passed:
                self._written.update(filter(None, op.outputs))

    def _behind(self) -> bool:
        """Finds the tensors that integer operators read, seen through moves; light ones that none reads go float.

        Returns: whether any did.
        """
        read: set[str] = set()
        before = len(self.integer)
        for op in reversed(self.graph.ops):
            if op.name in self.integer and self.kind(op) is Kind.LIGHT and op.outputs[0] not in read:
                self._leave_float(op, "behind it")
            if op.name in self.integer:
                read.update(self.rules[op.name].activation_inputs(op))
            elif self.kind(op) in _PASSED_THROUGH and any(name in read for name in op.outputs):
                read.add(op.inputs[0])
        return len(self.integer) < before

    def _leave_float(self, op: OpView, where: str) -> None:
        self.integer.discard(op.name)
        text = f"no integer operator {where}, so integers would only add conversions"
        self.reasons[op.name] = Reason(slug="chain-end", text=text)

    def _drop_lonely_light(self) -> None:
        """Leaves light operators float that have no integer operator before them, or none behind."""
        self._before()
        while self._behind():
            self._before()

    def _quantize_tensors(self) -> None:
        for op in self.graph.ops:
            if op.name not in self.integer:
                continue
            rule = self.rules[op.name]
            if rule.kind is Kind.PAIRED:
                continue
            self.quantized.update(rule.activation_inputs(op))
            # A clip is saturation only where a Q follows it; a Gemm with neither would be fused with it in float.
            if output_required(op, rule, self.graph) or self.unit_output(op) != op.outputs[0]:
                self.quantized.add(self.unit_output(op))
        self._quantize_pairs()
        movers = [op for op in self.graph.ops if self._moves(op)]
        for op in reversed(movers):
            wanted = any(name in self.quantized for name in op.outputs)
            source = op.inputs[0]
            ready = source in self.quantized or source in self._written or self._only_feeds(source, op)
            if wanted and ready and not self.graph.is_constant(source):
                self.quantized.add(source)
                self._link(op)
        for op in movers:
            if op.inputs[0] in self.quantized and op.inputs[0] in self._written and op.inputs[0] not in self._sources:
                self._link(op)

    def _quantize_pairs(self) -> None:
        """Quantizes what products of two changing matrices read: where codes are already, else where it is written.

        Their kernels subtract no zero point: codes are signed, but for a first matrix that is never negative.
        """
        found: dict[str, bool] = {}
        for op in self.graph.ops:
            if op.name not in self.integer or self.kind(op) is not Kind.PAIRED:
                continue
            for index, name in enumerate(self.rules[op.name].activation_inputs(op)):
                source, _ = source_of(name, self.graph, self.target, self.quantized)
                found[source] = found.get(source, False) or must_be_signed(index, source, self.graph)
        self._sources = found
        self.quantized |= found.keys()

    def _root(self, name: str) -> tuple[str, float]:
        """Returns the first tensor of a chain of links, and by how much a tensor's values are larger than its own."""
        factor = 1.0
        while name in self.links:
            factor *= self.links[name].factor
            name = self.links[name].root
        return name, factor

    def _moves(self, op: OpView) -> bool:
        """Returns whether an operator's output can have the codes of its input: moved, clipped, or of another scale."""
        kind = self.kind(op)
        return kind in _PASSED_THROUGH and not (kind is Kind.CLIPS and op.name in self.absorbed)

    def _link(self, op: OpView) -> None:
        """Quantizes every output of an operator that moves elements, with the parameters of its input."""
        factor = factor_of(op, self.graph) if self.kind(op) is Kind.SCALES else 1.0
        for name in filter(None, op.outputs):
            self.quantized.add(name)
            self.links[name] = Link(root=op.inputs[0], member=name, node=op.name, factor=factor)

    def _only_feeds(self, name: str, op: OpView) -> bool:
        """Returns whether a graph input goes into this operator alone, and from there into nothing but integers."""
        if name not in self.graph.inputs or len(self.graph.consumers.get(name, ())) != 1:
            return False
        readers = [reader for out in op.outputs for reader in self.graph.consumers.get(out, ())]
        inside = all(reader.name in self.integer or reader.outputs[0] in self.links for reader in readers)
        return inside and not set(op.outputs) & set(self.graph.outputs)

    def _result(self) -> Placement:
        moved = {link.node for link in self.links.values()}
        for op in self.graph.ops:
            if op.name in self.integer or op.name in self.absorbed or op.name in moved or op.name in self.reasons:
                continue
            if self.kind(op) is Kind.FUSED:
                reason = _FUSED if self._fuses(op) else _NOT_FUSED
            elif self.kind(op) is Kind.CLIPS:
                reason = Reason(
                    slug="clip-not-absorbed",
                    text="no integer operator right before it whose only reader it is, so saturation cannot do it",
                )
            else:
                reason = _PASSED_BY[self.kind(op) is Kind.SCALES]
            self.reasons[op.name] = reason
        return Placement(
            sites=tuple(self._sites()),
            links=tuple(self._resolved_links()),
            integer=tuple(op.name for op in self.graph.ops if op.name in self.integer),
            absorbed=dict(self.absorbed),
            moved=tuple(op.name for op in self.graph.ops if op.name in moved),
            kept_float={
                op.name: self.reasons[op.name]
                for op in self.graph.ops
                if op.name in self.reasons and op.name not in self.integer
            },
        )

    def _fuses(self, op: OpView) -> bool:
        """Returns whether an integer kernel takes a float operator in: the one before it, or what writes codes."""
        if op.outputs[0] not in self._written:
            return False
        if sum(not self.graph.is_constant(name) for name in op.inputs if name) == 1:
            return True
        waiting = [op]
        while waiting:
            name = waiting.pop().outputs[0]
            if name in self.quantized:
                return True
            waiting += [r for r in self.graph.consumers.get(name, ()) if self.kind(r) is Kind.FUSED]
        return False

    def _resolved_links(self) -> Iterable[Link]:
        """Yields the links with each member tied to the first root of its chain."""
        for op in self.graph.ops:
            for name in op.outputs:
                link = self.links.get(name)
                if link is not None:
                    root, factor = self._root(name)
                    yield Link(root=root, member=link.member, node=link.node, factor=factor)

    def _sites(self) -> Iterable[PlacedSite]:
        seen: set[str] = set()
        for name in self.graph.inputs:
            if name in self.quantized:
                seen.add(name)
                yield self._activation(name, op="input", node=name, reason="read by an integer operator")
        for op in self.graph.ops:
            yield from self._inner_sites(op, seen)
            for name in op.outputs:
                if name not in self.quantized or name in seen:
                    continue
                seen.add(name)
                by = self.graph.by_name[self.absorbed.get(op.name, op.name)]
                yield self._activation(name, op=by.op, node=by.name, reason=self._why(name, op))

    def _why(self, name: str, op: OpView) -> str:
        if name in self.links:
            root = self.links[name].root
            if self.kind(op) is Kind.SCALES:
                return f"{op.op} by a number goes into the scale: the codes of {root!r}"
            does = "clips the codes" if self.kind(op) is Kind.CLIPS else "only moves elements"
            return f"{op.op} {does}: shares the scale of {root!r}"
        if op.name in self.absorbed:
            return f"{op.op} is done by saturation"
        return "between integer operators" if op.name in self.integer else "read by an integer operator"

    def _inner_sites(self, op: OpView, seen: set[str]) -> Iterable[PlacedSite]:
        """Yields weight, constant operands and bias of an integer node."""
        if op.name not in self.integer:
            return
        rule = self.rules[op.name]
        variant = self.target.variant
        weight, bias = rule.weight_input(op), rule.bias_input(op)
        if weight is not None and weight not in seen:
            seen.add(weight)
            axis = rule.axis(op)
            scheme = Scheme(format=variant.weight, granularity=PerChannel(axis), symmetric=True)
            yield PlacedSite(site=self._site(weight, Role.WEIGHT, op), scheme=scheme, reason=f"runs as {rule.runs_as}")
        for name in rule.activation_inputs(op):
            if self.graph.is_constant(name) and name not in seen:
                seen.add(name)
                scheme = Scheme(format=variant.activation, granularity=PerTensor(), symmetric=False)
                yield PlacedSite(
                    site=self._site(name, Role.CONSTANT, op), scheme=scheme, reason=f"operand of {rule.runs_as}"
                )
        if bias is not None and bias not in seen:
            seen.add(bias)
            scheme = Scheme(format=_BIAS_FORMAT, granularity=PerChannel(0), symmetric=True)
            yield PlacedSite(
                site=self._site(bias, Role.BIAS, op), scheme=scheme, reason="added to the int32 accumulator"
            )

    def _activation(self, name: str, *, op: str, node: str, reason: str) -> PlacedSite:
        centred = self._sources.get(self._root(name)[0], False)
        fmt = self.target.centred if centred else self.target.variant.activation
        scheme = Scheme(format=fmt, granularity=PerTensor(), symmetric=centred)
        shape = self.graph.tensors[name].shape or ()
        site = Site(name=name, role=Role.ACTIVATION, op=op, node=node, shape=shape)
        return PlacedSite(site=site, scheme=scheme, reason=reason)

    def _site(self, name: str, role: Role, op: OpView) -> Site:
        return Site(name=name, role=role, op=op.op, node=op.name, shape=self.graph.tensors[name].shape or ())


def place(graph: GraphView, target: Target, *, keep_float: Iterable[str] = (), paired: Iterable[str] = ()) -> Placement:
    """Returns where the target wants Q/DQ in a graph.

    Args:
      graph: The model, passes done.
      target: The rules.
      keep_float: Names of nodes that shall stay float although they could run in integers.
      paired: Names of nodes that multiply two changing matrices, and shall do so in integers.
    """
    return _Placer(graph, target, keep_float, paired).run()


def integer_nodes(
    graph: GraphView, target: Target, quantized: Iterable[str], *, signed: Iterable[str] = ()
) -> tuple[str, ...]:
    """Returns the nodes that run in integers when just these sites are quantized, in graph order.

    A node does when its rule holds, its weight, bias and activations are quantized, and its output where the rule
    requires it (behind a clip that reads it alone, the clip's output will do). A product of two changing matrices does
    when their codes are ``signed`` and symmetric: so they are where it was asked for, and nowhere else.
    """
    have = set(quantized)
    found = []
    for op in graph.ops:
        rule = candidate(op, graph, target)
        if isinstance(rule, Reason) or rule.kind not in _COMPUTING:
            continue
        if rule.kind is Kind.PAIRED:
            if multiplies_codes(op, rule, graph, target, have, have & set(signed)):
                found.append(op.name)
            continue
        needed = {*rule.activation_inputs(op), *filter(None, (rule.weight_input(op), rule.bias_input(op)))}
        results = _result_of(op, graph, target)
        free = not output_required(op, rule, graph) and len(results) == 1
        if needed <= have and (results & have or free):
            found.append(op.name)
    return tuple(found)


def output_required(op: OpView, rule: OpRule, graph: GraphView) -> bool:
    """Returns whether an operator runs in integers only with a quantized output."""
    if rule.output is not Output.UNLESS_ADDED:
        return rule.output is Output.REQUIRED
    shape = graph.tensors[op.inputs[0]].shape
    if shape is None or (len(shape) > 2 and None in shape):
        return False
    adds = [reader for reader in graph.consumers.get(op.outputs[0], ()) if reader.op == "Add"]
    return any(len(shape) == 2 or graph.is_constant(name) for add in adds for name in add.inputs)


def factor_of(op: OpView, graph: GraphView) -> float:
    """Returns by which number an operator of the kind SCALES multiplies."""
    value = graph.tensors[op.inputs[1]].value
    assert value is not None
    return 1 / value if op.op == "Div" else value


def _result_of(op: OpView, graph: GraphView, target: Target) -> set[str]:
    """Returns the tensors whose quantization makes the operator's output quantized."""
    results = {op.outputs[0]}
    readers = graph.consumers.get(op.outputs[0], ())
    if len(readers) == 1 and op.outputs[0] not in graph.outputs:
        clip = candidate(readers[0], graph, target)
        if isinstance(clip, OpRule) and clip.kind is Kind.CLIPS:
            results.add(readers[0].outputs[0])
    return results
