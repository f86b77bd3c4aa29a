"""Peak memory and seconds of calibrating the ResNet-18 shape with 100 and 1,000 samples: fewbits and quantize_static.

Each measurement is a process of its own on one core. The samples are float32 images [3, 224, 224] in an uncompressed
.npz (602 MB for 1,000), made in chunks and deleted afterwards; the peer's reader streams them, so that it does not pay
to hold them. Run: ``python benchmarks/bench_calibration.py [--samples 100,1000] [--batch 1]``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import common
import networks
import peers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", default="100,1000")
    parser.add_argument("--batch", type=int, default=1, help="images that the peer's reader gives at once")
    parser.add_argument("--histograms", type=int, default=0, help="also the peer's Percentile, with this many samples")
    arguments = parser.parse_args()
    print(common.machine())
    print(f"seed {common.SEED}; the peer calibrates with {peers.BEST_SPEED}, {arguments.batch} image(s) at once")
    model = networks.network("resnet18", seed=common.SEED)
    counts = [int(count) for count in arguments.samples.split(",")]
    rows: list[list[str]] = []
    own_peaks: list[int] = []
    for count in counts:
        with common.scratch() as folder:
            data = folder / "calibration.npz"
            networks.write_images_npz(data, count, common.SEED + 2)
            found = peers.peer(peers.BEST_SPEED, model=model, data=data, folder=folder, batch=arguments.batch)
            rows.append(row(peers.BEST_SPEED, count, found.seconds, found.peak_bytes, found.base_bytes))
            if count == arguments.histograms:
                name = "ORT U8S8 per-channel Percentile"
                found = peers.peer(name, model=model, data=data, folder=folder, batch=arguments.batch)
                rows.append(row(name, count, found.seconds, found.peak_bytes, found.base_bytes))
            rows += own_rows(model, data, folder, count, own_peaks)
    header = ("", "samples", "seconds", "ms a sample", "peak memory", "of it before the work")
    print("\n" + common.table(header, rows))
    if len(own_peaks) == len(counts) > 1:
        print(f"\nfewbits, largest over smallest peak: {max(own_peaks) / min(own_peaks):.3f} (promised: at most 1.10)")


def own_rows(model: Path, data: Path, folder: Path, count: int, peaks: list[int]) -> list[list[str]]:
    """Returns the rows of fewbits and notes its peak, which is that of the whole run.

    The whole run also measures the file that it made: latency for a fixed time, memory, executed graph, verdict.
    """
    evaluation = folder / "evaluation.npz"
    networks.write_images_npz(evaluation, 16, common.SEED + 3)
    _, child = common.fewbits_row(model, data, evaluation, folder / "fewbits")
    peaks.append(child.peak_bytes)
    seconds = child.result["stage_seconds"]["calibration"]
    return [
        row("fewbits, calibration alone", count, seconds, child.peak_bytes, child.base_bytes),
        row("fewbits, whole run", count, child.seconds, child.peak_bytes, child.base_bytes),
    ]


def row(name: str, count: int, seconds: float, peak: int, base: int) -> list[str]:
    each = f"{1e3 * seconds / count:.1f}"
    return [name, str(count), f"{seconds:.1f}", each, common.megabytes(peak), common.megabytes(base)]


if __name__ == "__main__":
    main()
