"""Latency at batch 1, one thread: float, onnxruntime's default and best int8, and fewbits, interleaved, per network.

ResNet-20 is trained (skipped where its data are absent); ResNet-18 and MobileNetV2 have the published shapes and random
but live weights. Run: ``python benchmarks/bench_latency.py [--seconds 20] [--networks resnet18,mobilenetv2]``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import common
import networks
import peers
from fewbits.measurement.latency import LatencyResult, measure_latency

CALIBRATION = {"resnet20": 500, "resnet18": 100, "mobilenetv2": 100}
AGAIN = "float, another session"  # Its ratio shows what this measurement sees where there is nothing to see.
PEERS = (peers.DEFAULT, peers.DEFAULT_PREPROCESSED, "ORT U8S8 per-tensor MinMax", peers.BEST_SPEED)


EVALUATION = "evaluation.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each network's measurement")
    parser.add_argument("--networks", default=",".join(CALIBRATION))
    arguments = parser.parse_args()
    print(common.machine())
    print(common.TIMED)
    print(f"seed {common.SEED}; quantize_static by itself means {peers.defaults()}")
    for name in arguments.networks.split(","):
        with common.scratch() as folder:
            prepared = prepare(name, folder)
            if prepared is not None:
                report(name, *prepared, folder, arguments.seconds)


def prepare(name: str, folder: Path) -> tuple[Path, Path, common.Array] | None:
    """Returns the float model, the calibration .npz and one image, or None where the data are absent."""
    data = folder / "calibration.npz"
    if name != "resnet20":
        networks.write_images_npz(data, CALIBRATION[name], common.SEED + 2)
        networks.write_images_npz(folder / EVALUATION, 16, common.SEED + 3)
        return networks.network(name, seed=common.SEED), data, networks.structured_images(1, common.SEED + 3)
    model = common.resnet20()
    if model is None:
        return None
    np.savez(data, input=common.cifar("calib")[0][: CALIBRATION[name]])
    np.savez(folder / EVALUATION, input=common.cifar("test")[0][:64])
    return model, data, common.cifar("test")[0][:1]


def report(name: str, model: Path, data: Path, image: common.Array, folder: Path, seconds: float) -> None:
    files = {"float": model, AGAIN: model}
    files |= {key: peers.peer(key, model=model, data=data, folder=folder).path for key in PEERS}
    files["fewbits"], _ = common.fewbits_row(model, data, folder / EVALUATION, folder / "fewbits")
    runs = {key: common.caller(path, image) for key, path in files.items()}
    result = measure_latency(runs, baseline="float", batch=1, seconds=seconds, seed=common.SEED)
    print(f"\n{name}, calibrated on {CALIBRATION[name]} images; {result.timings['float'].blocks} blocks\n")
    print(common.table(("", "p50 ms", "p90", "p99", "over float", "over ORT best", "file"), rows(files, result)))
    print()
    for key in (peers.DEFAULT, peers.DEFAULT_PREPROCESSED, peers.BEST_SPEED):
        print(f"fewbits over {key}: {common.ratio_text(result.speedup('fewbits', over=key))}")
    print()
    for key, path in files.items():
        if key == AGAIN:
            continue
        print(f"{key} executes {common.describe_ops(common.executed_ops(path))}")


def rows(files: dict[str, Path], result: LatencyResult) -> list[list[str]]:
    found = []
    for key, path in files.items():
        timing = result.timings[key]
        over_float = "1" if key == "float" else common.ratio_text(result.speedups[key])
        over_best = "1" if key == peers.BEST_SPEED else common.ratio_text(result.speedup(key, over=peers.BEST_SPEED))
        times = [f"{timing.p50_ms:.3f}", f"{timing.p90_ms:.3f}", f"{timing.p99_ms:.3f}"]
        found.append([key, *times, over_float, over_best, f"{path.stat().st_size / 1e6:.2f} MB"])
    return found


if __name__ == "__main__":
    main()
