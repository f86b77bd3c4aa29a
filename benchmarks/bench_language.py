"""Language and recommendation models: a text classifier and a two-tower recommender, in every form that fits them.

    python benchmarks/bench_language.py                      # trains both (two minutes), then measures
    python benchmarks/bench_language.py --models FOLDER      # takes, or leaves, FOLDER/text-classifier and /recommender

Each row is a file that ONNX Runtime opens: onnxruntime's own quantizers, and fewbits with forced schemes and with a
budget. All calibrate on calibration.npz and are judged on eval.npz, whose documents none has seen. The loss is top-1
against the true labels, with its one-sided 95 % bound (of independent examples; the verdict on a budget takes
those of a passage for one); flips are answers made wrong / made right; times of one example in one thread, interleaved.
Needs torch, and ../shared/data/text beside the repository.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import contextlib
import importlib
import io
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

import fewbits
from common import DATA, HERE, SEED, Array, machine, paired, ratio_text, scratch, session, table
from fewbits.measurement.latency import measure_latency

ACCURACY_LEVEL = 4
GROUP = 32
SCRIPTS = {"text-classifier": "train_text_classifier", "recommender": "train_recommender"}
BATCH = 50
HEAD = ("", "loss, points (95 %)", "flips", "KL to float", "file", "speed, 1 thread", "made in")


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A model, and the examples that calibrate and judge, by input name."""

    name: str
    folder: Path
    calibration: dict[str, Array]
    judged: dict[str, Array]
    labels: Array

    @property
    def model(self) -> Path:
        return self.folder / "model.onnx"


def trained(name: str, folder: Path) -> Case:
    """Returns the case in a folder; its model is trained where there is none yet."""
    if not (folder / "model.onnx").exists():
        import torch

        torch.set_num_threads(1)
        sys.path.insert(0, str(HERE.parent / "examples"))
        script = importlib.import_module(SCRIPTS[name])
        start = time.perf_counter()
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            script.make(DATA / "text", folder, sizes=script.Sizes(), seed=SEED)
        print(f"{name}: trained in {time.perf_counter() - start:.0f} s")
    parts = []
    for part in ("calibration", "eval"):
        with np.load(folder / f"{part}.npz") as arrays:
            parts.append({key: arrays[key] for key in arrays.files})
    labels = parts[1]["labels"]
    inputs = [{key: a for key, a in part.items() if key not in ("labels", "groups")} for part in parts]
    return Case(name=name, folder=folder, calibration=inputs[0], judged=inputs[1], labels=labels)


# ---- who makes files ------------------------------------------------------------------------------------------------


def ours(case: Case, out: Path, *, scheme: str | None) -> str:
    """Writes our file; returns what is to be said of it beside its row."""
    result = fewbits.quantize(
        case.model,
        data=case.folder / "calibration.npz",
        eval=case.folder / "eval.npz",
        scheme=scheme,
        max_drop="1%",
        allow_slower=scheme is not None,
        seed=SEED,
    )
    out.write_bytes(result.model_bytes)
    return "" if scheme is not None else str(result.report.headline)


def ort_dynamic(case: Case, out: Path) -> str:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Its shape inference refuses what torch annotates; without those notes it has nothing to refuse.
    plain = onnx.load(case.model)
    del plain.graph.value_info[:]
    quantize_dynamic(plain, str(out), weight_type=QuantType.QInt8, per_channel=True)
    return ""


def ort_static(case: Case, out: Path) -> str:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = _single(case.calibration, 500)

        def get_next(self) -> dict[str, Array] | None:
            return next(self._feeds, None)

    quantize_static(
        str(case.model), str(out), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return ""


def _single(arrays: dict[str, Array], most: int) -> Iterator[dict[str, Array]]:
    for i in range(min(most, len(next(iter(arrays.values()))))):
        yield {name: values[i : i + 1] for name, values in arrays.items()}


def ort_blocks(case: Case, out: Path, *, bits: int, symmetric: bool) -> str:
    from onnxruntime.quantization import matmul_nbits_quantizer as m

    config = m.DefaultWeightOnlyQuantConfig(
        block_size=GROUP, bits=bits, is_symmetric=symmetric, accuracy_level=ACCURACY_LEVEL,
        op_types_to_quantize=("MatMul", "Gather"),
    )  # fmt: skip
    quantizer = m.MatMulNBitsQuantizer(onnx.load(case.model), algo_config=config)
    quantizer.process()
    onnx.save(quantizer.model.model, out)
    return ""


MAKERS: dict[str, Callable[[Case, Path], str]] = {
    "fewbits fp16": lambda case, out: ours(case, out, scheme="fp16"),
    "fewbits bf16": lambda case, out: ours(case, out, scheme="bf16"),
    "fewbits w8a16": lambda case, out: ours(case, out, scheme="w8a16"),
    "fewbits w8a16-g32": lambda case, out: ours(case, out, scheme="w8a16-g32"),
    "fewbits w4a16-g32": lambda case, out: ours(case, out, scheme="w4a16-g32"),
    "fewbits w4a16-g32-asym": lambda case, out: ours(case, out, scheme="w4a16-g32-asym"),
    "fewbits w2a16-g32-asym": lambda case, out: ours(case, out, scheme="w2a16-g32-asym"),
    "fewbits w8a8": lambda case, out: ours(case, out, scheme="w8a8"),
    "fewbits w8a8-dynamic": lambda case, out: ours(case, out, scheme="w8a8-dynamic"),
    "fewbits --max-drop 1%": lambda case, out: ours(case, out, scheme=None),
    "onnxruntime dynamic": ort_dynamic,
    "onnxruntime static": ort_static,
    "onnxruntime 8 bits": lambda case, out: ort_blocks(case, out, bits=8, symmetric=True),
    "onnxruntime 4 bits": lambda case, out: ort_blocks(case, out, bits=4, symmetric=True),
    "onnxruntime 4 bits asym": lambda case, out: ort_blocks(case, out, bits=4, symmetric=False),
}


# ---- what they are worth --------------------------------------------------------------------------------------------


def answers(path: Path, arrays: dict[str, Array]) -> Array:
    opened, count = session(path), len(next(iter(arrays.values())))
    feeds = ({name: values[i : i + BATCH] for name, values in arrays.items()} for i in range(0, count, BATCH))
    return np.concatenate([opened.run(None, fed)[0] for fed in feeds]).astype(np.float64)


def caller(path: Path, arrays: dict[str, Array]) -> Callable[[], object]:
    opened, fed = session(path), {name: values[:1] for name, values in arrays.items()}
    return lambda: opened.run(None, fed)


def rows(case: Case, folder: Path, seconds: float) -> tuple[list[list[str]], list[str]]:
    """Returns the rows of the table, and what is to be said below it."""
    exact = answers(case.model, case.judged)
    found: dict[str, list[str]] = {}
    files: dict[str, Path] = {"float": case.model}
    said: list[str] = []
    for name, make in MAKERS.items():
        out, start = folder / f"{case.name}-{len(found)}.onnx", time.perf_counter()
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                words = make(case, out)
            took = time.perf_counter() - start
            against = paired(exact, answers(out, case.judged), case.labels)
        except Exception as error:  # what does not run is a row that says so
            text = str(error).splitlines()[0][:60] if str(error) else type(error).__name__
            found[name] = [name, f"not run: {text}", "", "", "", "", ""]
            continue
        files[name] = out
        said += [f"{name}: {words}"] if words else []
        found[name] = [
            name,
            f"{100 * against.drop:.2f} (<= {100 * (against.bound or 0):.2f})",
            f"{against.harmful}/{against.helpful}",
            f"{against.kl:.2e}",
            f"{out.stat().st_size / 1e3:.0f} kB",
            "",
            f"{took:.1f} s",
        ]
    calls = {name: caller(path, case.judged) for name, path in files.items()}
    timed = measure_latency(calls, baseline="float", seconds=seconds, seed=SEED)
    for name in files:
        if name != "float":
            found[name][5] = ratio_text(timed.speedups[name])
    right, size = 100 * (exact.argmax(axis=1) == case.labels).mean(), case.model.stat().st_size
    first = ["float", f"0 ({right:.2f} % right)", "0/0", "0", f"{size / 1e3:.0f} kB",
             f"{timed.timings['float'].p50_ms:.4f} ms", ""]  # fmt: skip
    return [first, *found.values()], said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder of models that are trained already, or are left there")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing a table (10)")
    given = parser.parse_args()
    if not (DATA / "text").exists():
        print("skipped, because ../shared/data/text (beside the repository) is not there")
        return
    logging.disable(logging.WARNING)
    print(machine())
    with scratch() as folder:
        for name in SCRIPTS:
            case = trained(name, (given.models or folder) / name)
            found, said = rows(case, folder, given.seconds)
            print(
                f"\n{name}: {len(next(iter(case.calibration.values())))} examples calibrate, {len(case.labels)} are "
                f"judged; blocks of {GROUP}, accuracy_level {ACCURACY_LEVEL}; seed {SEED}\n"
            )
            print(table(HEAD, found))
            print(*(f"\n{line}" for line in said), sep="", flush=True)


if __name__ == "__main__":
    main()
