"""The forecast against what then happens, and the inspection against the graph."""

from __future__ import annotations

import resource
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fewbits._base.errors import TargetError, UsageError
from fewbits.search.forecast import Forecast, make_forecast
from fewbits.search.inspection import inspect_model
from fewbits.search.preparing import Request


def forecast(model: Path, **options: Any) -> Forecast:
    given = {"data": None, "target": "ort-cpu:vnni", "effort": "fast"}
    return make_forecast(Request(model=str(model), **{**given, **options}))


def test_the_size_is_near_what_comes_out(runs: ModuleType) -> None:
    from fewbits.api import quantize

    with pytest.MonkeyPatch.context() as patch:
        runs.hurry(patch)
        result = quantize(runs.DIGITS, data=runs.digits(60), scheme="w8a8", allow_slower=True)
    said = forecast(runs.DIGITS)
    assert said.model_bytes == runs.DIGITS.stat().st_size
    assert said.quantized_bytes == pytest.approx(len(result.model_bytes), rel=0.15)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 0 < said.memory_bytes < 2 * peak, "a forecast that no run comes near is no forecast"


def test_the_examples_of_each_part_are_counted(runs: ModuleType) -> None:
    said = forecast(runs.DIGITS, data=runs.digits(400))
    parts = (said.calibration_examples, said.selection_examples, said.verdict_examples)
    assert sum(part or 0 for part in parts) == 400
    assert said.seconds is not None and said.seconds > 0
    assert said.smallest_budget is not None and said.verdict_examples is not None
    assert said.smallest_budget == pytest.approx(1 - 0.05 ** (1 / said.verdict_examples), rel=1e-9)


def test_a_budget_that_the_data_cannot_show_is_warned_of(runs: ModuleType) -> None:
    assert any("budget-too-small" in w for w in forecast(runs.DIGITS, data=runs.digits(200), max_drop=0.005).warnings)
    assert forecast(runs.DIGITS, data=runs.digits(200), max_drop=0.1).warnings == ()


@pytest.mark.parametrize(("budget", "needed"), [(0.01, 299), (0.005, 598), (0.02, 149)])
def test_the_least_number_of_examples_is_named(runs: ModuleType, budget: float, needed: int) -> None:
    # The smallest n with 1 - 0.05^(1/n) <= budget.
    assert forecast(runs.DIGITS, max_drop=budget).examples_needed == needed


def test_a_budget_of_zero_needs_no_number(runs: ModuleType) -> None:
    assert forecast(runs.DIGITS, max_drop=0.0).examples_needed is None


def test_unknown_names_and_hopeless_models_are_refused(runs: ModuleType, tmp_path: Path) -> None:
    from onnx import helper

    with pytest.raises(UsageError, match="did you mean 'fast'"):
        forecast(runs.DIGITS, effort="fsat")
    nodes = [helper.make_node("Exp", ["x"], ["y"], name="e")]
    path = runs.save_model(tmp_path / "e.onnx", nodes, {}, shape=["batch", 4], out=["batch", 4])
    with pytest.raises(TargetError, match="nothing-to-quantize"):
        forecast(path)


def test_an_inspection_adds_up(runs: ModuleType, tmp_path: Path) -> None:
    found = inspect_model(str(runs.small_net(tmp_path / "n.onnx")), target="ort-cpu:vnni")
    assert sum(found.states.values()) == len(found.nodes)
    assert sum(node.macs for node in found.nodes) == found.macs
    assert found.integer_macs == found.macs
    assert found.parameters == 16 * 27 + 16 + 32 * 144 + 32 + 320 + 10
    assert found.quantizable_bytes == 4 * (16 * 27 + 32 * 144 + 320)
    assert {node.node: node.state for node in found.nodes}["relu1"] == "absorbed"
    assert found.file_bytes == (tmp_path / "n.onnx").stat().st_size
