"""An ONNX model in canonical form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from fewbits.planning.plan import TransformStep
from fewbits.planning.site import GraphView, OpView, TensorView

if TYPE_CHECKING:
    import onnx_ir as ir


@final
@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What the model takes.

    Args:
      name: The input's name.
      dtype: Element type by NumPy's name.
      shape: Dimensions; None where dynamic. The first is the batch, where the model has one.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class OnnxModel:
    """An ONNX model after the passes.

    Args:
      ir_model: The graph in onnx-ir; its weights may be mapped lazily. Not to be changed.
      original: The serialized model as opened, before any pass: the float model that all is compared with.
      sha256: Hash of the file as opened.
      name: File name without folder.
      steps: The passes that changed something, in order.
      renamed: Node names that were mended: new name -> old name.
      annotated: Inner tensors whose type the file stated; what shape inference adds is not written back.
      folder: Where the weights lie that are too large to be brought inside; None where all are inside.
      external_bytes: Bytes of those.
      file_bytes: Bytes of the model on disk, external data included.
      opset: Of the file as it came, before any conversion.
      unrunnable: Why the runtime does not take it; empty where it does, or where it was not asked.
      single: Inputs without an axis of examples: they are fed one example at a time.
    """

    ir_model: ir.Model
    original: bytes
    sha256: str
    name: str
    steps: tuple[TransformStep, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    annotated: frozenset[str] = frozenset()
    folder: Path | None = None
    external_bytes: int = 0
    file_bytes: int = 0
    opset: int = 0
    unrunnable: str = ""
    single: frozenset[str] = frozenset()

    @cached_property
    def view(self) -> GraphView:
        """The neutral view by which targets judge."""
        return graph_view(self.ir_model)

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """What the model takes, in the file's order."""
        tensors = self.view.tensors
        return tuple(
            InputSpec(name=name, dtype=tensors[name].dtype or "float32", shape=tensors[name].shape or ())
            for name in self.view.inputs
        )

    @property
    def parameters(self) -> int:
        """Number of floating-point elements fixed in the file."""
        values = (*self.ir_model.graph.initializers.values(), *self._inner.values())
        return sum(int(v.const_value.size) for v in values if v.const_value is not None and _is_float(v))

    @cached_property
    def _inner(self) -> dict[str, ir.Value]:
        from fewbits.models.onnx.bodies import inner_initializers

        return inner_initializers(self.ir_model.graph)

    def _fixed(self, name: str) -> ir.Value:
        return self._inner[name] if name in self._inner else self.ir_model.graph.initializers[name]

    def weight(self, name: str) -> np.ndarray:
        """Returns a fixed tensor's values."""
        value = self._fixed(name)
        assert value.const_value is not None
        return value.const_value.numpy()

    def slabs(self, name: str) -> Iterator[np.ndarray]:
        """Yields a fixed tensor's values in slabs along the first axis: one that lies in a file is never whole here."""
        from fewbits.models.onnx.weights import slabs

        return slabs(self._fixed(name).const_value)

    def is_outside(self, name: str) -> bool:
        """Returns whether a fixed tensor lies in a file of its own."""
        import onnx_ir as ir

        return isinstance(self._fixed(name).const_value, ir.ExternalTensor)

    def serialized(self, *, extra_outputs: Sequence[str] = ()) -> bytes:
        """Returns the canonical model as protobuf bytes, with inner tensors as outputs besides its own."""
        return serialize(self.ir_model, extra_outputs=extra_outputs)


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def serialize(model: ir.Model, *, extra_outputs: Sequence[str] = ()) -> bytes:
    """Returns an onnx-ir model as protobuf bytes."""
    import onnx
    import onnx_ir as ir

    proto = ir.to_proto(model)
    present = {output.name for output in proto.graph.output}
    for name in extra_outputs:
        if name not in present:
            proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    return bytes(proto.SerializeToString(deterministic=True))


def graph_view(model: ir.Model) -> GraphView:
    """Returns the neutral view of an onnx-ir model's main graph, and of the nodes inside its nodes."""
    from fewbits.models.onnx.bodies import bodies, inner_names

    graph = model.graph
    tensors: dict[str, TensorView] = {}
    inner_name = inner_names(graph)

    def see(value: ir.Value | None) -> str:
        if value is None or value.name is None:
            return ""
        name = inner_name.get(value, value.name)
        if name not in tensors:
            tensors[name] = replace(_tensor_view(value), name=name)
        return name

    def plain(node: ir.Node, name: str, scope: str) -> OpView:
        captured = _captured(node)
        return OpView(
            name=name,
            op=node.op_type,
            domain="" if node.domain == "ai.onnx" else node.domain,
            inputs=(*(see(value) for value in node.inputs), *(see(value) for value in captured)),
            outputs=tuple(see(value) for value in node.outputs),
            attributes={name: _plain(attr) for name, attr in node.attributes.items()},
            has_subgraph=any(attr.type.name in ("GRAPH", "GRAPHS") for attr in node.attributes.values()),
            captured=len(captured),
            scope=scope,
        )

    inputs = tuple(see(value) for value in graph.inputs if not value.is_initializer())
    ops = tuple(plain(node, node.name or "", "") for node in graph)
    outputs = tuple(see(value) for value in graph.outputs)
    inner = []
    for body in bodies(graph):
        inner += [plain(node, name, body.scope) for name, node in body.nodes]
        for value in body.graph.outputs:  # what a body hands out as it is stays as it is
            if value in inner_name:
                tensors[see(value)] = replace(tensors[see(value)], constant=False)
    return GraphView(
        ops=ops,
        tensors=tensors,
        inputs=inputs,
        outputs=outputs,
        opset=model.opset_imports.get("", 0),
        inner=tuple(inner),
    )


def _captured(node: ir.Node) -> list[ir.Value]:
    """Returns the tensors of outer graphs that the graphs inside a node read."""
    import onnx_ir as ir

    inner: set[ir.Value] = set()
    found: dict[ir.Value, None] = {}
    for attribute in node.attributes.values():
        kind = attribute.type.name
        for graph in (attribute.value,) if kind == "GRAPH" else attribute.value if kind == "GRAPHS" else ():
            inner.update((*graph.inputs, *graph.initializers.values()))
            nodes = list(ir.traversal.RecursiveGraphIterator(graph))
            inner.update(output for inside in nodes for output in inside.outputs)
            found.update(dict.fromkeys(value for inside in nodes for value in inside.inputs if value is not None))
            found.update(dict.fromkeys(graph.outputs))
            for sub in graph.subgraphs():
                inner.update((*sub.inputs, *sub.initializers.values()))
    return [value for value in found if value not in inner]


def _tensor_view(value: ir.Value) -> TensorView:
    constant = value.const_value if value.is_initializer() else None
    shape: tuple[int | None, ...] | None = None
    if value.shape is not None:
        shape = tuple(d if isinstance(d, int) else None for d in value.shape)
    elif constant is not None:
        shape = tuple(int(d) for d in constant.shape)  # type: ignore[arg-type]
    dtype = value.dtype if value.dtype is not None else (None if constant is None else constant.dtype)
    single = constant is not None and constant.size == 1 and dtype is not None and not dtype.is_string()
    return TensorView(
        name=value.name or "",
        shape=shape,
        dtype=None if dtype is None else _dtype_name(dtype),
        constant=constant is not None,
        value=float(constant.numpy().reshape(-1)[0]) if single and constant is not None else None,
    )


def _dtype_name(dtype: Any) -> str:
    try:
        return str(np.dtype(dtype.numpy()).name)
    except TypeError:
        return str(dtype.name).lower()


def _plain(attr: Any) -> object:
    kind = attr.type.name
    if kind in ("INT", "FLOAT", "STRING"):
        return attr.value
    if kind in ("INTS", "FLOATS", "STRINGS"):
        return tuple(attr.value)
    return kind
