"""Evaluating what is constant: a weight that is transposed in the file becomes a weight that targets can read."""

from __future__ import annotations

from math import prod
from typing import final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PostconditionError

from fewbits._base.errors import ModelError, ResourceError
from fewbits._base.limits import MIB
from fewbits.models.onnx.editing import CountingPass, constant_of, drop_unread, fresh_name, is_standard
from fewbits.runtimes.base import Options
from fewbits.runtimes.bounded import RUNNER, Bounds

# Larger results are left to the runtime.
_MAX_OUTPUT_BYTES = 64 * 2**20
# A result may be this much larger than what it is made from: folding an Expand must not blow up the file.
_MAX_GROWTH_BYTES = 2**20
# What one node may take; beyond it, it stays as it is.
_BOUNDS = Bounds(seconds=5.0, memory=512 * MIB)
_RANDOM = {
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout",
}  # fmt: skip
# Operators whose result may be much larger than their inputs; evaluated only where its size is known beforehand.
_GROWING = {"ConstantOfShape", "Expand", "Tile", "Range", "Resize", "Upsample", "Pad", "OneHot", "EyeLike", "Loop"}


@final
class FoldConstants(CountingPass):
    """Replaces nodes whose inputs are all fixed in the file, and Shape of a tensor of fixed shape, by their values.

    Each is evaluated alone, in ONNX Runtime without optimizations: the very numbers that the float model computes.
    Requires: nodes sorted, shapes inferred. Ensures: no Transpose of a constant is left that fits the limits.
    """

    def rewrite(self, graph: ir.Graph) -> int:
        count = 0
        for node in list(graph):
            values = self._evaluate(graph, node)
            if values is None:
                continue
            _replace(graph, node, values)
            count += 1
        return count

    def _evaluate(self, graph: ir.Graph, node: ir.Node) -> list[np.ndarray] | None:
        if not _foldable(node):
            return None
        if node.op_type == "Shape":
            return _shape_value(node)
        arrays = {value.name or "": constant_of(value) for value in node.inputs if value is not None}
        if not arrays or any(array is None for array in arrays.values()):
            return None
        feeds = {name: array for name, array in arrays.items() if array is not None}
        limit = min(_MAX_OUTPUT_BYTES, sum(array.nbytes for array in feeds.values()) + _MAX_GROWTH_BYTES)
        if any(_bytes_ahead(node, output) > limit for output in node.outputs):
            return None
        try:
            results = RUNNER.run(_alone(graph, node), feeds, Options(optimize=False), _BOUNDS)
        except (ModelError, ResourceError):
            return None  # an operator or type that the runtime lacks, or a bomb: it stays as it is
        values = [results[output.name] for output in node.outputs if output.name in results]
        return values if sum(value.nbytes for value in values) <= limit else None

    def ensures(self, model: ir.Model) -> None:
        for node in model.graph:
            if node.op_type != "Transpose" or not _foldable(node):
                continue
            array = constant_of(node.inputs[0])
            if array is not None and array.dtype == np.float32 and array.nbytes <= _MAX_OUTPUT_BYTES:
                raise PostconditionError("a Transpose of a constant is left")


def _foldable(node: ir.Node) -> bool:
    if not is_standard(node) or node.op_type in _RANDOM:
        return False
    if any(attribute.type.name in ("GRAPH", "GRAPHS") for attribute in node.attributes.values()):
        return False
    return not any(output.is_graph_output() for output in node.outputs)


def _shape_value(node: ir.Node) -> list[np.ndarray] | None:
    source = node.inputs[0]
    shape = None if source is None else source.shape
    if shape is None or not all(isinstance(d, int) for d in shape):
        return None
    start = node.attributes.get("start")
    end = node.attributes.get("end")
    dims = np.array(list(shape), dtype=np.int64)
    return [dims[slice(None if start is None else int(start.value), None if end is None else int(end.value))]]


def _bytes_ahead(node: ir.Node, output: ir.Value) -> int:
    """Returns how large a result will be: from its inferred shape, beyond every limit where it might grow unseen."""
    if output.shape is not None and output.dtype is not None and all(isinstance(d, int) for d in output.shape):
        return int(prod(d for d in output.shape if isinstance(d, int)) * max(1.0, output.dtype.itemsize))
    return _MAX_OUTPUT_BYTES + 1 if node.op_type in _GROWING else 0


def _alone(graph: ir.Graph, node: ir.Node) -> bytes:
    """Returns a model of this node only, with its constants as inputs."""
    inputs = {value.name: value for value in node.inputs if value is not None}
    copies = {
        name: ir.Value(name=name, type=value.type or ir.TensorType(value.const_value.dtype), shape=_free(value))
        for name, value in inputs.items()
        if value.const_value is not None
    }
    twin = ir.node(
        node.op_type,
        [None if value is None else copies[value.name] for value in node.inputs],
        attributes=dict(node.attributes),
        num_outputs=len(node.outputs),
    )
    outputs = []
    for old, new in zip(node.outputs, twin.outputs, strict=True):
        new.name = old.name
        if old.name and old.uses():
            outputs.append(new)
    model = ir.Model(
        ir.Graph(list(copies.values()), outputs, nodes=[twin], opset_imports=dict(graph.opset_imports), name="alone"),
        ir_version=8,
    )
    proto = ir.to_proto(model)
    return bytes(proto.SerializeToString())


def _free(value: ir.Value) -> ir.Shape:
    assert value.const_value is not None
    return ir.Shape([None] * len(value.const_value.shape))


def _replace(graph: ir.Graph, node: ir.Node, values: list[np.ndarray]) -> None:
    """Puts constants in the place of a node; they take over the names of its outputs."""
    stale = list(node.inputs)
    read = [output for output in node.outputs if output.name and output.uses()]
    for output, array in zip(read, values, strict=True):
        name = output.name
        output.name = fresh_name(graph, f"{name}_unfolded")
        tensor = ir.tensor(np.array(array, order="C"), name=name)
        made = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        ir.convenience.replace_all_uses_with(output, made)
        graph.register_initializer(made)
    graph.remove(node, safe=True)
    drop_unread(graph, stale)
