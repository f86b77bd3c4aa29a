"""``--target auto``: which targets are compared, and which one is taken."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import fewbits
from fewbits._base.errors import UsageError
from fewbits.search import auto
from fewbits.search.preparing import Request
from fewbits.targets import resolve_target


def request(**more: Any) -> Request:
    return Request(model="m.onnx", data=None, **more)


def test_without_openvino_a_note_says_so_and_ort_cpu_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "find_spec", lambda name: None)
    targets, notes = auto.rungs(request())
    assert [target.name for target in targets] == ["ort-cpu"]
    assert len(notes) == 1 and "fewbits[openvino]" in notes[0] and notes[0].endswith("[auto-alone]")


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_a_rung_where_the_cpu_multiplies_it(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "find_spec", lambda name: object())
    monkeypatch.setattr(auto, "native_bf16", lambda: native)
    monkeypatch.setattr(auto, "instruction_set", lambda: "vnni")
    targets, notes = auto.rungs(request())
    assert [target.full_name for target in targets[1:]] == ["openvino:vnni", *(["openvino:bf16"] if native else [])]
    assert notes == ()


def test_a_scheme_that_openvino_does_not_write_leaves_ort_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "find_spec", lambda name: object())
    targets, notes = auto.rungs(request(scheme="w4a16"))
    assert [target.name for target in targets] == ["ort-cpu"]
    assert all("does not write 'w4a16'" in note for note in notes) and notes


def test_what_is_shown_without_being_run_names_one_target() -> None:
    with pytest.raises(UsageError) as caught:
        resolve_target("auto")
    assert caught.value.slug == "target-auto"


@pytest.mark.slow
def test_the_fastest_is_taken_and_the_report_has_them_all(net: Any, tmp_path: Any) -> None:
    pytest.importorskip("openvino", reason="openvino is an extra: pip install fewbits[openvino]")
    n = net()
    a = n.relu(n.conv(n.input(("N", 16, 12, 12)), 16, 32))
    n.output(n.gemm(n.op("Flatten", n.op("GlobalAveragePool", n.relu(n.conv(a, 32, 32)))), 32, 10))
    data = {"x": np.random.default_rng(0).standard_normal((160, 16, 12, 12)).astype(np.float32)}
    result = fewbits.quantize(n.save(tmp_path), data=data, target="auto", max_drop="10%", effort="fast")
    offers = result.run.offers
    assert [offer.target.partition(":")[0] for offer in offers][:2] == ["ort-cpu", "openvino"]
    kept = [offer for offer in offers if offer.kept]
    assert [offer.best_ms for offer in kept] == [min(offer.best_ms for offer in offers)]
    assert result.plan.target == result.report.target == kept[0].target
    told = [step.change for step in result.report.search if step.change.startswith("target ")]
    assert len(told) == len(offers)
    assert any("[target-taken]" in warning for warning in result.report.warnings)
    result.save(tmp_path / "out")
    assert len(json.loads((tmp_path / "out" / "timings.json").read_text())["targets"]) == len(offers)
    assert fewbits.verify(tmp_path / "out").golden_equal


@pytest.mark.slow
def test_a_result_for_openvino_verifies_measures_and_replays(net: Any, tmp_path: Any) -> None:
    pytest.importorskip("openvino", reason="openvino is an extra: pip install fewbits[openvino]")
    n = net()
    n.output(n.conv(n.relu(n.conv(n.input(("N", 16, 12, 12)), 16, 32)), 32, 4))
    model = n.save(tmp_path)
    data = {"x": np.random.default_rng(0).standard_normal((160, 16, 12, 12)).astype(np.float32)}
    options = {"data": data, "target": "openvino:vnni", "scheme": "w8a8", "effort": "fast", "allow_slower": True}
    result = fewbits.quantize(model, **options)
    result.save(tmp_path / "out")
    assert result.report.latency.runtime.startswith("openvino ")
    assert result.report.latency.session_options["inference_precision_hint"] == "f32"
    assert "openvino" in result.report.versions
    assert "import openvino" in (tmp_path / "out" / "README.md").read_text()
    assert fewbits.verify(tmp_path / "out", model=model, data=data).golden_equal
    own = fewbits.measure(model, tmp_path / "out", data=data)
    other = fewbits.measure(model, tmp_path / "out", data=data, target="ort-cpu")
    assert 0 < own.quality.kl < 1 and own.quality.kl != other.quality.kl
    again = fewbits.quantize(model, data=data, plan=tmp_path / "out" / "plan.json")
    assert again.model_bytes == result.model_bytes
