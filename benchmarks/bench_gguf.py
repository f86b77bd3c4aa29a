"""GGUF's blocks: squared error, error of networks' outputs, and seconds, beside llama.cpp's own quantizer.

Ours is `fewbits.quantize_array`, its search with both weightings; theirs `ggml_quantize_chunk` without an importance
matrix, called through ctypes where the package llama-cpp-python is installed, or `--ggml` names its libggml-base.so.
One thread. The real weights are those of shared/data, in rows of 256 as they lie in memory; rows that GGUF would have
of small networks are shorter. Run: ``OMP_NUM_THREADS=1 python benchmarks/bench_gguf.py [--ggml PATH] [--side 4096]``
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

import common
import fewbits
from fewbits.numerics.block_search import SUPER_BLOCK, SuperBlockSearch, Weighting
from fewbits.numerics.named import lined_up
from fewbits.numerics.packing.gguf import LAYOUT, TYPES
from fewbits.numerics.schemes import SCHEMES

SUPER = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
EVERY = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", *SUPER)
# Blocks begin elsewhere in each repetition, so that one network gives several independent roundings.
REPETITIONS, SHIFT = 10, 23
Quantize = Callable[[common.Array, str], common.Array]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ggml", type=Path, default=found_ggml(), help="libggml-base.so of llama.cpp")
    parser.add_argument("--side", type=int, default=4096, help="of the square matrix that is timed")
    arguments = parser.parse_args()
    theirs = None if arguments.ggml is None else Ggml(arguments.ggml)
    print(common.machine())
    print(f"seed {common.SEED}; llama.cpp: {arguments.ggml or common.NOT_RUN + ', llama-cpp-python is not installed'}")
    errors(theirs)
    networks(theirs)
    seconds(arguments.side, theirs)


def found_ggml() -> Path | None:
    """Returns llama.cpp's library as llama-cpp-python installs it, or None."""
    spec = importlib.util.find_spec("llama_cpp")
    folders = [] if spec is None else spec.submodule_search_locations or []
    return next((path for folder in folders for path in Path(folder).rglob("libggml-base.so")), None)


class Ggml:
    """llama.cpp's quantizer."""

    def __init__(self, path: Path) -> None:
        self._chunk = ctypes.CDLL(str(path)).ggml_quantize_chunk
        self._chunk.restype = ctypes.c_size_t
        rows = [ctypes.c_int64] * 3
        self._chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *rows, ctypes.c_void_p]

    def pack(self, rows: common.Array, name: str) -> common.Array:
        """Returns the blocks of float32 rows, uint8 [rows, bytes]."""
        rows, kind = np.ascontiguousarray(rows, np.float32), TYPES[name]
        blocks = np.zeros((rows.shape[0], rows.shape[1] // kind.elements * kind.bytes), np.uint8)
        size = self._chunk(kind.type_id, rows.ctypes.data, blocks.ctypes.data, 0, *rows.shape, None)
        assert size == blocks.nbytes, "a row of another size"
        return blocks

    def __call__(self, rows: common.Array, name: str) -> common.Array:
        """Returns what its blocks decode to."""
        scheme = lined_up(SCHEMES[name].weight.scheme)
        return np.asarray(LAYOUT.unpack({"blocks": self.pack(rows, name)}, scheme, rows.shape).dequantize())


def ours(rows: common.Array, name: str) -> common.Array:
    return np.asarray(fewbits.quantize_array(rows, name).dequantize())


def least_squares(rows: common.Array, name: str) -> common.Array:
    """Returns the search with equal weights, tile by tile."""
    scheme, search = lined_up(SCHEMES[name].weight.scheme), SuperBlockSearch(weighting=Weighting.EQUAL)
    parts = np.array_split(rows, max(1, rows.size >> 17))
    return np.concatenate([np.asarray(search.solve(part, scheme).dequantize()) for part in parts])


def weights() -> Iterator[tuple[str, common.Array]]:
    """Gives drawn and real weights in rows of whole super-blocks."""
    from safetensors.numpy import load_file

    rng = np.random.default_rng(common.SEED)
    normal = rng.standard_normal((512, 1024)).astype(np.float32)
    yield "normal", normal
    yield "normal * 4e-4", normal * np.float32(4e-4)  # d is a denormal of fp16
    yield "Student's t, 4", rng.standard_t(4, (512, 1024)).astype(np.float32)
    for name, path in (
        ("stories260K", "stories260k/stories260k.safetensors"),
        ("KWT-1", "speech_commands/kwt1.safetensors"),
        ("Tiny Darknet", "imagenet_sample/tiny_darknet.safetensors"),
    ):
        if (common.DATA / path).exists():
            arrays = [array.astype(np.float32) for array in load_file(common.DATA / path).values() if array.ndim > 1]
            rows = [array.reshape(-1)[: array.size // SUPER_BLOCK * SUPER_BLOCK] for array in arrays]
            yield name, np.concatenate(rows).reshape(-1, SUPER_BLOCK)


def errors(theirs: Ggml | None) -> None:
    """Prints relative squared errors, and ours over theirs."""
    rows = []
    for label, values in weights():
        for name in EVERY:
            if name not in SUPER and label != "normal":
                continue
            total = float(np.square(values, dtype=np.float64).sum())
            found = [
                float(np.square(how(values, name) - values, dtype=np.float64).sum()) / total
                for how in (ours, least_squares if name in SUPER else ours, theirs or ours)
            ]
            cells = [f"{found[0]:.3e}", f"{found[1]:.3e}" if name in SUPER else ""]
            beside = [f"{found[2]:.3e}", f"{found[0] / found[2]:.3f}", f"{found[1] / found[2]:.3f}"]
            if theirs is not None and name not in SUPER:
                own = LAYOUT.pack(fewbits.quantize_array(values, name))["blocks"]
                beside[1:] = ["same bytes" if np.array_equal(own, theirs.pack(values, name)) else "other bytes", ""]
            rows.append([label, name, *cells, *(beside if theirs else [common.NOT_RUN, "", ""])])
    header = ("weights", "type", "error", "equal weights", "llama.cpp", "ours / theirs", "equal / theirs")
    print("\nSquared error over the sum of squares.\n\n" + common.table(header, rows))


def networks(theirs: Ggml | None) -> None:
    """Prints how far networks' outputs move when their weights are quantized, in the geometric mean of repetitions."""
    rows = []
    for label, model, inputs in cases():
        reference = outputs(model, inputs, None, "", 0)
        for name in SUPER:
            every: dict[str, list[float]] = {}
            quantizers: dict[str, Quantize] = {"ours": ours, "equal": least_squares}
            if theirs is not None:
                quantizers["llama.cpp"] = theirs
            for number in range(REPETITIONS):
                for key, quantize in quantizers.items():
                    moved = outputs(model, inputs, quantize, name, number * SHIFT) - reference
                    every.setdefault(key, []).append(float(np.log(np.square(moved).mean() / reference.var())))
            cells = [f"{np.exp(np.mean(every[key])):.2e}" for key in ("ours", "equal")]
            beside = [common.NOT_RUN, "", ""]
            if theirs is not None:
                cells.append(f"{np.exp(np.mean(every['llama.cpp'])):.2e}")
                beside = [ratio(every[key], every["llama.cpp"]) for key in ("ours", "equal")]
            rows.append([label, name, *cells, *beside])
    header = ("network", "type", "ours", "equal weights", "llama.cpp", "ours / theirs", "equal / theirs")
    print(f"\nSquared error of the outputs over their variance, {REPETITIONS} repetitions (± one standard error).\n")
    print(common.table(header, rows) if rows else common.NOT_RUN + ": shared/data is not there")


def ratio(one: list[float], other: list[float]) -> str:
    logs = np.subtract(one, other)
    return f"{np.exp(logs.mean()):.2f} ± {np.exp(logs.mean()) * logs.std(ddof=1) / np.sqrt(len(logs)):.2f}"


def cases() -> Iterator[tuple[str, Path, common.Array]]:
    """Gives networks with inputs."""
    model, data = (common.DATA / "speech_commands" / name for name in ("kwt1.onnx", "features_labels.npz"))
    if data.exists():
        yield "KWT-1", model, np.load(data)["features"][100:300].astype(np.float32)
    model, data = (common.DATA / "cifar10" / name for name in ("resnet20.onnx", "cifar10_test.npz"))
    if data.exists():
        pixels = np.load(data)["x"][:150].astype(np.float32) / 255
        yield "ResNet-20", model, ((pixels - common.CIFAR_MEAN) / common.CIFAR_STD).transpose(0, 3, 1, 2)


def outputs(model: Path, inputs: common.Array, quantize: Quantize | None, name: str, shift: int) -> common.Array:
    """Returns the outputs of a network whose weights were quantized in rows of 256 that begin at ``shift``."""
    proto = onnx.load(str(model))
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if quantize is not None and values.ndim > 1 and values.size >= 4 * SUPER_BLOCK:
            line = np.roll(values.reshape(-1), shift)
            whole = line.size // SUPER_BLOCK * SUPER_BLOCK
            line[:whole] = quantize(line[:whole].reshape(-1, SUPER_BLOCK), name).reshape(-1)
            changed = np.roll(line, -shift).reshape(values.shape)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: inputs.astype(np.float32)})
    return np.asarray(found[0], np.float64)


def seconds(side: int, theirs: Ggml | None) -> None:
    """Prints seconds for one square matrix, the better of two."""
    values = np.random.default_rng(common.SEED).standard_normal((side, side)).astype(np.float32)
    rows = []
    for name in EVERY:
        own = best_of_two(lambda name=name: fewbits.quantize_array(values, name))
        packed = fewbits.quantize_array(values, name)
        pack = best_of_two(lambda packed=packed: LAYOUT.pack(packed))
        peer = common.NOT_RUN if theirs is None else f"{best_of_two(lambda name=name: theirs.pack(values, name)):.2f}"
        rows.append([name, f"{own:.2f}", f"{pack:.2f}", peer])
    print(f"\nSeconds for a matrix of {side} x {side}, one thread.\n")
    print(common.table(("type", "quantize_array", "pack", "llama.cpp, both"), rows))


def best_of_two(work: Callable[[], object]) -> float:
    times = []
    for _ in range(2):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


if __name__ == "__main__":
    main()
