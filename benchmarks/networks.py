"""Networks as ONNX files with the published shapes and *live* activations: ResNet-18, MobileNetV2, and those beside it.

ResNet-18 and MobileNetV2 (ReLU6) are written here, opset 17, with BatchNormalization as nodes; MobileNetV3-large,
EfficientNet-B0 and ViT-tiny in networks_vision.py, MiniLM-L6, an LSTM and a GRU in networks_sequences.py, opset 20.

Weights are random, so a benchmark may use these files for latency, size, memory and executed graph, never for accuracy.
A random network is easily dead: with default BatchNorm statistics the activations shrink to 1e-8 and the output no
longer depends on the input, so every quantizer looks perfect. Here the running statistics of each BatchNormalization
are the statistics of what really reaches it, layer by layer, and ``check_alive`` refuses a file that is still dead.

Sources: He et al., Deep Residual Learning, arXiv 1512.03385, table 1;
Sandler et al., MobileNetV2, arXiv 1801.04381, table 2.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import networks_sequences
import networks_vision
import networks_writing
from networks_writing import Array, Graph

Images = NDArray[np.float32]

OPSET = 17
IR_VERSION = 8  # The IR version of opset 17.
SIZE = 224
CLASSES = 1000
STATISTIC_IMAGES = 8
STATISTIC_EXAMPLES = (
    24  # Of the networks with squeeze-and-excite: gates that 8 pictures settle drive others out of range.
)
LOGIT_STD = (
    3.0  # A trained classifier is sure of some inputs; with a spread of 1 the softmax over 1000 classes is flat.
)

# Learned values of the published networks: convolutions, gamma and beta, classifier with bias.
# Of MiniLM all 512 positions, the second token type and a pooler of 384 x 384 are absent; a classifier is added.
_MINILM = 22_713_216 - (512 - 128) * 384 - 384 - (384 * 384 + 384) + (384 * 64 + 64)
PARAMETERS = {
    "resnet18": 11_689_512,
    "mobilenetv2": 3_504_872,
    "mobilenetv3": 5_483_032,
    "efficientnet_b0": 5_288_548,
    "vit_tiny": 5_717_416,
    "minilm": _MINILM,
    "lstm": 4 * 256 * (40 + 256 + 256 + 256) + 2 * 2 * 4 * 256 + 256 * 35 + 35,
    "gru": 3 * 256 * (40 + 256 + 256 + 256) + 2 * 2 * 3 * 256 + 256 * 35 + 35,
}
BASIC_BLOCKS = ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))  # channels, stride
INVERTED_RESIDUALS = (  # expansion, channels, repeats, stride
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def structured_images(n: int, seed: int, *, size: int = SIZE, start: int = 0) -> Images:
    """Returns n images with edges, gratings, blobs, colour casts and noise, [n, 3, size, size], roughly standardized.

    Image i depends on (seed, start + i) alone, so that a large set can be made in chunks.
    """
    axis = np.linspace(-1.0, 1.0, size, dtype=np.float32)
    y, x = axis[:, None], axis[None, :]
    images = np.empty((n, 3, size, size), np.float32)
    for i in range(n):
        rng = np.random.default_rng([seed, start + i])
        canvas = rng.normal(0.0, 0.6, (3, 1, 1)).astype(np.float32) * np.ones((3, size, size), np.float32)
        for _ in range(3):  # Gratings, from one period an image to one in eight pixels.
            angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
            frequency = np.exp(rng.uniform(np.log(np.pi), np.log(np.pi * size / 8)))
            wave = np.sin(frequency * (np.cos(angle) * x + np.sin(angle) * y) + phase).astype(np.float32)
            canvas += rng.normal(0.0, 0.35, (3, 1, 1)).astype(np.float32) * wave
        for _ in range(2):  # Edges.
            angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.6, 0.6)
            half = (np.cos(angle) * x + np.sin(angle) * y > offset).astype(np.float32)
            canvas += rng.normal(0.0, 0.5, (3, 1, 1)).astype(np.float32) * half
        for _ in range(3):  # Blobs.
            cx, cy, width = rng.uniform(-0.8, 0.8), rng.uniform(-0.8, 0.8), rng.uniform(0.05, 0.4)
            blob = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * width**2)).astype(np.float32)
            canvas += rng.normal(0.0, 1.0, (3, 1, 1)).astype(np.float32) * blob
        contrast = np.float32(rng.uniform(0.4, 1.4))
        canvas = contrast * canvas + rng.normal(0.0, 0.05, canvas.shape).astype(np.float32)
        images[i] = np.clip(canvas, -2.2, 2.7)  # The reach of 8-bit pixels after the usual ImageNet normalization.
    return images


@dataclass(slots=True)
class _Builder:
    """A graph under construction and, beside it, what its newest tensors hold for the statistic images."""

    rng: np.random.Generator
    nodes: list[NodeProto]
    initializers: list[TensorProto]
    parameters: int

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_output"], name=name, **attributes))
        return f"{name}_output"


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    value: Images


def _run(node: NodeProto, feeds: dict[str, NDArray[np.generic]]) -> Images:
    """Returns the output of one node, computed by onnxruntime."""
    inputs = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in feeds.items()
    ]
    output = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph([node], "one_node", inputs, [output]),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = (
        1  # One thread: the order of sums, hence the file, is the same on every machine size.
    )
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def _convolution(
    build: _Builder, x: _Tensor, name: str, out: int, *, kernel: int, stride: int = 1, groups: int = 1
) -> _Tensor:
    """Appends Conv (He normal, no bias) and BatchNormalization whose running statistics are those of its real input."""
    channels = x.value.shape[1] // groups
    fan_in = channels * kernel * kernel
    weight = build.rng.normal(0.0, np.sqrt(2.0 / fan_in), (out, channels, kernel, kernel)).astype(np.float32)
    pad = kernel // 2
    weight_name = build.constant(f"{name}.weight", weight)
    conv = build.node(
        "Conv",
        [x.name, weight_name],
        f"{name}/Conv",
        kernel_shape=[kernel, kernel],
        strides=[stride, stride],
        pads=[pad] * 4,
        group=groups,
        dilations=[1, 1],
    )
    y = _run(build.nodes[-1], {x.name: x.value, weight_name: weight})
    mean, variance = y.mean(axis=(0, 2, 3), dtype=np.float64), y.var(axis=(0, 2, 3), dtype=np.float64)
    gamma = build.rng.uniform(0.5, 1.3, out).astype(np.float32)
    beta = build.rng.normal(0.0, 0.3, out).astype(np.float32)
    statistics = {
        "gamma": gamma,
        "beta": beta,
        "mean": mean.astype(np.float32),
        "var": variance.astype(np.float32),
    }
    names = [build.constant(f"{name}.bn.{key}", value) for key, value in statistics.items()]
    normal = build.node("BatchNormalization", [conv, *names], f"{name}/BatchNormalization", epsilon=1e-5)
    value = _run(build.nodes[-1], {conv: y, **dict(zip(names, statistics.values(), strict=True))})
    build.parameters += weight.size + gamma.size + beta.size
    return _Tensor(normal, value)


def _relu(build: _Builder, x: _Tensor, name: str) -> _Tensor:
    return _Tensor(build.node("Relu", [x.name], f"{name}/Relu"), np.maximum(x.value, np.float32(0)))


def _relu6(build: _Builder, x: _Tensor, name: str) -> _Tensor:
    output = build.node("Clip", [x.name, "relu6.min", "relu6.max"], f"{name}/Clip")
    return _Tensor(output, np.clip(x.value, np.float32(0), np.float32(6)))


def _add(build: _Builder, a: _Tensor, b: _Tensor, name: str) -> _Tensor:
    return _Tensor(build.node("Add", [a.name, b.name], f"{name}/Add"), a.value + b.value)


def _classifier(build: _Builder, x: _Tensor) -> None:
    """Appends global average pooling and a Gemm whose bias removes the constant part of the features.

    Features behind a ReLU are mostly a constant; if it stayed, 99.9 % of the logits would not depend on the input.
    """
    pooled = build.node("GlobalAveragePool", [x.name], "head/GlobalAveragePool")
    flat = build.node("Flatten", [pooled], "head/Flatten", axis=1)
    features = x.value.mean(axis=(2, 3), dtype=np.float64)
    weight = build.rng.normal(0.0, 1.0, (CLASSES, features.shape[1]))
    centred = (features - features.mean(axis=0)) @ weight.T
    weight *= LOGIT_STD / centred.std()
    bias = build.rng.normal(0.0, 0.1, CLASSES) - weight @ features.mean(axis=0)
    build.constant("head.weight", weight.astype(np.float32))
    build.constant("head.bias", bias.astype(np.float32))
    build.nodes.append(
        helper.make_node("Gemm", [flat, "head.weight", "head.bias"], ["logits"], name="head/Gemm", transB=1)
    )
    build.parameters += weight.size + bias.size


def _resnet18(build: _Builder, x: _Tensor) -> None:
    x = _relu(build, _convolution(build, x, "stem", 64, kernel=7, stride=2), "stem")
    pool = build.node("MaxPool", [x.name], "stem/MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    x = _Tensor(pool, _run(build.nodes[-1], {x.name: x.value}))
    for i, (channels, stride) in enumerate(BASIC_BLOCKS):
        name, shortcut = f"block{i}", x
        y = _relu(build, _convolution(build, x, f"{name}.a", channels, kernel=3, stride=stride), f"{name}.a")
        y = _convolution(build, y, f"{name}.b", channels, kernel=3)
        if x.value.shape[1:] != y.value.shape[1:]:
            shortcut = _convolution(build, x, f"{name}.shortcut", channels, kernel=1, stride=stride)
        x = _relu(build, _add(build, y, shortcut, name), name)
    _classifier(build, x)


def _mobilenetv2(build: _Builder, x: _Tensor) -> None:
    build.constant("relu6.min", np.array(0, np.float32))
    build.constant("relu6.max", np.array(6, np.float32))
    x = _relu6(build, _convolution(build, x, "stem", 32, kernel=3, stride=2), "stem")
    i = 0
    for expansion, channels, repeats, first_stride in INVERTED_RESIDUALS:
        for repeat in range(repeats):
            name, y, stride = f"block{i}", x, first_stride if repeat == 0 else 1
            i += 1
            hidden = x.value.shape[1] * expansion
            if expansion != 1:
                y = _relu6(build, _convolution(build, y, f"{name}.expand", hidden, kernel=1), f"{name}.expand")
            y = _convolution(build, y, f"{name}.depthwise", hidden, kernel=3, stride=stride, groups=hidden)
            y = _relu6(build, y, f"{name}.depthwise")
            y = _convolution(build, y, f"{name}.project", channels, kernel=1)
            x = _add(build, x, y, name) if x.value.shape == y.value.shape else y
    _classifier(build, _relu6(build, _convolution(build, x, "last", 1280, kernel=1), "last"))


NETWORKS: dict[str, Callable[[_Builder, _Tensor], None]] = {"resnet18": _resnet18, "mobilenetv2": _mobilenetv2}
EXPORTED: dict[str, tuple[Callable[..., None], int]] = {  # What writes it, number of classes.
    "vit_tiny": (networks_vision.vit_tiny, networks_vision.CLASSES),
    "minilm": (networks_sequences.minilm, networks_sequences.INTENTS),
    "mobilenetv3": (networks_vision.mobilenetv3, networks_vision.CLASSES),
    "efficientnet_b0": (networks_vision.efficientnet_b0, networks_vision.CLASSES),
    "lstm": (networks_sequences.lstm, networks_sequences.WORDS),
    "gru": (networks_sequences.gru, networks_sequences.WORDS),
}
ATTEMPTS = 6  # How many random networks are tried until one is alive.
NAMES = (*NETWORKS, *EXPORTED)


def examples(name: str, n: int, seed: int, *, start: int = 0) -> dict[str, Array]:
    """Returns n inputs of the network, by input name; example i depends on (seed, start + i) alone."""
    if name == "minilm":
        return networks_sequences.sentences(n, seed, start=start)
    if name in ("lstm", "gru"):
        return {"features": networks_sequences.tracks(n, seed, start=start)}
    return {"image": structured_images(n, seed, start=start)}


def network(name: str, *, seed: int = 0, folder: Path | None = None) -> Path:
    """Returns the path of a network of NAMES, built and checked at first use.

    Inputs as ``examples`` gives them, output ``logits`` [N, classes], dynamic batch.

    Raises: ValueError if the network that was built is dead, or has not the parameters of the published one.
    """
    folder = folder or Path(tempfile.gettempdir()) / "fewbits-benchmarks"
    path = folder / f"{name}-seed{seed}.onnx"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    for attempt in range(ATTEMPTS):
        model, parameters = _written(name, seed) if name in NETWORKS else _exported(name, seed, attempt)
        if parameters != PARAMETERS[name]:
            raise ValueError(f"{name} has {parameters} parameters, the published network {PARAMETERS[name]}")
        onnx.checker.check_model(model, full_check=True)
        partial = path.with_suffix(f".{seed}.partial")
        onnx.save(model, partial)
        try:
            check_alive(partial, examples(name, 16, seed + 1))
        except ValueError:
            if name in NETWORKS or attempt == ATTEMPTS - 1:
                raise
            continue  # Other random weights; seldom needed, where too few classes are answered.
        break
    partial.replace(path)
    return path


def _written(name: str, seed: int) -> tuple[ModelProto, int]:
    build = _Builder(np.random.default_rng([seed, 18]), [], [], 0)
    NETWORKS[name](build, _Tensor("image", structured_images(STATISTIC_IMAGES, seed)))
    graph = helper.make_graph(
        build.nodes,
        name,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        build.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return model, build.parameters


def _exported(name: str, seed: int, attempt: int) -> tuple[ModelProto, int]:
    graph = Graph(np.random.default_rng([seed, 18 + attempt]))
    write, classes = EXPORTED[name]
    write(graph, *[graph.input(key, value) for key, value in examples(name, STATISTIC_EXAMPLES, seed).items()])
    return graph.model(name, classes), graph.parameters


_LIVE = {  # Ops whose outputs must have a sane spread: what follows a normalization, or has one folded into it.
    OPSET: ("BatchNormalization", "Add"),
    networks_writing.OPSET: ("Conv", "LayerNormalization", "Gemm", "LSTM", "GRU"),
}


def check_alive(path: Path, inputs: Images | dict[str, Array]) -> dict[str, float]:
    """Returns figures that show that a network computes; refuses a dead one.

    Asked on examples that the network was not built on: the standard deviation of the output of every op that _LIVE
    names lies in [0.1, 10], that of the logits within a factor of 5 of LOGIT_STD; at least a third of the logits'
    standard deviation comes from the input; every second example has a top class of its own (of a few classes: half of
    what so many throws of a fair die would show).

    Raises: ValueError that names the first tensor or property that fails.
    """
    model = onnx.load(path)
    live = _LIVE[model.opset_import[0].version]
    logits_name = model.graph.output[0].name
    watched = [n.output[0] for n in model.graph.node if n.op_type in live and n.output[0] != logits_name]
    classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    model.graph.output.extend(helper.make_tensor_value_info(w, TensorProto.FLOAT, None) for w in watched)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = inputs if isinstance(inputs, dict) else {session.get_inputs()[0].name: inputs}
    logits, spreads = _watch(session, feeds, [logits_name, *watched])
    for name, spread in zip(watched, spreads, strict=True):
        if not 0.1 <= spread <= 10.0:
            raise ValueError(
                f"dead network {path.name}: {name} has a standard deviation of {spread:.2g}, not 0.1 to 10"
            )
    if not networks_writing.LOGIT_STD / 5 <= logits.std() <= networks_writing.LOGIT_STD * 5:
        raise ValueError(f"dead network {path.name}: the logits have a standard deviation of {logits.std():.2g}, not 3")
    share = float(logits.std(axis=0).mean() / logits.std())
    if not share >= 1 / 3:
        raise ValueError(f"dead network {path.name}: only {share:.1%} of the logits' spread comes from the input")
    tops = len(np.unique(logits.argmax(axis=1)))
    distinct = classes * (1 - (1 - 1 / classes) ** len(logits))  # Expected of so many fair throws.
    if tops < distinct / 2:
        raise ValueError(f"dead network {path.name}: {len(logits)} examples have only {tops} different top classes")
    return {"std_min": min(spreads), "std_max": max(spreads), "input_share": share, "top_classes": float(tops)}


def _watch(session: ort.InferenceSession, feeds: dict[str, Array], names: list[str]) -> tuple[Images, list[float]]:
    """Returns the first output for all examples, and the standard deviation of each other output, in bounded memory."""
    logits: list[Images] = []
    sums = np.zeros((len(names) - 1, 3))
    for i in range(0, len(next(iter(feeds.values()))), 4):
        first, *others = session.run(names, {name: value[i : i + 4] for name, value in feeds.items()})
        logits.append(first)
        sums += [(o.size, o.sum(dtype=np.float64), np.square(o, dtype=np.float64).sum()) for o in others]
    count, total, squares = sums.T
    return np.concatenate(logits), np.sqrt(squares / count - (total / count) ** 2).tolist()


def write_images_npz(path: Path, n: int, seed: int, *, name: str = "image", chunk: int = 16) -> None:
    """Writes n structured images as an uncompressed .npz with the one array ``name``, holding a chunk at a time."""
    _write_npz(path, lambda m, start: {name: structured_images(m, seed, start=start)}, n, chunk)


def write_examples_npz(path: Path, name: str, n: int, seed: int, *, chunk: int = 16) -> None:
    """Writes n examples of a network of NAMES as an uncompressed .npz, holding a chunk of each input at a time."""
    _write_npz(path, lambda m, start: examples(name, m, seed, start=start), n, chunk)


def _write_npz(path: Path, made: Callable[[int, int], dict[str, Array]], n: int, chunk: int) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for key, one in made(1, 0).items():
            header = {"descr": one.dtype.str, "fortran_order": False, "shape": (n, *one.shape[1:])}
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for block in _chunks(n, chunk):
                    member.write(made(len(block), block.start)[key].tobytes())


def _chunks(n: int, size: int) -> Iterable[range]:
    return (range(i, min(i + size, n)) for i in range(0, n, size))


if __name__ == "__main__":
    for key in NAMES:
        file = network(key)
        print(file, check_alive(file, examples(key, 16, 1)))
