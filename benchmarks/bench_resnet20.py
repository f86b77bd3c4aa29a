"""ResNet-20 on CIFAR-10: loss with its bound, flips, KL, latency and size; float, onnxruntime's int8, fewbits.

All candidates are calibrated on the same training images. Two paired sets: 600 lossless test images, and 4,500 test
images re-encoded as JPEG (a shifted distribution: only the *difference* to float means something there). "Best
(accuracy)" is the calibrator with the lowest KL on 1,000 further training images, which nothing else uses.
Run: ``python benchmarks/bench_resnet20.py [--seconds 20]``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import common
import peers
from fewbits.measurement.latency import measure_latency

CALIBRATION = slice(0, 500)
SELECTION = slice(1000, 2000)
SETS = {"test": "600 lossless test images", "test_jpeg": "4,500 JPEG images"}
HEADER = ("", "top-1", "loss, points", "bound 95 %", "harmful", "helpful", "changed", "KL, millinats")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="time for the latency measurement")
    parser.add_argument("--all", action="store_true", help="print every configuration of the peer, not only the best")
    arguments = parser.parse_args()
    print(common.machine())
    print(common.TIMED)
    model = common.resnet20()
    if model is None:
        return
    images, _ = common.cifar("calib")
    with common.scratch() as folder:
        data = folder / "calibration.npz"
        np.savez(data, input=images[CALIBRATION])
        made = {name: peers.peer(name, model=model, data=data, folder=folder) for name in peers.CONFIGURATIONS}
        best, kl = peers.best_accuracy(made, model, images[SELECTION])
        count = CALIBRATION.stop - CALIBRATION.start
        print(f"seed {common.SEED}; {count} calibration images; quantize_static by itself means {peers.defaults()}")
        print("KL on the selection images, millinats:", ", ".join(f"{k} {v * 1e3:.3f}" for k, v in kl.items()))
        rows = {"float": model} | choose(made, best, everything=arguments.all)
        evaluation = folder / "evaluation.npz"
        np.savez(evaluation, input=common.cifar("test")[0])
        rows["fewbits"], _ = common.fewbits_row(model, data, evaluation, folder / "fewbits")
        accuracy(rows)
        latency(rows, arguments.seconds)


def choose(made: dict[str, peers.Peer], best: str, *, everything: bool) -> dict[str, Path]:
    """Returns the peer's rows, each labelled with what it stands for."""
    label = {peers.BEST_SPEED: "best (speed)"}
    label[best] = "best (accuracy and speed)" if best == peers.BEST_SPEED else "best (accuracy)"
    wanted = list(made) if everything else [peers.DEFAULT, peers.DEFAULT_PREPROCESSED, *label]
    names = dict.fromkeys(name for name in made if name in wanted)
    return {f"{name}: {label[name]}" if name in label else name: made[name].path for name in names}


def accuracy(rows: dict[str, Path]) -> None:
    for name, title in SETS.items():
        images, labels = common.cifar(name)
        wanted = common.predict(rows["float"], images)
        print(f"\n{title}, n = {len(images)}\n")
        lines = [
            accuracy_row(key, common.paired(wanted, common.predict(path, images), labels)) for key, path in rows.items()
        ]
        print(common.table(HEADER, lines))


def accuracy_row(name: str, found: common.Paired) -> list[str]:
    bound = "not computed" if found.bound is None else f"{100 * found.bound:.2f}"
    flips = [str(found.harmful), str(found.helpful), str(found.changed)]
    if name == "float":
        return [name, f"{100 * found.float_score:.2f} %", *["-"] * 6]
    loss = f"{100 * found.drop:+.2f}"
    return [name, f"{100 * found.quantized_score:.2f} %", loss, bound, *flips, f"{1e3 * found.kl:.3f}"]


def latency(rows: dict[str, Path], seconds: float) -> None:
    image = common.cifar("test")[0][:1]
    runs = {key: common.caller(path, image) for key, path in rows.items()}
    result = measure_latency(runs, baseline="float", batch=1, seconds=seconds, seed=common.SEED)
    print(f"\nlatency, batch 1, {result.timings['float'].blocks} blocks\n")
    lines = []
    for key, path in rows.items():
        timing = result.timings[key]
        ratio = "1" if key == "float" else common.ratio_text(result.speedups[key])
        lines.append(
            [key, f"{timing.p50_ms:.3f}", f"{timing.p90_ms:.3f}", ratio, f"{path.stat().st_size / 1e3:.0f} kB"]
        )
    print(common.table(("", "p50 ms", "p90 ms", "over float", "file"), lines))
    print()
    for key, path in rows.items():
        print(f"{key} executes {common.describe_ops(common.executed_ops(path))}")


if __name__ == "__main__":
    main()
