"""What a target says: rules for operators, formats for tensors. Values only; ``placement`` applies them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import final

from fewbits.numerics.format import Int
from fewbits.planning.site import GraphView, OpView


class Kind(StrEnum):
    """How an operator takes part in a quantized graph."""

    WEIGHTED = "weighted"  # has a constant weight: worth running in integers for its own sake
    LIGHT = "light"  # runs in integers only to keep a chain of integer operators unbroken
    MOVES = "moves"  # moves elements: output and input share scale and zero point, Q/DQ around it vanish
    MOVES_CODES = "moves-codes"  # moves elements, but the runtime keeps the Q/DQ: emitted on the codes themselves
    CLIPS = "clips"  # saturation does it for free behind an integer operator; elsewhere a clip of the codes
    FUSED = "fused"  # float, without a kernel of its own: part of the integer operator before it, or of the Q behind it
    PAIRED = "paired"  # multiplies two changing matrices: in integers only where asked for, as it rounds both
    SCALES = "scales"  # multiplies by a number: the next DequantizeLinear gets another scale, and the operator vanishes


class Output(StrEnum):
    """Whether an integer operator needs a quantized output."""

    REQUIRED = "required"
    OPTIONAL = "optional"
    UNLESS_ADDED = "unless-added"  # only where a fixed row is added behind it, which the runtime would fuse in float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """When a rule holds.

    Args:
      slug: Short name of the rule that is broken where it does not, shown in island tables.
      text: The condition in words, read behind "because it does not hold that".
      holds: The test.
    """

    slug: str
    text: str
    holds: Callable[[OpView, GraphView], bool]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OpRule:
    """What the target does with one operator type.

    Args:
      kind: How it takes part.
      runs_as: The kernel family that runs it in integers.
      weight: Index of the weight input; None without.
      bias: Index of the bias input; None without.
      axis: Output channel axis of the weight, from the node.
      activations: Indices of the quantized inputs; None for all that are not weight or bias.
      output: Whether a quantized output is needed.
      conditions: All must hold.
    """

    kind: Kind
    runs_as: str
    weight: int | None = None
    bias: int | None = None
    axis: Callable[[OpView], int] = lambda op: 0
    activations: tuple[int, ...] | None = None
    output: Output = Output.REQUIRED
    conditions: tuple[Condition, ...] = ()

    def activation_inputs(self, op: OpView) -> tuple[str, ...]:
        """Returns the names of the tensors that are quantized as activations or constants."""
        if self.activations is not None:
            return tuple(op.inputs[i] for i in self.activations if i < len(op.inputs) and op.inputs[i])
        return tuple(name for i, name in enumerate(op.inputs) if name and i not in (self.weight, self.bias))

    def weight_input(self, op: OpView) -> str | None:
        """Returns the name of the weight tensor, None without one."""
        return None if self.weight is None else op.inputs[self.weight]

    def bias_input(self, op: OpView) -> str | None:
        """Returns the name of the bias tensor, None without one."""
        if self.bias is None or self.bias >= len(op.inputs):
            return None
        return op.inputs[self.bias] or None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRule:
    """How an operator of the runtime holds a weight in blocks that share a scale, in few bits.

    Args:
      axis: Axis of the weight along which blocks lie, from the node.
      bits: Widths of the codes.
      runs_as: The operator that it becomes, with what there is to know of its numbers.
      conditions: All must hold; beside them the weight is a matrix that this node alone reads.
      multiplies: Index of the input that is multiplied with the weight along the blocks' axis; None where rows are
        picked.
    """

    axis: Callable[[OpView], int]
    bits: tuple[int, ...]
    runs_as: str
    conditions: tuple[Condition, ...] = ()
    multiplies: int | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRule:
    """What the target does with an operator whose weights alone are stored in codes, behind a DequantizeLinear.

    Args:
      weights: Indices of the inputs that are weights.
      axis: Axis along which the scales lie, from the node.
      runs_as: What becomes of it, in words.
      blocks: How it holds a weight in blocks; None where it cannot.
    """

    weights: tuple[int, ...]
    axis: Callable[[OpView], int]
    runs_as: str
    blocks: BlockRule | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicRule:
    """What the target does with an operator whose inputs are quantized as they come, by the range of each run.

    Args:
      weights: Indices of the inputs that are weights, all fixed.
      axis: Output channel axis of the weights, from the node.
      runs_as: The kernel family that runs it.
      conditions: All must hold.
      coarse: Whether the kernel is faster where a weight has one scale.
    """

    weights: tuple[int, ...]
    axis: Callable[[OpView], int]
    runs_as: str
    conditions: tuple[Condition, ...] = ()
    coarse: bool = False

    def weight_inputs(self, op: OpView) -> tuple[str, ...]:
        """Returns the names of the weights."""
        return tuple(op.inputs[i] for i in self.weights)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What an instruction set changes.

    Args:
      activation: Format of activations.
      weight: Format of weights.
      pair_limit: Largest |w_i| + |w_j| of two weight codes of a channel whose products the kernel adds at 16 bits;
        None where it adds them exactly.
      note: One line for ``fewbits targets``.
      precision: In which numbers what is float in the file is computed: ``f32`` or ``bf16``.
    """

    activation: Int
    weight: Int
    pair_limit: int | None
    note: str
    precision: str = "f32"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What one runtime accepts.

    Args:
      name: Catalog name.
      runtime: Name of the runtime in the runtimes' catalog.
      exporter: Name of the exporter in the exporters' catalog.
      summary: One line.
      rules: By operator type of the standard domain.
      scaling: Rules of operators that multiply by a number; where one's conditions fail, ``rules`` counts.
      paired: Rules of operators that may multiply two changing matrices, the same way. These are quantized where they
        are written, before what moves them; signed and symmetric where they may be negative.
      float_reasons: Why operators without a rule stay float, where more is known than that they have none.
      stored: Operators whose weights alone may be stored in codes.
      dynamic: Operators that may quantize their inputs as they come.
      variants: By instruction set.
      isa: The instruction set in force.
      sources: Where the rules come from.
      schemes: Names of the schemes that ``--scheme`` may ask of it, beside those with blocks.
      block_sizes: Elements that may share a scale where weights are stored in blocks.
      default_block: So many where codes of 4 bits and fewer are asked for without a size.
      accuracy_level: How exactly the runtime's block operators compute, in its own numbers; None where it has no such.
      weight_zero_points: Whether zero points of weights are written where they are all 0.
      seizes_float: Whether the runtime makes integers of float layers between DQ and Q by itself, which is prevented.
    """

    name: str
    runtime: str
    exporter: str
    summary: str
    rules: Mapping[str, OpRule]
    float_reasons: Mapping[str, str]
    variants: Mapping[str, Variant]
    isa: str
    scaling: Mapping[str, OpRule] = field(default_factory=dict)
    paired: Mapping[str, OpRule] = field(default_factory=dict)
    stored: Mapping[str, StoredRule] = field(default_factory=dict)
    dynamic: Mapping[str, DynamicRule] = field(default_factory=dict)
    sources: tuple[str, ...] = field(default=())
    schemes: tuple[str, ...] = ("w8a8", "w8a16")
    by_scheme: bool = False
    block_sizes: tuple[int, ...] = ()
    default_block: int = 32
    accuracy_level: int | None = None
    weight_zero_points: bool = True
    seizes_float: bool = True

    @property
    def full_name(self) -> str:
        """Name with the instruction set, e.g. ``ort-cpu:vnni``."""
        return f"{self.name}:{self.isa}"

    @property
    def dynamic_weight(self) -> Int:
        """Format of weights beside inputs that are quantized as they come."""
        return Int(bits=8, signed=True)

    @property
    def centred(self) -> Int:
        """Format of what a product of two changing matrices reads, where it may be negative."""
        return Int(bits=self.variant.activation.bits, signed=True)

    @property
    def variant(self) -> Variant:
        """What the instruction set in force changes."""
        return self.variants[self.isa]

    def for_instruction_set(self, isa: str) -> Target:
        """Returns the target with another instruction set in force."""
        return replace(self, isa=isa)
