"""Truth: every executed integer node beside its exact simulation, and whole models in every session that may be opened.

    python benchmarks/bench_truth.py [--models digits,kwt1,…] [--images DIR] [--json FILE]

Each model is quantized by fewbits (``--scheme w8a8 --allow-slower``). The first table feeds each executed node on codes
with the runtime's own input and compares its output with ``fewbits.measurement.simulation``; the second adds the nodes
up by kernel; the third compares whole models: the session that ships beside the simulated graph, the session without
graph optimizations, and sessions with other options.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import common
import five_cases
import networks
from fewbits import FewbitsError

Array = NDArray[Any]
_SUPPORT = common.HERE.parent / "tests" / "support"
_SHAPES = ("resnet18", "mobilenetv2", "mobilenetv3", "efficientnet_b0", "vit_tiny", "minilm")
# Examples whose nodes are worked out one by one, and examples answered by whole models.
_NODES, _WHOLE = 4, 64
# Models of pictures: file, width, height, and the range of a pixel as lowest value and span.
_PICTURES = {
    "tiny_darknet": ("imagenet_sample/tiny_darknet.onnx", 224, 224, 0.0, 1.0),
    "mobilenet_v1": ("imagenet_sample/mobilenet_v1_0.5_160_dequant.onnx", 160, 160, -1.0, 2.0),
    "ultraface": ("onnx_face/ultraface_slim_320.onnx", 320, 240, -1.0, 2.0),
}
# What calibrates.
_CALIBRATION = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A model, what calibrates it, what is compared, and where that comes from."""

    name: str
    model: Path
    calibration: dict[str, Array]
    compared: dict[str, Array]
    data: str
    nodes: int = _NODES
    whole: int = _WHOLE


def _module(file: str, name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, _SUPPORT / file)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def generated() -> dict[str, Callable[[Any], None]]:
    """Returns the graphs of the op list."""
    found: dict[str, Callable[[Any], None]] = _module("truth_graphs.py", "fewbits_truth_graphs").GRAPHS
    return found


def _digits(folder: Path, images: Path | None) -> Case:
    import fewbits.demo

    place = Path(fewbits.demo.__file__).parent
    with np.load(place / "digits.npz") as stored:
        values = {name: stored[name] for name in stored.files if name != "labels"}
    first = {name: array[:_CALIBRATION] for name, array in values.items()}
    rest = {name: array[_CALIBRATION:] for name, array in values.items()}
    return Case(name="digits", model=place / "digits.onnx", calibration=first, compared=rest, data="its own digits")


def _real(key: str) -> Callable[[Path, Path | None], Case | str]:
    def made(folder: Path, images: Path | None) -> Case | str:
        found = five_cases.CASES[key](images)
        if isinstance(found, str):
            return _without_pictures(key, found)
        name = common.session(found.model).get_inputs()[0].name
        fixed = found.batch == 1
        return Case(
            name=key,
            model=found.model,
            calibration={name: found.calibration[:_CALIBRATION]},
            compared={name: found.judged},
            data="real data",
            nodes=1 if fixed else _NODES,
        )

    return made


def _without_pictures(key: str, why: str) -> Case | str:
    """Returns a model of pictures with made ones, in the range that it expects; why it is left out where it is absent.

    Kernels and sessions are compared, not accuracy, and made pictures exercise them as well.
    """
    file, wide, high, low, span = _PICTURES.get(key, ("", 0, 0, 0.0, 1.0))
    path = common.DATA / file
    if not file or not path.exists():
        return why
    name = common.session(path).get_inputs()[0].name
    made = (networks.structured_images(48, common.SEED, size=wide)[:, :, :high] + 2.2) / 4.9 * span + low
    pictures = np.ascontiguousarray(made, np.float32)
    fixed = key == "ultraface"
    return Case(
        name=key,
        model=path,
        calibration={name: pictures[:24]},
        compared={name: pictures[24:]},
        data="made inputs",
        nodes=1 if fixed else 2,
        whole=16,
    )


def _shape(key: str) -> Callable[[Path, Path | None], Case]:
    def made(folder: Path, images: Path | None) -> Case:
        seed = common.SEED
        return Case(
            name=key,
            model=networks.network(key),
            calibration=networks.examples(key, 24, seed + 1),
            compared=networks.examples(key, 16, seed + 2),
            data="made inputs",
            nodes=2,
            whole=8,
        )

    return made


def _graph(key: str) -> Callable[[Path, Path | None], Case]:
    def made(folder: Path, images: Path | None) -> Case:
        net = _module("graphs.py", "fewbits_test_graphs").Net(seed=common.SEED)
        generated()[key](net)
        path = net.save(folder, f"{key}.onnx")
        shape = [d.dim_value for d in net.inputs[0].type.tensor_type.shape.dim][1:]
        values = np.random.default_rng(common.SEED).standard_normal((2 * _WHOLE, *shape)).astype(np.float32)
        return Case(
            name=key,
            model=path,
            calibration={"x": values[:_WHOLE]},
            compared={"x": values[_WHOLE:]},
            data="normal values",
        )

    return made


def cases() -> dict[str, Callable[[Path, Path | None], Case | str]]:
    """Returns what opens each model."""
    return {
        "digits": _digits,
        **{key: _real(key) for key in five_cases.CASES},
        **{key: _shape(key) for key in _SHAPES},
        **{key: _graph(key) for key in generated()},
    }


def quantized(case: Case, folder: Path) -> Any:
    """Returns the finished run, its file written to ``folder/NAME.int8.onnx``."""
    from fewbits.search.job import run
    from fewbits.search.preparing import Request

    request = Request(
        model=str(case.model),
        data=case.calibration,
        evaluation={name: array[: case.whole] for name, array in case.compared.items()},
        scheme="w8a8",
        max_drop=None,
        metric="agreement" if case.data != "normal values" else None,
        allow_slower=True,
        effort="fast",
        seed=common.SEED,
        latency_seconds=0.2,
    )
    finished = run(request)
    (folder / f"{case.name}.int8.onnx").write_bytes(finished.data)
    return finished


def compare(case: Case, folder: Path) -> dict[str, Any]:
    """Returns all figures of one model."""
    from fewbits.measurement.sessions_differ import compare_sessions
    from fewbits.measurement.simulation import SimulatedGraph, check_kernels
    from fewbits.runtimes import open_session
    from fewbits.runtimes.base import Options

    start = time.perf_counter()
    finished = quantized(case, folder)
    file = folder / f"{case.name}.int8.onnx"
    prepared = finished.prepared
    fed = {spec.name for spec in prepared.model.inputs}
    inputs = {name: array for name, array in case.compared.items() if name in fed}
    batches = [{n: a[i : i + case.nodes] for n, a in inputs.items()} for i in range(0, 2 * case.nodes, case.nodes)]
    truth = check_kernels(file, batches)
    sessions = compare_sessions(
        file,
        prepared.model,
        prepared.parts.verdict_data,
        np.arange(case.whole),
        output=prepared.output,
        options=Options(),
    )
    shipped, simulated = open_session(file, Options()), SimulatedGraph(file)
    ours, theirs = [], []
    for index in range(0, min(case.whole, 16), case.nodes):
        feeds = {name: array[index : index + case.nodes] for name, array in inputs.items()}
        theirs.append(shipped.run(feeds)[prepared.output])
        ours.append(simulated.run(feeds)[prepared.output])
    rows = [_difference("simulated", np.concatenate(theirs), np.concatenate(ours))]
    span = max(float(np.ptp(np.concatenate(theirs))), 1e-30)
    rows += [
        {
            "session": one.variant.name,
            "examples": one.examples,
            "equal": one.equal,
            "worst": 255 * one.worst / span,
            "sqnr_db": one.quality.sqnr_db,
            "kl": one.quality.kl,
            "changed": one.changed,
            "refused": bool(one.refused),
        }
        for one in sessions
    ]
    return {
        "name": case.name,
        "data": case.data,
        "nodes": [asdict(node) for node in truth.nodes],
        "unknown": dict(truth.unknown),
        "told_as_shipped": truth.told_as_shipped,
        "sessions": rows,
        "warnings": [w for w in finished.warnings if w.endswith("[sessions-differ]")],
        "seconds": time.perf_counter() - start,
    }


def _difference(name: str, shipped: Array, other: Array) -> dict[str, Any]:
    from fewbits.measurement.quality import QualityMeter

    meter = QualityMeter()
    meter.add(shipped, other)
    quality = meter.result()
    span = max(float(np.ptp(shipped)), 1e-30)
    return {
        "session": name,
        "examples": len(shipped),
        "equal": shipped.tobytes() == other.tobytes(),
        "worst": 255 * float(np.abs(shipped.astype(np.float64) - other).max()) / span,
        "sqnr_db": quality.sqnr_db,
        "kl": quality.kl,
        "changed": 0 if quality.agreement is None else round(len(shipped) * (1 - quality.agreement)),
        "refused": False,
    }


def _share(part: int, whole: int) -> str:
    """Returns a percentage that says 100 only where it is all; a dash where there are none."""
    if not whole:
        return "-"
    if part == whole:
        return "all"
    return f"{min(99.9999, 100 * part / whole):.4f} %"


def print_models(found: list[dict[str, Any]]) -> None:
    """Prints the table of nodes by model: codes and floats apart."""
    rows = []
    for one in found:
        codes = [n for n in one["nodes"] if n["codes"]]
        floats = [n for n in one["nodes"] if not n["codes"]]
        outputs = sum(n["outputs"] for n in codes)
        more = sum(n["outputs"] for n in floats)
        rows.append(
            [
                f"`{one['name']}`",
                one["data"],
                str(len(one["nodes"])),
                f"{outputs:,}",
                _share(sum(n["equal"] for n in codes), outputs) if outputs else "-",
                _share(sum(n["within"] for n in codes), outputs) if outputs else "-",
                f"{max((n['worst'] for n in codes), default=0):.0f}",
                _share(sum(n["ties"] for n in codes), outputs - sum(n["equal"] for n in codes)),
                f"{more:,}",
                _share(sum(n["within"] for n in floats), more) if more else "-",
                ", ".join(one["unknown"]) or "none",
                "yes" if one["told_as_shipped"] else "NO",
            ]
        )
    header = ("Model", "Data", "Nodes", "Codes", "Equal", "Within 1", "Worst", "Off at a tie", "Floats", "Within bound")
    print("\n" + common.table((*header, "Not simulated", "As shipped"), rows))


def print_kernels(found: list[dict[str, Any]]) -> None:
    """Prints the table of nodes by kernel."""
    from fewbits.measurement.simulation import NodeTruth, by_kernel

    nodes = [NodeTruth(**{**n, "node": f"{one['name']}/{n['node']}"}) for one in found for n in one["nodes"]]
    rows = [
        [
            f"`{row.kernel}`",
            "codes" if row.codes else "floats",
            str(row.nodes),
            f"{row.outputs:,}",
            _share(row.equal, row.outputs),
            _share(row.within, row.outputs),
            _share(row.ties, row.outputs - row.equal) if row.codes else "-",
            f"{row.worst:.0f}" if row.codes else f"{row.worst:.2f} of the bound",
        ]
        for row in by_kernel(nodes)
    ]
    print(
        "\n"
        + common.table(
            ("Kernel", "Writes", "Nodes", "Outputs", "Equal", "Within 1, or bound", "Off at a tie", "Worst"), rows
        )
    )


def print_sessions(found: list[dict[str, Any]]) -> None:
    """Prints the table of whole models."""
    rows, refused = [], []
    for one in found:
        for row in one["sessions"]:
            if row["refused"]:
                refused.append(f"{one['name']} ({row['session']})")
                continue
            if row["equal"]:
                cells = ["equal", "0", "0", "0"]
            else:
                kl = "none" if row["kl"] is None else f"{row['kl']:.1e}"
                cells = [f"{row['sqnr_db']:.1f} dB", f"{row['worst']:.2f}", kl, str(row["changed"])]
            if row["session"] in ("simulated", "unoptimized") or not row["equal"]:
                rows.append([f"`{one['name']}`", row["session"], str(row["examples"]), *cells])
    header = ("Model", "Session", "Examples", "SQNR", "Worst, 255ths of the range", "KL", "Answers changed")
    print("\n" + common.table(header, rows))
    print(f"\nNot opened by the runtime: {', '.join(refused) or 'none'}")


def main() -> None:
    known = cases()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(known), help="which of them, separated by commas")
    parser.add_argument("--images", type=Path, help="folder made by ../shared/data/imagenet_sample/prepare.py")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    print(common.machine())
    print(
        f"seed {common.SEED}; nodes: {2 * _NODES} examples each (2 to 4 of large models); sessions: up to {_WHOLE} "
        "examples, simulated up to 16"
    )
    found = []
    with common.scratch() as folder:
        for key in arguments.models.split(","):
            case = known[key](folder, arguments.images)
            if isinstance(case, str):
                print(f"{key}: skipped, because {case}")
                continue
            try:
                found.append(compare(case, folder))
            except FewbitsError as error:  # told, and the others go on
                print(f"{key}: left out, because it is refused: {error}")
                continue
            print(f"{key}: {found[-1]['seconds']:.0f} s", file=sys.stderr, flush=True)
            if arguments.json is not None:
                arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    print_models(found)
    print_kernels(found)
    print_sessions(found)


if __name__ == "__main__":
    main()
