"""Examples per second at batch 1 to 32 and with one and two streams, and models per gigabyte, float beside quantized.

A stream is a session of its own in a thread of its own, with one thread inside; two streams need two free cores. The
quantized file is what fewbits picks by itself, with the float model's own answers as labels where there are none.
Memory is what opening one more session of the file, and one call at batch 1, adds to a process, averaged over several.

Run: ``python benchmarks/bench_throughput.py [--models mobilenetv2,minilm,kwt1] [--images DIR]``
"""

from __future__ import annotations

import argparse
import gc
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import bench_speed
import common
import networks
import speed_files
from common import Array
from fewbits.measurement.latency import measure_latency
from five_cases import CASES, Case
from speed_files import FLOAT, PICKED, Made, Work

BATCHES = (1, 4, 8, 32)
STREAMS = (1, 2)
SESSIONS = 4  # How many sessions one figure of memory is averaged over.
SHAPES = ("mobilenetv2", "minilm")
Feeds = dict[str, Array]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join((*SHAPES, *CASES)))
    parser.add_argument("--images", type=Path, help="folder of pictures, see ../shared/data/README.md")
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing for each batch size")
    parser.add_argument("--calibration", type=int, default=100, help="examples for a network with random weights")
    parser.add_argument("--evaluation", type=int, default=300, help="the same for its verdict")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    print(common.machine())
    print(f"seed {common.SEED}; wall clock; sessions of one thread; float and quantized in turn, medians over blocks")
    found: dict[str, Any] = {}
    for name in arguments.models.split(","):
        with common.scratch() as folder:
            opened = shape(name, folder, arguments) if name in networks.NAMES else real(name, folder, arguments)
            if isinstance(opened, str):
                print(f"\n## {name}\n\n{common.NOT_RUN}: {opened}")
                continue
            found[name] = table(name, *opened, arguments.seconds)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def shape(name: str, folder: Path, arguments: argparse.Namespace) -> tuple[Path, Made, Feeds]:
    """Returns the float file, the quantized one and 32 examples of a network with random weights."""
    model = networks.network(name, seed=common.SEED)
    paths = [folder / f"{part}.npz" for part in ("calibration", "evaluation")]
    for i, (path, count) in enumerate(zip(paths, (arguments.calibration, arguments.evaluation), strict=True)):
        bench_speed.write_labelled(path, model, name, count, common.SEED + 2 + i)
    made = speed_files.make(PICKED, _work(name, model, paths, folder, ""))
    return model, made, networks.examples(name, max(BATCHES), common.SEED + 4)


def real(name: str, folder: Path, arguments: argparse.Namespace) -> tuple[Path, Made, Feeds] | str:
    """Returns the same of a real model, or why it is not there."""
    case = CASES[name](arguments.images)
    if isinstance(case, str):
        return case
    feed = str(onnx.load(case.model, load_external_data=False).graph.input[0].name)
    paths = [folder / f"{part}.npz" for part in ("calibration", "evaluation")]
    np.savez(paths[0], **{feed: case.calibration}, **_labels(case.calibration_labels))
    np.savez(paths[1], **{feed: case.judged}, **_labels(case.labels))
    work = _work(name, case.model, paths, folder, case.budget)
    return case.model, speed_files.make(PICKED, work), {feed: _many(case)}


def _work(name: str, model: Path, paths: list[Path], folder: Path, budget: str) -> Work:
    return Work(
        name=name, model=model, calibration=paths[0], evaluation=paths[1], folder=folder, budget=budget, pythons={}
    )


def _labels(labels: Array | None) -> dict[str, Array]:
    return {} if labels is None else {"labels": labels}


def _many(case: Case) -> Array:
    """Returns as many examples as the largest batch; one where the file's batch is fixed."""
    return case.judged[: 1 if case.batch == 1 else max(BATCHES)]


def table(name: str, model: Path, made: Made, feeds: Feeds, seconds: float) -> dict[str, Any]:
    """Prints the table of one model and returns its figures."""
    print(f"\n## {name}\n", flush=True)
    if made.path is None:
        print(f"refused: {made.note}")
        return {"refused": made.note}
    print(f"{made.told['headline']}\n")
    files = {FLOAT: model, "fewbits": made.path}
    largest = len(next(iter(feeds.values())))
    rows = []
    for batch in (each for each in BATCHES if each <= largest):
        part = {key: value[:batch] for key, value in feeds.items()}
        for streams in STREAMS:
            rate = throughput(files, part, batch=batch, streams=streams, seconds=seconds)
            rows.append((batch, streams, *rate))
    header = ("batch", "streams", "float, examples/s", "fewbits, examples/s", "ratio")
    cells = [
        (str(b), str(s), f"{before:.0f}", f"{after:.0f}", f"{ratio:.2f}x [{low:.2f}, {high:.2f}]")
        for b, s, before, after, ratio, low, high in rows
    ]
    print(common.table(header, cells) + "\n")
    one = {key: value[:1] for key, value in feeds.items()}
    np.savez(made.path.parent / "one.npz", **one)
    memory = {key: _memory(path, made.path.parent / "one.npz") for key, path in files.items()}
    sizes = {key: path.stat().st_size for key, path in files.items()}
    header = ("", "file", "files per GB", "memory of a session", "sessions per GB")
    cells = [
        (
            key,
            f"{sizes[key] / 1e6:.2f} MB",
            f"{1e9 / sizes[key]:.0f}",
            f"{memory[key] / 1e6:.1f} MB",
            f"{1e9 / max(memory[key], 1):.0f}",
        )
        for key in files
    ]
    print(common.table(header, cells), flush=True)
    return {"rows": rows, "bytes": sizes, "session_bytes": memory, "headline": made.told["headline"]}


def throughput(
    files: dict[str, Path], feeds: Feeds, *, batch: int, streams: int, seconds: float
) -> tuple[float, float, float, float, float]:
    """Returns examples per second of float and of fewbits, and the ratio with its interval."""
    teams = {key: Streams([_call(path, feeds) for _ in range(streams)]) for key, path in files.items()}
    try:
        runs = {key: team.run for key, team in teams.items()}
        examples = batch * streams * teams[FLOAT].each
        result = measure_latency(runs, baseline=FLOAT, batch=examples, seconds=seconds, seed=common.SEED)
    finally:
        for team in teams.values():
            team.close()
    gain = result.speedups["fewbits"]
    rates = result.timings[FLOAT].throughput, result.timings["fewbits"].throughput
    return *rates, gain.ratio, gain.low, gain.high


def _call(path: Path, feeds: Feeds) -> Callable[[], object]:
    opened = common.session(path)
    return lambda: opened.run(None, feeds)


class Streams:
    """Calls that run at the same time, each in a thread that lives until ``close``.

    The threads meet after every ``each`` calls, so that what waiting for one another costs is shared by several; one
    call alone runs in the caller's thread, and ``each`` is 1.
    """

    def __init__(self, calls: list[Callable[[], object]]) -> None:
        self._calls = calls
        self.each = 1 if len(calls) == 1 else 4
        self._gate, self._done = threading.Barrier(len(calls) + 1), threading.Barrier(len(calls) + 1)
        self._open = True
        self._threads = [threading.Thread(target=self._work, args=(call,), daemon=True) for call in calls]
        if len(calls) > 1:
            for thread in self._threads:
                thread.start()

    def run(self) -> None:
        """Makes ``each`` calls in every thread."""
        if len(self._calls) == 1:
            self._calls[0]()
            return
        self._gate.wait()
        self._done.wait()

    def close(self) -> None:
        """Ends the threads."""
        self._open = False
        if len(self._calls) > 1:
            self._gate.wait()
            for thread in self._threads:
                thread.join()

    def _work(self, call: Callable[[], object]) -> None:
        while True:
            self._gate.wait()
            if not self._open:
                return
            for _ in range(self.each):
                call()
            self._done.wait()


def _memory(path: Path, feeds: Path) -> float:
    """Returns the bytes that one session adds, measured in a process of its own."""
    return float(common.in_child("bench_throughput:session_bytes", path=str(path), feeds=str(feeds)).result)


def session_bytes(*, path: str, feeds: str) -> float:
    """Returns by how much each of SESSIONS sessions makes this process grow, after a first one (in a child)."""
    with np.load(feeds) as stored:
        one = dict(stored)
    kept = [common.session(Path(path))]
    kept[0].run(None, one)
    gc.collect()
    before = _resident()
    for _ in range(SESSIONS):
        kept.append(common.session(Path(path)))
        kept[-1].run(None, one)
    gc.collect()
    return (_resident() - before) / SESSIONS


def _resident() -> int:
    """Returns the resident memory of this process in bytes; Linux only."""
    time.sleep(0.1)
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
