"""OpenVINO, CPU plugin: sessions, and the executed graph read from the compiled model and its counters."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, final

import numpy as np

from fewbits._base.errors import ModelError, ResourceError, UsageError
from fewbits._base.memory import MEMORY_WORDS
from fewbits.runtimes.base import PROFILED_RUNS, ExecutedNode, Numbers, Options, Runtime, Session, Tensors

# Shapes of inputs whose compiled models are kept: those of full batches and of the last one.
_SHAPES_KEPT = 3

_Shapes = tuple[tuple[str, tuple[int, ...]], ...]

# Layers of the executed graph that hold or hand over tensors: no kernel runs.
_NO_WORK = {"Const", "Input", "Output"}
_CONVERSIONS = {"FakeQuantize", "Convert", "Reorder", "Quantize", "Dequantize"}
# Kernels that only move elements: what they move says nothing of how the model computes.
_MOVES = {
    "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "StridedSlice", "Slice", "Gather", "Broadcast", "Tile",
    "DepthToSpace", "SpaceToDepth", "Pad", "Split", "VariadicSplit", "Concatenation", "Concat", "ShuffleChannels",
    "ScatterUpdate", "MemoryInput", "MemoryOutput", "GatherND", "GatherElements", "ReverseSequence", "Roll",
}  # fmt: skip
# A kernel made for several operators at once, whose inputs come in any order.
_GENERATED = "Subgraph"
# What OpenVINO puts behind the name of a node that it splits.
_ENDINGS = re.compile(r"(/WithoutBiases|/Dequantization(Convert|Subtract|Multiply)|_original)+$")
_EIGHT_BITS = {"uint8", "int8"}
_FLOATS = {"float", "float16", "bfloat16", "double"}
# OpenVINO's words for element types, in those of onnxruntime's profile.
_KINDS = {
    "f32": "float", "f16": "float16", "bf16": "bfloat16", "f64": "double", "u8": "uint8", "i8": "int8",
    "u16": "uint16", "i16": "int16", "u32": "uint32", "i32": "int32", "u64": "uint64", "i64": "int64",
    "boolean": "bool", "u4": "uint4", "i4": "int4",
}  # fmt: skip


def _properties(options: Options) -> dict[str, Any]:
    """Returns what the model is compiled with; everything that changes numbers or speed is said, not left to hints."""
    return {
        "INFERENCE_NUM_THREADS": options.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": options.precision,
        "ENABLE_CPU_PINNING": False,
    }


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise UsageError(
            "the target openvino needs the package openvino; pip install 'fewbits[openvino]'", slug="extra-missing"
        ) from error
    return openvino


@contextmanager
def _file(model: bytes | Path, folder: Path | None) -> Iterator[bytes | str]:
    """Yields what OpenVINO reads: it takes external data from the file's own folder only, so both are put into one."""
    if folder is None or (isinstance(model, Path) and model.parent.resolve() == folder.resolve()):
        yield model if isinstance(model, bytes) else str(model)
        return
    data = model if isinstance(model, bytes) else model.read_bytes()
    with tempfile.TemporaryDirectory(prefix="fewbits-openvino-") as place:
        for entry in folder.resolve().rglob("*"):
            name = entry.relative_to(folder.resolve())
            if entry.is_file() and str(name).encode() in data:
                (Path(place) / name).parent.mkdir(parents=True, exist_ok=True)
                _link(entry, Path(place) / name)
        own = Path(place) / "fewbits-model.onnx"
        own.write_bytes(data)
        yield str(own)


def _link(source: Path, place: Path) -> None:
    """Gives a file a second name, or copies it where that cannot be: OpenVINO follows no symbolic link out."""
    try:
        place.hardlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, place)


# Lines of OpenVINO's errors that say where in its source they come from, not what is wrong.
_PLACES = re.compile(r"Exception from|Check '.*' failed at|Loading input model|FrontEnd API failed|\[ ?ERROR")


def _first_line(error: Exception) -> str:
    """Returns the line of OpenVINO's error that says what is wrong; those before it are places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not _PLACES.match(line)]
    return (telling or lines or [type(error).__name__])[0][:300]


def _read(model: bytes | Path, folder: Path | None) -> Any:
    core = _openvino().Core()
    try:
        with _file(model, folder) as source:
            return core.read_model(source)
    except Exception as error:  # OpenVINO raises RuntimeError, TypeError or a class of its own
        _refuse_lack_of_memory(error)
        raise ModelError(f"OpenVINO does not take the model: {_first_line(error)}", slug="runtime-refuses") from error


def _compile(model: Any, shapes: _Shapes, options: Options, more: Mapping[str, Any] | None = None) -> Any:
    """Returns the model compiled for inputs of these shapes; as it is where none are given."""
    openvino = _openvino()
    try:
        if shapes:
            model = model.clone()
            model.reshape({name: openvino.PartialShape(list(shape)) for name, shape in shapes})
        return openvino.Core().compile_model(model, "CPU", {**_properties(options), **(more or {})})
    except Exception as error:  # see _read
        _refuse_lack_of_memory(error)
        raise ModelError(f"OpenVINO does not take the model: {_first_line(error)}", slug="runtime-refuses") from error


def _shapes(feeds: Tensors) -> _Shapes:
    return tuple((name, np.shape(value)) for name, value in sorted(feeds.items()))


def _output_names(model: Any) -> list[str]:
    """Returns the names of the outputs in the file's order: the Result behind each bears the one in the file."""
    return [output.get_node().get_friendly_name().removesuffix("/sink_port_0") for output in model.outputs]


def _refuse_lack_of_memory(error: Exception) -> None:
    if isinstance(error, ResourceError):
        raise error
    if any(word in str(error).lower() for word in MEMORY_WORDS):
        raise ResourceError(
            f"OpenVINO ran out of memory: {_first_line(error)}; free some, or give smaller examples",
            slug="out-of-memory",
        ) from error


@final
class OpenVinoSession(Session):
    """A model compiled once for each shape of its inputs: with fixed shapes it runs up to twice as fast."""

    def __init__(self, model: bytes | Path, options: Options) -> None:
        self._options = options
        self._model = _read(model, options.data_folder)
        self._outputs = _output_names(self._model)
        self._requests: OrderedDict[_Shapes, Any] = OrderedDict()
        self._dynamic = self._model.is_dynamic()  # asks every operator: a tenth of a millisecond and more
        if not self._dynamic:
            self._request(())

    def run(self, feeds: Tensors) -> dict[str, np.ndarray]:
        request = self._request(_shapes(feeds) if self._dynamic else ())
        given = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
        try:
            found = self._limited(request, given)
        except Exception as error:  # see _read
            _refuse_lack_of_memory(error)
            raise ModelError(f"OpenVINO fails on this input: {_first_line(error)}", slug="run-failed") from error
        return {name: found[place] for place, name in enumerate(self._outputs)}

    def _limited(self, request: Any, feeds: dict[str, np.ndarray]) -> Any:
        seconds = self._options.seconds
        if seconds is None:
            return request.infer(feeds, share_inputs=True)
        request.start_async(feeds, share_inputs=True)
        if not request.wait_for(int(1000 * seconds)):
            request.cancel()
            raise ResourceError(
                f"one batch was not done after {seconds:.3g} s; does the model ever end on such data?",
                slug="model-too-slow",
            )
        return {place: np.array(tensor.data) for place, tensor in enumerate(request.output_tensors)}

    def _request(self, shapes: _Shapes) -> Any:
        """Returns what runs inputs of these shapes; the models of a few shapes are kept."""
        if shapes in self._requests:
            self._requests.move_to_end(shapes)
        else:
            self._requests[shapes] = _compile(self._model, shapes, self._options).create_infer_request()
            if len(self._requests) > _SHAPES_KEPT:
                self._requests.popitem(last=False)
        return self._requests[shapes]


@final
class OpenVino(Runtime):
    """OpenVINO on its CPU plugin."""

    @property
    def name(self) -> str:
        return f"openvino {_openvino().__version__.partition('-')[0]}"

    def describe(self, options: Options) -> dict[str, str]:
        said = {key.lower(): str(value) for key, value in _properties(options).items()}
        return {**said, "shapes": "fixed to those of the inputs"}

    def open(self, model: bytes | Path, options: Options) -> Session:
        return OpenVinoSession(model, options)

    def executed(
        self, model: Path, options: Options, feeds: Tensors, *, runs: int = PROFILED_RUNS
    ) -> tuple[ExecutedNode, ...]:
        read = _read(model, options.data_folder)
        compiled = _compile(read, _shapes(feeds) if read.is_dynamic() else (), options, {"PERF_COUNT": True})
        request = compiled.create_infer_request()
        times: dict[str, list[float]] = {}
        for _ in range(runs):
            try:
                request.infer(dict(feeds))
            except Exception as error:  # see _read
                _refuse_lack_of_memory(error)
                raise ModelError(f"OpenVINO fails on this input: {_first_line(error)}", slug="run-failed") from error
            for counted in request.profiling_info:
                times.setdefault(counted.node_name, []).append(counted.real_time.total_seconds() * 1e6)
        kinds = {op.get_friendly_name(): op.get_type_name() for op in read.get_ordered_ops()}
        return tuple(_nodes(compiled.get_runtime_model(), times, kinds))


def _nodes(graph: Any, times: Mapping[str, list[float]], kinds: Mapping[str, str]) -> Iterator[ExecutedNode]:
    """Yields the kernels of an executed graph in their order; what ran once, on constants, is none of them.

    Args:
      graph: The runtime model.
      times: Microseconds of each run by name.
      kinds: Operators of the model as it was read, by name.
    """
    for node in graph.get_ordered_ops():
        told = {key: str(value.value) for key, value in node.get_rt_info().items()}
        op, name = told["layerType"], node.get_friendly_name()
        if op in _NO_WORK or told["execTimeMcs"] == "not_executed":
            continue
        inputs, outputs = _types(node.inputs()), _types(node.outputs())
        origins = tuple(dict.fromkeys(_ENDINGS.sub("", n) for n in told["originalLayersNames"].split(",") if n))
        converts = bool(origins) and all(kinds.get(origin) in _CONVERSIONS for origin in origins)
        yield ExecutedNode(
            name=name,
            op=op,
            numbers=Numbers.CONVERSION if converts else _numbers(op, inputs, outputs),
            inputs=inputs,
            outputs=outputs,
            microseconds=median(times[name][1:]) if name in times else 0.0,
            origins=origins,
        )


def _types(ports: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Returns element type and shape of each port that is in use."""
    kinds = [port.get_element_type().get_type_name() for port in ports]
    return tuple(
        (_KINDS.get(kind, kind), tuple(d.get_length() if d.is_static else 0 for d in port.get_partial_shape()))
        for port, kind in zip(ports, kinds, strict=True)
        if kind != "dynamic"
    )


def _numbers(op: str, inputs: tuple[tuple[str, Any], ...], outputs: tuple[tuple[str, Any], ...]) -> Numbers:
    """Returns in which numbers a node ran: its data input decides, because that is what the kernel multiplies."""
    if op in _CONVERSIONS:
        return Numbers.CONVERSION
    first = next((kind for kind, _ in inputs), "")
    if op in _MOVES:
        return Numbers.MOVES if first in _EIGHT_BITS | _FLOATS else Numbers.NEUTRAL
    if first in _EIGHT_BITS or (op == _GENERATED and {kind for kind, _ in inputs} & _EIGHT_BITS):
        return Numbers.INTEGER
    return Numbers.FLOAT if {kind for kind, _ in (*inputs[:1], *outputs)} & _FLOATS else Numbers.NEUTRAL


RUNTIME: Runtime = OpenVino()
