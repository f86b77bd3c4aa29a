"""What the benchmark scripts share: the machine, sessions, child processes that are measured, comparisons, tables."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

HERE = Path(__file__).resolve().parent
DATA = HERE.parent.parent / "shared" / "data"
NOT_RUN = "not run"
SEED = 0
CIFAR_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
CIFAR_STD = np.array([0.229, 0.224, 0.225], np.float32)
INTEGER_SETS = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "avx512f", "avx2")


def machine() -> str:
    """Returns CPU, instruction sets that matter to integer kernels, cores, load and versions, on two lines."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        model, flags = fields.get("model name", model), set(fields.get("flags", "").split())
    sets = [f"{name} {'yes' if name in flags else 'no'}" for name in INTEGER_SETS]
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    packages = [f"{name} {_version(name)}" for name in ("fewbits", "onnxruntime", "onnx", "numpy")]
    return (
        f"machine: {model}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}; {', '.join(sets)}\n"
        f"versions: Python {platform.python_version()}, {', '.join(packages)}; load average {load}"
    )


TIMED = "latency: 1 thread, all candidates interleaved in blocks in one process, medians over blocks, ratios [95 %]"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def session(path: Path, *, optimized: Path | None = None) -> Any:
    """Returns the session that all candidates run in: CPU, one thread, every optimization on."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def executed_ops(path: Path) -> Counter[str]:
    """Returns how often each op occurs in the graph that the runtime executes after its optimizations."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        session(path, optimized=optimized)
        return Counter(node.op_type for node in onnx.load(optimized, load_external_data=False).graph.node)


def describe_ops(ops: Counter[str]) -> str:
    """Returns ``20 QLinearConv, 8 QLinearAdd, …``, most frequent first."""
    return ", ".join(f"{count} {op}" for op, count in ops.most_common())


def predict(path: Path, images: Array, *, batch: int = 50) -> Array:
    """Returns the first output for all images, [n, classes] float64, in the session that ``session`` opens."""
    opened = session(path)
    name = opened.get_inputs()[0].name
    return np.concatenate(
        [opened.run(None, {name: images[i : i + batch]})[0] for i in range(0, len(images), batch)]
    ).astype(np.float64)


def caller(path: Path, image: Array) -> Callable[[], object]:
    """Returns a function that makes one call of the model with the image, for ``measure_latency``."""
    opened = session(path)
    feeds = {opened.get_inputs()[0].name: image}
    return lambda: opened.run(None, feeds)


def mean_kl(float_logits: Array, quantized_logits: Array) -> float:
    """Returns the mean of KL(softmax(float) || softmax(quantized)) in nats."""
    p, q = _log_softmax(float_logits), _log_softmax(quantized_logits)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Float against quantized on the same examples; drop and bound as fractions, bound None where not computed."""

    float_score: float
    quantized_score: float
    drop: float
    bound: float | None
    harmful: int
    helpful: int
    changed: int
    kl: float


def paired(float_logits: Array, quantized_logits: Array, labels: Array, *, confidence: float = 0.95) -> Paired:
    """Returns top-1 loss with its one-sided bound, flips both ways, changed answers, and mean KL."""
    a, b = float_logits.argmax(axis=1), quantized_logits.argmax(axis=1)
    right_a, right_b = (a == labels).astype(np.float64), (b == labels).astype(np.float64)
    from fewbits.evidence import paired_bound

    bound = float(paired_bound(right_a, right_b, confidence=confidence).bound)
    return Paired(
        float_score=float(right_a.mean()),
        quantized_score=float(right_b.mean()),
        drop=float((right_a - right_b).mean()),
        bound=bound,
        harmful=int(((right_a == 1) & (right_b == 0)).sum()),
        helpful=int(((right_a == 0) & (right_b == 1)).sum()),
        changed=int((a != b).sum()),
        kl=mean_kl(float_logits, quantized_logits),
    )


def cifar(name: str) -> tuple[Array, Array]:
    """Returns images of ``calib``, ``test`` or ``test_jpeg`` as ResNet-20 wants them, [n, 3, 32, 32], and labels."""
    with np.load(DATA / "cifar10" / f"cifar10_{name}.npz") as stored:
        images = (stored["x"].astype(np.float32) / 255 - CIFAR_MEAN) / CIFAR_STD
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), stored["y"].astype(np.int64)


def resnet20() -> Path | None:
    """Returns the path of the trained ResNet-20, or None after a line that says why its rows are left out."""
    path = DATA / "cifar10" / "resnet20.onnx"
    if path.exists():
        return path
    print("ResNet-20: skipped, because ../shared/data/cifar10 (beside the repository) is not there")
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """What a measured child process did.

    ``seconds`` is the work alone, without start-up and imports; ``peak_bytes`` is the peak of the whole process and
    ``base_bytes`` the part that was there before the work began (interpreter and imports).
    """

    result: Any
    seconds: float
    peak_bytes: int
    base_bytes: int


def in_child(function: str, /, **arguments: Any) -> Child:
    """Returns the result, seconds and peak memory of ``module:function(**arguments)``, run in a process of its own.

    Arguments and result must be JSON. The child may use one core (where the system can say so), whatever it asks for.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "common.py"), function, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, cwd=HERE, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{function} failed with exit code {done.returncode}:\n{done.stderr[-4000:]}")
    return Child(**json.loads(done.stdout.splitlines()[-1]))


def peak_bytes() -> int:
    """Returns the peak resident memory of this process.

    On Linux from VmHWM and not from ru_maxrss: a child inherits the ru_maxrss of the process that started it
    (exec keeps the larger of the two), so that a small child of a large parent would look large.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _child_main(function: str, arguments: str) -> None:
    module, name = function.split(":")
    work = getattr(importlib.import_module(module), name)
    prepare = getattr(
        work, "prepare", None
    )  # Imports of the work, so that they count neither as seconds nor as growth.
    if prepare is not None:
        prepare()
    if hasattr(os, "sched_setaffinity"):  # Runtimes size their thread pools by the cores that they may use.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    base = peak_bytes()
    start = time.perf_counter()
    result = work(**json.loads(arguments))
    seconds = time.perf_counter() - start
    print(json.dumps({"result": result, "seconds": seconds, "peak_bytes": peak_bytes(), "base_bytes": base}))


def fewbits_quantize(*, model: str, data: str, evaluation: str, out: str, seed: int = SEED) -> dict[str, Any]:
    """Runs fewbits on a model file and two .npz, the one place that calls the product; returns its report and timings.

    With verdict data of their own (``evaluation``) all of ``data`` calibrates, as it does for the peers.
    """
    import fewbits

    result = fewbits.quantize(
        model, data=data, eval=evaluation, scheme="w8a8", target="ort-cpu", seed=seed, allow_slower=True
    )
    result.save(out, overwrite=True)
    found = {name: json.loads((Path(out) / f"{name}.json").read_text()) for name in ("report", "timings")}
    return {"report": found["report"], "stage_seconds": found["timings"]["stage_seconds"]}


def fewbits_row(model: Path, data: Path, evaluation: Path, out: Path, *, seed: int = SEED) -> tuple[Path, Child]:
    """Returns the file that fewbits made and what it cost, in a process of its own."""
    child = in_child(
        "common:fewbits_quantize",
        model=str(model),
        data=str(data),
        evaluation=str(evaluation),
        out=str(out),
        seed=seed,
    )
    return out / "model.onnx", child


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Gives a temporary folder that is deleted at the end."""
    folder = Path(tempfile.mkdtemp(prefix="fewbits-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table, padded so that it also reads in a terminal."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def ratio_text(speedup: Any) -> str:
    """Returns ``2.31x [2.28, 2.35]``."""
    return f"{speedup.ratio:.2f}x [{speedup.low:.2f}, {speedup.high:.2f}]"


def megabytes(count: int) -> str:
    """Returns ``473 MB`` (10^6 bytes)."""
    return f"{count / 1e6:.0f} MB"


if __name__ == "__main__":
    _child_main(*sys.argv[1:])
