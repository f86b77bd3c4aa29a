"""Paired comparison: a model with itself, metrics of one's own, and the verdict's arithmetic at the edges."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

METRICS = '''
import numpy as np

def right(outputs, labels):
    return (outputs["logits"].argmax(axis=1) == labels).astype(float)
right.bounds = (0.0, 1.0)

def distance(outputs, labels):
    """Lower is better, between 0 and 1."""
    return 1.0 - right(outputs, labels)
distance.bounds = (0.0, 1.0)
distance.higher_is_better = False

def loss(outputs, labels):
    """Cross entropy: lower is better, unbounded."""
    z = outputs["logits"].astype(float)
    z = z - z.max(axis=1, keepdims=True)
    return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels]
loss.higher_is_better = False

def talks(outputs, labels):
    print("debugging", len(labels))
    return right(outputs, labels)

def one_number(outputs, labels):
    return 0.5

def raises(outputs, labels):
    raise KeyError("my bug\\nwith a second line")

def nan(outputs, labels):
    return np.full(len(labels), np.nan)

def beyond(outputs, labels):
    return np.full(len(labels), 2.0)
beyond.bounds = (0.0, 1.0)

def oddly_bounded(outputs, labels):
    return np.zeros(len(labels))
oddly_bounded.bounds = "wide"
'''


@pytest.fixture
def mymetrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "mymetrics.py").write_text(METRICS)
    monkeypatch.chdir(tmp_path)
    yield "mymetrics"
    sys.modules.pop("mymetrics", None)


def test_a_model_loses_nothing_against_itself_and_is_met_where_n_suffices(
    cli: Callable[..., Any], runs: ModuleType
) -> None:
    done = cli("measure", runs.DIGITS, runs.DIGITS, "--data", runs.DIGITS_DATA, "--max-drop", "1%", "--json")
    assert (done.code, done.json["verdict"]) == (0, "met")
    assert done.json["bound"]["drop"] == 0
    assert done.json["bound"]["n"] == 1021
    # No flip in n examples leaves the loss below 1 - 0.05^(1/n): 0.29 points for 1021.
    assert done.json["bound"]["bound"] == pytest.approx(1 - 0.05 ** (1 / 1021), rel=0.05)
    assert done.json["quality"] == {"kl": 0.0, "sqnr_db": None, "agreement": 1.0}


def test_too_few_examples_are_undecided_and_the_number_is_named(
    cli: Callable[..., Any], runs: ModuleType, tmp_path: Path
) -> None:
    few = runs.save_data(tmp_path / "few.npz", runs.digits(100))
    args = ("measure", runs.DIGITS, runs.DIGITS, "--data", few, "--max-drop", "1%")
    done = cli(*args, "--json")
    assert (done.code, done.json["verdict"]) == (3, "undecided")
    assert done.json["examples_needed"] == 299  # smallest n with 1 - 0.05^(1/n) <= 0.01
    assert "299 examples" in cli(*args).out


def test_no_budget_means_no_verdict(cli: Callable[..., Any], runs: ModuleType, written: Path) -> None:
    done = cli("measure", runs.DIGITS, written, "--data", runs.DIGITS_DATA)
    assert done.code == 0
    assert "no budget" in done.out


def test_an_output_folder_stands_for_its_model(cli: Callable[..., Any], runs: ModuleType, written: Path) -> None:
    folder, file = (
        cli("measure", runs.DIGITS, place, "--data", runs.DIGITS_DATA, "--json")
        for place in (written, written / "model.onnx")
    )
    assert folder.json == file.json
    assert folder.json["quality"]["kl"] > 0


def test_a_worse_model_is_not_met(cli: Callable[..., Any], runs: ModuleType, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(str(runs.DIGITS))
    last = model.graph.node[-1]
    was, last.output[0] = last.output[0], "inner"
    model.graph.node.append(onnx.helper.make_node("Neg", ["inner"], [was], name="neg"))
    onnx.save(model, str(tmp_path / "worse.onnx"))
    done = cli(
        "measure", runs.DIGITS, tmp_path / "worse.onnx", "--data", runs.DIGITS_DATA, "--max-drop", "10%", "--json"
    )
    assert (done.code, done.json["verdict"]) == (3, "not met")
    assert done.json["bound"]["drop"] > 0.5
    assert done.json["examples_needed"] is None


def test_without_labels_agreement_is_measured_and_said(
    cli: Callable[..., Any], runs: ModuleType, tmp_path: Path
) -> None:
    data = runs.save_data(tmp_path / "bare.npz", runs.digits(150, labels=False))
    done = cli("measure", runs.DIGITS, runs.DIGITS, "--data", data, "--json")
    assert (done.json["metric"], done.json["figure"]) == ("agreement", 1.0)
    cli("measure", runs.DIGITS, runs.DIGITS, "--data", data, "--metric", "top-1").refused(2, "[metric-needs-labels]")


def test_a_function_metric_equals_the_built_in_one(
    cli: Callable[..., Any], runs: ModuleType, written: Path, mymetrics: str
) -> None:
    mine, own = (
        cli("measure", runs.DIGITS, written, "--data", runs.DIGITS_DATA, "--metric", metric, "--json").json
        for metric in (f"{mymetrics}:right", "top-1")
    )
    assert {k: v for k, v in mine.items() if k != "metric"} == {k: v for k, v in own.items() if k != "metric"}


def test_what_a_metric_prints_stays_out_of_the_document(
    cli: Callable[..., Any], runs: ModuleType, mymetrics: str, tmp_path: Path
) -> None:
    few = runs.save_data(tmp_path / "few.npz", runs.digits(40))
    args = ("--data", few, "--metric", f"{mymetrics}:talks", "--json")
    done = cli("measure", runs.DIGITS, runs.DIGITS, *args)
    assert done.json["figure"] > 0.9
    assert "debugging" in done.err
    done = cli("quantize", runs.DIGITS, *args, "--scheme", "w8a8", "-o", tmp_path / "o")
    assert done.json["metric"]["name"] == f"{mymetrics}:talks"


def test_lower_is_better_with_bounds_turns_the_loss_round(
    cli: Callable[..., Any], runs: ModuleType, written: Path, mymetrics: str
) -> None:
    up, down = (
        cli("measure", runs.DIGITS, written, "--data", runs.DIGITS_DATA, "--metric", f"{mymetrics}:{f}", "--json").json
        for f in ("right", "distance")
    )
    assert down["figure"] == pytest.approx(1 - up["figure"], abs=1e-12)
    for key in ("drop", "bound", "harmful", "helpful", "n"):
        assert down["bound"][key] == pytest.approx(up["bound"][key], abs=1e-12), key


def test_an_unbounded_loss_is_relative_and_says_that_its_bound_is_asymptotic(
    cli: Callable[..., Any], runs: ModuleType, written: Path, mymetrics: str
) -> None:
    args = ("measure", runs.DIGITS, written, "--data", runs.DIGITS_DATA, "--metric", f"{mymetrics}:loss")
    found = cli(*args, "--json").json
    assert found["unit"] == "relative"
    assert found["bound"]["exact"] is False
    rise = (found["figure"] - found["float_figure"]) / found["float_figure"]
    assert found["bound"]["drop"] == pytest.approx(rise, rel=1e-9)
    assert "asymptotic" in cli(*args).out


@pytest.mark.parametrize(
    ("function", "code", "words"),
    [
        ("one_number", 4, ("one score per example", "[metric-shape]")),
        ("raises", 4, ("KeyError", "[metric-failed]")),
        ("nan", 4, ("NaN", "[metric-failed]")),
        ("beyond", 4, ("outside its bounds", "[metric-bounds]")),
        ("oddly_bounded", 2, ("(low, high)", "[metric-bounds]")),
    ],
)
def test_a_bad_metric_is_named(
    cli: Callable[..., Any],
    runs: ModuleType,
    mymetrics: str,
    tmp_path: Path,
    function: str,
    code: int,
    words: tuple[str, ...],
) -> None:
    few = runs.save_data(tmp_path / "few.npz", runs.digits(50))
    args = ("--data", few, "--metric", f"{mymetrics}:{function}")
    cli("measure", runs.DIGITS, runs.DIGITS, *args).refused(code, f"mymetrics:{function}", *words)
    cli("quantize", runs.DIGITS, *args, "-q", "-o", tmp_path / "o").refused(code, f"mymetrics:{function}", *words)
    assert not (tmp_path / "o").exists()


def test_a_module_that_does_not_import_is_the_users_and_named(
    cli: Callable[..., Any], runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("import nowhere_to_be_found", "def broken(:", "1 / 0"):
        (tmp_path / "halfdone.py").write_text(text)
        done = cli("measure", runs.DIGITS, runs.DIGITS, "--data", runs.DIGITS_DATA, "--metric", "halfdone:f")
        done.refused(2, "halfdone", "[metric-not-found]")
        sys.modules.pop("halfdone", None)
        (tmp_path / "halfdone.py").unlink()


def test_models_that_do_not_belong_together_are_refused(
    cli: Callable[..., Any], runs: ModuleType, net: Path, tmp_path: Path
) -> None:
    for second in (net, tmp_path / "none.onnx", runs.DIGITS_DATA):
        done = cli("measure", runs.DIGITS, second, "--data", runs.DIGITS_DATA)
        done.refused(4)
        assert second.name in done.err, done.err


def test_groups_widen_the_bound(cli: Callable[..., Any], runs: ModuleType, written: Path, tmp_path: Path) -> None:
    arrays = runs.digits()
    alone = runs.save_data(tmp_path / "alone.npz", arrays)
    grouped = runs.save_data(tmp_path / "grouped.npz", arrays | {"groups": np.arange(1021) // 20})
    wide, narrow = (
        cli("measure", runs.DIGITS, written, "--data", data, "--json").json["bound"]["bound"]
        for data in (grouped, alone)
    )
    # 52 groups that could each fall as a whole: the bound can be no better than that of 52 examples without a flip.
    assert wide > narrow
