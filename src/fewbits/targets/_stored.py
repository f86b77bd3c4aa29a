"""Which weights may be stored in codes while the model goes on computing in its own numbers, and in which codes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, final

from fewbits._base.catalog import nearest
from fewbits._base.errors import TargetError
from fewbits.numerics.format import Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import PerChannel, PerGroup
from fewbits.numerics.scheme import Scheme
from fewbits.numerics.schemes import SCHEMES
from fewbits.planning.site import GraphView, OpView, Role, Site
from fewbits.targets._candidates import Reason
from fewbits.targets._placement import PlacedSite, Placement
from fewbits.targets.base import StoredRule, Target

if TYPE_CHECKING:
    from fewbits.numerics.named import NamedScheme

# A weight of fewer elements is not worth its scales and its DequantizeLinear: about 250 bytes of file.
_LEAST_ELEMENTS = 256
# Few codes need a scale of their own every few weights; a channel's do not do.
_FEW_BITS = 4
# A table of 16 MB and more stays in 16 bits while it is used: 205 MB of float32 took 212 MB when folded, 113 when rows
# are cast as they are picked, and opened in half the time; a run of 4.2 us took 0.4 longer. ONNX Runtime 1.31.1.
LARGE_TABLE = 1 << 22
# What ``--scheme`` may ask in blocks, for the nearest to a name that is none.
_BITS = (2, 4, 8)
_MEANT = "did you mean "
_NONE = Reason(slug="weights-only", text="only weights are quantized, as asked, and it has none")
# Operators that read numbers of a quantized file, not weights: their rounding would be another than the file says.
_READ_SCALES = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul")


def stored_scheme(name: str, named: NamedScheme, target: Target) -> Scheme | None:
    """Returns how a scheme for weights alone stores them: groups along axis -1, or a scale a channel.

    None where the scheme quantizes activations too. Few bits without a group size get the target's.

    Raises: TargetError(slug="scheme-not-written") for formats and group sizes that the target's operators do not hold,
      with the nearest that they do.
    """
    scheme = named.weight.scheme
    if not named.weights_only:
        return None
    if name in target.schemes:
        return scheme
    silent = isinstance(scheme.granularity, PerChannel) and "-channel" not in name
    if target.block_sizes and silent and scheme.format.stored_bits <= _FEW_BITS:
        scheme = replace(scheme, granularity=PerGroup(axis=-1, size=target.default_block))
    plain = scheme == Scheme(format=scheme.format, granularity=scheme.granularity, symmetric=scheme.symmetric)
    if scheme.symmetric and plain:  # said to be stored, scales may be negative: see scales_of_blocks
        scheme = replace(scheme, scale=FORMATS["fp32"])
    size = scheme.granularity.size if isinstance(scheme.granularity, PerGroup) else 0
    if size in target.block_sizes and plain and isinstance(scheme.format, Int) and scheme.format.bits in _BITS:
        return scheme
    raise not_written(name, target, scheme)


def not_written(name: str, target: Target, scheme: Scheme | None = None) -> TargetError:
    """Returns the refusal of a scheme that the target does not write, with the nearest that it does.

    Args:
      name: What was asked for.
      target: The rules.
      scheme: How it would store weights, where it is for weights alone.
    """
    blocks = f", w{{2,4,8}}a16-g{{{','.join(map(str, target.block_sizes))}}}[-asym]" if target.block_sizes else ""
    hint = nearest(name, list(target.schemes))
    near = f"; the nearest is {hint[len(_MEANT) : -1]}" if hint.startswith(_MEANT) else ""
    if (scheme is not None or not near) and target.block_sizes:
        near = f"; the nearest is {_nearest_in_blocks(scheme or SCHEMES[name].weight.scheme, target)!r}"
    elif not near and target.schemes:
        near = f"; the nearest is {_nearest_by_bits(SCHEMES[name].weight.scheme, target)!r}"
    return TargetError(
        f"{target.name} does not write {name!r}{near}; it writes {', '.join(target.schemes)}{blocks} "
        "(fewbits.quantize_array quantizes single arrays to every scheme)",
        slug="scheme-not-written",
    )


def _nearest_by_bits(scheme: Scheme, target: Target) -> str:
    """Returns the target's first scheme whose weights have as many bits, or the fewest more; else the most bits."""
    bits = {known: SCHEMES[known].weight.scheme.format.stored_bits for known in target.schemes}
    enough = [known for known in bits if bits[known] >= scheme.format.stored_bits]
    return min(enough, key=bits.__getitem__) if enough else max(bits, key=bits.__getitem__)


def _nearest_in_blocks(scheme: Scheme, target: Target) -> str:
    """Returns the shorthand with at least as many bits, and the group size of the least ratio to what was asked."""
    bits = next((bits for bits in _BITS if bits >= scheme.format.stored_bits), None)
    if bits is None and "fp16" in target.schemes:
        return "fp16"
    bits = bits or _BITS[-1]
    asked = scheme.granularity.size if isinstance(scheme.granularity, PerGroup) else target.default_block
    size = min(target.block_sizes, key=lambda size: max(size / asked, asked / size))
    return f"w{bits}a16-g{size}{'' if scheme.symmetric else '-asym'}"


def place_stored(graph: GraphView, target: Target, wanted: Scheme | None = None) -> Placement:
    """Returns which weights the target may hold in codes; no node is placed to run in integers.

    A weight whose operator cannot hold blocks is stored a scale a channel, in the target's own weight format. A 16-bit
    float has no scale, and any operator's weight may be one.

    Args:
      graph: The model.
      target: The rules.
      wanted: What ``stored_scheme`` found; None for a scale a channel.
    """
    if wanted is not None and not wanted.scaled:
        return _place_halves(graph, wanted)
    found = _Stored(graph, target, wanted)
    for op in (*graph.ops, *graph.inner):
        found.see(op)
    return found.placement()


def _place_halves(graph: GraphView, wanted: Scheme) -> Placement:
    """Returns which tensors are stored as 16-bit floats: all that are fixed and worth a Cast."""
    name = wanted.format.name
    sites: dict[str, PlacedSite] = {}
    reasons: dict[str, Reason] = {}
    text = f"its weight is stored as {name} and cast to float32 when the file is loaded, as asked: it computes in float"
    for op in (*graph.ops, *graph.inner):
        held = [tensor for tensor in dict.fromkeys(op.own_inputs) if tensor and half_storable(tensor, graph)]
        reasons[op.name] = Reason(slug="weights-only", text=text) if held else _NONE
        for tensor in held:
            shape = graph.tensors[tensor].shape or ()
            site = Site(name=tensor, role=Role.WEIGHT, op=op.op, node=op.name, shape=shape)
            picked = graph.tensors[tensor].elements >= LARGE_TABLE and all(
                reader.op == "Gather" and reader.own_inputs.index(tensor) == 0 for reader in graph.readers[tensor]
            )
            how = "its rows cast to float32 as they are picked"
            reason = f"{name}, {how if picked else 'cast to float32 when the file is loaded'}"
            sites.setdefault(tensor, PlacedSite(site=site, scheme=wanted, reason=reason))
    reasons |= _around(graph, set(sites), reasons)
    return Placement(sites=tuple(sites.values()), links=(), integer=(), absorbed={}, moved=(), kept_float=reasons)


def half_storable(name: str, graph: GraphView) -> bool:
    """Returns whether a tensor is fixed, float32, of a size that is worth a Cast, and read by operators as values."""
    tensor = graph.tensors[name]
    readers = graph.readers.get(name, ())
    return (
        tensor.constant
        and tensor.dtype == "float32"
        and tensor.elements >= _LEAST_ELEMENTS
        and name not in graph.outputs
        and all(reader.domain in ("", "ai.onnx") and reader.op not in _READ_SCALES for reader in readers)
    )


def half_fault(name: str, scheme: Scheme, graph: GraphView, target: Target) -> str | None:
    """Returns why a tensor cannot be stored in a scheme without scales, in words; None where it can."""
    if scheme not in (SCHEMES[known].weight.scheme for known in target.schemes):
        kinds = [known for known in target.schemes if not SCHEMES[known].weight.scheme.scaled]
        return f"without scales it stores {' and '.join(kinds) or 'nothing'}, per-tensor symmetric"
    if not half_storable(name, graph):
        return (
            f"16-bit floats are for fixed float32 tensors of {_LEAST_ELEMENTS} elements and more that no Q or DQ reads"
        )
    return None


def refuse_none_in_blocks(placement: Placement, wanted: Scheme | None, target: Target) -> None:
    """Raises TargetError(slug="nothing-in-blocks") where blocks are wanted, and no weight can be in them."""
    if wanted is None or not isinstance(wanted.granularity, PerGroup) or not placement.sites:
        return
    if any(isinstance(placed.scheme.granularity, PerGroup) for placed in placement.sites):
        return
    first, more = placement.sites[0], len(placement.sites) - 1
    why = first.reason.removeprefix(_instead(first.scheme, wanted)).partition(";")[0]
    raise TargetError(
        f"{target.full_name} can hold no weight of the model in {wanted.format.name}: {first.site.op} "
        f"{first.site.node!r}, weight {first.site.name!r}: {why}{f'; and {more} more weights' if more else ''}; the "
        "nearest that it can hold is --scheme w8a16",
        slug="nothing-in-blocks",
    )


def _instead(scheme: Scheme, wanted: Scheme) -> str:
    return f"{scheme.format.name} a channel, not {wanted.format.name} in blocks: "


@final
class _Stored:
    """The working state of one placement."""

    def __init__(self, graph: GraphView, target: Target, wanted: Scheme | None) -> None:
        self.graph, self.target = graph, target
        self.wanted = wanted if wanted is not None and isinstance(wanted.granularity, PerGroup) else None
        self.sites: dict[str, PlacedSite] = {}
        self.reasons: dict[str, Reason] = {}

    def see(self, op: OpView) -> None:
        rule = stored_rule(op, self.target)
        names = () if rule is None else tuple(name for name in _weights(op, rule) if storable(name, self.graph))
        if rule is None or not names:
            self.reasons[op.name] = _NONE
            return
        apart = next((fault for name in names if (fault := scope_fault(name, self.graph)) is not None), None)
        if apart is not None:
            self.reasons[op.name] = Reason(slug="weights-only", text=apart)
            return
        for name in names:
            self._store(name, op, rule)
        placed = next((self.sites[name] for name in names if name in self.sites), None)
        if placed is not None and self.wanted is not None:
            text = f"its weight is stored as {placed.scheme.name}: {placed.reason}"
        else:
            bits = self.target.variant.weight.bits
            text = f"its weight is stored in {bits} bits and dequantized before use, as asked: it computes in float"
        self.reasons[op.name] = Reason(slug="weights-only", text=text)

    def _store(self, name: str, op: OpView, rule: StoredRule) -> None:
        readers = self.graph.readers[name]
        axis = rule.axis(op)
        if name in self.sites or not all(_agrees(reader, name, axis, self.target) for reader in readers):
            return
        scheme = Scheme(format=self.target.variant.weight, granularity=PerChannel(axis), symmetric=True)
        reason = rule.runs_as
        if self.wanted is not None:
            assert isinstance(self.wanted.granularity, PerGroup) and isinstance(self.wanted.format, Int)
            why = block_fault(name, op, self.wanted.format, self.graph, self.target)
            if why is None:
                assert rule.blocks is not None
                blocks = PerGroup(axis=rule.blocks.axis(op), size=self.wanted.granularity.size)
                scheme, reason = replace(self.wanted, granularity=blocks), rule.blocks.runs_as
            else:
                reason = f"{_instead(scheme, self.wanted)}{why}; {reason}"
        site = Site(name=name, role=Role.WEIGHT, op=op.op, node=op.name, shape=self.graph.tensors[name].shape or ())
        self.sites[name] = PlacedSite(site=site, scheme=scheme, reason=reason)

    def placement(self) -> Placement:
        sites = tuple(self.sites.values())
        reasons = {**self.reasons, **_around(self.graph, set(self.sites), self.reasons)}
        return Placement(sites=sites, links=(), integer=(), absorbed={}, moved=(), kept_float=reasons)


def _around(graph: GraphView, stored: set[str], reasons: dict[str, Reason]) -> dict[str, Reason]:
    """Returns what became of the weights inside each node that holds graphs: stored in codes, or why not."""
    found = {}
    for op in graph.ops:
        inner = [inside for inside in graph.inner if op.has_subgraph and inside.scope.startswith(f"{op.name}/")]
        count = sum(name in stored for name in dict.fromkeys(name for inside in inner for name in inside.own_inputs))
        kept = {}
        for inside in inner:
            left = [name for name in inside.own_inputs if name and name not in stored and storable(name, graph)]
            if left:
                why = reasons[inside.name]
                text = f"{inside.label} has no form with weights in codes" if why == _NONE else why.text
                kept[inside.name.rpartition("/")[2]] = text
        if count or kept:
            amount = "1 weight inside is" if count == 1 else f"{count or 'no'} weights inside are"
            told = "".join(f"; {name}: {text}" for name, text in kept.items())
            found[op.name] = Reason(slug="weights-only", text=f"it computes in float; {amount} stored in codes{told}")
    return found


def block_fault(name: str, op: OpView, fmt: Int, graph: GraphView, target: Target) -> str | None:
    """Returns why an operator cannot hold its weight in blocks of this format, in words; None where it can."""
    rule = stored_rule(op, target)
    blocks = None if rule is None else rule.blocks
    if blocks is None:
        return f"{op.label} has no kernel for weights in blocks"
    if fmt.bits not in blocks.bits:
        return f"{op.label} holds codes of {', '.join(map(str, blocks.bits))} bits"
    readers = graph.readers.get(name, ())
    if len(readers) > 1 or readers[0].inputs.count(name) > 1:
        return f"{len(readers)} operators read it, and blocks are laid out for one"
    if graph.rank(name) != 2:
        return "it is no matrix"
    failed = next((c for c in blocks.conditions if not c.holds(op, graph)), None)
    return None if failed is None else f"it would need that {failed.text}"


def scope_fault(name: str, graph: GraphView) -> str | None:
    """Returns why a weight cannot be stored in codes for the graphs that read it, in words; None where it can.

    ONNX Runtime 1.31.1 does not open a file whose DequantizeLinear stands inside a body and its codes outside
    (TransposeDQWeightsForMatMulNBits looks for them in the body alone), so codes go where they are read; one that
    stands outside for a reader inside runs anew in each run, and took twice as long as the float product.
    """
    scopes = {reader.scope for reader in graph.readers.get(name, ())}
    if len(scopes) < 2:
        return None
    places = ", ".join(repr(scope) if scope else "the main graph" for scope in sorted(scopes))
    return f"its weight {name!r} stays float: {places} read it, and codes lie in one graph"


def stored_rule(op: OpView, target: Target) -> StoredRule | None:
    """Returns the rule by which an operator's weights may be stored in codes, None without one."""
    return target.stored.get(op.op) if op.domain in ("", "ai.onnx") else None


def _weights(op: OpView, rule: StoredRule) -> tuple[str, ...]:
    return tuple(op.inputs[i] for i in rule.weights if i < len(op.inputs) and op.inputs[i])


def storable(name: str, graph: GraphView) -> bool:
    """Returns whether a tensor is a fixed float32 matrix, or more, of a size that is worth it."""
    tensor = graph.tensors[name]
    return (
        tensor.constant
        and tensor.dtype == "float32"
        and len(tensor.shape or ()) >= 2
        and tensor.elements >= _LEAST_ELEMENTS
        and name not in graph.outputs
    )


def _agrees(reader: OpView, name: str, axis: int, target: Target) -> bool:
    """Returns whether a reader can do with the scales along this axis: all can but those that read the codes."""
    rule = stored_rule(reader, target)
    gathers = reader.op == "Gather" and rule is not None and name == reader.inputs[0]
    return axis == 0 and not reader.attributes.get("axis", 0) if gathers else True
