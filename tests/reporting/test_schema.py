from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from fewbits._base.errors import DataError
from fewbits.reporting.schema import (
    SCHEMA_VERSION,
    UNRECORDED,
    Latency,
    Layer,
    Metric,
    ModelFacts,
    Report,
    from_json,
    json_schema,
    nulls,
    reason_for,
    to_json,
    unexplained,
)

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = {
    "metric": "name direction unit float quantized drop bound method confidence budget examples examples_needed split",
    "size": "float_bytes quantized_bytes ratio",
    "latency": "float_ms quantized_ms speedup speedup_low speedup_high p50 p90 p99 throughput threads batch runtime "
    "isa session_options",
    "memory": "peak_bytes weights_bytes bytes_moved mac_bits",
    "executed": "integer_nodes float_nodes by_dtype islands",
    "flips": "harmful helpful",
}


def test_report_survives_a_round_trip_through_json(report: Report) -> None:
    text = to_json(report)
    assert from_json(text.encode("utf-8")) == report
    assert to_json(from_json(text)) == text


def test_report_has_every_key_of_the_contract(sample: Callable[[str], Report]) -> None:
    raw = json.loads(to_json(sample("met")))
    assert raw["schema_version"] == SCHEMA_VERSION
    assert raw["verdict"] == "met"
    for part, keys in CONTRACT.items():
        assert set(keys.split()) <= set(raw[part]), part
    assert {"site", "scheme", "bits_per_weight", "algorithm", "sqnr_db", "reason"} <= set(raw["layers"][0])
    assert {"node", "op", "rule", "repaired"} <= set(raw["executed"]["islands"][0])


def test_every_null_has_a_reason(report: Report) -> None:
    raw = json.loads(to_json(report))
    for key in nulls(report):
        assert reason_for(report, key)
        parents = [key.rsplit(".", i)[0] for i in range(key.count(".") + 1)]
        assert any(parent in raw["reasons"] for parent in parents), key


def test_a_reason_of_a_part_answers_for_its_values() -> None:
    report = Report(verdict="met", reasons={"latency": "not timed"})
    assert reason_for(report, "latency.p99") == "not timed"
    assert "latency.p99" not in report.reasons
    assert reason_for(report, "size.ratio") == UNRECORDED


def test_unexplained_lists_nulls_without_a_reason_of_the_run(sample: Callable[[str], Report]) -> None:
    assert unexplained(sample("met")) == []
    missing = unexplained(sample("unknown"))
    assert "metric.drop" in missing
    assert not any(key.startswith("latency") for key in missing)


def test_validation_does_not_change_the_reasons_that_were_passed_in() -> None:
    reasons = {"latency": "not timed"}
    Report(verdict="met", reasons=reasons)
    assert reasons == {"latency": "not timed"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), np.float32("inf")])
def test_a_number_that_json_cannot_hold_becomes_null(value: float) -> None:
    assert Layer(site="a", sqnr_db=value).sqnr_db is None


def test_numpy_scalars_are_taken() -> None:
    metric = Metric(drop=np.float32(0.25), examples=np.int64(7))  # type: ignore[arg-type]
    assert json.loads(to_json(Report(verdict="met", metric=metric)))["metric"]["examples"] == 7
    assert metric.drop == 0.25


@pytest.mark.parametrize("path", ["/home/someone/net.onnx", "C:\\Users\\someone\\net.onnx", "net.onnx"])
def test_a_model_is_named_without_its_folder(path: str) -> None:
    assert ModelFacts(name=path).name == "net.onnx"


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="speed_up"):
        Latency.model_validate({"speed_up": 2.0})


@pytest.mark.parametrize(
    ("text", "slug", "says"),
    [
        ("", "report-unreadable", "not JSON"),
        ("[" * 100_000, "report-unreadable", "not JSON"),
        ("[]", "report-unreadable", "the top level"),
        ('{"verdict": "perhaps"}', "report-unreadable", "verdict"),
        ('{"verdict": "met", "size": {"ratio": "big"}}', "report-unreadable", "size.ratio"),
        ('{"schema_version": 999, "verdict": "met", "new": 1}', "report-version", "upgrade fewbits"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(text: str, slug: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        from_json(text)
    assert caught.value.slug == slug
    assert "\n" not in str(caught.value)


def test_docs_hold_the_schema_that_the_code_has() -> None:
    stored = (ROOT / "docs" / "report.schema.json").read_text(encoding="utf-8")
    assert stored == json_schema(), "run: python tests/reporting/refresh.py"


def test_the_room_itself_loads_neither_pydantic_nor_jinja2() -> None:
    code = "import sys, fewbits.reporting, fewbits.reporting.text; print({'pydantic', 'jinja2'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
