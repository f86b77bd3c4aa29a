"""Accuracy at a forced scheme on real models: W8A8 and W4A8 beside onnxruntime and NNCF, same calibration data.

    python benchmarks/bench_accuracy.py --images DIR --nncf PYTHON --neural PYTHON [--models resnet20,kwt1]

No search: every layer that can runs in the scheme. W8A8 is the file that ships, in its own session. W4A8 is judged on
the target ``emulated``: weights are 4-bit codes, computed by the int8 kernels. "Nearest" is the same plan without what
layers learn. Loss with its one-sided 95 % bound, changed answers, and KL to float in millinats, on pictures that played
no part. The peers' best is chosen among its configurations by KL on the calibration data. A file that quantizes inputs
by the range of each run is judged one example at a time: its scales are those of whatever comes together. Rows "in
OpenVINO" are files for that runtime, judged there in float32; everything else runs in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import accuracy_peers
import bench_five
import common
import peers
from fewbits.measurement.quality import kl_per_example
from fewbits.models.onnx.protobuf import quantizes_batches
from fewbits.runtimes import open_session
from fewbits.runtimes.base import Options
from five_cases import CASES, Case

Array = NDArray[Any]
SCHEMES = (("W8A8", "w8a8", "ort-cpu"), ("W4A8", "w4a8", "emulated"))
# Without a row "nearest": nothing is learned of ranges that each run finds; the last one runs in OpenVINO.
OTHERS = (("W8A8-dynamic", "w8a8-dynamic", "ort-cpu"), ("W8A8, in OpenVINO", "w8a8", "openvino"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pythons:
    """Interpreters of the environments that peers need; None leaves their rows out."""

    nncf: Path | None
    neural: Path | None


def quantize(*, model: str, data: str, evaluation: str, out: str, options: dict[str, Any]) -> dict[str, Any]:
    """Runs fewbits at a forced scheme (in a child process), with and without what layers learn; writes both files."""
    import fewbits
    from fewbits.search.layerwise import ROUNDERS_FED, STEP

    given = {"data": data, "eval": evaluation, "seed": common.SEED, "allow_slower": True}
    result = fewbits.quantize(model, **given, **options)
    Path(out).write_bytes(result.model_bytes)
    plan = result.plan
    rounded = sum(d.rounder in ROUNDERS_FED for d in plan.quantized)
    told = {"rounded": rounded, "corrected": any(t.name == STEP for t in plan.transforms)}
    told["quantized"] = len(plan.quantized)
    if options["scheme"] not in {scheme for _, scheme, _ in SCHEMES} or options["target"] == "openvino":
        return told
    decisions = tuple(replace(d, rounder="nearest") if d.rounder in ROUNDERS_FED else d for d in plan.decisions)
    plain = replace(plan, decisions=decisions, transforms=tuple(t for t in plan.transforms if t.name != STEP))
    shared = {key: value for key, value in options.items() if key == "score_output"}
    Path(f"{out}.nearest.onnx").write_bytes(fewbits.quantize(model, **given, plan=plain, **shared).model_bytes)
    return told


def outputs_of(path: Path, examples: Array, case: Case, *, openvino: bool = False) -> Array:
    """Returns the judged output for all examples: one at a time in OpenVINO, and where ranges are those of each run."""
    if not openvino:
        alone = replace(case, batch=1) if quantizes_batches(path) else case
        return bench_five._predict(path, examples, alone)
    session = open_session(path, Options(runtime="openvino", precision="f32"))
    name = bench_five._input_name(case.model)
    runs = (session.run({name: examples[i : i + 1]}) for i in range(len(examples)))
    return np.concatenate([found[case.output] for found in runs])


def row(
    case: Case, name: str, path: Path, wanted: Array, seconds: float | None, *, openvino: bool = False
) -> list[str]:
    """Returns one line of the table."""
    from fewbits.evidence import paired_bound

    outputs = outputs_of(path, case.judged, case, openvino=openvino)
    changed = int((outputs.argmax(axis=-1) != wanted.argmax(axis=-1)).reshape(len(outputs), -1).any(axis=1).sum())
    kl = float(kl_per_example(wanted, outputs).mean())
    before, after = bench_five._right(wanted, outputs, case.labels)
    bound = paired_bound(before, after, confidence=0.95, seed=common.SEED)
    cost = "" if seconds is None else f"{seconds:.0f}"
    return [name, f"{100 * bound.drop:.2f} ({100 * bound.bound:.2f})", str(changed), f"{1e3 * kl:.3g}", cost]


def _own(case: Case, folder: Path, wanted: Array, notes: list[str]) -> list[list[str]]:
    """Returns the rows of fewbits; a scheme that the model has nothing for becomes a note."""
    data, evaluation = folder / "calibration.npz", folder / "evaluation.npz"
    name = bench_five._input_name(case.model)
    np.savez(data, **{name: case.calibration})
    np.savez(evaluation, **{name: case.judged}, labels=case.labels)
    rows = []
    for title, scheme, target in (*SCHEMES, *OTHERS):
        out = folder / f"{scheme}-{target}.onnx"
        try:
            child = common.in_child(
                "bench_accuracy:quantize",
                model=str(case.model),
                data=str(data),
                evaluation=str(evaluation),
                out=str(out),
                options={"scheme": scheme, "target": target},
            )
        except RuntimeError as error:
            notes.append(f"fewbits {title}: refused: {_last(error)}")
            continue
        told = child.result
        if not told["quantized"]:
            notes.append(f"fewbits {title}: nothing in the model can run so")
            continue
        notes.append(
            f"fewbits {title}: biases corrected: {told['corrected']}; {told['rounded']} weights by their inputs"
        )
        rows.append(row(case, f"fewbits {title}", out, wanted, child.seconds, openvino=target == "openvino"))
        nearest = Path(f"{out}.nearest.onnx")
        if nearest.exists():
            rows.append(row(case, f"fewbits {title}, nearest", nearest, wanted, None))
    return rows


def _last(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:300]


def _others(case: Case, folder: Path, wanted: Array, pythons: Pythons, notes: list[str]) -> list[list[str]]:
    """Returns the rows of the peers that only this table has; what one refuses becomes a note, in its own words."""
    data, labels = folder / "peers.npz", folder / "labels.npy"
    shared = {"model": case.model, "data": data, "folder": folder}
    rows = []
    makers: dict[str, Any] = {
        peers.W4A8: lambda name: peers.peer(name, **shared),
    }
    if pythons.nncf is not None and case.calibration_labels is not None:
        np.save(labels, case.calibration_labels)
        more = {"labels": labels, "transformer": case.transformer, "output": case.output, "python": pythons.nncf}
        makers |= dict.fromkeys(accuracy_peers.NNCF, lambda name: accuracy_peers.nncf_peer(name, **shared, **more))
    if pythons.neural is None:
        notes.append("onnx-neural-compressor: skipped, because no --neural PYTHON was given")
    else:
        makers |= dict.fromkeys(
            accuracy_peers.NEURAL_NAMES,
            lambda name: accuracy_peers.neural_peer(name, **shared, python=pythons.neural),
        )
    for name, maker in makers.items():
        try:
            made = maker(name)
            openvino = accuracy_peers.in_openvino(name)
            rows.append(row(case, name, made.path, wanted, made.seconds, openvino=openvino))
        except Exception as error:  # whatever another tool raises is its result, and is shown
            notes.append(f"{name}: refused: {_last(error)}")
    return rows


def run(case: Case, pythons: Pythons) -> None:
    """Prints the table of one model."""
    print(f"\n## {case.name}\n\nn = {len(case.judged)} judged, {len(case.calibration)} calibrate\n", flush=True)
    notes: list[str] = []
    with common.scratch() as folder:
        wanted = bench_five._predict(case.model, case.judged, case)
        rows = _own(case, folder, wanted, notes)
        files = bench_five._peers(case, folder, pythons.nncf, notes)
        rows += [row(case, label, path, wanted, seconds) for label, (path, seconds) in files.items()]
        rows += _others(case, folder, wanted, pythons, notes)
        print(common.table(["", "loss, points (bound)", "changed", "KL, millinats", "seconds"], rows))
    print("\n" + "\n".join(f"- {note}" for note in notes), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder made by ../shared/data/imagenet_sample/prepare.py")
    parser.add_argument("--nncf", type=Path, help="Python of an environment with nncf, onnx and onnxruntime")
    parser.add_argument("--neural", type=Path, help="Python of an environment with onnx-neural-compressor")
    parser.add_argument("--models", default="resnet20,tiny_darknet,mobilenet_v1,kwt1")
    arguments = parser.parse_args()
    print(common.machine())
    print(f"seed {common.SEED}; quantize_static by itself means {peers.defaults()}; {json.dumps(list(peers.NNCF))}")
    for key in arguments.models.split(","):
        case = CASES[key](arguments.images)
        if isinstance(case, str):
            print(f"\n## {key}\n\nskipped: {case}")
            continue
        run(case, Pythons(nncf=arguments.nncf, neural=arguments.neural))


if __name__ == "__main__":
    main()
