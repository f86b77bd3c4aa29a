"""Opening an ONNX file: checked, brought into canonical form by passes, each pass compared with the model before it."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from fewbits._base.errors import FewbitsError, ModelError
from fewbits._base.limits import MIB
from fewbits.models.onnx.external import External, external_tensors, hash_model, real_path
from fewbits.models.onnx.model import OnnxModel, serialize
from fewbits.models.onnx.probing import (
    HALF_TOLERANCE,
    PASS_TOLERANCE,
    Probe,
    compare_outputs,
    start_probe,
)
from fewbits.models.onnx.protobuf import opset, parse, read_file, tensors
from fewbits.models.onnx.randomness import refuse_drawing
from fewbits.planning.plan import TransformStep
from fewbits.runtimes.bounded import RUNNER

if TYPE_CHECKING:
    import onnx_ir as ir

# Data files up to this size are brought inside; larger ones stay where they are and are read when needed.
_LAZY_BYTES = 256 * MIB
# But for the smallest: shapes and the like, which runtimes want to read before they map anything.
_LEAST_LAZY_BYTES = 1024
# Passes that make a model readable without rewriting what it computes.
_READING_PASSES = frozenset({"mend_names", "initializers_from_inputs", "sort", "infer_shapes"})
# What is done to a model whose weights stay outside: nothing that would copy a large one, or need a run to be checked.
_LAZY_PASSES = _READING_PASSES | {"inline_functions", "lift_constants", "drop_copies", "fixed_reshapes"}
# Passes that come before the first comparison, because they only make a graph readable.
_BEFORE_PROBE = "initializers_from_inputs"


def open_model(path: str | os.PathLike[str], *, to_quantize: bool = True, max_memory: int | None = None) -> OnnxModel:
    """Returns the model in canonical form.

    Args:
      path: An ONNX file of opset 7 or newer, float weights; older ones than 13 are converted, and compared.
      to_quantize: If false the model is only to be run: any opset, quantized or not, and no pass rewrites it.
      max_memory: Bytes that one run of the model may take; by its size where None.
    Raises: ModelError for a file that is missing, empty, broken, too old, already quantized, or holds NaN or infinite
      weights; SecurityError for external data outside the model's folder; ResourceError for a model that takes more
      time or memory than its size explains.
    """
    import onnx_ir as ir

    file = Path(path)
    try:
        return _open(file, to_quantize=to_quantize, max_memory=max_memory)
    except (UnicodeDecodeError, ir.serde.SerdeError) as error:
        # protobuf decodes text when it is read, so a damaged name may show anywhere
        raise ModelError(
            f"{file.name} is not a whole ONNX file (a name in it is no text); copy or export it again",
            slug="model-broken",
        ) from error


def _open(file: Path, *, to_quantize: bool, max_memory: int | None) -> OnnxModel:
    from fewbits.models.onnx import refusals

    # Its warnings are about help that we can do without (unknown shapes), with traces that would bury our line.
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)
    data, name = read_file(file), file.name
    proto = parse(data, name)
    refusals.refuse_excess(proto, name)
    refusals.refuse_shapes(proto, name)
    if to_quantize:
        refusals.refuse_opset(proto, name)
        refusals.refuse_quantized(proto, name)
        refusals.refuse_training(proto, name)
        refuse_drawing(proto, name)
    external = external_tensors(tensors(proto), file)
    refusals.refuse_lies(proto, name)
    refusals.refuse_sparse(proto, name)
    refusals.refuse_invalid(proto, data, name)
    model = _to_ir(proto, name)
    folder = _locate(model, external, file)
    lazy = folder is not None and sum(entry.length or 0 for entry in external) > _LAZY_BYTES
    _bring_inside(model, below=_LEAST_LAZY_BYTES if lazy else None)
    refusals.refuse_nonfinite_weights(model, name)
    original = _original(data, model, external=bool(external))
    opening = _Opening(name=name, original=original, folder=folder if lazy else None, max_memory=max_memory)
    if to_quantize and opset(proto) < refusals.MIN_OPSET:
        model = opening.convert(model, refusals.MIN_OPSET)
    only = _READING_PASSES if not to_quantize else _LAZY_PASSES if lazy else None
    model.ir_version = max(model.ir_version, 4)  # before that every weight had to be an input as well
    opening.run(model, only=only)
    return OnnxModel(
        ir_model=model,
        original=original,
        sha256=hash_model(data, external, file),
        name=name,
        steps=tuple(opening.steps),
        renamed=opening.renamed,
        annotated=frozenset(info.name for info in proto.graph.value_info),
        folder=opening.folder,
        opset=opset(proto),
        unrunnable="" if opening.probe is None else opening.probe.refused,
        external_bytes=sum(entry.length or 0 for entry in external) if lazy else 0,
        file_bytes=len(data)
        + sum(real_path(file, "", place).stat().st_size for place in {e.location for e in external}),
    )


def _to_ir(proto: Any, name: str) -> ir.Model:
    import onnx_ir as ir

    try:
        return ir.serde.deserialize_model(proto)
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, ir.serde.SerdeError) as error:
        cause = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ModelError(f"{name} cannot be read as a graph: {cause}", slug="model-invalid") from error


def _locate(model: ir.Model, external: list[External], file: Path) -> Path | None:
    """Points tensors of other files to where these really lie; returns the one folder that all are below.

    Links are followed here, once, after they were checked; behind this no loader sees one.
    """
    if not external:
        return None
    import onnx_ir as ir

    real = {e.location: real_path(file, e.tensor, e.location) for e in external}
    folder = Path(os.path.commonpath([path.parent for path in real.values()]))

    def moved(tensor: ir.ExternalTensor) -> ir.ExternalTensor:
        where = real[str(tensor.location)].relative_to(folder)
        length = tensor.length if tensor.length else tensor.nbytes
        return ir.ExternalTensor(
            where, tensor.offset, length, tensor.dtype, shape=tensor.shape, name=tensor.name, base_dir=folder
        )

    for graph in _graphs(model):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = moved(value.const_value)
        for node in graph:
            held = node.attributes.get("value") if node.op_type == "Constant" else None
            if held is not None and isinstance(held.value, ir.ExternalTensor):
                node.attributes["value"] = ir.AttrTensor("value", moved(held.value))
    return folder


def _graphs(model: ir.Model) -> list[Any]:
    functions = [function.graph for function in model.functions.values()]
    return [graph for top in (model.graph, *functions) for graph in (top, *top.subgraphs())]


def _bring_inside(model: ir.Model, *, below: int | None) -> None:
    """Makes tensors of other files tensors of the model: all of them, or those of fewer bytes."""
    import onnx_ir as ir

    def wanted(tensor: object) -> bool:
        return isinstance(tensor, ir.ExternalTensor) and (below is None or tensor.nbytes < below)

    for graph in _graphs(model):
        for value in graph.initializers.values():
            if wanted(value.const_value):
                value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
        for node in graph:
            held = node.attributes.get("value") if node.op_type == "Constant" else None
            if held is not None and wanted(held.value):
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(held.value.numpy(), name=held.value.name))


def _original(data: bytes, model: ir.Model, *, external: bool) -> bytes:
    """Returns the float model as one file that a runtime takes: the file itself wherever it can be.

    Weights of other files are inside, or where they are large, named by where they really lie. Doubled node names,
    which ONNX Runtime refuses, are mended.
    """
    from fewbits.models.onnx.passes import MendNames

    names = [node.name for node in model.graph if node.name]
    doubled = len(set(names)) != len(names)
    if doubled:
        model = model.clone()
        MendNames()(model)
    return serialize(model) if external or doubled else data


@final
@dataclass(kw_only=True)
class _Opening:
    """The working state of one opening: what was done to the model, and the probe by which it is compared."""

    name: str
    original: bytes
    folder: Path | None
    max_memory: int | None
    steps: list[TransformStep] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    probe: Probe | None = None
    before: dict[str, Any] | None = None

    def convert(self, model: ir.Model, version: int) -> ir.Model:
        """Returns the model in a newer operator set, compared with the old one."""
        if self.folder is not None:
            raise ModelError(
                f"{self.name} uses opset {model.opset_imports.get('', 0)} and has its weights in other files; export "
                f"it again with opset {version} or newer",
                slug="opset-too-old",
            )
        old = model.opset_imports.get("", 0)
        self._start(model, self.original)
        assert self.probe is not None
        try:
            converted = RUNNER.convert(serialize(model), version, self.probe.bounds)
        except FewbitsError as error:
            raise ModelError(
                f"{self.name} uses opset {old}, scales per channel need {version}, and it cannot be converted: "
                f"{error.message}; export it again with opset {version} or newer",
                slug="opset-too-old",
            ) from error
        made = _to_ir(parse(converted, self.name), self.name)
        step = f"opset_{old}_to_{version}"
        self.steps.append(TransformStep(name=step))
        self._check(made, step, PASS_TOLERANCE)
        return made

    def run(self, model: ir.Model, *, only: frozenset[str] | None) -> None:
        """Runs the canonical passes in place; each that changes something is compared with the model before it."""
        from fewbits.models.onnx.passes import MendNames, canonical_passes

        for step, graph_pass in canonical_passes():
            if only is not None and step not in only:
                continue
            modified = self._apply(model, step, graph_pass)
            if isinstance(graph_pass, MendNames):
                self.renamed = dict(graph_pass.renamed)
            if step == _BEFORE_PROBE:  # from here on the inputs are the model's own
                if self.probe is None and only is None:
                    self._start(model, serialize(model))
                    if self.probe is not None and self.probe.refused:
                        only = _LAZY_PASSES  # what cannot be run cannot be compared: nothing is rewritten
                continue
            if modified and not step.startswith("infer_shapes"):
                self.steps.append(TransformStep(name=step))
                self._check(model, step, HALF_TOLERANCE if step == "halves_to_floats" else PASS_TOLERANCE)

    def _apply(self, model: ir.Model, step: str, graph_pass: Any) -> bool:
        from onnx_ir.passes import PassError, PostconditionError, PreconditionError

        try:
            return bool(graph_pass(model).modified)
        except (PassError, PreconditionError, PostconditionError, ValueError, RuntimeError, RecursionError) as error:
            if step.startswith("infer_shapes"):
                return False  # a help, not a need: unknown shapes only leave operators float
            cause = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise ModelError(f"{self.name}: pass {step} failed: {cause}", slug="pass-failed") from error

    def _start(self, model: ir.Model, data: bytes) -> None:
        self.probe, self.before = start_probe(model, data, self.name, max_memory=self.max_memory)

    def _check(self, model: ir.Model, step: str, tolerance: float) -> None:
        """Raises where a step changed what the model computes."""
        if self.probe is None or self.before is None:
            return
        what = f"{self.name}: pass {step}"
        try:
            after = self.probe.outputs(model)
        except FewbitsError as error:
            raise type(error)(f"{what}: {error.message}", slug=error.slug) from error
        assert after is not None
        compare_outputs(self.before, after, what, tolerance=tolerance)
        self.before = after
