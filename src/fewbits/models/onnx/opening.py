"""Opening an ONNX file: checked, brought into canonical form by passes, each pass compared with the model before it."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fewbits._base.errors import ModelError, SecurityError
from fewbits.models.onnx.model import InputSpec, OnnxModel, graph_view, serialize
from fewbits.planning.plan import TransformStep
from fewbits.runtimes.base import Options
from fewbits.runtimes.ort import RUNTIME

MIN_OPSET = 13
# A protobuf message ends at 2 GiB; larger models keep their weights outside.
_MAX_FILE_BYTES = 2**31 - 1
# The batch that dynamic first axes get when a pass is checked; 2 shows an axis mistaken for a fixed one.
_PROBE_BATCH = 2
# A folded weight is rounded once more to float32 (2**-24 relative); a layer of 10**4 products adds errors like their
# square root, and a deep model passes them on: 100 layers * 100 * 2**-24 = 6e-4 of the output's largest magnitude.
_PASS_TOLERANCE = 1e-3
# Share of the elements of an integer output (indices, classes) that may change: near-ties fall either way.
_PASS_CHANGED_INDICES = 0.01
# Passes that make a model readable without rewriting what it computes.
_READING_PASSES = frozenset({"mend_names", "initializers_from_inputs", "sort", "infer_shapes"})
# Operators whose fixed operands may be infinite on purpose.
_MASKING = {"Where", "Clip", "Max", "Min", "Add"}
_QUANTIZED_OPS = {
    "QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
    "DynamicQuantizeLinear", "MatMulNBits", "MatMulBnb4", "QGemm", "QAttention", "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat", "QLinearAdd",
}  # fmt: skip


def open_model(path: str | os.PathLike[str], *, to_quantize: bool = True) -> OnnxModel:
    """Returns the model in canonical form.

    Args:
      path: An ONNX file of opset 13 or newer, float weights.
      to_quantize: If false the model is only to be run: any opset, quantized or not, and no pass rewrites it.
    Raises: ModelError for a file that is missing, empty, broken, too old, already quantized, or holds NaN or infinite
      weights; SecurityError for external data outside the model's folder.
    """
    import onnx_ir as ir

    file = Path(path)
    try:
        return _open(file, to_quantize=to_quantize)
    except (UnicodeDecodeError, ir.serde.SerdeError) as error:
        # protobuf decodes text when it is read, so a damaged name may show anywhere
        raise ModelError(
            f"{file.name} is not a whole ONNX file (a name in it is no text); copy or export it again",
            slug="model-broken",
        ) from error


def _open(file: Path, *, to_quantize: bool) -> OnnxModel:
    data = _read(file)
    proto = _parse(data, file.name)
    if to_quantize:
        _refuse_old_opset(proto, file.name)
        _refuse_quantized(proto, file.name)
        _refuse_training(proto, file.name)
    external = _external_tensors(proto)
    refuse_escapes(external, file)
    _refuse_invalid(str(file) if external else data, file.name)
    model = _to_ir(file)
    _bring_inside(model)
    _refuse_nonfinite_weights(model, file.name)
    sha256 = hashlib.sha256(data).hexdigest()
    original = _original(data, model, external=bool(external))
    steps, renamed = _run_passes(model, file.name, only=None if to_quantize else _READING_PASSES)
    return OnnxModel(
        ir_model=model,
        original=original,
        sha256=sha256,
        name=file.name,
        steps=steps,
        renamed=renamed,
        annotated=frozenset(info.name for info in proto.graph.value_info),
    )


def _read(file: Path) -> bytes:
    try:
        size = file.stat().st_size
        if file.is_dir():
            raise ModelError(f"{file} is a folder; give the .onnx file in it", slug="model-unreadable")
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


def _parse(data: bytes, name: str) -> Any:
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


def _refuse_invalid(model: bytes | str, name: str) -> None:
    import onnx

    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        detail = next((line for line in str(error).splitlines() if line.strip()), "invalid")[:300]
        raise ModelError(f"{name} is not a valid ONNX model: {detail}", slug="model-invalid") from error


def _graphs(proto: Any) -> Iterator[Any]:
    """Yields the main graph, the bodies of functions, and every graph inside their nodes."""
    waiting = [proto.graph, *proto.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)


def _tensors(proto: Any) -> Iterator[Any]:
    """Yields every tensor that a model holds, wherever it stands."""
    for graph in _graphs(proto):
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                yield from [attribute.t] if attribute.HasField("t") else attribute.tensors
                if attribute.HasField("sparse_tensor"):
                    yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)


def _opset(proto: Any) -> int:
    return max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _refuse_old_opset(proto: Any, name: str) -> None:
    if _opset(proto) < MIN_OPSET:
        raise ModelError(
            f"{name} uses opset {_opset(proto)}, scales per channel need {MIN_OPSET}; "
            f"convert it first: onnx.version_converter.convert_version(model, {MIN_OPSET})",
            slug="opset-too-old",
        )


def _refuse_training(proto: Any, name: str) -> None:
    """Refuses a model whose answers depend on which examples share a batch."""
    for node in proto.graph.node:
        if node.op_type == "BatchNormalization" and any(a.name == "training_mode" and a.i for a in node.attribute):
            raise ModelError(
                f"{name} was exported in training mode (BatchNormalization {node.name!r} normalizes by the batch); "
                "call model.eval() and export again",
                slug="training-mode",
            )


def _refuse_quantized(proto: Any, name: str) -> None:
    found = [node for graph in _graphs(proto) for node in graph.node if node.op_type in _QUANTIZED_OPS]
    if found:
        raise ModelError(
            f"{name} is already quantized ({len(found)} such nodes, the first a {found[0].op_type} "
            f"{found[0].name!r}); give the float model",
            slug="already-quantized",
        )


def _external_tensors(proto: Any) -> list[tuple[str, dict[str, str]]]:
    """Returns name and place of every tensor whose values stand in another file."""
    return [
        (tensor.name, {entry.key: entry.value for entry in tensor.external_data})
        for tensor in _tensors(proto)
        if tensor.data_location == 1
    ]


def refuse_escapes(external: list[tuple[str, dict[str, str]]], file: Path) -> None:
    """Raises unless every data file is a whole regular file in the model's folder, reached without leaving it."""
    folder = file.resolve().parent
    for tensor, entry in external:
        location = entry.get("location", "")
        parts = Path(location).parts
        outside = not parts or Path(location).is_absolute() or ".." in parts or "\x00" in location or "\\" in location
        if outside or not (folder / location).resolve().is_relative_to(folder):
            raise SecurityError(
                f"{file.name}: tensor {tensor!r} points outside the model's folder ({location!r}); "
                "put its data file, not a link to it, beside the model",
                slug="external-data-escape",
            )
        data = folder / location
        if not data.is_file():
            raise ModelError(
                f"{file.name} misses its data file {location!r} (tensor {tensor!r}); put it beside the model",
                slug="external-data-missing",
            )
        size, end = data.stat().st_size, _last_byte(entry)
        if end is None or end > size:
            raise ModelError(
                f"{file.name}: tensor {tensor!r} should end at byte {end} of {location!r}, which has {size}; "
                "copy or export it again",
                slug="model-broken",
            )


def _last_byte(entry: dict[str, str]) -> int | None:
    try:
        offset, length = int(entry.get("offset") or 0), int(entry.get("length") or 0)
    except ValueError:
        return None
    return offset + length if offset >= 0 and length >= 0 else None


def _to_ir(file: Path) -> Any:
    import onnx_ir as ir

    try:
        return ir.load(file)
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, ir.serde.SerdeError) as error:
        cause = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ModelError(f"{file.name} cannot be read as a graph: {cause}", slug="model-invalid") from error


def _bring_inside(model: Any) -> None:
    """Makes tensors of other files tensors of the model; their bytes stay mapped, and are read when used."""
    import onnx_ir as ir

    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
        for node in graph:
            held = node.attributes.get("value") if node.op_type == "Constant" else None
            if held is not None and isinstance(held.value, ir.ExternalTensor):
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(held.value.numpy(), name=held.value.name))


def _original(data: bytes, model: Any, *, external: bool) -> bytes:
    """Returns the float model as one file that a runtime takes: the file itself wherever it can be.

    Weights of other files are inside. Doubled node names, which ONNX Runtime refuses, are mended.
    """
    from fewbits.models.onnx.passes import MendNames

    names = [node.name for node in model.graph if node.name]
    doubled = len(set(names)) != len(names)
    if doubled:
        model = model.clone()
        MendNames()(model)
    return serialize(model) if external or doubled else data


def _refuse_nonfinite_weights(model: Any, name: str) -> None:
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            _refuse_nonfinite(value.const_value, value.name, _is_mask(value), name)
        for node in graph:
            if node.op_type == "Constant" and "value" in node.attributes:
                output = node.outputs[0]
                _refuse_nonfinite(node.attributes["value"].value, output.name, _is_mask(output), name)


def _is_mask(value: Any) -> bool:
    """Returns whether infinite values are meant: bounds and masks, which other operators than layers read."""
    return all(use.node.op_type in _MASKING for use in value.uses())


def _refuse_nonfinite(tensor: Any, label: str, mask: bool, name: str) -> None:
    """Raises for NaN, and for infinite values unless the tensor is a bound or a mask."""
    if tensor is None or tensor.dtype.name not in ("FLOAT", "DOUBLE", "FLOAT16"):
        return
    try:
        array = tensor.numpy()
    except (ValueError, OSError, RuntimeError) as error:
        raise ModelError(f"{name}: tensor {label!r} cannot be read: {error}", slug="model-broken") from error
    bad = np.argwhere(np.isnan(array) if mask else ~np.isfinite(array))
    if len(bad):
        raise ModelError(
            f"{name}: weight {label!r} holds {len(bad)} NaN or infinite values, the first at index "
            f"{bad[0].tolist()}; repair or retrain it",
            slug="weight-nonfinite",
        )


def probe_feeds(inputs: tuple[InputSpec, ...], *, seed: int = 0) -> dict[str, np.ndarray] | None:
    """Returns seeded random inputs for a model, None where a dynamic axis behind the first leaves the shape open."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for spec in inputs:
        if any(d is None for d in spec.shape[1:]):
            return None
        shape = tuple(_PROBE_BATCH if d is None else d for d in spec.shape)
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            feeds[spec.name] = rng.standard_normal(shape).astype(dtype)
        elif dtype.kind in "iub":
            feeds[spec.name] = rng.integers(0, 2, shape).astype(dtype)
        else:
            return None
    return feeds


def _outputs(model: Any, feeds: dict[str, np.ndarray] | None) -> dict[str, np.ndarray] | None:
    if feeds is None:
        return None
    return RUNTIME.open(serialize(model), Options()).run(feeds)


def _run_passes(
    model: Any, name: str, *, only: frozenset[str] | None
) -> tuple[tuple[TransformStep, ...], dict[str, str]]:
    """Runs the canonical passes in place; each that changes something is compared with the model before it."""
    from onnx_ir.passes import PassError, PostconditionError, PreconditionError

    # Its warnings are about help that we can do without (unknown shapes), with traces that would bury our one line.
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)
    from fewbits.models.onnx.passes import MendNames, canonical_passes

    steps: list[TransformStep] = []
    renamed: dict[str, str] = {}
    feeds: dict[str, np.ndarray] | None = None
    before: dict[str, np.ndarray] | None = None
    for step, graph_pass in canonical_passes():
        if only is not None and step not in only:
            continue
        try:
            result = graph_pass(model)
        except (PassError, PreconditionError, PostconditionError, ValueError, RuntimeError) as error:
            if step.startswith("infer_shapes"):
                continue  # a help, not a need: unknown shapes only leave operators float
            cause = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise ModelError(f"{name}: pass {step} failed: {cause}", slug="pass-failed") from error
        if isinstance(graph_pass, MendNames):
            renamed = dict(graph_pass.renamed)
        if step == "initializers_from_inputs":  # from here on the inputs are the model's own
            view = graph_view(model)
            inputs = tuple(
                InputSpec(name=n, dtype=view.tensors[n].dtype or "float32", shape=view.tensors[n].shape or ())
                for n in view.inputs
            )
            feeds = probe_feeds(inputs)
            before = _outputs(model, feeds)
            continue
        if not result.modified or step.startswith("infer_shapes"):
            continue
        steps.append(TransformStep(name=step))
        if before is not None:
            after = _outputs(model, feeds)
            assert after is not None
            compare_outputs(before, after, f"{name}: pass {step}")
            before = after
    return tuple(steps), renamed


def compare_outputs(before: dict[str, np.ndarray], after: dict[str, np.ndarray], what: str) -> None:
    """Raises ModelError(slug="pass-changed-model") if outputs differ by more than float rounding explains."""
    for name, old in before.items():
        new = after.get(name)
        if new is None or new.shape != old.shape:
            raise ModelError(f"{what} lost or reshaped output {name!r}; please report it", slug="pass-changed-model")
        if old.dtype.kind != "f":
            changed = float((new != old).mean()) if old.size else 0.0
            if changed > _PASS_CHANGED_INDICES:
                raise ModelError(
                    f"{what} changed {changed:.0%} of output {name!r}; please report it", slug="pass-changed-model"
                )
            continue
        if not np.isfinite(old).all():
            continue
        reach = float(np.abs(old).max(initial=0.0))
        wrong = float(np.abs(new.astype(np.float64) - old).max(initial=0.0))
        if not wrong <= _PASS_TOLERANCE * max(reach, 1e-6):  # NaN is wrong too
            raise ModelError(
                f"{what} changed output {name!r} by {wrong:.3g} (largest magnitude {reach:.3g}); please report it",
                slug="pass-changed-model",
            )
