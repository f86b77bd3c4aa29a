"""OpenVINO: our int8 file beside NNCF's and beside the float model, in float32 and with the bfloat16 hint.

NNCF runs in a Python of its own, which --nncf names (pip install nncf openvino onnx); it calibrates on the same
examples, with its defaults, told "transformer" where one is. All files run in the same OpenVINO: batch 1, one thread,
interleaved. Everything is timed twice: as the machine is, and with ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI, where bfloat16
has no instructions. KL is that of the softmax to the float model's in ONNX Runtime, on examples that nobody has seen.

Run: ``python benchmarks/bench_openvino.py --nncf PATH/bin/python [--images DIR] [--models resnet20,kwt1]``
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import common
import fewbits
from fewbits.measurement.latency import Speedup, measure_latency
from fewbits.runtimes import RUNTIMES, open_session
from fewbits.runtimes.base import Numbers, Options
from five_cases import CASES, Case

MODELS = ("resnet20", "tiny_darknet", "mobilenet_v1", "kwt1")
LIMITED = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}
PRECISIONS = ("f32", "bf16")
FLOAT, NNCF, OURS = "float", "NNCF int8", "fewbits int8"
_NNCF = """
import sys, numpy as np, nncf, openvino as ov
model, data, out, transformer = sys.argv[1:]
read, x = ov.Core().read_model(model), np.load(data)["x"]
more = {"model_type": nncf.ModelType.TRANSFORMER} if transformer == "True" else {}
name = read.inputs[0].any_name
made = nncf.quantize(read, nncf.Dataset([{name: x[i:i + 1]} for i in range(len(x))]), subset_size=len(x), **more)
ov.save_model(made, out, compress_to_fp16=False)
print("nncf", nncf.__version__)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nncf", type=Path, help="Python that has NNCF")
    parser.add_argument("--images", type=Path, help="folder of pictures, see ../shared/data/README.md")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--seconds", type=float, default=8.0, help="of timing for each table")
    parser.add_argument("--timed", help=argparse.SUPPRESS)  # the child: a folder of files
    arguments = parser.parse_args()
    if arguments.timed is not None:
        print(json.dumps(timed(Path(arguments.timed), arguments.seconds)))
        return
    print(common.machine())
    print(f"{RUNTIMES['openvino'].name}; seed {common.SEED}; {common.TIMED}")
    for name in arguments.models.split(","):
        case = CASES[name](arguments.images)
        if isinstance(case, str):
            print(f"\n## {name}: {common.NOT_RUN}, {case}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            table(case, Path(folder), arguments.nncf, arguments.seconds)


def table(case: Case, folder: Path, nncf: Path | None, seconds: float) -> None:
    """Prints the rows of one model."""
    files = {FLOAT: case.model, OURS: _ours(case, folder)}
    print(f"\n## {case.name}")
    if nncf is not None:
        files[NNCF] = _theirs(case, folder, nncf)
    (folder / "files.json").write_text(json.dumps({name: str(path) for name, path in files.items()}))
    np.savez(folder / "judged.npz", x=case.judged, feed=_feed(case))
    wanted = common.predict(case.model, case.judged, batch=case.batch)
    for title, more in (("as the machine is", {}), ("limited to AVX512_CORE_VNNI", LIMITED)):
        command = [sys.executable, __file__, "--timed", str(folder), "--seconds", str(seconds)]
        done = subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"\n{title}:")
        rows = [_row(name, figures, wanted, case, folder) for name, figures in found.items()]
        print(common.table(("file", "ms", "over float f32", "over NNCF", "KL", "top-1", "integer/float kernels"), rows))


def _row(name: str, figures: dict[str, Any], wanted: common.Array, case: Case, folder: Path) -> tuple[str, ...]:
    with np.load(folder / f"{figures['outputs']}.npz") as stored:
        outputs = stored["y"].astype(np.float64)
    top = "-" if case.labels is None else f"{100 * (outputs.argmax(axis=1) == case.labels).mean():.2f}"
    kl = common.mean_kl(wanted, outputs)
    kernels = f"{figures['integer']}/{figures['float']}"
    return name, f"{figures['ms']:.3f}", figures["over_float"], figures["over_nncf"], f"{kl:.2g}", top, kernels


def _feed(case: Case) -> str:
    return str(onnx.load(case.model, load_external_data=False).graph.input[0].name)


def _ours(case: Case, folder: Path) -> Path:
    """Returns our file; the search is told to hand it over whatever its speed, since the table shows that."""
    data = {_feed(case): case.calibration}
    if case.calibration_labels is not None:
        data["labels"] = case.calibration_labels
    start = time.perf_counter()
    made = fewbits.quantize(
        case.model, data=data, target="openvino:vnni", max_drop=case.budget, allow_slower=True, seed=common.SEED
    )
    print(f"fewbits: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    path = folder / "ours.onnx"
    path.write_bytes(made.model_bytes)
    return path


def _theirs(case: Case, folder: Path, python: Path) -> Path:
    np.savez(folder / "calibration.npz", x=case.calibration)
    out = folder / "nncf.xml"
    command = [str(python), "-c", _NNCF, str(case.model), str(folder / "calibration.npz"), str(out)]
    start = time.perf_counter()
    done = subprocess.run([*command, str(case.transformer)], capture_output=True, text=True, check=True)
    print(f"{done.stdout.splitlines()[-1]}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return out


def timed(folder: Path, seconds: float) -> dict[str, Any]:
    """Returns figures of every file in every precision, in a process of its own: the environment is read once."""
    files = {name: Path(path) for name, path in json.loads((folder / "files.json").read_text()).items()}
    with np.load(folder / "judged.npz") as stored:
        x, feed = stored["x"], str(stored["feed"])
    runs, found = {}, {}
    for name, path in files.items():
        for precision in PRECISIONS:
            options = Options(runtime="openvino", precision=precision)
            session = open_session(path, options)
            key = f"{name} {precision}"
            runs[key] = lambda session=session: session.run({feed: x[:1]})
            outputs = [next(iter(session.run({feed: x[i : i + 1]}).values())) for i in range(len(x))]
            nodes = RUNTIMES["openvino"].executed(path, options, {feed: x[:1]})
            stem = f"{len(found)}"
            np.savez(folder / f"{stem}.npz", y=np.concatenate(outputs))
            count = {numbers: sum(node.numbers is numbers for node in nodes) for numbers in Numbers}
            found[key] = {"outputs": stem, "integer": count[Numbers.INTEGER], "float": count[Numbers.FLOAT]}
    result = measure_latency(
        runs, baseline=f"{FLOAT} f32", seconds=seconds, seed=common.SEED, clock=time.thread_time_ns
    )
    for key, figures in found.items():
        figures["ms"] = result.timings[key].p50_ms
        figures["over_float"] = _ratio(result.speedups.get(key))
        other = key.replace(OURS, NNCF)
        both = key.startswith(OURS) and other in runs
        figures["over_nncf"] = _ratio(result.speedup(key, over=other)) if both else ""
    return found


def _ratio(speedup: Speedup | None) -> str:
    return "1" if speedup is None else f"{speedup.ratio:.2f} [{speedup.low:.2f}, {speedup.high:.2f}]"


if __name__ == "__main__":
    main()
