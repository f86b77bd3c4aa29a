"""Where a tensor may be quantized, and the neutral view of a graph by which targets judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from math import prod
from typing import final


class Role(StrEnum):
    """What a tensor is for."""

    WEIGHT = "weight"
    ACTIVATION = "activation"
    BIAS = "bias"
    CONSTANT = "constant"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A place in a model where a tensor may be quantized.

    Args:
      name: The tensor's name in the model.
      role: What the tensor is for.
      op: Operator type that consumes it (weights, biases) or produces it (activations); ``input`` for graph inputs.
      node: Name of that node; the input's own name for graph inputs.
      shape: Dimensions; None where dynamic.
      dtype: Element type by NumPy's name.
    """

    name: str
    role: Role
    op: str
    node: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Activation sites that share codes, because an op between them only moves elements, clips, or scales them all.

    Args:
      root: The site whose range counts.
      member: A site that takes the root's parameters.
      node: The op that links them.
      factor: The member's scale over the root's; the zero point is the same.
    """

    root: str
    member: str
    node: str
    factor: float = 1.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TensorView:
    """What a target may know of a tensor.

    Args:
      name: The tensor's name.
      shape: Dimensions, None where dynamic; None as a whole where even the rank is unknown.
      dtype: Element type by NumPy's name, or None where unknown.
      constant: Whether the values are fixed in the file.
      value: The value where the constant has a single element, else None.
    """

    name: str
    shape: tuple[int | None, ...] | None
    dtype: str | None
    constant: bool = False
    value: float | None = None

    @property
    def elements(self) -> int:
        """Number of elements, dynamic dimensions counted as 1."""
        return prod(d or 1 for d in self.shape or ())


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OpView:
    """A neutral view of one node.

    Args:
      name: The node's name, unique in its graph.
      op: Operator type, e.g. ``Conv``.
      domain: Operator domain; empty for the standard one.
      inputs: Names of the input tensors; empty where an optional input is left out.
      outputs: Names of the output tensors.
      attributes: Numbers, strings, and tuples of them.
      has_subgraph: Whether the node holds graphs of its own (If, Loop, Scan).
      captured: How many of the inputs, the last ones, are read by those graphs and not by the node itself.
      scope: The graph that it stands in, e.g. ``loop1/body``; empty in the main graph.
    """

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, object] = field(default_factory=dict)
    has_subgraph: bool = False
    captured: int = 0
    scope: str = ""

    @property
    def own_inputs(self) -> tuple[str, ...]:
        """Names of the tensors that the node itself reads."""
        return self.inputs[: len(self.inputs) - self.captured]

    @property
    def label(self) -> str:
        """Operator with its domain where that is not the standard one."""
        return f"{self.domain}::{self.op}" if self.domain else self.op


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class GraphView:
    """A neutral view of a graph: nodes in topological order, tensors by name.

    Args:
      ops: The nodes; a node stands behind all that it reads.
      tensors: Every tensor that a node reads or writes; those of inner graphs by names with their place.
      inputs: Names of the graph's inputs (constants excluded).
      outputs: Names of the graph's outputs.
      opset: Version of the standard operator set.
      inner: The nodes of the graphs inside If, Loop and Scan, whose weights may be stored in codes.
    """

    ops: tuple[OpView, ...]
    tensors: Mapping[str, TensorView]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    inner: tuple[OpView, ...] = ()

    @cached_property
    def producer(self) -> Mapping[str, OpView]:
        """The node that writes each tensor."""
        return {name: op for op in self.ops for name in op.outputs if name}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[OpView, ...]]:
        """The nodes that read each tensor, in graph order; absent where there are none."""
        found: dict[str, list[OpView]] = {}
        for op in self.ops:
            for name in dict.fromkeys(op.inputs):
                if name:
                    found.setdefault(name, []).append(op)
        return {name: tuple(ops) for name, ops in found.items()}

    @cached_property
    def by_name(self) -> Mapping[str, OpView]:
        """Nodes by name, inner ones too."""
        return {op.name: op for op in (*self.inner, *self.ops)}

    @cached_property
    def readers(self) -> Mapping[str, tuple[OpView, ...]]:
        """The nodes that read each tensor themselves, inner ones too, where ``consumers`` has the node around them."""
        found: dict[str, list[OpView]] = {}
        for op in (*self.ops, *self.inner):
            for name in dict.fromkeys(op.own_inputs):
                if name:
                    found.setdefault(name, []).append(op)
        return {name: tuple(ops) for name, ops in found.items()}

    def is_constant(self, name: str) -> bool:
        """Returns whether the tensor's values are fixed in the file."""
        tensor = self.tensors.get(name)
        return tensor is not None and tensor.constant

    def rank(self, name: str) -> int | None:
        """Returns the tensor's rank, None where unknown."""
        tensor = self.tensors.get(name)
        return None if tensor is None or tensor.shape is None else len(tensor.shape)
