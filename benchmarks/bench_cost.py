"""What quantizing costs: seconds and peak memory for 300 examples, ours beside each peer, and whether memory is flat.

Each row is a process of its own on one core; seconds and memory do not count interpreter and imports, whose share of
the peak is shown. All rows of a network read the same examples one by one from an uncompressed .npz. NNCF and
onnx-neural-compressor run in Pythons of their own. The whole run of fewbits also times the file that it made, proves
its loss on examples of their own and writes the report; its calibration by itself is a row too.

Run: ``python benchmarks/bench_cost.py [--samples 100,300,1000] [--networks minilm] [--nncf PYTHON] [--inc PYTHON]``
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import bench_speed
import common
import networks
import peers
import speed_files
from speed_files import FORCED, Made, Work

NETWORKS = ("resnet18", "mobilenetv2", "minilm")
AT = 300  # Examples at which all tools are compared; the other counts are for the rows that grow or do not.
EVALUATION = 64
GROWING = (peers.BEST_SPEED, FORCED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--samples", default="100,300,1000")
    parser.add_argument("--nncf", type=Path, help="Python that has nncf and onnx")
    parser.add_argument("--inc", type=Path, help="Python that has onnx-neural-compressor")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    print(common.machine())
    print(f"seed {common.SEED}; one core; every row is a process of its own, one after the other")
    pythons = {key: path for key, path in (("nncf", arguments.nncf), ("inc", arguments.inc)) if path is not None}
    counts = sorted(int(count) for count in arguments.samples.split(","))
    found: dict[str, Any] = {}
    for name in arguments.networks.split(","):
        found[name] = table(name, counts, pythons)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def table(name: str, counts: list[int], pythons: dict[str, Path]) -> list[dict[str, Any]]:
    """Prints the table of one network and returns its figures."""
    print(f"\n## {name}\n", flush=True)
    model, figures, notes = networks.network(name, seed=common.SEED), [], []
    for count in counts:
        with common.scratch() as folder:
            work = _work(name, model, count, folder, pythons)
            tools = rows(work) if count == AT or (AT not in counts and count == counts[-1]) else GROWING
            for tool in tools:
                made = speed_files.make(tool, work)
                if made.path is None:
                    notes.append(f"- {tool}, {count} examples: refused: {made.note}")
                    continue
                figures += _figures(made, count)
    header = ("", "examples", "seconds", "ms an example", "peak memory", "of it before the work")
    print(common.table(header, [_row(each) for each in figures]))
    for tool in (FORCED, peers.BEST_SPEED):
        peaks = [each["peak_bytes"] for each in figures if each["name"] == tool]
        if len(peaks) > 1:
            notes.append(f"- {tool}: largest peak over smallest, {counts} examples: {max(peaks) / min(peaks):.3f}")
    print("\n".join(["", *notes]), flush=True)
    return figures


def rows(work: Work) -> list[str]:
    """Returns the tools that are compared at AT examples."""
    found = [peers.BEST_SPEED]
    if work.name in speed_files.TRANSFORMERS:
        found.append(peers.DYNAMIC)
    if "nncf" in work.pythons:
        found.append(peers.NNCF_DEFAULT)
    if "inc" in work.pythons:
        found += [speed_files.INC_STATIC, speed_files.INC_SMOOTH]
    return [*found, FORCED]


def _work(name: str, model: Path, count: int, folder: Path, pythons: dict[str, Path]) -> Work:
    calibration, evaluation = folder / "calibration.npz", folder / "evaluation.npz"
    networks.write_examples_npz(calibration, name, count, common.SEED + 2)
    bench_speed.write_labelled(evaluation, model, name, EVALUATION, common.SEED + 3)
    return Work(
        name=name,
        model=model,
        calibration=calibration,
        evaluation=evaluation,
        folder=folder,
        budget="10%",
        pythons=pythons,
    )


def _figures(made: Made, count: int) -> list[dict[str, Any]]:
    """Returns the row of a tool; of fewbits also that of its calibration, which shares the peak of the whole run."""
    shared = {"examples": count, "peak_bytes": made.peak_bytes, "base_bytes": made.base_bytes}
    found = [{"name": made.name, "seconds": made.seconds, **shared}]
    if made.name == FORCED:
        stages = made.told["stages"]
        working = sum(stages.get(stage, 0.0) for stage in ("latency", "verdict"))
        found.append({"name": f"{FORCED}, without timing and verdict", "seconds": made.seconds - working, **shared})
        found.append({"name": f"{FORCED}, calibration alone", "seconds": stages["calibration"], **shared})
    return found


def _row(each: dict[str, Any]) -> list[str]:
    ms = f"{1e3 * each['seconds'] / each['examples']:.1f}"
    sizes = common.megabytes(each["peak_bytes"]), common.megabytes(each["base_bytes"])
    return [each["name"], str(each["examples"]), f"{each['seconds']:.1f}", ms, *sizes]


if __name__ == "__main__":
    main()
