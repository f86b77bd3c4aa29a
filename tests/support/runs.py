"""Whole runs for tests: models that are quantized in a second, and the command line in this process or another.

Not a test module: the conftest.py files of the rooms that need it load it by path.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DEMO = Path(str(files("fewbits"))) / "demo"
DIGITS = DEMO / "digits.onnx"
DIGITS_DATA = DEMO / "digits.npz"
# One thread each, and no colours or progress: what a script sees.
PLAIN = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TERM": "dumb", "PYTHONWARNINGS": "error"}


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a finished command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout; fails where there is anything else."""

        def no_constant(name: str) -> None:
            raise AssertionError(f"{name} is not JSON")

        return json.loads(self.out, parse_constant=no_constant)

    def refused(self, code: int, *words: str) -> None:
        """Asserts a refusal of the contract: this code, nothing on stdout, one line on stderr that says these words."""
        assert "Traceback" not in self.err, self.err
        assert (self.code, self.out) == (code, ""), (self.code, self.out, self.err)
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("fewbits: "), lines[0]
        assert lines[0].endswith("]") and "[" in lines[0], f"no slug: {lines[0]}"
        for word in words:
            assert word in lines[0], (word, lines[0])


def shell(*args: str | os.PathLike[str], env: Mapping[str, str] | None = None, **more: Any) -> Done:
    """Runs ``python -m fewbits`` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "fewbits", *map(os.fspath, args)],
        capture_output=True,
        env={**os.environ, **PLAIN, **(env or {})},
        timeout=120,
        check=False,
        **more,
    )
    return Done(code=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())


_HURRIED = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("runs", sys.argv.pop(1))
runs = importlib.util.module_from_spec(spec)
sys.modules["runs"] = runs
spec.loader.exec_module(runs)
class Patch:
    setattr = staticmethod(setattr)
runs.hurry(Patch(), memory=True)
from fewbits.cli import main
main()
"""


def hurried_shell(*args: str | os.PathLike[str], env: Mapping[str, str] | None = None, **more: Any) -> Done:
    """Runs the command line in a process of its own, hurried but for the memory."""
    done = subprocess.run(
        [sys.executable, "-c", _HURRIED, __file__, *map(os.fspath, args)],
        capture_output=True,
        env={**os.environ, **PLAIN, **(env or {})},
        timeout=120,
        check=False,
        **more,
    )
    return Done(code=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())


def in_process(args: tuple[str | os.PathLike[str], ...], read: Callable[[], Any], patch: Any) -> Done:
    """Runs the command line here; ``read`` is capfd.readouterr, so that what C libraries print is seen too."""
    from fewbits.cli import main

    patch.setattr(sys, "argv", ["fewbits", *map(os.fspath, args)])
    read()
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    shown = read()
    return Done(code=code, out=shown.out, err=shown.err)


def hurry(patch: Any, *, memory: bool = False) -> None:
    """Makes the latency measurement of runs in this process short, and leaves out the one of memory."""
    from fewbits.measurement import benchmark
    from fewbits.search import job

    whole = benchmark.measure_performance

    def quick(files: Any, **options: Any) -> Any:
        return whole(files, **{**options, "seconds": 0.05})

    patch.setattr(job, "measure_performance", quick)
    if not memory:
        patch.setattr(benchmark, "peak_bytes", lambda *anything: None)


def still(patch: Any) -> None:
    """Stops the clock by which repairs are chosen: every file is as fast as every other.

    Which repairs stay hangs on the clock; two runs are compared to the byte only where it stands still, or by a plan.
    """
    from fewbits.measurement.latency import Speedup
    from fewbits.search import repairing

    patch.setattr(
        repairing, "quick_speedup", lambda *files, **options: Speedup(ratio=1.0, low=1.0, high=1.0, confidence=0.95)
    )


def digits(count: int | None = None, *, labels: bool = True) -> dict[str, np.ndarray]:
    """Returns the first examples of the embedded data."""
    with np.load(DIGITS_DATA) as file:
        return {name: file[name][:count] for name in file.files if labels or name != "labels"}


def save_data(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Writes an .npz and returns its path."""
    np.savez(path, **dict(arrays))
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    """Returns every file below a folder with its bytes, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def save_model(
    path: Path, nodes: list[onnx.NodeProto], weights: Mapping[str, np.ndarray], *, shape: list[Any], out: list[Any]
) -> Path:
    """Writes a model with one input ``x`` and one output ``y``, opset 17."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    return path


def small_net(path: Path, *, seed: int = 0) -> Path:
    """Writes conv-relu-conv-relu-pool-gemm on [batch, 3, 16, 16], 10 classes: small, alive, nothing special."""
    rng = np.random.default_rng(seed)

    def he(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="conv2", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="fc", transB=1),
    ]
    weights = {"w1": he(16, 3, 3, 3), "w2": he(32, 16, 3, 3), "w3": he(10, 32)}
    biases = {f"b{i}": (0.1 * rng.standard_normal(n)).astype(np.float32) for i, n in ((1, 16), (2, 32), (3, 10))}
    return save_model(path, nodes, weights | biases, shape=["batch", 3, 16, 16], out=["batch", 10])


def small_data(count: int = 200, *, seed: int = 1) -> dict[str, np.ndarray]:
    """Returns standard normal examples for ``small_net``, without labels."""
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((count, 3, 16, 16)).astype(np.float32)}
