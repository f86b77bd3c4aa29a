"""The five real models: loss, closeness, size, speed and executed nodes of float, fewbits, onnxruntime and NNCF.

The models and data are no part of the repository; what is absent is skipped with its reason. Nothing is chosen on the
judged examples: where a peer has several configurations, its "best" is the one with the lowest KL on calibration data.
Run: ``python benchmarks/bench_five.py --images DIR --nncf PYTHON [--models kwt1,…] [--quick] [--json FILE]``
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import common
import peers
from fewbits.evidence import paired_bound
from fewbits.measurement.latency import LatencyResult, measure_latency
from fewbits.measurement.quality import kl_per_example
from fewbits.models.onnx.protobuf import quantizes_batches
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Numbers, Options
from five_cases import CASES, Case

Array = NDArray[Any]
FLOAT = "float"
# A call that outlasts the scheduler's slice waits for other programs, a shorter one does not: on a busy machine the
# wall clock makes what is faster look faster still. Every session has one thread, the caller's: its own time is enough.
CLOCKS: dict[str, Callable[[], int]] = {"wall": time.perf_counter_ns, "cpu": time.thread_time_ns}
_QUICK = 60  # judged examples of --quick
_QUICK_CALIBRATION = 32
_FACE = 0.5  # score from which an anchor of the face detector counts as a face


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a table; fractions, nats and ratios over float."""

    name: str
    score: float
    drop: float
    bound: float
    harmful: int
    helpful: int
    kl: float
    agreement: float
    size_ratio: float
    p50_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    integer_nodes: int
    float_nodes: int
    seconds: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="folder made by ../shared/data/imagenet_sample/prepare.py")
    parser.add_argument("--nncf", type=Path, help="Python of an environment with nncf, onnx and onnxruntime")
    parser.add_argument("--models", default=",".join(CASES), help="which of them, separated by commas")
    parser.add_argument("--seconds", type=float, default=15.0, help="time for the latencies of each model")
    parser.add_argument(
        "--clock",
        choices=sorted(CLOCKS),
        default="wall",
        help="cpu: time of the calling thread alone, for a machine that others use meanwhile",
    )
    parser.add_argument("--quick", action="store_true", help="few examples and short timings, to try the script")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    print(common.machine())
    print(f"{common.TIMED}; {arguments.clock} clock")
    print(f"seed {common.SEED}; quantize_static by itself means {peers.defaults()}")
    found = {}
    for key in arguments.models.split(","):
        case = CASES[key](arguments.images)
        if isinstance(case, str):
            print(f"\n## {key}\n\nskipped: {case}")
            continue
        found[key] = run(
            _smaller(case) if arguments.quick else case,
            python=arguments.nncf,
            seconds=2.0 if arguments.quick else arguments.seconds,
            clock=CLOCKS[arguments.clock],
        )
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def run(case: Case, *, python: Path | None, seconds: float, clock: Callable[[], int]) -> dict[str, Any]:
    """Prints the table of one model and returns its figures."""
    print(f"\n## {case.name}\n")
    start = time.perf_counter()
    notes: list[str] = []
    with common.scratch() as folder:
        own = _own(case, folder, notes)
        others = _peers(case, folder, python, notes)
        files = {FLOAT: (case.model, None), **own, **others}
        timed = _timed(case, {name: path for name, (path, _) in files.items()}, seconds, clock)
        rows = _rows(case, files, timed)
        _print(case, rows)
        _print_ratios(timed, list(own))
        if case.labels is None:
            _print_faces(case, {name: path for name, (path, _) in files.items()})
    notes.append(f"{time.perf_counter() - start:.0f} s for this table")
    print("\n" + "\n".join(f"- {note}" for note in notes), flush=True)
    return {"rows": [dataclasses.asdict(row) for row in rows], "notes": notes, "judged": len(case.judged)}


# ---- fewbits ----


def quantize(*, model: str, data: str, evaluation: str, out: str, options: dict[str, Any]) -> dict[str, Any]:
    """Runs fewbits (in a child process), writes its file, and returns what the table needs to know of the run."""
    import fewbits

    result = fewbits.quantize(model, data=data, eval=evaluation, seed=common.SEED, **options)
    Path(out).write_bytes(result.model_bytes)
    report, repairs = result.report, result.run.repairs
    return {
        "headline": report.headline,
        "verdict": report.verdict,
        "float_kept": report.float_kept,
        "before": [repairs.integer_nodes, repairs.float_nodes],
        "after": [report.executed.integer_nodes, report.executed.float_nodes],
        "repairs": list(repairs.kept),
        "islands": sorted({f"{island.op}: {island.rule}" for island in report.executed.islands or ()}),
        "stages": {name: round(took, 1) for name, took in result.run.seconds.items()},
    }


def _own(case: Case, folder: Path, notes: list[str]) -> dict[str, tuple[Path, float | None]]:
    """Returns the files of fewbits: by default, and all integers where the default keeps nodes float by choice."""
    data, evaluation = folder / "calibration.npz", folder / "evaluation.npz"
    name = _input_name(case.model)
    np.savez(data, **{name: case.calibration}, **_labels(case.calibration_labels))
    np.savez(evaluation, **{name: case.judged}, **_labels(case.labels))
    shared = {} if case.labels is not None else {"score_output": case.output}
    wanted: dict[str, dict[str, Any]] = {
        "fewbits": {"effort": "balanced", "max_drop": case.budget, **shared},
        "fewbits, w8a8 whatever it costs": {"scheme": "w8a8", "allow_slower": True, **shared},
    }
    made: dict[str, tuple[Path, float | None]] = {}
    for label, options in wanted.items():
        out = folder / f"{label.split(',')[0]}-{len(made)}.onnx"
        child = common.in_child(
            "bench_five:quantize",
            model=str(case.model),
            data=str(data),
            evaluation=str(evaluation),
            out=str(out),
            options=options,
        )
        told = child.result
        made[label] = out, child.seconds
        before, after = (f"{pair[0]} integer and {pair[1]} float nodes" for pair in (told["before"], told["after"]))
        notes.append(f"{label}: {told['headline']} (seconds: {told['stages']})")
        notes.append(
            f"{label}: {before} before repair; kept {', '.join(told['repairs']) or 'none'}; {after} handed over"
        )
        if told["islands"]:
            notes.append(f"{label}: float because {', '.join(told['islands'])}")
        if not told["float_kept"] and not any("kept-by-choice" in island for island in told["islands"]):
            break
    return made


def _labels(labels: Array | None) -> dict[str, Array]:
    return {} if labels is None else {"labels": labels}


# ---- peers ----


def _peers(case: Case, folder: Path, python: Path | None, notes: list[str]) -> dict[str, tuple[Path, float | None]]:
    """Returns the peers' files, one default and one best of each; what a peer refuses becomes a note."""
    data = folder / "peers.npz"
    model = _converted(case, folder, notes) if case.convert else case.model
    np.savez(data, **{_input_name(model): case.calibration})
    rows: dict[str, tuple[Path, float | None]] = {}
    if case.convert:
        rows["float, opset 13, weights no inputs"] = model, None

    def static(name: str) -> peers.Peer:
        return peers.peer(name, model=model, data=data, folder=folder)

    made = _made(dict.fromkeys((peers.DEFAULT, *peers.ACCURACY_CANDIDATES), static), notes)
    if peers.DEFAULT in made:
        rows[peers.DEFAULT] = made[peers.DEFAULT].path, made[peers.DEFAULT].seconds
    rows |= _best("ORT best", {name: peer for name, peer in made.items() if name != peers.DEFAULT}, case, notes)
    if case.transformer:
        dynamic = _made({peers.DYNAMIC: static}, notes)
        rows |= {name: (peer.path, peer.seconds) for name, peer in dynamic.items()}
    if python is None:
        notes.append("NNCF: skipped, because no --nncf PYTHON was given")
        return rows

    def nncf(name: str) -> peers.Peer:
        return peers.nncf_peer(name, python=python, model=model, data=data, folder=folder, transformer=case.transformer)

    made = _made(dict.fromkeys(peers.NNCF, nncf), notes)
    if peers.NNCF_DEFAULT in made:
        rows[peers.NNCF_DEFAULT] = made[peers.NNCF_DEFAULT].path, made[peers.NNCF_DEFAULT].seconds
    return rows | _best(
        "NNCF best", {name: peer for name, peer in made.items() if name != peers.NNCF_DEFAULT}, case, notes
    )


def _made(makers: Mapping[str, Callable[[str], peers.Peer]], notes: list[str]) -> dict[str, peers.Peer]:
    """Returns the files that came out and that the runtime opens; a refusal is a note, in the peer's own words."""
    made = {}
    for name, maker in makers.items():
        try:
            peer = maker(name)
            common.session(peer.path)
        except Exception as error:  # whatever another tool raises is its result, and is shown
            notes.append(f"{name}: refused: {str(error).strip().splitlines()[-1][:300]}")
            continue
        made[name] = peer
    return made


def _best(
    title: str, made: dict[str, peers.Peer], case: Case, notes: list[str]
) -> dict[str, tuple[Path, float | None]]:
    """Returns the file that is closest to float on the calibration data; its seconds are those of all tried."""
    if not made:
        return {}
    wanted = _predict(case.model, case.calibration, case)
    kl = {n: float(kl_per_example(wanted, _predict(p.path, case.calibration, case)).mean()) for n, p in made.items()}
    best = min(kl, key=kl.__getitem__)
    tried = ", ".join(f"{name} {1e3 * value:.3g}" for name, value in kl.items())
    notes.append(f"{title} is {best}; KL on calibration data, millinats: {tried}")
    return {title: (made[best].path, sum(peer.seconds for peer in made.values()))}


def _converted(case: Case, folder: Path, notes: list[str]) -> Path:
    """Returns the file in opset 13, with weights that are not inputs any more; the same outputs to the bit or told."""
    import onnx
    import onnx.version_converter

    model = onnx.version_converter.convert_version(onnx.load(case.model), 13)
    known = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in known]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 7)
    path = folder / "opset13.onnx"
    onnx.save(model, path)
    few = case.calibration[:4]
    away = float(np.abs(_predict(case.model, few, case) - _predict(path, few, case)).max())
    notes.append(
        "the peers were given the file converted to opset 13 by onnx.version_converter, with its weights no longer "
        f"inputs (largest difference of the judged output: {away:.1g}); fewbits was given the file as it comes"
    )
    return path


# ---- measuring ----


def _input_name(model: Path) -> str:
    return str(common.session(model).get_inputs()[0].name)


def _predict(path: Path, examples: Array, case: Case) -> Array:
    """Returns the judged output for all examples, float32, in the session that is also timed.

    Files that quantize by the range of each run are given one example at a time, as they are when they are timed.
    """
    session = common.session(path)
    name = session.get_inputs()[0].name
    size = 1 if quantizes_batches(path) else case.batch
    steps = range(0, len(examples), size)
    return np.concatenate([session.run([case.output], {name: examples[i : i + size]})[0] for i in steps])


def _timed(case: Case, files: dict[str, Path], seconds: float, clock: Callable[[], int]) -> LatencyResult:
    one = case.judged[:1]
    runs = {name: common.caller(path, one) for name, path in files.items()}
    return measure_latency(runs, baseline=FLOAT, seconds=seconds, seed=common.SEED, clock=clock)


def _rows(case: Case, files: dict[str, tuple[Path, float | None]], timed: LatencyResult) -> list[Row]:
    wanted = _predict(case.model, case.judged, case)
    one = case.judged[:1]
    size = case.model.stat().st_size
    rows = []
    for name, (path, took) in files.items():
        outputs = _predict(path, case.judged, case)
        same = (outputs.argmax(axis=-1) == wanted.argmax(axis=-1)).reshape(len(outputs), -1).mean(axis=1)
        before, after = (np.ones(len(same)), same) if case.labels is None else _right(wanted, outputs, case.labels)
        bound = paired_bound(before, after, confidence=0.95, seed=common.SEED)
        speedup = timed.speedups.get(name)
        nodes = RUNTIMES["ort"].executed(path, Options(threads=1), {_input_name(path): one})
        count = {numbers: sum(node.numbers is numbers for node in nodes) for numbers in Numbers}
        rows.append(
            Row(
                name=name,
                score=float(after.mean()),
                drop=bound.drop,
                bound=bound.bound,
                harmful=bound.harmful,
                helpful=bound.helpful,
                kl=float(kl_per_example(wanted, outputs).mean()),
                agreement=float(same.mean()),
                size_ratio=size / path.stat().st_size,
                p50_ms=timed.timings[name].p50_ms,
                speedup=1.0 if speedup is None else speedup.ratio,
                speedup_low=1.0 if speedup is None else speedup.low,
                speedup_high=1.0 if speedup is None else speedup.high,
                integer_nodes=count[Numbers.INTEGER],
                float_nodes=count[Numbers.FLOAT],
                seconds=took,
            )
        )
    return rows


def _right(wanted: Array, outputs: Array, labels: Array) -> tuple[Array, Array]:
    return tuple((each.argmax(axis=-1) == labels).astype(np.float64) for each in (wanted, outputs))


def _print(case: Case, rows: list[Row]) -> None:
    what = "top-1" if case.labels is not None else "agreement per anchor"
    print(
        f"n = {len(case.judged)} judged, {len(case.calibration)} calibrate; {what}; budget {case.budget}; "
        f"float {rows[0].p50_ms:.3f} ms, {case.model.stat().st_size / 1e3:.0f} kB\n"
    )
    header = (
        "", what, "loss (bound 95 %), points", "harmful / helpful", "KL, millinats", "agreement", "size", "speed",
        "integer / float nodes", "made in",
    )  # fmt: skip
    print(common.table(header, [_cells(row) for row in rows]))


def _cells(row: Row) -> list[str]:
    nodes = f"{row.integer_nodes} / {row.float_nodes}"
    if row.name == FLOAT:
        return [row.name, f"{100 * row.score:.2f} %", *["-"] * 4, "1", "1", nodes, "-"]
    return [
        row.name,
        f"{100 * row.score:.2f} %",
        f"{100 * row.drop:+.2f} ({100 * row.bound:.2f})",
        f"{row.harmful} / {row.helpful}",
        f"{1e3 * row.kl:.3g}",
        f"{100 * row.agreement:.2f} %",
        f"1/{row.size_ratio:.2f}",
        f"{row.speedup:.2f}x [{row.speedup_low:.2f}, {row.speedup_high:.2f}]",
        nodes,
        "-" if row.seconds is None else f"{row.seconds:.0f} s",
    ]


def _print_ratios(timed: LatencyResult, own: list[str]) -> None:
    """Prints how many times faster the files of fewbits are than each other file."""
    for name in own:
        others = [other for other in timed.timings if other not in (FLOAT, *own)]
        ratios = [f"{other} {common.ratio_text(timed.speedup(name, over=other))}" for other in others]
        print(f"\n{name} over " + "; over ".join(ratios))


def _print_faces(case: Case, files: dict[str, Path]) -> None:
    """Prints what happens to the anchors that hold a face: nearly all others are background, and easy to agree on."""
    wanted = _predict(case.model, case.judged, case)[..., 1] > _FACE
    print(f"\n{int(wanted.sum())} anchors hold a face in float (score above {_FACE}); lost / gained:")
    for name, path in files.items():
        if name != FLOAT:
            found = _predict(path, case.judged, case)[..., 1] > _FACE
            print(f"{name}: {int((wanted & ~found).sum())} / {int((~wanted & found).sum())}")


def _smaller(case: Case) -> Case:
    few = None if case.calibration_labels is None else case.calibration_labels[:_QUICK_CALIBRATION]
    return dataclasses.replace(
        case,
        calibration=case.calibration[:_QUICK_CALIBRATION],
        calibration_labels=few,
        judged=case.judged[:_QUICK],
        labels=None if case.labels is None else case.labels[:_QUICK],
    )


if __name__ == "__main__":
    main()
