"""Weights alone in few bits: KL to float, loss and size of ours beside ONNX Runtime's own quantizer; time of GPTQ.

    python benchmarks/bench_weight_only.py [--bits 4 2] [--group 32] [--skip-kernel]

Two models: KWT-1 (Speech Commands; a transformer), and a classifier of twelve words of text (an embedding table and
three linear layers) that is trained here in a few seconds to tell paragraphs of three sources apart. All candidates
have the same blocks and accuracy_level 4, so the same kernel, and are judged in the same session on the same examples,
none of which calibrated. What did not run says why.
"""

from __future__ import annotations

import argparse
import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import contextlib  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import fewbits  # noqa: E402
from common import DATA, SEED, Array, Paired, caller, machine, paired, predict, ratio_text, scratch, table  # noqa: E402
from fewbits.algorithms.rounders.gptq import feedback, gptq_codes  # noqa: E402
from fewbits.measurement.latency import measure_latency  # noqa: E402
from fewbits.numerics.qtensor import QTensor  # noqa: E402

ACCURACY_LEVEL = 4
WORDS, VOCABULARY, WIDTH, HIDDEN = 12, 4096, 64, 256
KERNELS = (1024, 4096)


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A model, what calibrates, and what is judged; ``prepared`` says that peers find its weights only after
    onnxruntime's quant_pre_process (KWT-1's lie behind a Transpose)."""

    name: str
    model: Path
    input: str
    calibration: Array
    judged: Array
    labels: Array
    batch: int
    prepared: bool = False


def kwt1() -> Case | None:
    model, stored = DATA / "speech_commands" / "kwt1.onnx", DATA / "speech_commands" / "features_labels.npz"
    if not model.exists():
        print("KWT-1: skipped, because ../shared/data/speech_commands (beside the repository) is not there")
        return None
    with np.load(stored) as data:
        features, labels = data["features"].astype(np.float32), data["label"].astype(np.int64)
    return Case(
        name="KWT-1 (Speech Commands)",
        model=model,
        input="features",
        calibration=features[:200],
        judged=features[200:],
        labels=labels[200:],
        batch=1,
        prepared=True,
    )


def paragraphs() -> tuple[Array, Array] | None:
    """Returns windows of words as numbers below VOCABULARY, [n, WORDS], and which of three sources each is from."""
    folder = DATA / "text"
    stories = DATA / "stories260k" / "tinystories_dev.json"
    if not folder.exists() or not stories.exists():
        print("text classifier: skipped, because ../shared/data/text (beside the repository) is not there")
        return None
    texts = [(folder / name).read_text(encoding="utf-8") for name in ("tinyshakespeare.txt", "wikitext2_valid.txt")]
    texts.append("\n".join(json.loads(stories.read_text(encoding="utf-8"))))
    split = [text.lower().replace("<unk>", "").split() for text in texts]
    least = min(len(words) for words in split) // WORDS * WORDS
    known: dict[str, int] = {}
    for words in split:
        for word in words[:least]:
            known[word] = known.get(word, 0) + 1
    ranked = sorted(known, key=lambda word: (-known[word], word))[: VOCABULARY - 1]
    number = {word: place + 1 for place, word in enumerate(ranked)}
    ids = [np.array([number.get(word, 0) for word in words[:least]]).reshape(-1, WORDS) for words in split]
    labels = np.repeat(np.arange(3), [len(part) for part in ids])
    order = np.random.default_rng(SEED).permutation(len(labels))
    return np.concatenate(ids)[order], labels[order]


def train(ids: Array, labels: Array, *, epochs: int = 3, batch: int = 64, rate: float = 2e-3) -> list[Array]:
    """Returns table, weights and biases of mean -> 3 linear layers with Relu between, trained by Adam in NumPy."""
    rng = np.random.default_rng(SEED)
    sizes = [(WIDTH, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 3)]
    values = [rng.standard_normal((VOCABULARY, WIDTH)) * 0.3]
    for shape in sizes:
        values += [rng.standard_normal(shape) * (2 / shape[0]) ** 0.5, np.zeros(shape[1])]
    first, second, step = [np.zeros_like(v) for v in values], [np.zeros_like(v) for v in values], 0
    for _ in range(epochs):
        for start in range(0, len(labels) - batch, batch):
            x, y = ids[start : start + batch], labels[start : start + batch]
            activations = [values[0][x].mean(axis=1)]
            for layer in range(3):
                out = activations[-1] @ values[1 + 2 * layer] + values[2 + 2 * layer]
                activations.append(np.maximum(out, 0) if layer < 2 else out)
            logits = activations[-1] - activations[-1].max(axis=1, keepdims=True)
            share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            share[np.arange(len(y)), y] -= 1
            back, gradients = share / len(y), [np.zeros(0)] * 7
            for layer in (2, 1, 0):
                gradients[1 + 2 * layer] = activations[layer].T @ back
                gradients[2 + 2 * layer] = back.sum(axis=0)
                back = back @ values[1 + 2 * layer].T
                back *= (activations[layer] > 0) if layer else 1
            gradients[0] = np.zeros_like(values[0])
            np.add.at(gradients[0], x, (back / WORDS)[:, None, :])
            step += 1
            for i, gradient in enumerate(gradients):
                first[i] = 0.9 * first[i] + 0.1 * gradient
                second[i] = 0.999 * second[i] + 0.001 * gradient**2
                values[i] = values[i] - rate * (first[i] / (1 - 0.9**step)) / (
                    np.sqrt(second[i] / (1 - 0.999**step)) + 1e-8
                )
    return [v.astype(np.float32) for v in values]


def classifier(folder: Path) -> Case | None:
    found = paragraphs()
    if found is None:
        return None
    ids, labels = found
    third = len(labels) // 3
    start = time.perf_counter()
    values = train(ids[: 2 * third], labels[: 2 * third])
    print(f"text classifier: trained on {2 * third} windows of {WORDS} words in {time.perf_counter() - start:.0f} s")
    names = ["table", "w0", "b0", "w1", "b1", "w2", "b2"]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
        helper.make_node("ReduceMean", ["e", "words"], ["h0"], name="mean", keepdims=0),
    ]
    for layer in range(3):
        nodes.append(helper.make_node("MatMul", [f"h{layer}", f"w{layer}"], [f"m{layer}"], name=f"mm{layer}"))
        out = "logits" if layer == 2 else f"a{layer}"
        nodes.append(helper.make_node("Add", [f"m{layer}", f"b{layer}"], [out], name=f"add{layer}"))
        if layer < 2:
            nodes.append(helper.make_node("Relu", [f"a{layer}"], [f"h{layer + 1}"], name=f"relu{layer}"))
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", WORDS])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [
            numpy_helper.from_array(np.array([1]), "words"),
            *(numpy_helper.from_array(value, name) for value, name in zip(values, names, strict=True)),
        ],
    )
    path = folder / "classifier.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return Case(
        name="text classifier (table and three linear layers)",
        model=path,
        input="ids",
        calibration=ids[2 * third : 2 * third + 500],
        judged=ids[2 * third + 500 :],
        labels=labels[2 * third + 500 :],
        batch=50,
    )


def ours(case: Case, scheme: str, folder: Path, *, data: bool) -> Path:
    arrays = {"data": {case.input: case.calibration}, "eval": {case.input: case.judged}} if data else {}
    result = fewbits.quantize(case.model, scheme=scheme, allow_slower=True, seed=SEED, **arrays)
    path = folder / f"ours-{scheme}-{data}.onnx"
    path.write_bytes(result.model_bytes)
    return path


class _Reader:
    """onnxruntime's protocol of calibration data."""

    def __init__(self, case: Case) -> None:
        self._feeds = [{case.input: row[None]} for row in case.calibration]
        self._next = 0

    def get_next(self) -> dict[str, Array] | None:
        self._next += 1
        return self._feeds[self._next - 1] if self._next <= len(self._feeds) else None

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return iter(self._feeds)

    def rewind(self) -> None:
        self._next = 0


def peer(case: Case, kind: str, bits: int, group: int, folder: Path) -> Path:
    """Returns the file of onnxruntime's MatMulNBitsQuantizer."""
    from onnxruntime.quantization import matmul_nbits_quantizer as m
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.disable(logging.WARNING)
    prepared = case.model
    if case.prepared:
        prepared = folder / "prepared.onnx"
        quant_pre_process(str(case.model), str(prepared), skip_symbolic_shape=True)
    shared = {"block_size": group}
    tables = ("MatMul", "Gather")
    config: Any = {
        "RTN": lambda: m.DefaultWeightOnlyQuantConfig(
            **shared, bits=bits, is_symmetric=True, accuracy_level=ACCURACY_LEVEL, op_types_to_quantize=tables
        ),
        "RTN asym": lambda: m.DefaultWeightOnlyQuantConfig(
            **shared, bits=bits, is_symmetric=False, accuracy_level=ACCURACY_LEVEL, op_types_to_quantize=tables
        ),
        "HQQ": lambda: m.HQQWeightOnlyQuantConfig(**shared, bits=bits),
        "k_quant": lambda: m.KQuantWeightOnlyQuantConfig(),
        "GPTQ": lambda: m.GPTQWeightOnlyQuantConfig(calibration_data_reader=_Reader(case), **shared, actorder=True),
    }[kind]()
    quantizer = m.MatMulNBitsQuantizer(
        onnx.load(prepared),
        bits=bits,
        block_size=group,
        is_symmetric=kind == "RTN",
        accuracy_level=ACCURACY_LEVEL,
        algo_config=config,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        quantizer.process()
    made = quantizer.model.model
    for node in made.graph.node:
        if node.op_type == "MatMulNBits":
            if any(a.name == "bits" and a.i != bits for a in node.attribute):
                raise ValueError(f"it offers no {bits} bits")
            kept = [a for a in node.attribute if a.name != "accuracy_level"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("accuracy_level", ACCURACY_LEVEL)])
    path = folder / f"{kind}-{bits}.onnx"
    onnx.save(made, path)
    return path


def rows(case: Case, bits: int, group: int, folder: Path) -> list[list[str]]:
    makers: dict[str, Callable[[], Path]] = {
        "fewbits, no data": lambda: ours(case, f"w{bits}a16-g{group}", folder, data=False),
        "fewbits, --data": lambda: ours(case, f"w{bits}a16-g{group}", folder, data=True),
        "fewbits -asym, no data": lambda: ours(case, f"w{bits}a16-g{group}-asym", folder, data=False),
        "fewbits -asym, --data": lambda: ours(case, f"w{bits}a16-g{group}-asym", folder, data=True),
        **{
            f"onnxruntime {kind}": (lambda kind=kind: peer(case, kind, bits, group, folder))
            for kind in ("RTN", "RTN asym", "HQQ", "k_quant", "GPTQ")
        },
    }
    exact = predict(case.model, case.judged, batch=case.batch)
    made: dict[str, tuple[Path, float, Paired]] = {}
    failed: dict[str, str] = {}
    for name, make in makers.items():
        start = time.perf_counter()
        try:
            path = make()
            seconds = time.perf_counter() - start
            got = predict(path, case.judged, batch=case.batch)
            made[name] = path, seconds, paired(exact, got, case.labels)
        except Exception as error:  # a peer that does not run is a row that says so
            failed[name] = str(error).splitlines()[0][:60] if str(error) else type(error).__name__
    example = case.judged[:1]
    calls = {"float": caller(case.model, example), **{n: caller(p, example) for n, (p, _, _) in made.items()}}
    timings = measure_latency(calls, baseline="float", seconds=6.0, seed=SEED)
    size = case.model.stat().st_size
    first = [
        f"float ({100 * (exact.argmax(axis=1) == case.labels).mean():.1f} %)", "0", "0", "0", f"{size / 1e3:.0f} kB",
        f"{timings.timings['float'].p50_ms:.3f} ms", "",
    ]  # fmt: skip
    found = [first]
    for name in makers:
        if name in failed:
            found.append([name, f"not run: {failed[name]}", "", "", "", "", ""])
            continue
        path, seconds, against = made[name]
        found.append(
            [
                name,
                f"{against.kl:.2e}",
                f"{100 * against.drop:.2f} (<= {100 * (against.bound or 0):.2f})",
                f"{against.changed}",
                f"{path.stat().st_size / 1e3:.0f} kB",
                ratio_text(timings.speedups[name]),
                f"{seconds:.1f} s",
            ]
        )
    return found


def kernel() -> list[list[str]]:
    """Returns the seconds of GPTQ on square weights in int4-g32, inputs correlated."""
    found = []
    for size in KERNELS:
        rng = np.random.default_rng(SEED)
        weight = rng.standard_normal((size, size)).astype(np.float32)
        mixed = rng.standard_normal((size, size // 8)) @ rng.standard_normal((size // 8, size))
        inputs = mixed + 0.3 * rng.standard_normal((size, size))
        moment = inputs.T @ inputs
        q = fewbits.quantize_array(weight, "int4-g32")
        factor, codes = [], []
        for _ in range(3):
            start = time.perf_counter()
            passed = feedback(moment)
            middle = time.perf_counter()
            fed = gptq_codes(weight, passed, q.params)
            factor.append(middle - start)
            codes.append(time.perf_counter() - middle)

        def loss(values: Array, weight: Array = weight, moment: Array = moment) -> float:
            error = (weight - values).astype(np.float64)
            return float(np.sum((error @ moment) * error))

        share = loss(QTensor(codes=fed, params=q.params).dequantize()) / loss(q.dequantize())
        found.append([f"{size} x {size}", f"{min(factor):.2f} s", f"{min(codes):.2f} s", f"{share:.3f}"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 2])
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--skip-kernel", action="store_true")
    given = parser.parse_args()
    print(machine())
    with scratch() as folder:
        for case in filter(None, (kwt1(), classifier(folder))):
            for bits in given.bits:
                print(
                    f"\n{case.name}: {bits} bits, blocks of {given.group}, accuracy_level {ACCURACY_LEVEL}; "
                    f"{len(case.calibration)} examples calibrate, {len(case.judged)} are judged\n"
                )
                head = ("", "KL to float", "loss, points (95 %)", "changed", "file", "speed, 1 thread", "made in")
                print(table(head, rows(case, bits, given.group, folder)))
    if not given.skip_kernel:
        print("\nGPTQ, int4-g32, float64, 1 thread; best of 3\n")
        print(table(("weight", "factor of H", "codes", "output error over nearest"), kernel()))


if __name__ == "__main__":
    main()
