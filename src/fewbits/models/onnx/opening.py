"""Opening an ONNX file: checked, brought into canonical form by passes, each pass compared with the model before it."""

from __future__ import annotations

import hashlib
import os
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
_QUANTIZED_OPS = {
    "QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
    "DynamicQuantizeLinear", "MatMulNBits", "MatMulBnb4", "QGemm", "QAttention", "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat", "QLinearAdd",
}  # fmt: skip


def open_model(path: str | os.PathLike[str]) -> OnnxModel:
    """Returns the model in canonical form.

    Args:
      path: An ONNX file of opset 13 or newer, float weights.
    Raises: ModelError for a file that is missing, empty, broken, too old, already quantized, or holds NaN or infinite
      weights; SecurityError for external data outside the model's folder.
    """
    file = Path(path)
    data = _read(file)
    proto = _parse(data, file.name)
    _refuse_old_opset(proto, file.name)
    _refuse_quantized(proto, file.name)
    _refuse_escapes(proto, file.name)
    model = _to_ir(file, proto)
    _refuse_nonfinite_weights(model, file.name)
    sha256 = hashlib.sha256(data).hexdigest()
    original = data if not _has_external(proto) else serialize(_inlined(model))
    steps, renamed = _run_passes(model, file.name)
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
    if not proto.graph.node:
        raise ModelError(f"{broken} (it holds no nodes); copy or export it again", slug="model-broken")
    try:
        onnx.checker.check_model(data)
    except onnx.checker.ValidationError as error:
        detail = next((line for line in str(error).splitlines() if line.strip()), "invalid")[:300]
        if "external" in detail.lower() or "data file" in detail.lower():
            return proto  # judged by _refuse_escapes, with the folder at hand
        raise ModelError(f"{name} is not a valid ONNX model: {detail}", slug="model-invalid") from error
    return proto


def _opset(proto: Any) -> int:
    return max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _refuse_old_opset(proto: Any, name: str) -> None:
    if _opset(proto) < MIN_OPSET:
        raise ModelError(
            f"{name} uses opset {_opset(proto)}, scales per channel need {MIN_OPSET}; "
            f"convert it first: onnx.version_converter.convert_version(model, {MIN_OPSET})",
            slug="opset-too-old",
        )


def _refuse_quantized(proto: Any, name: str) -> None:
    found = [node for node in proto.graph.node if node.op_type in _QUANTIZED_OPS]
    if found:
        raise ModelError(
            f"{name} is already quantized ({len(found)} such nodes, the first a {found[0].op_type} "
            f"{found[0].name!r}); give the float model",
            slug="already-quantized",
        )


def _external_locations(proto: Any) -> list[tuple[str, str]]:
    found = []
    for tensor in proto.graph.initializer:
        if tensor.data_location == 1:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            found.append((tensor.name, entries.get("location", "")))
    return found


def _has_external(proto: Any) -> bool:
    return bool(_external_locations(proto))


def _refuse_escapes(proto: Any, name: str) -> None:
    for tensor, location in _external_locations(proto):
        parts = Path(location).parts
        if not parts or Path(location).is_absolute() or ".." in parts or "\x00" in location or "\\" in location:
            raise SecurityError(
                f"{name}: tensor {tensor!r} points outside the model's folder ({location!r}); "
                "put its data file beside the model",
                slug="external-data-escape",
            )


def _to_ir(file: Path, proto: Any) -> Any:
    import onnx_ir as ir

    try:
        return ir.load(file)
    except FileNotFoundError as error:
        raise ModelError(f"{file.name} misses its data file: {error}", slug="external-data-missing") from error
    except (ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        raise ModelError(f"{file.name} cannot be read as a graph: {error}", slug="model-invalid") from error


def _inlined(model: Any) -> Any:
    """Returns a copy of the model whose external weights are inside."""
    import onnx_ir as ir

    copy = model.clone()
    for value in copy.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    return copy


def _refuse_nonfinite_weights(model: Any, name: str) -> None:
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if (
            tensor is None
            or not tensor.dtype.is_floating_point()
            or tensor.dtype.name not in ("FLOAT", "DOUBLE", "FLOAT16")
        ):
            continue
        try:
            array = tensor.numpy()
        except (ValueError, OSError, RuntimeError) as error:
            raise ModelError(f"{name}: tensor {value.name!r} cannot be read: {error}", slug="model-broken") from error
        good = np.isfinite(array)
        if not good.all():
            bad = np.argwhere(~good)
            raise ModelError(
                f"{name}: weight {value.name!r} holds {len(bad)} NaN or infinite values, the first at index "
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


def _run_passes(model: Any, name: str) -> tuple[tuple[TransformStep, ...], dict[str, str]]:
    """Runs the canonical passes in place; each that changes something is compared with the model before it."""
    from onnx_ir.passes import PassError, PostconditionError, PreconditionError

    from fewbits.models.onnx.passes import MendNames, canonical_passes

    steps: list[TransformStep] = []
    renamed: dict[str, str] = {}
    feeds: dict[str, np.ndarray] | None = None
    before: dict[str, np.ndarray] | None = None
    for step, graph_pass in canonical_passes():
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
        if old.dtype.kind != "f" or not np.isfinite(old).all():
            continue
        reach = float(np.abs(old).max(initial=0.0))
        wrong = float(np.abs(new.astype(np.float64) - old).max(initial=0.0))
        if wrong > _PASS_TOLERANCE * max(reach, 1e-6):
            raise ModelError(
                f"{what} changed output {name!r} by {wrong:.3g} (largest magnitude {reach:.3g}); please report it",
                slug="pass-changed-model",
            )
