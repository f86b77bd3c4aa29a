"""A plan is written, read, edited and replayed: the same plan and data give the same bytes, anywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _manifest(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "manifest.json").read_text()))


def _edited(out: Path, place: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    plan = json.loads((out / "plan.json").read_text())
    change(plan)
    place.write_text(json.dumps(plan))
    return place


def _site(plan: dict[str, Any], role: str, number: int = 0) -> dict[str, Any]:
    return dict_at(plan["sites"], role)[number]


def dict_at(sites: list[dict[str, Any]], role: str) -> list[dict[str, Any]]:
    return [site for site in sites if site["role"] == role and site["scheme"] != "float"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_replaying_a_plan_gives_the_same_bytes_anywhere(
    runs: ModuleType, written: Path, tmp_path: Path, jobs: int
) -> None:
    elsewhere = tmp_path / "another place"
    elsewhere.mkdir()
    for source in (runs.DIGITS, runs.DIGITS_DATA, written / "plan.json"):
        shutil.copy(source, elsewhere)
    done = runs.hurried_shell(
        "quantize", "digits.onnx", "--data", "digits.npz", "--plan", "plan.json", "--max-drop", "2%", "-o", "again",
        "--jobs", str(jobs), "--json",
        cwd=elsewhere,
        env={"PYTHONHASHSEED": str(41 + jobs), "LC_ALL": "C", "TZ": "Pacific/Chatham"},
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    for name in _manifest(written)["files"]:
        assert (elsewhere / "again" / name).read_bytes() == (written / name).read_bytes(), name
    assert _manifest(elsewhere / "again")["content_sha256"] == _manifest(written)["content_sha256"]


def test_a_search_run_again_with_the_costs_of_the_first_gives_the_same_bytes(
    cli: Callable[..., Any], runs: ModuleType, written: Path, tmp_path: Path
) -> None:
    # Which form each layer has, and which repairs are kept, goes by the clock: the table says what it said.
    done = cli(
        "quantize", runs.DIGITS, "--data", runs.DIGITS_DATA, "--max-drop", "2%", "-o", tmp_path / "o",
        "--costs", written / "costs.json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert _manifest(tmp_path / "o")["content_sha256"] == _manifest(written)["content_sha256"]


def test_a_weight_set_to_float_runs_in_float(
    cli: Callable[..., Any], runs: ModuleType, written: Path, tmp_path: Path
) -> None:
    node = ""

    def change(plan: dict[str, Any]) -> None:
        nonlocal node
        site = _site(plan, "weight", -1)
        site["scheme"], node = "float", site["node"]
        for other in plan["sites"]:  # its bias belongs to it
            if other["role"] == "bias" and other["node"] == node:
                other["scheme"] = "float"

    plan = _edited(written, tmp_path / "p.json", change)
    done = cli("quantize", runs.DIGITS, "--data", runs.DIGITS_DATA, "--plan", plan, "-o", tmp_path / "o", "--json")
    assert done.code == 0, done.err
    was, now = (json.loads((f / "report.json").read_text()) for f in (written, tmp_path / "o"))
    assert now["verdict"] == "no budget"
    assert now["executed"]["integer_nodes"] == was["executed"]["integer_nodes"] - 1
    assert now["executed"]["float_nodes"] >= 1
    assert now["size"]["quantized_bytes"] > was["size"]["quantized_bytes"]
    assert any(layer["node"] == node and layer["scheme"] == "float32" for layer in now["layers"])
    assert any(island["node"] == node for island in now["executed"]["islands"])


def test_another_range_rule_changes_the_codes_and_is_said(
    cli: Callable[..., Any], runs: ModuleType, written: Path, tmp_path: Path
) -> None:
    def change(plan: dict[str, Any]) -> None:
        for site in dict_at(plan["sites"], "activation"):
            site["range"] = "percentile:90"

    plan = _edited(written, tmp_path / "p.json", change)
    done = cli("quantize", runs.DIGITS, "--data", runs.DIGITS_DATA, "--plan", plan, "-o", tmp_path / "o", "--json")
    assert done.code == 0, done.err
    assert (tmp_path / "o" / "model.onnx").read_bytes() != (written / "model.onnx").read_bytes()
    was = json.loads((written / "report.json").read_text())
    # 10 % of every activation clipped on purpose: further from float than the plan that the search chose.
    assert done.json["metric"]["quality"]["kl"] > was["metric"]["quality"]["kl"]
    assert "percentile:90" in {layer["algorithm"] for layer in done.json["layers"]}


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda plan: _site(plan, "activation").update(scheme="float"), 5, ("'float' too", "[plan-illegal]")),
        (
            lambda plan: _site(plan, "weight").update(scheme="uint8 per-tensor symmetric"),
            5,
            ("not uint8", "[format-not-legal]"),
        ),
        (lambda plan: _site(plan, "weight").update(scheme="int8-nonsense"), 2, ("[plan-invalid]",)),
        (lambda plan: _site(plan, "weight").update(site="ghost"), 2, ("'ghost'", "[plan-other-model]")),
        (lambda plan: _site(plan, "weight").update(range="mnmax"), 2, ("did you mean 'minmax'?",)),
        (lambda plan: _site(plan, "weight").update(rounder="neerest"), 2, ("did you mean 'nearest'?",)),
        (lambda plan: _site(plan, "weight").update(colour="red"), 2, ("'colour'", "[plan-invalid]")),
        (lambda plan: plan.update(target="ort-gpu"), 2, ("unknown target 'ort-gpu'",)),
        (lambda plan: plan.update(schema_version=9), 2, ("[plan-invalid]",)),
        (lambda plan: plan.pop("sites"), 2, ("[plan-invalid]",)),
        (lambda plan: plan.update(sites=7), 2, ("[plan-invalid]",)),
    ],
)
def test_an_illegal_edit_is_refused_and_told(
    cli: Callable[..., Any],
    runs: ModuleType,
    written: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[dict[str, Any]], object],
    code: int,
    words: tuple[str, ...],
) -> None:
    from fewbits.search import job

    monkeypatch.setattr(job, "observe", lambda *args, **options: pytest.fail("work has started"))
    plan = _edited(written, tmp_path / "p.json", change)
    done = cli("quantize", runs.DIGITS, "--data", runs.DIGITS_DATA, "--plan", plan, "-o", tmp_path / "o")
    done.refused(code, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


def test_a_missing_neighbour_is_named(cli: Callable[..., Any], runs: ModuleType, written: Path, tmp_path: Path) -> None:
    gone = ""

    def change(plan: dict[str, Any]) -> None:
        nonlocal gone
        site = _site(plan, "activation", 1)
        site["scheme"], gone = "float", site["site"]

    plan = _edited(written, tmp_path / "p.json", change)
    done = cli("quantize", runs.DIGITS, "--data", runs.DIGITS_DATA, "--plan", plan, "-o", tmp_path / "o")
    done.refused(5, repr(gone))


def test_a_plan_of_all_floats_hands_over_the_float_model_and_says_so(
    cli: Callable[..., Any], runs: ModuleType, written: Path, tmp_path: Path
) -> None:
    def change(plan: dict[str, Any]) -> None:
        for site in plan["sites"]:
            site["scheme"] = "float"

    plan = _edited(written, tmp_path / "p.json", change)
    done = cli("quantize", runs.DIGITS, "--data", runs.DIGITS_DATA, "--plan", plan, "-o", tmp_path / "o")
    assert done.code == 0, done.err
    assert "the plan keeps every site float" in " ".join(done.out.split())
    assert (tmp_path / "o" / "model.onnx").read_bytes() == runs.DIGITS.read_bytes()


def test_a_plan_for_other_data_is_replayed_with_a_warning_before_work_and_its_own_hashes(
    cli: Callable[..., Any], runs: ModuleType, written: Path, tmp_path: Path
) -> None:
    data = runs.save_data(tmp_path / "few.npz", runs.digits(200))
    done = cli("quantize", runs.DIGITS, "--data", data, "--plan", written / "plan.json", "-o", tmp_path / "o", "--json")
    assert done.code == 0
    assert any("[plan-other-data]" in warning for warning in done.json["warnings"])
    assert "[plan-other-data]" in done.err
    was, now = _manifest(written), _manifest(tmp_path / "o")
    assert now["inputs"]["data"] != was["inputs"]["data"], "the manifest must name what was read, not what the plan saw"
    assert now["inputs"]["model"] == was["inputs"]["model"]


def test_the_seed_of_the_plan_is_the_seed_of_the_report(
    cli: Callable[..., Any], runs: ModuleType, tmp_path: Path
) -> None:
    data = runs.save_data(tmp_path / "few.npz", runs.digits(300))
    first = cli("quantize", runs.DIGITS, "--data", data, "--scheme", "w8a8", "--seed", "5", "-o", tmp_path / "a")
    assert first.code == 0, first.err
    plan = tmp_path / "a" / "plan.json"
    done = cli("quantize", runs.DIGITS, "--data", data, "--plan", plan, "-o", tmp_path / "b", "--json")
    assert (done.code, done.json["seed"]) == (0, 5)
    assert _manifest(tmp_path / "a")["content_sha256"] == _manifest(tmp_path / "b")["content_sha256"]
