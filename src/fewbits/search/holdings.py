"""What a model holds besides the nodes that a target judges: inner graphs, shared weights, data files, its axes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from fewbits.models.onnx.external import external_tensors, real_path
from fewbits.models.onnx.model import InputSpec, OnnxModel
from fewbits.models.onnx.protobuf import parse, read_file, tensors

if TYPE_CHECKING:
    import onnx_ir as ir


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class InnerWeight:
    """A floating-point tensor that is fixed inside a node's own graph, or in a function.

    Args:
      node: The node of the main graph that holds it, or the function.
      op: Its operator; ``function`` for a function.
      body: The attribute whose graph it stands in, e.g. ``then_branch``; empty for a function.
      tensor: Its name there.
      bytes: Its size.
      site: Its name in plans, with its place; empty where nothing can be stored in codes.
    """

    node: str
    op: str
    body: str
    tensor: str
    bytes: int
    site: str = ""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SharedWeight:
    """A floating-point tensor of the file that several nodes read; it is quantized once, or not at all.

    Args:
      tensor: Its name.
      bytes: Its size.
      readers: The nodes, in graph order.
    """

    tensor: str
    bytes: int
    readers: tuple[str, ...]


def inner_weights(model: OnnxModel) -> tuple[InnerWeight, ...]:
    """Returns the weights inside If, Loop, Scan and other nodes with graphs, and those of functions left in place."""
    from fewbits.models.onnx.bodies import inner_names

    found = []
    names = inner_names(model.ir_model.graph)
    for node in model.ir_model.graph:
        for attribute in node.attributes.values():
            kind = attribute.type.name
            bodies = (attribute.value,) if kind == "GRAPH" else attribute.value if kind == "GRAPHS" else ()
            for body in bodies:
                found += [
                    InnerWeight(
                        node=node.name or "",
                        op=node.op_type,
                        body=attribute.name,
                        tensor=value.name or "",
                        bytes=size,
                        site=names.get(value, ""),
                    )
                    for value, size in _weights_in(body)
                ]
    for function in model.ir_model.functions.values():
        name = f"{function.domain}::{function.name}" if function.domain else function.name
        found += [
            InnerWeight(node=name, op="function", body="", tensor=value.name or "", bytes=size)
            for value, size in _weights_in(function.graph)
        ]
    return tuple(found)


def _weights_in(top: ir.Graph) -> Iterator[tuple[ir.Value, int]]:
    """Yields tensor and bytes of each floating-point tensor that is fixed in a graph or in the graphs inside it."""
    for graph in (top, *top.subgraphs()):
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype.is_floating_point():
                yield value, int(value.const_value.nbytes)
        for node in graph:
            held = node.attributes.get("value") if node.op_type == "Constant" else None
            if held is not None and held.value.dtype.is_floating_point():
                yield node.outputs[0], int(held.value.nbytes)


def shared_weights(model: OnnxModel) -> tuple[SharedWeight, ...]:
    """Returns the weights with several readers, the largest first; single numbers and vectors are no news."""
    consumers = model.view.consumers
    found = []
    for name, value in model.ir_model.graph.initializers.items():
        constant, readers = value.const_value, consumers.get(name, ())
        if constant is None or len(constant.shape) < 2 or not constant.dtype.is_floating_point() or len(readers) < 2:
            continue
        names = tuple(reader.name for reader in readers)
        found.append(SharedWeight(tensor=name, bytes=int(constant.nbytes), readers=names))
    return tuple(sorted(found, key=lambda weight: -weight.bytes))


def custom_operators(model: OnnxModel) -> dict[str, dict[str, int]]:
    """Returns how often each operator of another domain than ONNX's own stands in the model, inner graphs included."""
    import onnx_ir as ir

    found: dict[str, Counter[str]] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.ir_model.graph):
        if node.domain not in ("", "ai.onnx"):
            found.setdefault(node.domain, Counter())[node.op_type] += 1
    return {domain: dict(counts) for domain, counts in found.items()}


def data_files(model: OnnxModel, path: Path) -> dict[str, int]:
    """Returns the sizes in bytes of the files that hold weights of a model, by the name that the model gives them.

    A file whose own hash is the model's has none: there is nothing to look up, however large it is.
    """
    if hashlib.sha256(model.original).hexdigest() == model.sha256:
        return {}
    proto: Any = parse(read_file(path), path.name)
    entries = external_tensors(tensors(proto), path)
    return {e.location: real_path(path, e.tensor, e.location).stat().st_size for e in entries}


def axes_in_words(spec: InputSpec) -> str:
    """Returns what may change of an input from run to run.

    >>> axes_in_words(InputSpec(name="x", dtype="float32", shape=(None, 3, None)))
    'any batch; axis 2 may change from run to run'
    >>> axes_in_words(InputSpec(name="x", dtype="float32", shape=(1, 3)))
    'fixed batch of 1'
    >>> axes_in_words(InputSpec(name="x", dtype="float32", shape=()))
    'a single number, without an axis for a batch'
    """
    if not spec.shape:
        return "a single number, without an axis for a batch"
    first = "any batch" if spec.shape[0] is None else f"fixed batch of {spec.shape[0]}"
    free = [str(axis) for axis, size in enumerate(spec.shape) if axis and size is None]
    if not free:
        return first
    return f"{first}; {'axis' if len(free) == 1 else 'axes'} {', '.join(free)} may change from run to run"
