"""Speed of what each tool makes of eight network shapes, in ONNX Runtime and in OpenVINO: batch 1, one thread.

ResNet-18, MobileNetV2, ViT-tiny, MiniLM-L6, MobileNetV3-large, EfficientNet-B0, an LSTM and a GRU, with published
shapes and random but live weights: the table is about speed. So that nobody wins by nonsense, each row also has its
closeness to the float model on examples that nobody has seen: KL of the softmax, SQNR of the logits, and answers that
change. "fewbits w8a8" is everything that can run in integers; "fewbits, its own pick" is the search. Random weights
answer at random, and no answer of theirs is worth keeping: the search's metric calls every answer right, so that it
picks by speed alone. Both run with ``effort="fast"``. Files that quantize by the range of each run are compared one by
one.

All files of a table are timed in turn in one process. The second tables are of OpenVINO, as the machine is and with
ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI. NNCF and onnx-neural-compressor run in Pythons of their own, which the caller
names.

Run: ``python benchmarks/bench_speed.py [--shapes minilm,lstm] [--nncf PYTHON] [--inc PYTHON] [--openvino]``
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import common
import networks
import speed_files
from common import Array
from fewbits.measurement.latency import LatencyResult, measure_latency
from fewbits.models.onnx.protobuf import quantizes_batches
from fewbits.runtimes import RUNTIMES, open_session
from fewbits.runtimes.base import Numbers, Options
from speed_files import FLOAT, NNCF_OPENVINO, OWN, Made, Work

LIMITED = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}
OPENVINO_OWN, AUTO = "fewbits to openvino", "fewbits to auto"
# The wall clock counts what other programs take; every session has one thread, the caller's: its own time is enough.
CLOCKS: dict[str, Callable[[], int]] = {"wall": time.perf_counter_ns, "cpu": time.thread_time_ns}
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(networks.NAMES))
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing for each table")
    parser.add_argument("--calibration", type=int, default=100, help="examples for calibration and all choices")
    parser.add_argument("--evaluation", type=int, default=300, help="examples for the verdict of fewbits' own pick")
    parser.add_argument("--judged", type=int, default=64, help="unseen examples for KL, SQNR and changed answers")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="cpu")
    parser.add_argument("--nncf", type=Path, help="Python that has nncf, onnx and openvino")
    parser.add_argument("--inc", type=Path, help="Python that has onnx-neural-compressor")
    parser.add_argument("--without", default="", help="rows to leave out: words of their names, separated by commas")
    parser.add_argument("--openvino", action="store_true", help="the tables of OpenVINO instead")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--timed", help=argparse.SUPPRESS)  # The child of an OpenVINO table: a folder of files.
    arguments = parser.parse_args()
    if arguments.timed is not None:
        print(json.dumps(timed_in_openvino(Path(arguments.timed), arguments.seconds, arguments.judged)))
        return
    print(common.machine())
    print(f"{common.TIMED}; {arguments.clock} clock; seed {common.SEED}")
    print(
        f"{arguments.calibration} examples calibrate, {arguments.evaluation} are the verdict's, {arguments.judged} are"
        " compared; its own pick goes by speed alone"
    )
    found: dict[str, Any] = {}
    for name in arguments.shapes.split(","):
        with common.scratch() as folder:
            work = prepared(name, folder, arguments)
            show = openvino_tables if arguments.openvino else table
            found[name] = show(work, arguments.seconds, arguments.judged, CLOCKS[arguments.clock])
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def prepared(name: str, folder: Path, arguments: argparse.Namespace) -> Work:
    """Returns the work of one network, its data written."""
    model = networks.network(name, seed=common.SEED)
    paths = [folder / f"{part}.npz" for part in ("calibration", "evaluation")]
    for i, (path, count) in enumerate(zip(paths, (arguments.calibration, arguments.evaluation), strict=True)):
        write_labelled(path, model, name, count, common.SEED + 2 + i)
    pythons = {key: path for key, path in (("nncf", arguments.nncf), ("inc", arguments.inc)) if path is not None}
    return Work(
        name=name,
        model=model,
        calibration=paths[0],
        evaluation=paths[1],
        folder=folder,
        pythons=pythons,
        without=tuple(word for word in arguments.without.split(",") if word),
    )


def write_labelled(path: Path, model: Path, name: str, n: int, seed: int) -> None:
    """Writes n examples with the float model's answers as ``labels``."""
    networks.write_examples_npz(path, name, n, seed)
    labels = predict(model, name, n, seed).argmax(axis=1)
    with zipfile.ZipFile(path, "a") as archive, archive.open("labels.npy", "w") as member:
        np.lib.format.write_array(member, labels)


def predict(path: Path, name: str, n: int, seed: int) -> Array:
    """Returns the logits of n examples, [n, classes] float64, from the session that ``common.session`` opens."""
    opened = common.session(path)
    size = 1 if quantizes_batches(path) else BATCH
    starts = range(0, n, size)
    found = [opened.run(None, networks.examples(name, min(size, n - i), seed, start=i))[0] for i in starts]
    return np.concatenate(found).astype(np.float64)


def closeness(wanted: Array, found: Array) -> dict[str, float]:
    """Returns KL in nats, SQNR in dB (1e3 where there is no noise) and the share of answers that changed."""
    noise = float(np.square(wanted - found).sum())
    return {
        "kl": common.mean_kl(wanted, found),
        "sqnr": 10 * float(np.log10(np.square(wanted).sum() / noise)) if noise else 1e3,
        "changed": float((wanted.argmax(axis=1) != found.argmax(axis=1)).mean()),
    }


def opens(made: Made) -> str:
    """Returns why the runtime does not open the file; empty where it does."""
    assert made.path is not None
    try:
        common.session(made.path)
    except Exception as error:  # whatever the runtime says of another tool's file is that tool's result, and is shown
        return f"the runtime does not open it: {str(error).strip().splitlines()[-1][:300]}"
    return ""


# ---- ONNX Runtime ----


def table(work: Work, seconds: float, judged: int, clock: Callable[[], int]) -> dict[str, Any]:
    """Prints the table of one network in ONNX Runtime and returns its figures."""
    print(f"\n## {work.name}", flush=True)
    made = [Made(name=FLOAT, path=work.model), *[speed_files.make(name, work) for name in speed_files.names(work)]]
    refused = {each.name: each.note if each.path is None else opens(each) for each in made}
    usable = {each.name: each for each in made if not refused[each.name]}
    feeds = networks.examples(work.name, 1, common.SEED + 4)
    sessions = {name: common.session(each.path) for name, each in usable.items() if each.path is not None}
    runs = {name: lambda opened=opened: opened.run(None, feeds) for name, opened in sessions.items()}
    result = measure_latency(runs, baseline=FLOAT, seconds=seconds, seed=common.SEED, clock=clock)
    wanted = predict(work.model, work.name, judged, common.SEED + 4)
    figures: dict[str, Any] = {}
    for name, each in usable.items():
        assert each.path is not None
        found = predict(each.path, work.name, judged, common.SEED + 4)
        figures[name] = closeness(wanted, found) | {
            "ms": result.timings[name].p50_ms,
            "over_float": _speedup(result, name, FLOAT),
            "bytes": _bytes(each.path),
            "seconds": each.seconds,
            "ops": dict(common.executed_ops(each.path)),
            "told": each.told,
        }
    best = _best_peer(figures)
    for name in OWN:
        if name in figures:
            figures[name]["over_best_peer"] = _speedup(result, name, best)
    header = ("", "ms", "over float", f"over {best}", "KL, millinats", "SQNR, dB", "changed", "MB", "made in")
    print(f"\n{result.timings[FLOAT].blocks} blocks\n")
    print(common.table(header, [_row(name, row) for name, row in figures.items()]))
    print()
    for name, note in refused.items():
        if note:
            print(f"- {name}: refused: {note}")
    for name in OWN:
        if name in figures:
            told = figures[name]["told"]
            print(f"- {name}: {told['headline']} (repairs {', '.join(told['repairs']) or 'none'}; {told['stages']})")
    for name, row in figures.items():
        ops = sorted(row["ops"].items(), key=lambda pair: -pair[1])
        print(f"- {name} executes {', '.join(f'{count} {op}' for op, count in ops)}")
    sys.stdout.flush()
    return {"rows": figures, "refused": {name: note for name, note in refused.items() if note}, "best_peer": best}


def _best_peer(figures: dict[str, Any]) -> str:
    """Returns the fastest row that is not ours, the float model included."""
    return min((name for name in figures if name not in OWN), key=lambda name: figures[name]["ms"])


def _speedup(result: LatencyResult, name: str, over: str) -> list[float]:
    found = result.speedup(name, over=over)
    return [found.ratio, found.low, found.high]


def _row(name: str, row: dict[str, Any]) -> list[str]:
    return [
        name,
        f"{row['ms']:.3f}",
        "1" if name == FLOAT else _interval(row["over_float"]),
        _interval(row["over_best_peer"]) if "over_best_peer" in row else "",
        f"{1e3 * row['kl']:.3g}",
        "-" if name == FLOAT else f"{row['sqnr']:.1f}",
        f"{100 * row['changed']:.1f} %",
        f"{row['bytes'] / 1e6:.2f}",
        "-" if name == FLOAT else f"{row['seconds']:.0f} s",
    ]


def _interval(found: list[float]) -> str:
    return f"{found[0]:.2f}x [{found[1]:.2f}, {found[2]:.2f}]"


def _bytes(path: Path) -> int:
    """Returns the size of a file and of the data beside it that carry its name."""
    beside = (path.with_name(path.name + suffix) for suffix in (".data", "_data"))
    weights = [path.with_suffix(".bin")] if path.suffix == ".xml" else []
    return sum(each.stat().st_size for each in (path, *beside, *weights) if each.exists())


# ---- OpenVINO ----


def openvino_tables(work: Work, seconds: float, judged: int, clock: Callable[[], int]) -> dict[str, Any]:
    """Prints two tables of one network in OpenVINO: as the machine is, and limited to AVX-512 VNNI.

    ``auto`` chooses anew in the limited environment, since it times what it finds there.
    """
    del clock  # The child uses the calling thread's own time.
    print(f"\n## {work.name} in OpenVINO", flush=True)
    names = [OPENVINO_OWN, *([NNCF_OPENVINO] if "nncf" in work.pythons else [])]
    made = {name: speed_files.make(name, work) for name in names}
    wanted = predict(work.model, work.name, judged, common.SEED + 4)
    found: dict[str, Any] = {}
    for title, more in (("as the machine is", {}), ("limited to AVX512_CORE_VNNI", LIMITED)):
        before = {key: os.environ.get(key) for key in more}
        os.environ.update(more)
        auto = speed_files.make(AUTO, work)
        figures, notes = _timed(work, [*made.values(), auto], seconds, judged, more)
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
        found[title] = figures
        for row in figures.values():
            with np.load(work.folder / f"{row['outputs']}.npz") as stored:
                row |= closeness(wanted, stored["y"].astype(np.float64))
        print(f"\n{title}:\n")
        header = ("", "ms", "over float f32", "over NNCF bf16", "KL, millinats", "SQNR, dB", "integer/float kernels")
        print(common.table(header, [_openvino_row(name, row) for name, row in figures.items()]))
        print("\n".join(["", *notes]), flush=True)
    return found


def _timed(
    work: Work, made: list[Made], seconds: float, judged: int, more: dict[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Returns the figures of every file that was made, timed in a child, and notes on each."""
    notes, listed = [], {FLOAT: ("", str(work.model))}
    for each in made:
        if each.path is None:
            notes.append(f"- {each.name}: refused: {each.note}")
            continue
        target = each.told["target"] if isinstance(each.told, dict) else ""
        listed[each.name] = (target if each.name == AUTO else "", str(each.path))
        said = each.told["headline"] if isinstance(each.told, dict) else f"nncf {each.told}"
        notes.append(f"- {each.name}: {each.seconds:.0f} s; {said}{f' ({target})' if target else ''}")
    (work.folder / "files.json").write_text(json.dumps({"network": work.name, "files": listed}))
    command = [sys.executable, __file__, "--timed", str(work.folder), "--seconds", str(seconds)]
    command += ["--judged", str(judged)]
    done = subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"timing in OpenVINO failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1]), notes


def timed_in_openvino(folder: Path, seconds: float, judged: int) -> dict[str, Any]:
    """Returns the figures of every file in both precisions, in a process of its own: oneDNN reads its limit once.

    The file of ``auto`` runs as its target says, in ONNX Runtime if it took that.
    """
    listed = json.loads((folder / "files.json").read_text())
    name, examples = listed["network"], networks.examples(listed["network"], judged, common.SEED + 4)
    rows = {}
    for key, (target, path) in listed["files"].items():
        if target:
            runtime = "openvino" if target.startswith("openvino") else "ort"
            precision = "bf16" if target.endswith(":bf16") else "f32"
            rows[f"{key}: {target}"] = Path(path), Options(runtime=runtime, precision=precision)
        else:
            for precision in ("f32", "bf16"):
                rows[f"{key} {precision}"] = Path(path), Options(runtime="openvino", precision=precision)
    feeds = networks.examples(name, 1, common.SEED + 4)
    runs, found = {}, {}
    for key, (path, options) in rows.items():
        session = open_session(path, options)
        runs[key] = lambda session=session: session.run(feeds)
        each = [{name: value[i : i + 1] for name, value in examples.items()} for i in range(judged)]
        outputs = np.concatenate([next(iter(session.run(one).values())) for one in each])
        np.savez(folder / f"{len(found)}.npz", y=outputs)
        nodes = RUNTIMES[options.runtime].executed(path, options, feeds)
        count = {numbers: sum(node.numbers is numbers for node in nodes) for numbers in Numbers}
        found[key] = {
            "outputs": str(len(found)), "integer": count[Numbers.INTEGER], "float": count[Numbers.FLOAT],
        }  # fmt: skip
    result = measure_latency(
        runs, baseline=f"{FLOAT} f32", seconds=seconds, seed=common.SEED, clock=time.thread_time_ns
    )
    peer = f"{NNCF_OPENVINO} bf16"
    for key, figures in found.items():
        figures["ms"] = result.timings[key].p50_ms
        figures["over_float"] = _speedup(result, key, f"{FLOAT} f32")
        if peer in runs and key.startswith("fewbits"):
            figures["over_best_peer"] = _speedup(result, key, peer)
    return found


def _openvino_row(name: str, row: dict[str, Any]) -> list[str]:
    return [
        name,
        f"{row['ms']:.3f}",
        "1" if name == f"{FLOAT} f32" else _interval(row["over_float"]),
        _interval(row["over_best_peer"]) if "over_best_peer" in row else "",
        f"{1e3 * row['kl']:.3g}",
        f"{row['sqnr']:.1f}",
        f"{row['integer']}/{row['float']}",
    ]


if __name__ == "__main__":
    main()
