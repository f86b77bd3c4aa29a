"""What a model file may not be, refused before anything is computed with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbits._base.errors import ModelError
from fewbits._base.limits import MAX_DIMENSIONS, MAX_GRAPH_DEPTH, MAX_NODE_INPUTS, MAX_NODES
from fewbits.models.onnx.external import stored_bytes
from fewbits.models.onnx.protobuf import graphs, opset, tensors
from fewbits.models.onnx.weights import slabs

# The first version for which converters exist and that ONNX Runtime takes.
OLDEST_OPSET = 7
# Per-channel scales need it (QuantizeLinear-13).
MIN_OPSET = 13
# Operators whose fixed operands may be infinite on purpose.
_MASKING = {"Where", "Clip", "Max", "Min", "Add"}
_QUANTIZED_OPS = {
    "QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
    "DynamicQuantizeLinear", "MatMulNBits", "MatMulBnb4", "QGemm", "QAttention", "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat", "QLinearAdd",
}  # fmt: skip


def refuse_lies(proto: Any, name: str) -> None:
    """Raises where a shape claims more, or less, than the file holds; nothing of what it claims is allocated."""
    for tensor in tensors(proto):
        if any(d < 0 for d in tensor.dims):
            raise ModelError(
                f"{name}: tensor {tensor.name!r} has a negative dimension {list(tensor.dims)}; export it again",
                slug="model-invalid",
            )
        needed = stored_bytes(tensor)
        if needed is None or tensor.data_location == 1:
            continue
        held = len(tensor.raw_data) if tensor.HasField("raw_data") else None
        if held is not None and held != needed:
            raise ModelError(
                f"{name}: tensor {tensor.name!r} of shape {list(tensor.dims)} needs {needed} bytes, the file holds "
                f"{held}; copy or export it again",
                slug="model-invalid",
            )
        if held is None and needed > 16 * max(1, tensor.ByteSize()):  # typed fields: a byte at least for each element
            raise ModelError(
                f"{name}: tensor {tensor.name!r} of shape {list(tensor.dims)} needs {needed} bytes, the file holds "
                f"{tensor.ByteSize()}; copy or export it again",
                slug="model-invalid",
            )


def refuse_shapes(proto: Any, name: str) -> None:
    """Raises for inputs and outputs that no tensor can be: negative or huge dimensions, too many of them."""
    for value in (*proto.graph.input, *proto.graph.output):
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if len(dims) > MAX_DIMENSIONS or any(not 0 <= d < 2**31 for d in dims):
            raise ModelError(
                f"{name}: {value.name!r} has a shape that no tensor has, {str(dims)[:100]}; export it again",
                slug="model-invalid",
            )


def refuse_sparse(proto: Any, name: str) -> None:
    """Raises for weights in the sparse form, which the graph library drops without a word."""
    for graph in graphs(proto):
        if getattr(graph, "sparse_initializer", ()):
            label = graph.sparse_initializer[0].values.name
            raise ModelError(
                f"{name}: weight {label!r} is stored sparse, which fewbits does not read; save it dense",
                slug="model-sparse",
            )


def refuse_excess(proto: Any, name: str) -> None:
    """Raises for graphs nested too deeply, and for more nodes than any network has."""
    waiting = [(graph, 1) for graph in (proto.graph, *proto.functions)]
    count = 0
    while waiting:
        graph, depth = waiting.pop()
        count += len(graph.node) + len(getattr(graph, "initializer", ()))
        if depth > MAX_GRAPH_DEPTH:
            raise ModelError(
                f"{name}: graphs are nested more than {MAX_GRAPH_DEPTH} deep; export it without so many If and Loop",
                slug="model-excessive",
            )
        if count > MAX_NODES:
            raise ModelError(
                f"{name} has more than {MAX_NODES} nodes and weights; no network has", slug="model-excessive"
            )
        for node in graph.node:
            if len(node.input) > MAX_NODE_INPUTS:
                raise ModelError(
                    f"{name}: node {node.name!r} has {len(node.input)} inputs; no operator needs so many",
                    slug="model-excessive",
                )
            for attribute in node.attribute:
                inner = [attribute.g] if attribute.HasField("g") else attribute.graphs
                waiting.extend((one, depth + 1) for one in inner)
    _refuse_endless_functions(proto, name)


def _refuse_endless_functions(proto: Any, name: str) -> None:
    """Raises where functions call each other in a circle, or where written out they would exceed all bounds."""
    bodies = {(f.domain, f.name): f for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(key: tuple[str, str], above: tuple[tuple[str, str], ...]) -> int:
        if len(above) > MAX_GRAPH_DEPTH:
            raise ModelError(
                f"{name}: functions call each other more than {MAX_GRAPH_DEPTH} deep; export it again",
                slug="model-excessive",
            )
        if key in above:
            raise ModelError(f"{name}: function {key[1]!r} calls itself; export it again", slug="model-invalid")
        if key not in sizes:
            calls = [(n.domain, n.op_type) for g in graphs_of(bodies[key]) for n in g.node]
            sizes[key] = len(calls) + sum(size(call, (*above, key)) for call in calls if call in bodies)
        return sizes[key]

    total = sum(
        size((node.domain, node.op_type), ())
        for graph in graphs_of(proto.graph)
        for node in graph.node
        if (node.domain, node.op_type) in bodies
    )
    if total > MAX_NODES:
        raise ModelError(
            f"{name} has more than {MAX_NODES} nodes once its functions are written out; no network has",
            slug="model-excessive",
        )


def graphs_of(graph: Any) -> Iterator[Any]:
    """Yields a graph or function body and every graph inside its nodes."""
    waiting = [graph]
    while waiting:
        one = waiting.pop()
        yield one
        for node in one.node:
            for attribute in node.attribute:
                waiting.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)


def refuse_opset(proto: Any, name: str) -> None:
    """Raises for operator sets that nothing reads any more."""
    if opset(proto) < OLDEST_OPSET:
        raise ModelError(
            f"{name} uses opset {opset(proto)}, older than {OLDEST_OPSET}, the first that runtimes read; "
            f"export it again with opset {MIN_OPSET} or newer",
            slug="opset-too-old",
        )


def refuse_invalid(proto: Any, data: bytes, name: str) -> None:
    """Raises where onnx's own checker finds a fault; what lies in other files was checked before, by our own rules."""
    import onnx

    if any(tensor.data_location == 1 for tensor in tensors(proto)):
        data = _without_external(proto)
    try:
        onnx.checker.check_model(data)
    except onnx.checker.ValidationError as error:
        detail = next((line for line in str(error).splitlines() if line.strip()), "invalid")[:300]
        raise ModelError(f"{name} is not a valid ONNX model: {detail}", slug="model-invalid") from error
    except (ValueError, RuntimeError, RecursionError) as error:
        detail = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(f"{name} is not a valid ONNX model: {detail}", slug="model-invalid") from error


def _without_external(proto: Any) -> bytes:
    """Returns a model in which tensors of other files are empty: the checker looks for these in the working folder."""
    copy = type(proto)()
    copy.CopyFrom(proto)
    for tensor in tensors(copy):
        if tensor.data_location == 1:
            tensor.ClearField("data_location")
            del tensor.external_data[:]
            tensor.dims[:] = [0]
    return bytes(copy.SerializeToString())


def refuse_training(proto: Any, name: str) -> None:
    """Refuses a model whose answers depend on which examples share a batch."""
    for node in proto.graph.node:
        if node.op_type == "BatchNormalization" and any(a.name == "training_mode" and a.i for a in node.attribute):
            raise ModelError(
                f"{name} was exported in training mode (BatchNormalization {node.name!r} normalizes by the batch); "
                "call model.eval() and export again",
                slug="training-mode",
            )


def refuse_quantized(proto: Any, name: str) -> None:
    """Refuses a model that already computes in integers."""
    found = [node for graph in graphs(proto) for node in graph.node if node.op_type in _QUANTIZED_OPS]
    if found:
        raise ModelError(
            f"{name} is already quantized ({len(found)} such nodes, the first a {found[0].op_type} "
            f"{found[0].name!r}); give the float model",
            slug="already-quantized",
        )


def refuse_nonfinite_weights(model: ir.Model, name: str) -> None:
    """Refuses NaN anywhere, and infinite values but in bounds and masks."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            _refuse_nonfinite(value.const_value, value.name, _is_mask(value), name)
        for node in graph:
            if node.op_type == "Constant" and "value" in node.attributes:
                output = node.outputs[0]
                _refuse_nonfinite(node.attributes["value"].value, output.name, _is_mask(output), name)


def _is_mask(value: ir.Value) -> bool:
    """Returns whether infinite values are meant: bounds and masks, which other operators than layers read."""
    return all(use.node.op_type in _MASKING for use in value.uses())


def _refuse_nonfinite(tensor: Any, label: str | None, mask: bool, name: str) -> None:
    if tensor is None or tensor.dtype.name not in ("FLOAT", "DOUBLE", "FLOAT16"):
        return
    bad: Callable[[np.ndarray], np.ndarray] = np.isnan if mask else lambda values: ~np.isfinite(values)
    shape = tuple(int(d) for d in tensor.shape)
    count, first, seen = 0, -1, 0
    try:
        for slab in slabs(tensor):
            slab = slab.reshape(-1)
            found = np.flatnonzero(bad(slab))
            if len(found) and not count:
                first = seen + int(found[0])
            count += len(found)
            seen += slab.size
    except (ValueError, OSError, RuntimeError) as error:
        raise ModelError(f"{name}: tensor {label!r} cannot be read: {error}", slug="model-broken") from error
    if count:
        place = [int(i) for i in np.unravel_index(first, shape)]
        raise ModelError(
            f"{name}: weight {label!r} holds {count} NaN or infinite values, the first at index {place}; "
            "repair or retrain it",
            slug="weight-nonfinite",
        )
