"""An ONNX file as protobuf: read, parsed, and walked through, graphs inside of nodes and functions included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewbits._base.errors import ModelError

# A protobuf message ends at 2 GiB; larger models keep their weights outside.
_MAX_FILE_BYTES = 2**31 - 1


def read_file(file: Path) -> bytes:
    """Returns the bytes of a file.

    Raises: ModelError(slug="model-unreadable" | "model-empty" | "model-too-large").
    """
    try:
        size = file.stat().st_size
        if file.is_dir():
            raise ModelError(f"{file} is a folder; give the .onnx file in it", slug="model-unreadable")
        if not file.is_file():
            raise ModelError(f"{file} is no regular file; give the .onnx file", slug="model-unreadable")
        if size == 0:
            raise ModelError(f"{file} is empty; export the model again", slug="model-empty")
        if size > _MAX_FILE_BYTES:
            raise ModelError(
                f"{file} has {size} bytes, more than a protobuf file may have (2 GiB); save it with external data",
                slug="model-too-large",
            )
        return file.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror}; check the path", slug="model-unreadable") from error
    except ValueError as error:  # a NUL in the path
        raise ModelError(f"cannot read {str(file)!r}: {error}; check the path", slug="model-unreadable") from error


def parse(data: bytes, name: str) -> Any:
    """Returns the ModelProto; raises ModelError(slug="model-broken") where the bytes are none that could run."""
    import onnx
    from google.protobuf.message import DecodeError

    broken = f"{name} is not a whole ONNX file"
    try:
        proto = onnx.load_model_from_string(data)
    except (DecodeError, RecursionError) as error:
        raise ModelError(
            f"{broken} (the protobuf does not parse); copy or export it again", slug="model-broken"
        ) from error
    if not proto.graph.node or not proto.graph.output:
        missing = "outputs" if proto.graph.node else "nodes"
        raise ModelError(f"{broken} (it holds no {missing}); copy or export it again", slug="model-broken")
    return proto


def graphs(proto: Any) -> Iterator[Any]:
    """Yields the main graph, the bodies of functions, and every graph inside their nodes."""
    waiting = [proto.graph, *proto.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)


def tensors(proto: Any) -> Iterator[Any]:
    """Yields every tensor that a model holds, wherever it stands."""
    for graph in graphs(proto):
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                yield from [attribute.t] if attribute.HasField("t") else attribute.tensors
                if attribute.HasField("sparse_tensor"):
                    yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)


def opset(proto: Any) -> int:
    """Returns the version of the standard operators; 0 where the file states none."""
    return max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def quantizes_batches(model: bytes | Path) -> bool:
    """Returns whether a file quantizes inputs by the range of each run: its answers then depend on the whole batch."""
    proto = parse(model.read_bytes() if isinstance(model, Path) else model, "the model")
    return any(node.op_type.startswith("DynamicQuantize") for graph in graphs(proto) for node in graph.node)
