"""How fast the runtime's kernels are on this CPU: small chains of one operator, in float and in each quantized form.

A chain of equal layers is timed, and its time divided by its length: what stands at the ends of a chain (reordering
into the layout that a kernel likes) is paid once in a real model too, not once a layer. Static int8 chains take and
give 8-bit numbers, as in the middle of a network; only the form "alone" converts from float and back.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, final

import numpy as np

from fewbits._base.errors import ModelError
from fewbits.measurement.latency import Clock, LatencyResult, Speedup, measure_latency
from fewbits.runtimes.base import Numbers, Options, Runtime, Session

Progress = Callable[[str, int, int], None]

# Opset and IR version that every runtime we accept (1.23 on) reads; operators of the runtime's own stand beside them.
_OPSET, _IR_VERSION = 17, 8
_OWN_DOMAIN = "com.microsoft"
# Weights that share a scale in the forms that store weights alone: the usual size, and the runtime's own default.
_BLOCK = 32
# One step of every activation: values of standard deviation 1 then fill 8 bits to 4 deviations.
_STEP = 4 / 128
_CONFIDENCE = 0.95
# The fewest rounds that carry this confidence; slow forms then take no longer than they must.
_MIN_BLOCKS = 6


class Form(StrEnum):
    """In which numbers a layer is written."""

    FLOAT = "float"
    STATIC = "static-8"
    ALONE = "static-8-alone"
    DYNAMIC = "dynamic-8"
    WEIGHTS_8 = "weights-8"
    WEIGHTS_8_ROUNDED = "weights-8-rounded"
    WEIGHTS_4 = "weights-4"
    WEIGHTS_4_ROUNDED = "weights-4-rounded"
    HALF = "float16"


# Stored bits, and the runtime's accuracy level: 0 is float arithmetic, 4 rounds activations to 8 bits inside.
_STORED = {
    Form.WEIGHTS_8: (8, 0),
    Form.WEIGHTS_8_ROUNDED: (8, 4),
    Form.WEIGHTS_4: (4, 0),
    Form.WEIGHTS_4_ROUNDED: (4, 4),
}
_OF_CONVOLUTIONS = (Form.STATIC, Form.DYNAMIC, Form.HALF)
_OF_PRODUCTS = (Form.STATIC, Form.DYNAMIC, *_STORED, Form.HALF)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer, of which a chain is timed.

    Args:
      key: Short name.
      words: What it is, for people.
      op: Operator of the float chain.
      data: Shape of its input and output.
      weight: Shape of its weight; of its second operand where it has no weight.
      forms: The forms it is timed in, besides float.
      group: Groups of a Conv.
      depth: Layers of the chain: enough that its ends and the call itself count little.
    """

    key: str
    words: str
    op: str
    data: tuple[int, ...]
    weight: tuple[int, ...]
    forms: tuple[Form, ...]
    group: int = 1
    depth: int = 2


_PICTURE = (1, 64, 56, 56)
_SQUARE = (1024, 1024)
LAYERS = (
    Layer(key="conv", words="Conv 3x3", op="Conv", data=_PICTURE, weight=(64, 64, 3, 3), forms=_OF_CONVOLUTIONS),
    Layer(
        key="depthwise", words="depthwise 3x3", op="Conv", data=_PICTURE, weight=(64, 1, 3, 3),
        forms=(Form.STATIC, Form.HALF), group=64, depth=8,
    ),
    Layer(key="gemm-1", words="Gemm, 1 row", op="Gemm", data=(1, 1024), weight=_SQUARE, forms=_OF_PRODUCTS, depth=4),
    Layer(
        key="gemm-128", words="Gemm, 128 rows", op="Gemm", data=(128, 1024), weight=_SQUARE, forms=_OF_PRODUCTS,
        depth=1,
    ),
    Layer(key="add", words="Add", op="Add", data=_PICTURE, weight=_PICTURE, forms=(Form.STATIC,), depth=4),
    Layer(key="add-alone", words="Add, alone", op="Add", data=_PICTURE, weight=_PICTURE, forms=(Form.ALONE,), depth=1),
)  # fmt: skip


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTime:
    """How fast one layer is in one form.

    Args:
      layer: Key of the layer.
      form: The form.
      runs_as: Kernels that computed, in order, without conversions and copies; empty where the runtime refused.
      ms: Milliseconds of one layer; None where the runtime refused.
      float_ms: The same in float, from the same measurement; None where float was refused.
      speedup: Over float, with its interval; None for float itself and where either was refused.
      refused: Why this version of the runtime does not run it; empty where it does.
    """

    layer: str
    form: Form
    runs_as: tuple[str, ...] = ()
    ms: float | None = None
    float_ms: float | None = None
    speedup: Speedup | None = None
    refused: str = ""


def measure_kernels(
    runtime: Runtime,
    *,
    seconds: float,
    signed: bool,
    layers: Sequence[Layer] = LAYERS,
    clock: Clock = time.perf_counter_ns,
    progress: Progress = lambda stage, done, total: None,
) -> tuple[KernelTime, ...]:
    """Returns the time of every layer in every form, float first; one thread.

    Args:
      runtime: Where the layers run.
      seconds: Aim for the timing of all layers together; building and opening them takes about a second more.
      signed: Whether activations are signed, as on Arm.
      layers: What is timed.
      clock: Nanoseconds; injected by tests.
      progress: Called with (stage, done, total) before each layer.
    Raises: UsageError(slug="latency-request") if seconds is not positive.
    """
    found: list[KernelTime] = []
    for done, layer in enumerate(layers):
        progress("kernels", done, len(layers))
        found += _measure_layer(runtime, layer, seconds=seconds / len(layers), signed=signed, clock=clock)
    return tuple(found)


def _measure_layer(runtime: Runtime, layer: Layer, *, seconds: float, signed: bool, clock: Clock) -> list[KernelTime]:
    runs: dict[str, Callable[[], object]] = {}
    ran: dict[str, tuple[str, ...]] = {}
    refused: dict[str, str] = {}
    for form in (Form.FLOAT, *layer.forms):
        feeds = feeds_of(layer, form, signed=signed)
        try:
            data = build(layer, form, signed=signed)
            session = runtime.open(data, Options())
            ran[form] = _kernels_run(runtime, data, feeds)
        except ModelError as error:  # stands in its row: not running it is a finding about this version
            refused[form] = error.message
            continue
        runs[form] = _caller(session, feeds)
    timed: LatencyResult | None = None
    if Form.FLOAT in runs:
        timed = measure_latency(
            runs, baseline=Form.FLOAT, seconds=seconds, min_blocks=_MIN_BLOCKS, confidence=_CONFIDENCE, clock=clock
        )
    rows = []
    for form in (Form.FLOAT, *layer.forms):
        if timed is None or form not in runs:
            why = refused.get(form) or f"not timed, because float was refused: {refused[Form.FLOAT]}"
            rows.append(KernelTime(layer=layer.key, form=form, refused=why))
            continue
        rows.append(
            KernelTime(
                layer=layer.key,
                form=form,
                runs_as=ran[form],
                ms=timed.timings[form].p50_ms / layer.depth,
                float_ms=timed.timings[Form.FLOAT].p50_ms / layer.depth,
                speedup=timed.speedups.get(form),
            )
        )
    return rows


def _caller(session: Session, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
    return lambda: session.run(feeds)


def _kernels_run(runtime: Runtime, data: bytes, feeds: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Returns the kernels that computed, in order, each once: what converts or moves says nothing of the form."""
    with tempfile.TemporaryDirectory(prefix="fewbits-kernel-") as folder:
        path = Path(folder) / "kernel.onnx"
        path.write_bytes(data)
        nodes = runtime.executed(path, Options(), feeds)
    return tuple(dict.fromkeys(node.op for node in nodes if node.numbers in (Numbers.INTEGER, Numbers.FLOAT)))


def feeds_of(layer: Layer, form: Form, *, signed: bool) -> dict[str, np.ndarray]:
    """Returns the input of a chain: the same standard normal values in every form, in the numbers of the form."""
    values = np.random.default_rng(1).standard_normal(layer.data).astype(np.float32)
    if form is Form.STATIC:
        low, high, zero = (-128, 127, 0) if signed else (0, 255, 128)
        codes = np.clip(np.rint(values / _STEP) + zero, low, high)
        return {"x": codes.astype(np.int8 if signed else np.uint8)}
    return {"x": values.astype(np.float16) if form is Form.HALF else values}


def build(layer: Layer, form: Form, *, signed: bool) -> bytes:
    """Returns a chain of ``layer.depth`` layers as an ONNX file, in one form.

    All forms compute the same function but for rounding. The weights are seeded and scaled by their fan-in, so that
    values stay of order 1 along the chain.
    """
    return _Chain(layer, form, signed=signed).file()


@final
class _Chain:
    """The working state of one file: nodes and fixed tensors are added, then it is written."""

    def __init__(self, layer: Layer, form: Form, *, signed: bool) -> None:
        self.layer = layer
        self.form = form
        self.codes = np.int8 if signed else np.uint8
        self.zero = 0 if signed else 128
        self.nodes: list[Any] = []
        self.fixed: dict[str, np.ndarray] = {}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node; returns the name of its output."""
        return self.op_of("", kind, *inputs, **attributes)

    def op_of(self, domain: str, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        from onnx import helper

        stem = f"{kind}_{len(self.nodes)}"
        names = [stem, *(f"{stem}_{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"n_{stem}", domain=domain, **attributes))
        return stem

    def fix(self, values: Any, dtype: Any) -> str:
        """Adds a fixed tensor; returns its name."""
        name = f"fixed_{len(self.fixed)}"
        self.fixed[name] = np.asarray(values, dtype=dtype)
        return name

    def file(self) -> bytes:
        from onnx import helper, numpy_helper

        name, weight = "x", self._weight()
        for index in range(self.layer.depth):
            # Values of its own for each layer: the runtime keeps equal packed weights once, and those would lie in the
            # cache (measured: twice as fast).
            name = self._layer(name, np.roll(weight, index))
        kinds = {Form.STATIC: np.dtype(self.codes), Form.HALF: np.dtype(np.float16)}
        kind = helper.np_dtype_to_tensor_dtype(kinds.get(self.form, np.dtype(np.float32)))
        graph = helper.make_graph(
            self.nodes,
            "chain",
            [helper.make_tensor_value_info("x", kind, self.layer.data)],
            [helper.make_tensor_value_info(name, kind, self.layer.data)],
            [numpy_helper.from_array(values, key) for key, values in self.fixed.items()],
        )
        imports = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_OWN_DOMAIN, 1)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION)
        return bytes(model.SerializeToString())

    def _weight(self) -> np.ndarray:
        shape = self.layer.weight
        fan_in = {"Conv": int(np.prod(shape[1:])), "Gemm": shape[0], "Add": 1}[self.layer.op]
        values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        made: np.ndarray = values / np.float32(np.sqrt(fan_in))
        return made

    def _layer(self, x: str, weight: np.ndarray) -> str:
        if self.form in (Form.FLOAT, Form.HALF):
            dtype = np.float16 if self.form is Form.HALF else np.float32
            return self._compute(x, self.fix(weight, dtype))
        if self.form is Form.DYNAMIC:
            return self._dynamic(x, weight)
        if self.form in _STORED:
            return self._stored(x, weight)
        if self.form is Form.ALONE:
            return self._dequantized(self._static(self._quantized(x), weight))
        return self._static(x, weight)

    def _compute(self, x: str, weight: str) -> str:
        if self.layer.op != "Conv":
            return self.op(self.layer.op, x, weight)
        return self.op("Conv", x, weight, **self._convolution())

    def _convolution(self) -> dict[str, Any]:
        pad = self.layer.weight[-1] // 2
        return {"pads": [pad] * 4, "group": self.layer.group}

    def _quantized(self, x: str) -> str:
        return self.op("QuantizeLinear", x, self.fix(_STEP, np.float32), self.fix(self.zero, self.codes))

    def _dequantized(self, x: str) -> str:
        return self.op("DequantizeLinear", x, self.fix(_STEP, np.float32), self.fix(self.zero, self.codes))

    def _static(self, x: str, weight: np.ndarray) -> str:
        """Adds a layer from codes to codes: weights with a scale a channel, activations with one."""
        if self.layer.op == "Add":
            other = np.clip(np.rint(weight / _STEP) + self.zero, *_limits(self.codes))
            operand = self._dequantized(self.fix(other, self.codes))
        else:
            codes, scale, axis = self._weight_codes(weight)
            zero = self.fix(np.zeros(scale.size), np.int8)
            operand = self.op(
                "DequantizeLinear", self.fix(codes, np.int8), self.fix(scale.reshape(-1), np.float32), zero, axis=axis
            )
        return self._quantized(self._compute(self._dequantized(x), operand))

    def _weight_codes(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Returns codes, scales that spread over them, and the axis of the output channels."""
        axis = 0 if self.layer.op == "Conv" else 1
        others = tuple(i for i in range(weight.ndim) if i != axis)
        scale = np.abs(weight).max(axis=others, keepdims=True) / 127
        return np.rint(weight / scale), scale, axis

    def _dynamic(self, x: str, weight: np.ndarray) -> str:
        """Adds a layer whose activation scale is found anew in each run, as ``quantize_dynamic`` writes it."""
        codes = self.op_of("", "DynamicQuantizeLinear", x, outputs=3)
        scale = np.abs(weight).max() / 127
        kind = "ConvInteger" if self.layer.op == "Conv" else "MatMulInteger"
        fixed = self.fix(np.rint(weight / scale), np.int8)
        inputs = (codes, fixed, f"{codes}_2", self.fix(0, np.int8))
        attributes = self._convolution() if kind == "ConvInteger" else {}
        whole = self.op("Cast", self.op(kind, *inputs, **attributes), to=1)
        return self.op("Mul", whole, self.op("Mul", f"{codes}_1", self.fix(scale, np.float32)))

    def _stored(self, x: str, weight: np.ndarray) -> str:
        """Adds a product whose weights alone are in codes, a scale for each block of 32 along the inner axis."""
        bits, level = _STORED[self.form]
        inner, outer = weight.shape
        blocks = weight.T.reshape(outer, inner // _BLOCK, _BLOCK)
        top = 2 ** (bits - 1)
        scale = np.abs(blocks).max(axis=-1, keepdims=True) / (top - 1)
        codes = (np.rint(blocks / scale) + top).astype(np.uint8)  # the zero point is the middle where none is given
        if bits == 4:
            codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
        return self.op_of(
            _OWN_DOMAIN,
            "MatMulNBits",
            x,
            self.fix(codes, np.uint8),
            self.fix(scale.reshape(-1), np.float32),
            K=inner,
            N=outer,
            bits=bits,
            block_size=_BLOCK,
            accuracy_level=level,
        )


def _limits(codes: Any) -> tuple[int, int]:
    found = np.iinfo(codes)
    return int(found.min), int(found.max)
