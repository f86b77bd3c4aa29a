"""Accuracy at a forced scheme on real models: W8A8 and W4A8 beside onnxruntime and NNCF, same calibration data.

    python benchmarks/bench_accuracy.py --images DIR --nncf PYTHON [--models resnet20,kwt1]

No search: every layer that can runs in the scheme. W8A8 is the file that ships, in its own session. W4A8 is judged on
the target ``emulated``: weights are 4-bit codes, computed by the int8 kernels. "Nearest" is the same plan without what
layers learn. Loss with its one-sided 95 % bound, changed answers, and KL to float in millinats, on pictures that played
no part. The peers' best is chosen among its configurations by KL on the calibration data.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import bench_five
import common
import peers
from fewbits.measurement.quality import kl_per_example
from five_cases import CASES, Case

Array = NDArray[Any]
SCHEMES = (("W8A8", "w8a8", "ort-cpu"), ("W4A8", "w4a8", "emulated"))


def quantize(*, model: str, data: str, evaluation: str, out: str, options: dict[str, Any]) -> dict[str, Any]:
    """Runs fewbits at a forced scheme (in a child process), with and without what layers learn; writes both files."""
    from dataclasses import replace

    import fewbits
    from fewbits.search.layerwise import ROUNDER, STEP

    given = {"data": data, "eval": evaluation, "seed": common.SEED, "allow_slower": True}
    result = fewbits.quantize(model, **given, **options)
    Path(out).write_bytes(result.model_bytes)
    plan = result.plan
    rounded = sum(d.rounder == ROUNDER for d in plan.quantized)
    decisions = tuple(replace(d, rounder="nearest") if d.rounder == ROUNDER else d for d in plan.decisions)
    plain = replace(plan, decisions=decisions, transforms=tuple(t for t in plan.transforms if t.name != STEP))
    shared = {key: value for key, value in options.items() if key == "score_output"}
    Path(f"{out}.nearest.onnx").write_bytes(fewbits.quantize(model, **given, plan=plain, **shared).model_bytes)
    return {"corrected": plan != plain and any(t.name == STEP for t in plan.transforms), "rounded": rounded}


def row(case: Case, name: str, path: Path, wanted: Array, seconds: float | None) -> list[str]:
    """Returns one line of the table."""
    from fewbits.evidence import paired_bound

    outputs = bench_five._predict(path, case.judged, case)
    changed = int((outputs.argmax(axis=-1) != wanted.argmax(axis=-1)).reshape(len(outputs), -1).any(axis=1).sum())
    kl = float(kl_per_example(wanted, outputs).mean())
    before, after = bench_five._right(wanted, outputs, case.labels)
    bound = paired_bound(before, after, confidence=0.95, seed=common.SEED)
    cost = "" if seconds is None else f"{seconds:.0f}"
    return [name, f"{100 * bound.drop:.2f} ({100 * bound.bound:.2f})", str(changed), f"{1e3 * kl:.3g}", cost]


def run(case: Case, python: Path | None) -> None:
    """Prints the table of one model."""
    print(f"\n## {case.name}\n\nn = {len(case.judged)} judged, {len(case.calibration)} calibrate\n", flush=True)
    notes: list[str] = []
    with common.scratch() as folder:
        wanted = bench_five._predict(case.model, case.judged, case)
        data, evaluation = folder / "calibration.npz", folder / "evaluation.npz"
        name = bench_five._input_name(case.model)
        np.savez(data, **{name: case.calibration})
        np.savez(evaluation, **{name: case.judged}, labels=case.labels)
        rows = []
        for title, scheme, target in SCHEMES:
            out = folder / f"{scheme}.onnx"
            child = common.in_child(
                "bench_accuracy:quantize",
                model=str(case.model),
                data=str(data),
                evaluation=str(evaluation),
                out=str(out),
                options={"scheme": scheme, "target": target},
            )
            told = child.result
            notes.append(f"{title}: biases corrected: {told['corrected']}; {told['rounded']} weights by their inputs")
            rows.append(row(case, f"fewbits {title}", out, wanted, child.seconds))
            rows.append(row(case, f"fewbits {title}, nearest", Path(f"{out}.nearest.onnx"), wanted, None))
        files = bench_five._peers(case, folder, python, notes)
        made = bench_five._made(
            {peers.W4A8: lambda n: peers.peer(n, model=case.model, data=folder / "peers.npz", folder=folder)}, notes
        )
        files |= {label: (peer.path, peer.seconds) for label, peer in made.items()}
        rows += [row(case, label, path, wanted, seconds) for label, (path, seconds) in files.items()]
        print(common.table(["", "loss, points (bound)", "changed", "KL, millinats", "seconds"], rows))
    print("\n" + "\n".join(f"- {note}" for note in notes), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder made by ../shared/data/imagenet_sample/prepare.py")
    parser.add_argument("--nncf", type=Path, help="Python of an environment with nncf, onnx and onnxruntime")
    parser.add_argument("--models", default="resnet20,tiny_darknet,mobilenet_v1,kwt1")
    arguments = parser.parse_args()
    print(common.machine())
    print(f"seed {common.SEED}; quantize_static by itself means {peers.defaults()}; {json.dumps(list(peers.NNCF))}")
    for key in arguments.models.split(","):
        case = CASES[key](arguments.images)
        if isinstance(case, str):
            print(f"\n## {key}\n\nskipped: {case}")
            continue
        run(case, arguments.nncf)


if __name__ == "__main__":
    main()
