"""The main job's options, and what it does where there is little data, little time, or nothing to win."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper


def test_a_forced_scheme_searches_nothing_and_asks_no_budget(
    cli: Callable[..., Any], net: Path, net_data: Path, tmp_path: Path
) -> None:
    done = cli(
        "quantize", net, "--data", net_data, "--scheme", "w8a8", "--allow-slower", "-o", tmp_path / "o", "--json"
    )
    assert (done.code, done.err) == (0, "")
    report = done.json
    assert report["verdict"] == "no budget"
    assert all(step["change"].startswith("repair: ") for step in report["search"]), "repairs go by speed, not by loss"
    assert report["data"]["selection_examples"] == 0
    assert report["executed"]["integer_nodes"] >= 4
    assert report["reasons"]["metric.budget"]


def test_without_labels_the_first_lines_say_agreement(
    cli: Callable[..., Any], net: Path, net_data: Path, tmp_path: Path
) -> None:
    done = cli("quantize", net, "--data", net_data, "--scheme", "w8a8", "--allow-slower", "-o", tmp_path / "o")
    assert done.code == 0, done.err
    assert "agreement" in done.out
    assert json.loads((tmp_path / "o" / "report.json").read_text())["metric"]["name"] == "agreement"


def test_a_budget_that_the_data_cannot_show_is_warned_of_before_any_work(
    cli: Callable[..., Any], runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewbits.search import job

    def no_work(*args: Any, **options: Any) -> None:
        raise RuntimeError("work has started")

    monkeypatch.setattr(job, "observe", no_work)
    data = runs.save_data(tmp_path / "few.npz", runs.digits(200))
    done = cli("quantize", runs.DIGITS, "--data", data, "--max-drop", "0.5%", "-o", tmp_path / "o")
    assert done.code == 1, "the test's own error"
    first, second = done.err.splitlines()
    assert first.startswith("note: ")
    assert "598" in first, "no flip in n examples bounds the loss by 0.5 points from n = 598 on"
    assert "work has started" in second
    quiet = cli("quantize", runs.DIGITS, "--data", data, "--max-drop", "0.5%", "-o", tmp_path / "o", "-q")
    assert len(quiet.err.splitlines()) == 1
    forecast = cli("plan", runs.DIGITS, "--max-drop", "0.5%")
    assert "598" in forecast.out


def assert_float_for_speed_alone(report: dict[str, Any]) -> None:
    """Asserts that all of the digits model runs in integers, but for what the clock left float."""
    executed = report["executed"]
    islands = executed["islands"]
    assert {island["why"] for island in islands} <= {"left float: the file runs no slower so"}, islands
    assert executed["integer_nodes"] > 6
    assert executed["integer_nodes"] + len(islands) > 10


def test_an_undecided_run_keeps_its_artefact_and_tells_what_is_missing(
    cli: Callable[..., Any], runs: ModuleType, tmp_path: Path
) -> None:
    data = runs.save_data(tmp_path / "few.npz", runs.digits(200))
    done = cli("quantize", runs.DIGITS, "--data", data, "--effort", "fast", "-o", tmp_path / "o", "--json")
    assert (done.code, done.json["verdict"]) == (3, "undecided")
    assert done.json["metric"]["examples_needed"] >= 299
    assert_float_for_speed_alone(done.json)  # too few examples are no reason for floats
    assert cli("verify", tmp_path / "o").code == 0


def test_a_time_budget_keeps_the_best_so_far_and_says_so(
    cli: Callable[..., Any], runs: ModuleType, tmp_path: Path
) -> None:
    done = cli(
        "quantize", runs.DIGITS, "--data", runs.DIGITS_DATA, "--max-drop", "2%", "--effort", "best", "--time-budget",
        "0.01s", "-o", tmp_path / "o", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    candidates = [step for step in done.json["search"] if not step["change"].startswith("repair: ")]
    assert len(candidates) == 1, "the first candidate is always finished, no other is begun"
    assert any("[time-budget]" in warning for warning in done.json["warnings"])
    assert_float_for_speed_alone(done.json)


def test_eval_data_are_all_verdict_and_shared_examples_are_left_out_of_choosing(
    cli: Callable[..., Any], runs: ModuleType, tmp_path: Path
) -> None:
    arrays = runs.digits(500)
    data = runs.save_data(tmp_path / "data.npz", {n: a[:300] for n, a in arrays.items()})
    judge = runs.save_data(tmp_path / "eval.npz", {n: a[250:] for n, a in arrays.items()})
    done = cli(
        "quantize", runs.DIGITS, "--data", data, "--eval", judge, "--effort", "fast", "-o", tmp_path / "o", "--json"
    )
    assert done.code in (0, 3)
    facts = done.json["data"]
    assert facts["verdict_examples"] == done.json["metric"]["examples"] == 250
    overlap = [warning for warning in done.json["warnings"] if "[data-overlap]" in warning]
    assert len(overlap) == 1
    assert overlap[0].startswith("50 examples")
    assert facts["calibration_examples"] + facts["selection_examples"] == 250
    assert "[data-overlap]" in done.err


def test_data_that_are_wholly_inside_eval_leave_nothing_to_choose_with(
    cli: Callable[..., Any], runs: ModuleType, tmp_path: Path
) -> None:
    data = runs.save_data(tmp_path / "data.npz", runs.digits(100))
    judge = runs.save_data(tmp_path / "eval.npz", runs.digits(300))
    done = cli("quantize", runs.DIGITS, "--data", data, "--eval", judge, "-q", "-o", tmp_path / "o")
    done.refused(4, "--eval", "[data-overlap]")


def test_groups_stay_together_and_are_said(cli: Callable[..., Any], runs: ModuleType, tmp_path: Path) -> None:
    arrays = runs.digits(400)
    data = runs.save_data(tmp_path / "g.npz", arrays | {"groups": np.arange(400) // 8})
    done = cli("quantize", runs.DIGITS, "--data", data, "--effort", "fast", "-o", tmp_path / "o", "--json")
    assert done.code in (0, 3), done.err
    facts = done.json["data"]
    assert "group" in facts["split_rule"]
    for part in ("calibration_examples", "selection_examples", "verdict_examples"):
        assert facts[part] % 8 == 0, "a group was divided"
    assert "group" in done.json["metric"]["method"]


def test_the_float_model_is_kept_where_nothing_wins_and_the_first_line_says_so(
    cli: Callable[..., Any], runs: ModuleType, tmp_path: Path
) -> None:
    model = runs.save_model(
        tmp_path / "tiny.onnx",
        [helper.make_node("Gemm", ["x", "w"], ["y"], name="fc")],
        {"w": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)},
        shape=["batch", 8],
        out=["batch", 8],
    )
    data = runs.save_data(
        tmp_path / "t.npz", {"x": np.random.default_rng(1).standard_normal((700, 8)).astype(np.float32)}
    )
    args = ("quantize", model, "--data", data, "--max-drop", "2%")
    done = cli(*args, "-o", tmp_path / "o")
    assert done.code == 0, done.err
    assert done.out.startswith("Float model kept:")
    assert (tmp_path / "o" / "model.onnx").read_bytes() == model.read_bytes()
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    assert report["float_kept"] is True
    assert report["verdict"] == "met", "0 of 350 answers can change"
    assert (report["size"]["ratio"], report["latency"]["speedup"], report["metric"]["drop"]) == (1, 1, 0)
    assert {layer["scheme"] for layer in report["layers"]} == {"float32"}
    assert report["executed"]["integer_nodes"] == 0
    sites = json.loads((tmp_path / "o" / "plan.json").read_text())["sites"]
    assert {site["scheme"] for site in sites} == {"float"}
    again = cli(*args, "--plan", tmp_path / "o" / "plan.json", "-o", tmp_path / "p")
    assert again.code == 0, again.err
    assert (tmp_path / "p" / "model.onnx").read_bytes() == model.read_bytes()
    assert cli("verify", tmp_path / "p").code == 0
    slower = cli(*args, "--allow-slower", "-o", tmp_path / "q", "--json")
    assert slower.json["float_kept"] is False
    assert slower.json["executed"]["integer_nodes"] >= 1


def ruined_net(runs: ModuleType, path: Path) -> Path:
    """Writes four convolutions, where the tensor between the second and the third has channels 10^4 apart.

    One scale for the tensor rounds the small channels away; the third convolution takes them up again. Nothing else is
    hard, and in float the scaling cancels. A clip stands between the two: no factor of a channel gets through it.
    """
    rng = np.random.default_rng(3)

    def he(out: int, into: int, k: int = 3) -> np.ndarray:
        return (rng.standard_normal((out, into, k, k)) * np.sqrt(2 / (into * k * k))).astype(np.float32)

    spread = np.ones((32, 1, 1, 1), np.float32)
    spread[0] = 1e4
    weights = {"w1": he(32, 3), "w2": he(32, 32) * spread, "w3": he(32, 32) / spread.reshape(1, 32, 1, 1)}
    weights |= {"low": np.array(0, np.float32), "high": np.array(1e9, np.float32)}
    weights |= {"w4": he(32, 32), "w5": he(10, 32, 1)[:, :, 0, 0] * 4}
    nodes, last = [], "x"
    for i in range(1, 5):
        nodes += [
            helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], name=f"conv{i}", pads=[1, 1, 1, 1]),
            helper.make_node("Clip", ["c2", "low", "high"], ["r2"], name="clip2")
            if i == 2
            else helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i}"),
        ]
        last = f"r{i}"
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w5"], ["y"], name="fc", transB=1),
    ]
    return Path(runs.save_model(path, nodes, weights, shape=["batch", 3, 16, 16], out=["batch", 10]))


def blobs(model: Path, count: int = 1600) -> dict[str, np.ndarray]:
    """Returns examples that the model tells apart, labelled by itself: ten noisy pictures, the clear cases only."""
    import onnxruntime as ort

    rng = np.random.default_rng(5)
    kinds = rng.standard_normal((200, 3, 16, 16)).astype(np.float32)
    x = (kinds[rng.integers(0, 200, 2 * count)] + 0.3 * rng.standard_normal((2 * count, 3, 16, 16))).astype(np.float32)
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    y = session.run(None, {"x": x})[0]
    top = np.sort(y, axis=1)
    clear = np.argsort(-(top[:, -1] - top[:, -2]))[:count]
    clear.sort()
    return {"x": x[clear], "labels": y[clear].argmax(axis=1).astype(np.int64)}


def test_the_layers_that_int8_ruins_go_back_to_float_and_no_others(
    cli: Callable[..., Any], runs: ModuleType, tmp_path: Path
) -> None:
    model = ruined_net(runs, tmp_path / "ruined.onnx")
    data = runs.save_data(tmp_path / "blobs.npz", blobs(model))
    args = ("quantize", model, "--data", data, "--max-drop", "2%", "--allow-slower")
    forced = cli(*args, "--scheme", "w8a8", "-o", tmp_path / "f", "--json")
    assert forced.json["verdict"] == "not met", "the network is not ruined by int8; the test shows nothing"
    done = cli(*args, "-o", tmp_path / "o", "--json")
    assert (done.code, done.json["verdict"]) == (0, "met"), done.err
    state = {layer["node"]: layer["scheme"] for layer in done.json["layers"] if layer["role"] == "weight"}
    floats = {node for node, scheme in state.items() if scheme == "float32"}
    # Both ends of the spoiled tensor must be float for it to be float.
    assert floats == {"conv2", "conv3"}, done.json["search"]
    assert any("conv2" in step["change"] or "conv3" in step["change"] for step in done.json["search"])
    islands = {island["node"] for island in done.json["executed"]["islands"]}
    assert {"conv2", "conv3"} <= islands
    ops = {node.op_type for node in onnx.load(str(tmp_path / "o" / "model.onnx")).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= ops
