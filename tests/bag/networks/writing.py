"""What the generators share: a graph writer, data with something to see, a fitted head, and files."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

_SUPPORT = Path(__file__).parents[2] / "support" / "graphs.py"
EXAMPLES = 300
CLASSES = 8
# How far the logit of the right class stands above the others in a fitted head.
_MARGIN = 8.0
# Of the mean power of a feature times the number of examples: a head that does not hang on faint differences.
_RIDGE = 0.1
# IR version with which an operator set came out; a file of an older one is written as exporters wrote it then.
_IR_VERSIONS = {7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}


def _graphs() -> ModuleType:
    name = "fewbits_test_graphs"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, _SUPPORT)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)  # dataclasses look their module up
    return sys.modules[name]


Net = _graphs().Net


@dataclass(frozen=True, kw_only=True)
class Made:
    """A model and what it is quantized with: one array for each input, perhaps labels."""

    model: onnx.ModelProto
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Saved:
    """The files of one case."""

    model: Path
    data: Path


def save(made: Made, folder: Path, name: str, *, external: bool = False) -> Saved:
    """Returns the files; with ``external`` all weights of a kilobyte or more lie in a second file beside the model."""
    model, data = folder / f"{name}.onnx", folder / f"{name}.npz"
    if external:
        onnx.save(made.model, model, save_as_external_data=True, location=f"{name}.onnx.data", size_threshold=1024)
    else:
        onnx.save(made.model, model)
    np.savez(data, **made.arrays)
    return Saved(model=model, data=data)


def finish(g: Any, *, functions: Any = (), checked: bool = True) -> onnx.ModelProto:
    """Returns the model of a writer, with the IR version of its operator set."""
    model = g.model(checked=False)
    model.ir_version = max(_IR_VERSIONS[g.imports[0].version], 8 if functions else 0)
    model.functions.extend(functions)
    if checked:
        onnx.checker.check_model(model)
    return model


def run_float(path: Path | bytes, arrays: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Returns what a file computes for the first examples, as ONNX Runtime runs it, one row an example."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        path if isinstance(path, bytes) else str(path), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    inputs = {i.name: i.shape for i in session.get_inputs()}
    single = any(len(shape) == arrays[name].ndim - 1 for name, shape in inputs.items())
    first = next(iter(inputs.values()))[0]
    step = 1 if single else first if isinstance(first, int) else count
    rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for start in range(0, count, step):
        feeds = {name: arrays[name][start] if single else arrays[name][start : start + step] for name in inputs}
        for name, value in zip(names, session.run(None, feeds), strict=True):
            rows[name].append(np.asarray(value)[None] if single else np.asarray(value))
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def fitted(model: onnx.ModelProto, arrays: dict[str, np.ndarray], *, features: str, head: str) -> Made:
    """Returns the model with the weights of its last layer fitted to the labels by ridge regression.

    The layer is a product of ``features`` with ``{head}_w`` [classes, features], to which ``{head}_b`` is added.
    Without it the answers of a random network would hang on differences that any rounding turns over.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    dtype = numpy_helper.to_array(stored[f"{head}_w"]).dtype
    probe.graph.output.append(helper.make_tensor_value_info(features, helper.np_dtype_to_tensor_dtype(dtype), None))
    count = len(arrays["labels"])
    x = run_float(probe.SerializeToString(), arrays, count)[features].reshape(count, -1).astype(np.float64)
    x = np.concatenate([x, np.ones((count, 1))], axis=1)
    targets = _MARGIN * np.eye(CLASSES)[arrays["labels"]]
    power = x.T @ x
    ridge = _RIDGE * np.trace(power) / len(power) * np.eye(len(power))
    ridge[-1, -1] = 0  # the bias is free
    found = np.linalg.solve(power + ridge, x.T @ targets).T.astype(dtype)
    for name, values in ((f"{head}_w", found[:, :-1]), (f"{head}_b", found[:, -1])):
        stored[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return Made(model=model, arrays=arrays)


def head(g: Any, x: str, width: int, *, dtype: Any = np.float32) -> str:
    """Adds the last layer of a classifier, to be fitted; returns the logits."""
    w = g.const(np.zeros((CLASSES, width)), "head_w", dtype)
    b = g.const(np.zeros(CLASSES), "head_b", dtype)
    return str(g.op("Gemm", x, w, b, transB=1, name="head", out="logits"))


def classifier(g: Any, pooled: str, width: int, arrays: dict[str, np.ndarray]) -> Made:
    """Flattens pooled maps, adds and fits the head; returns the whole."""
    features = g.op("Flatten", pooled, name="features", out="features")
    g.output(head(g, features, width), shape=["batch", CLASSES])
    return fitted(finish(g), arrays, features=features, head="head")


def labels(count: int, seed: int) -> np.ndarray:
    """Returns a class for each example."""
    return np.random.default_rng(seed).integers(0, CLASSES, count)


def images(
    channels: int = 3, size: int = 24, *, count: int = EXAMPLES, seed: int = 1, name: str = "x"
) -> dict[str, np.ndarray]:
    """Returns pictures with a coarse pattern for each class under noise, and labels."""
    return signals((channels, size, size), count=count, seed=seed, name=name)


def signals(
    shape: tuple[int, ...], *, count: int = EXAMPLES, seed: int = 1, name: str = "x", dtype: Any = np.float32
) -> dict[str, np.ndarray]:
    """Returns examples of any shape, a smooth pattern for each class under noise, and labels."""
    rng = np.random.default_rng(seed)
    patterns = rng.standard_normal((CLASSES, *shape))
    for axis in range(2, patterns.ndim):
        for _ in range(2):
            patterns = (patterns + np.roll(patterns, 1, axis) + np.roll(patterns, -1, axis)) / np.sqrt(3)
    truth = labels(count, seed + 1)
    noisy = 1.2 * patterns[truth] / patterns.std() + 0.6 * rng.standard_normal((count, *shape))
    return {name: noisy.astype(dtype), "labels": truth}


def tokens(vocabulary: int, length: int, *, count: int = EXAMPLES, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids [count, length] that differ in frequency from class to class, and the classes."""
    rng = np.random.default_rng(seed)
    truth = labels(count, seed + 1)
    odds = rng.dirichlet(np.full(vocabulary, 0.05), CLASSES)
    return np.stack([rng.choice(vocabulary, length, p=odds[c]) for c in truth]).astype(np.int64), truth


def silu(g: Any, x: str) -> str:
    """Adds x * sigmoid(x), as exporters write it."""
    return str(g.op("Mul", x, g.op("Sigmoid", x)))


def squeeze_excite(g: Any, x: str, channels: int, gate: str) -> str:
    """Adds a gate for each channel, computed from the means of all; ``gate`` is Sigmoid or HardSigmoid."""
    small = max(4, channels // 4)
    y = g.relu(g.conv(g.op("GlobalAveragePool", x), channels, small, 1))
    y = g.conv(y, small, channels, 1)
    y = g.op(gate, y, alpha=1 / 6, beta=0.5) if gate == "HardSigmoid" else g.op(gate, y)
    return str(g.op("Mul", x, y))


FLOAT, INT64, FLOAT16, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT16, TensorProto.BOOL
