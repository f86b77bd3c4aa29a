"""Which weights may be stored in codes while the model goes on computing in its own numbers, and in which codes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, final

from fewbits._base.catalog import nearest
from fewbits._base.errors import TargetError
from fewbits.numerics.format import Int
from fewbits.numerics.granularity import PerChannel, PerGroup
from fewbits.numerics.scheme import Scheme
from fewbits.planning.site import GraphView, OpView, Role, Site
from fewbits.targets._placement import PlacedSite, Placement, Reason
from fewbits.targets.base import StoredRule, Target

if TYPE_CHECKING:
    from fewbits.numerics.named import NamedScheme

# A weight of fewer elements is not worth its scales and its DequantizeLinear: about 250 bytes of file.
_LEAST_ELEMENTS = 256
# Few codes need a scale of their own every few weights; a channel's do not do.
_FEW_BITS = 4
# What ``--scheme`` may ask in blocks, for the nearest to a name that is none.
_BITS = (2, 4, 8)
_NONE = Reason(slug="weights-only", text="only weights are quantized, as asked, and it has none")


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
    if target.block_sizes and isinstance(scheme.granularity, PerChannel) and scheme.format.stored_bits <= _FEW_BITS:
        scheme = replace(scheme, granularity=PerGroup(axis=-1, size=target.default_block))
    plain = scheme == Scheme(format=scheme.format, granularity=scheme.granularity, symmetric=scheme.symmetric)
    size = scheme.granularity.size if isinstance(scheme.granularity, PerGroup) else 0
    if size in target.block_sizes and plain and isinstance(scheme.format, Int) and scheme.format.bits in _BITS:
        return scheme
    raise not_written(name, target)


def not_written(name: str, target: Target) -> TargetError:
    """Returns the refusal of a scheme that the target does not write, with the nearest that it does."""
    known = [f"w{bits}a16-g{size}{sign}" for bits in _BITS for size in target.block_sizes for sign in ("", "-asym")]
    blocks = f", w{{2,4,8}}a16-g{{{','.join(map(str, target.block_sizes))}}}[-asym]" if known else ""
    hint = nearest(name, [*target.schemes, *known])
    near = f"{hint} " if hint.startswith("did you mean") else ""
    return TargetError(
        f"{target.name} does not write {name!r}; {near}it writes {', '.join(target.schemes)}{blocks} "
        "(fewbits.quantize_array quantizes single arrays to every scheme)",
        slug="scheme-not-written",
    )


def place_stored(graph: GraphView, target: Target, wanted: Scheme | None = None) -> Placement:
    """Returns which weights the target may hold in codes; no node is placed to run in integers.

    A weight whose operator cannot hold blocks is stored a scale a channel, in the target's own weight format.

    Args:
      graph: The model.
      target: The rules.
      wanted: What ``stored_scheme`` found; None for a scale a channel.
    Raises: TargetError(slug="nothing-to-quantize") where blocks are wanted, and no weight of the model can be in them.
    """
    found = _Stored(graph, target, wanted)
    for op in graph.ops:
        found.see(op)
    if wanted is not None and found.in_channels and not found.in_blocks:
        name, op, why = found.in_channels[0]
        more = len(found.in_channels) - 1
        raise TargetError(
            f"no weight can be stored as {wanted.name} on {target.full_name}: {op.label} {op.name!r} with weight "
            f"{name!r}: {why}" + (f", and {more} more" if more else "") + "; nearest: --scheme w8a16",
            slug="nothing-to-quantize",
        )
    return found.placement()


@final
class _Stored:
    """The working state of one placement."""

    def __init__(self, graph: GraphView, target: Target, wanted: Scheme | None) -> None:
        self.graph, self.target = graph, target
        self.wanted = wanted if wanted is not None and isinstance(wanted.granularity, PerGroup) else None
        self.sites: dict[str, PlacedSite] = {}
        self.reasons: dict[str, Reason] = {}
        self.in_blocks: list[str] = []
        self.in_channels: list[tuple[str, OpView, str]] = []

    def see(self, op: OpView) -> None:
        rule = stored_rule(op, self.target)
        names = () if rule is None else tuple(name for name in _weights(op, rule) if storable(name, self.graph))
        if rule is None or not names:
            self.reasons[op.name] = _NONE
            return
        for name in names:
            self._store(name, op, rule)
        held = [self.sites[name].scheme.format.stored_bits for name in names if name in self.sites]
        bits = held[0] if held else self.target.variant.weight.bits
        how = "and multiplied as it is" if bits < self.target.variant.weight.bits else "and dequantized before use"
        text = f"its weight is stored in {bits} bits {how}, as asked: it computes in float"
        self.reasons[op.name] = Reason(slug="weights-only", text=text)

    def _store(self, name: str, op: OpView, rule: StoredRule) -> None:
        readers = self.graph.consumers[name]
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
                self.in_blocks.append(name)
                blocks = PerGroup(axis=rule.blocks.axis(op), size=self.wanted.granularity.size)
                scheme, reason = replace(self.wanted, granularity=blocks), rule.blocks.runs_as
            else:
                self.in_channels.append((name, op, why))
                reason = f"{scheme.format.name} a channel, not {self.wanted.format.name}: {why}; {reason}"
        site = Site(name=name, role=Role.WEIGHT, op=op.op, node=op.name, shape=self.graph.tensors[name].shape or ())
        self.sites[name] = PlacedSite(site=site, scheme=scheme, reason=reason)

    def placement(self) -> Placement:
        sites = tuple(self.sites.values())
        return Placement(sites=sites, links=(), integer=(), absorbed={}, moved=(), kept_float=self.reasons)


def block_fault(name: str, op: OpView, fmt: Int, graph: GraphView, target: Target) -> str | None:
    """Returns why an operator cannot hold its weight in blocks of this format, in words; None where it can."""
    rule = stored_rule(op, target)
    blocks = None if rule is None else rule.blocks
    if blocks is None:
        return f"{op.label} has no kernel for weights in blocks"
    if fmt.bits not in blocks.bits:
        return f"{op.label} holds codes of {', '.join(map(str, blocks.bits))} bits"
    readers = graph.consumers.get(name, ())
    if len(readers) > 1 or readers[0].inputs.count(name) > 1:
        return f"{len(readers)} operators read it, and blocks are laid out for one"
    if graph.rank(name) != 2:
        return "it is no matrix"
    failed = next((c for c in blocks.conditions if not c.holds(op, graph)), None)
    return None if failed is None else f"it would need that {failed.text}"


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
