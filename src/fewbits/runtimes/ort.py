"""ONNX Runtime, CPU provider: sessions, and the executed graph read from the runtime's own profile."""

from __future__ import annotations

import json
import re
import tempfile
import threading
from pathlib import Path
from statistics import median
from typing import Any, final

import numpy as np

from fewbits._base.errors import ModelError, ResourceError
from fewbits._base.memory import MEMORY_WORDS
from fewbits.runtimes.base import PROFILED_RUNS, ExecutedNode, Numbers, Options, Runtime, Session, Tensors

# ONNX Runtime's severity "fatal": what it would print comes back as an exception, and we say it in one line.
_LOG_FATAL_ONLY = 4

# Kernels that take floats, round them to 8 bits and multiply integers; weight-only ones at default session options.
_INTEGER_INSIDE = {"MatMulNBits", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
_CONVERSIONS = {
    "QuantizeLinear", "DequantizeLinear", "Cast", "ReorderInput", "ReorderOutput", "DynamicQuantizeLinear",
    "GatherBlockQuantized",
}  # fmt: skip
# Kernels that only move elements: what they move says nothing of how the model computes.
_MOVES = {
    "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Tile", "DepthToSpace",
    "SpaceToDepth", "Pad", "Identity", "Split",
}  # fmt: skip
_EIGHT_BITS = {"uint8", "int8", "uint4x2", "int4x2", "uint4", "int4", "uint16", "int16"}
_FLOATS = {"float", "float16", "bfloat16", "double"}


def ort_options(options: Options) -> Any:
    """Returns our options as an onnxruntime.SessionOptions, to which a caller may add."""
    import onnxruntime as ort

    made = ort.SessionOptions()
    made.intra_op_num_threads = options.threads
    made.inter_op_num_threads = 1
    made.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    levels = ort.GraphOptimizationLevel
    made.graph_optimization_level = levels.ORT_ENABLE_ALL if options.optimize else levels.ORT_DISABLE_ALL
    made.log_severity_level = _LOG_FATAL_ONLY
    # Spinning threads take a core from whoever else measures on the machine.
    made.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if options.data_folder is not None:
        made.add_session_config_entry("session.model_external_initializers_file_folder_path", str(options.data_folder))
    return made


def inference_session(model: bytes | Path, options: Options, made: Any = None) -> Any:
    """Returns an onnxruntime.InferenceSession.

    Args:
      model: The file.
      options: How it is opened.
      made: What ``ort_options`` made of them, with more; by the options alone where None.
    Raises: ModelError(slug="runtime-refuses"); ResourceError(slug="out-of-memory").
    """
    import onnxruntime as ort

    ort.disable_telemetry_events()
    # A folder of external data is heeded for a model that comes as bytes.
    bytewise = options.data_folder is not None and isinstance(model, Path)
    source = model.read_bytes() if bytewise and isinstance(model, Path) else model
    made = ort_options(options) if made is None else made
    try:
        given = source if isinstance(source, bytes) else str(source)
        return ort.InferenceSession(given, made, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises classes of its own that share no base
        _refuse_lack_of_memory(error)
        raise ModelError(
            f"ONNX Runtime does not take the model: {_first_line(error)}", slug="runtime-refuses"
        ) from error


def _refuse_lack_of_memory(error: Exception) -> None:
    """Raises ResourceError where the runtime's error is, in its words, that memory ran out, or a limit of ours."""
    if isinstance(error, ResourceError):
        raise error
    if any(word in str(error).lower() for word in MEMORY_WORDS):
        raise ResourceError(
            f"ONNX Runtime ran out of memory: {_first_line(error)}; free some, or give smaller examples",
            slug="out-of-memory",
        ) from error


def _first_line(error: Exception) -> str:
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip())
    return text.splitlines()[0][:300] if text else type(error).__name__


@final
class OrtSession(Session):
    """An onnxruntime.InferenceSession with outputs by name."""

    def __init__(self, session: Any, *, seconds: float | None = None) -> None:
        self._session = session
        self._seconds = seconds
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, feeds: Tensors) -> dict[str, np.ndarray]:
        try:
            values = self._limited(dict(feeds))
        except Exception as error:  # see inference_session
            _refuse_lack_of_memory(error)
            raise ModelError(f"ONNX Runtime fails on this input: {_first_line(error)}", slug="run-failed") from error
        return dict(zip(self._outputs, values, strict=True))

    def _limited(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        if self._seconds is None:
            return list(self._session.run(self._outputs, feeds))
        import onnxruntime as ort

        watched = ort.RunOptions()
        timer = threading.Timer(self._seconds, setattr, (watched, "terminate", True))
        timer.start()
        try:
            return list(self._session.run(self._outputs, feeds, watched))
        except Exception as error:  # see inference_session
            if not watched.terminate:
                raise
            raise ResourceError(
                f"one batch was not done after {self._seconds:.3g} s; does the model ever end on such data?",
                slug="model-too-slow",
            ) from error
        finally:
            timer.cancel()


@final
class Ort(Runtime):
    """ONNX Runtime on the CPU provider."""

    @property
    def name(self) -> str:
        import onnxruntime as ort

        return f"onnxruntime {ort.__version__}"

    def describe(self, options: Options) -> dict[str, str]:
        return {
            "intra_op_threads": str(options.threads),
            "inter_op_threads": "1",
            "graph_optimization": "all" if options.optimize else "none",
            "spinning": "off",
        }

    def open(self, model: bytes | Path, options: Options) -> Session:
        return OrtSession(inference_session(model, options), seconds=options.seconds)

    def executed(
        self, model: Path, options: Options, feeds: Tensors, *, runs: int = PROFILED_RUNS
    ) -> tuple[ExecutedNode, ...]:
        with tempfile.TemporaryDirectory(prefix="fewbits-profile-") as folder:
            made = ort_options(options)
            made.enable_profiling = True
            made.profile_file_prefix = str(Path(folder) / "profile")
            session = inference_session(model, options, made)
            for _ in range(runs):
                OrtSession(session).run(feeds)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return _nodes(events)


def _nodes(events: list[dict[str, Any]]) -> tuple[ExecutedNode, ...]:
    """Returns one node for each kernel of a profile, in the order of its first run."""
    found: dict[str, ExecutedNode] = {}
    times: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        args = event["args"]
        name = event["name"].removesuffix("_kernel_time")
        times.setdefault(name, []).append(float(event["dur"]))
        if name in found:
            continue
        inputs, outputs = _types(args.get("input_type_shape", [])), _types(args.get("output_type_shape", []))
        op = str(args["op_name"])
        found[name] = ExecutedNode(
            name=name, op=op, numbers=_numbers(op, inputs, outputs), inputs=inputs, outputs=outputs, microseconds=0.0
        )
    return tuple(
        ExecutedNode(
            name=node.name,
            op=node.op,
            numbers=node.numbers,
            inputs=node.inputs,
            outputs=node.outputs,
            microseconds=median(times[name][1:] or times[name]),
        )
        for name, node in found.items()
    )


def _types(entries: list[dict[str, list[int]]]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((kind, tuple(shape)) for entry in entries for kind, shape in entry.items())


def _numbers(op: str, inputs: tuple[tuple[str, Any], ...], outputs: tuple[tuple[str, Any], ...]) -> Numbers:
    """Returns in which numbers a node ran: its data input decides, because that is what the kernel multiplies."""
    if op.split(".")[-1] in _CONVERSIONS:
        return Numbers.CONVERSION
    if op in _MOVES:
        return Numbers.MOVES if {kind for kind, _ in inputs[:1]} & (_EIGHT_BITS | _FLOATS) else Numbers.NEUTRAL
    if op.split(".")[-1] in _INTEGER_INSIDE:
        return Numbers.INTEGER
    kinds = {kind for kind, _ in (*inputs[:1], *outputs[:1])}
    if kinds & _EIGHT_BITS:
        return Numbers.INTEGER
    if {kind for kind, _ in (*inputs, *outputs)} & _FLOATS:
        return Numbers.FLOAT
    return Numbers.NEUTRAL


RUNTIME: Runtime = Ort()
