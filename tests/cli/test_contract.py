"""What scripts rely on: verbs, streams, exit codes, the documents of --json."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

VERBS = ("inspect", "plan", "quantize", "measure", "report", "verify", "targets", "formats", "doctor", "demo")
FILES = {
    "README.md", "costs.json", "golden.npz", "manifest.json", "model.onnx", "plan.json", "records.jsonl", "report.html",
    "report.json", "timings.json",
}  # fmt: skip
PROMISED = {
    "verdict": None,
    "metric": {
        "name", "direction", "unit", "float", "quantized", "drop", "bound", "method", "confidence", "budget",
        "examples", "examples_needed", "split",
    },
    "size": {"float_bytes", "quantized_bytes", "ratio"},
    "latency": {
        "float_ms", "quantized_ms", "speedup", "speedup_low", "speedup_high", "p50", "p90", "p99", "throughput",
        "threads", "batch", "runtime", "isa", "session_options",
    },
    "memory": {"peak_bytes", "weights_bytes", "bytes_moved", "mac_bits"},
    "executed": {"integer_nodes", "float_nodes", "by_dtype", "islands"},
    "flips": {"harmful", "helpful"},
    "layers": {"site", "scheme", "bits_per_weight", "algorithm", "sqnr_db", "reason"},
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(cli: Callable[..., Any], verb: str) -> None:
    done = cli(verb, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: fewbits {verb}")
    assert "--json" in done.out


def test_help_lists_every_verb_and_the_exit_codes(cli: Callable[..., Any]) -> None:
    done = cli("--help")
    assert done.code == 0
    for verb in VERBS:
        assert re.search(rf"^  {verb} ", done.out, re.MULTILINE), verb
    for code in ("0", "2", "3", "4", "5", "6", "7", "8", "130"):
        assert re.search(rf"\b{code} [a-z]", done.out), code


def test_quantize_prints_one_document_and_nothing_else(first_run: Any) -> None:
    _, done = first_run
    assert (done.code, done.err) == (0, "")
    report = done.json
    assert report["verdict"] == "met"
    assert report["memory"]["peak_bytes"] > 0
    for part, keys in PROMISED.items():
        assert part in report
        entry = report[part][0] if isinstance(report[part], list) else report[part]
        assert keys is None or keys <= entry.keys(), part


def test_the_printed_document_is_the_saved_one(first_run: Any, written: Path) -> None:
    assert first_run[1].json == json.loads((written / "report.json").read_text())


def test_report_json_fits_its_schema_and_explains_every_null(written: Path) -> None:
    from fewbits.reporting.schema import from_json, json_schema, unexplained

    report = from_json((written / "report.json").read_bytes())
    assert unexplained(report) == []
    published = Path(__file__).parents[2] / "docs" / "report.schema.json"
    assert json.loads(published.read_text()) == json.loads(json_schema())
    _fits(json.loads((written / "report.json").read_text()), json.loads(published.read_text()), "report")


def _fits(value: Any, schema: dict[str, Any], where: str, root: dict[str, Any] | None = None) -> None:
    """A judge of our own for the part of JSON Schema that the file uses, apart from the library that wrote it."""
    root = root or schema
    if "$ref" in schema:
        return _fits(value, root["$defs"][schema["$ref"].rpartition("/")[2]], where, root)
    if "anyOf" in schema:
        faults = []
        for choice in schema["anyOf"]:
            try:
                return _fits(value, choice, where, root)
            except AssertionError as fault:
                faults.append(fault)
        raise AssertionError(f"{where}: no choice fits: {faults}")
    if "const" in schema:
        assert value == schema["const"], where
    if "enum" in schema:
        assert value in schema["enum"], where
    kinds = {
        "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
        "null": type(None),
    }  # fmt: skip
    if "type" in schema:
        assert isinstance(value, kinds[schema["type"]]), f"{where}: {value!r} is no {schema['type']}"
        assert schema["type"] == "boolean" or not isinstance(value, bool), where
    if isinstance(value, dict):
        assert set(schema.get("required", ())) <= value.keys(), f"{where}: {set(schema['required']) - value.keys()}"
        known = schema.get("properties", {})
        for key, entry in value.items():
            if key in known:
                _fits(entry, known[key], f"{where}.{key}", root)
            elif isinstance(schema.get("additionalProperties"), dict):
                _fits(entry, schema["additionalProperties"], f"{where}.{key}", root)
            else:
                assert schema.get("additionalProperties", True), f"{where}: unknown key {key}"
    if isinstance(value, list):
        for number, entry in enumerate(value):
            _fits(entry, schema.get("items", {}), f"{where}[{number}]", root)
    return None


def test_out_holds_the_promised_files_and_no_other(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == FILES
    assert [path.name for path in written.parent.iterdir()] == ["out"], "something was left beside it"


def test_manifest_has_hashes_versions_and_seed_with_the_timing_files_apart(written: Path) -> None:
    manifest = json.loads((written / "manifest.json").read_text())
    assert manifest["files"].keys() | manifest["timing_files"].keys() | {"manifest.json"} == FILES
    assert {"model.onnx", "plan.json", "golden.npz", "records.jsonl"} <= manifest["files"].keys()
    assert "timings.json" in manifest["timing_files"]
    assert {"model", "data"} <= manifest["inputs"].keys()
    assert {"fewbits", "onnxruntime", "numpy"} <= manifest["versions"].keys()
    assert manifest["seed"] == 0


def test_nothing_in_out_tells_where_or_by_whom_it_was_made(written: Path, runs: ModuleType) -> None:
    secrets = {
        str(written.parent), str(runs.DEMO), str(Path.cwd()), str(Path.home()), "/tmp/", socket.gethostname(),
    }  # fmt: skip
    secrets |= {os.environ[key] for key in ("USER", "LOGNAME", "HOSTNAME") if len(os.environ.get(key, "")) > 4}
    for path in written.iterdir():
        content = path.read_bytes()
        found = [word for word in secrets if len(word) > 1 and word.encode() in content]
        assert not found, (path.name, found)


def test_records_are_lines_of_json_with_their_conditions(written: Path) -> None:
    rows = [json.loads(line) for line in (written / "records.jsonl").read_text().splitlines()]
    assert {"top-1", "top-1 loss", "kl", "sqnr", "size"} <= {row["metric"] for row in rows}
    for row in rows:
        assert row["conditions"]["runtime"].startswith("onnxruntime ")
        assert row["value"] is not None


def test_summary_names_verdict_first_and_the_report_last(
    cli: Callable[..., Any], runs: ModuleType, tmp_path: Path
) -> None:
    data = runs.save_data(tmp_path / "few.npz", runs.digits(400))
    done = cli("quantize", runs.DIGITS, "--data", data, "--max-drop", "5%", "--effort", "fast", "-o", tmp_path / "out")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].startswith("Budget met")
    assert lines[-1].endswith(str(tmp_path / "out" / "report.html"))
    assert max(len(line) for line in lines[:-1]) <= 100


@pytest.mark.parametrize(
    ("args", "keys"),
    [
        (("inspect", "MODEL"), {"name", "opset", "nodes", "macs", "integer_macs", "target", "parameters", "states"}),
        (("plan", "MODEL"), {"model_bytes", "memory_bytes", "disk_bytes", "examples_needed", "sites"}),
        (("plan", "MODEL", "--data", "DATA"), {"seconds", "verdict_examples", "smallest_budget", "warnings"}),
        (("measure", "MODEL", "MODEL", "--data", "DATA"), {"verdict", "metric", "bound", "quality", "budget"}),
        (("verify", "OUT"), {"files", "golden_equal", "same_place", "figure"}),
        (("report", "OUT"), {"report"}),
        (("targets",), {"targets"}),
        (("targets", "ort-cpu"), {"target", "rules"}),
        (("formats",), {"formats"}),
        (("doctor",), {"cpu", "cores", "target", "packages", "fewbits"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_json_is_one_document_with_its_keys(
    cli: Callable[..., Any], runs: ModuleType, out: Path, args: tuple[str, ...], keys: set[str]
) -> None:
    places = {"MODEL": runs.DIGITS, "DATA": runs.DIGITS_DATA, "OUT": out}
    done = cli(*(places.get(arg, arg) for arg in args), "--json")
    assert (done.code, done.err) == (0, "")
    assert keys <= done.json.keys()
    assert done.json["schema_version"] == 1


@pytest.mark.parametrize("verb", ["inspect", "plan", "targets", "formats", "doctor"])
def test_results_go_to_stdout_alone(cli: Callable[..., Any], runs: ModuleType, verb: str) -> None:
    done = cli(verb, *([runs.DIGITS] if verb in ("inspect", "plan") else []))
    assert (done.code, done.err) == (0, "")
    assert len(done.out.splitlines()) > 3
    assert all(line == line.rstrip() for line in done.out.splitlines()), "blanks at the end of a line"


def test_search_writes_the_final_plan_and_prints_one_document(
    cli: Callable[..., Any], runs: ModuleType, tmp_path: Path
) -> None:
    done = cli(
        "plan", runs.DIGITS, "--search", "--data", runs.DIGITS_DATA, "--max-drop", "2%", "--effort", "fast", "-o",
        tmp_path / "p.json", "--json",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert done.json["plan"] == str(tmp_path / "p.json")
    assert done.json["verdict"] == "met"
    assert json.loads((tmp_path / "p.json").read_text())["sites"]


def test_demo_tells_the_story_and_ends_met(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("demo")
    assert done.code == 0
    assert "Budget met" in done.out
    assert {path.name for path in (tmp_path / "fewbits-demo").iterdir()} == FILES


def test_quiet_leaves_results_alone(cli: Callable[..., Any], runs: ModuleType) -> None:
    loud, quiet = (cli("inspect", runs.DIGITS, *more) for more in ((), ("-q",)))
    assert loud == quiet
