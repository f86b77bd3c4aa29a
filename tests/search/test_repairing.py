"""The loop that tries repairs: what is faster stays, what is not goes, and the report says both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewbits._base.errors import ModelError
from fewbits.measurement.latency import Speedup
from fewbits.planning.plan import plan_from_json
from fewbits.reporting.assembly import assemble
from fewbits.search import job, loop, repairing
from fewbits.search.finished import Finished
from fewbits.search.preparing import Request


def swish_net(graphs: Any, folder: Path) -> Path:
    n = graphs.Net()
    x = n.input(("N", 8, 8, 8))
    h = n.op("HardSwish", n.conv(x, 8, 8))
    pooled = n.op("Flatten", n.op("GlobalAveragePool", n.conv(h, 8, 8)))
    n.output(n.gemm(n.op("Sub", pooled, n.const(0.25)), 8, 4))
    return n.save(folder)


def finished(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ratios: dict[str, float],
    *,
    shape: tuple[int, ...] = (8, 8, 8),
    **more: Any,
) -> Finished:
    """Runs the whole job with a clock that says how much faster each repair makes the file."""
    asked: list[str] = []
    better = repairing._Loop.better

    def told(self: Any, name: str, *more: Any) -> bool:
        asked.append(name)
        return better(self, name, *more)

    def clock(models: Any, **options: Any) -> Speedup:
        ratio = ratios.get(asked[-1], 0.9)
        return Speedup(ratio=ratio, low=ratio - 0.05, high=ratio + 0.05, confidence=0.95)

    monkeypatch.setattr(repairing._Loop, "better", told)
    monkeypatch.setattr(repairing, "quick_speedup", clock)
    data = {"x": np.random.default_rng(0).standard_normal((200, *shape), np.float32)}
    usual = {"max_drop": None, "scheme": "w8a8", "allow_slower": True, "target": "ort-cpu:vnni"}
    return job.run(Request(model=str(path), data=data, **{**usual, **more}))


@pytest.fixture
def hurried(runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.hurry(monkeypatch)


def test_what_is_faster_stays_and_the_report_shows_before_and_after(
    hurried: None, graphs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(swish_net(graphs, tmp_path), monkeypatch, {"saturating_swish": 1.5, "sub_to_add": 1.2})
    assert run.repairs.kept == ("saturating_swish", "sub_to_add")
    report = assemble(run)
    executed = report.executed
    assert executed.repairs == ("saturating_swish", "sub_to_add")
    assert (executed.float_nodes, executed.float_nodes_before) == (0, run.repairs.float_nodes)
    assert run.repairs.float_nodes is not None and run.repairs.float_nodes >= 2
    assert executed.islands is not None
    assert {island.op for island in executed.islands if island.repaired} >= {"Sub"}
    assert [step.change for step in report.search if step.kept] == [
        "repair: HardSwish and HardSigmoid as sums that saturate", "repair: subtraction of a fixed tensor as addition",
    ]  # fmt: skip
    names = [step.name for step in run.candidate.plan.transforms if step.name != "bias_correction"]
    assert names[-2:] == ["saturating_swish", "sub_to_add"]


def test_what_is_not_faster_by_more_than_noise_goes(
    hurried: None, graphs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(swish_net(graphs, tmp_path), monkeypatch, {"saturating_swish": 1.06})
    assert run.repairs.kept == ()
    assert {trial.name for trial in run.repairs.trials} >= {"saturating_swish", "sub_to_add"}
    assert assemble(run).executed.repairs == ()


@pytest.mark.parametrize(("ratio", "kept"), [(1.0, True), (0.995, True), (0.98, False)])
def test_operators_without_weights_are_float_where_that_is_no_slower_in_the_median(
    hurried: None, graphs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, kept: bool
) -> None:
    n = graphs.Net()
    h = n.conv(n.input(("N", 8, 8, 8)), 8, 8)
    n.output(n.conv(n.op("Add", n.conv(h, 8, 8), h), 8, 4))
    run = finished(n.save(tmp_path), monkeypatch, {"light_float": ratio})
    assert (repairing.LIGHT_FLOAT in run.repairs.kept) == kept
    assert run.repairs.kept.count(repairing.LIGHT_FLOAT) <= 1


def test_one_lucky_look_does_not_make_operators_float(
    hurried: None, graphs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = graphs.Net()
    h = n.conv(n.input(("N", 8, 8, 8)), 8, 8)
    n.output(n.conv(n.op("Add", n.conv(h, 8, 8), h), 8, 4))
    looks = iter([1.0, 0.97] * 9)

    class Luck(dict[str, float]):
        def get(self, name: str, other: float = 0.9) -> float:  # type: ignore[override]
            return next(looks) if name == repairing.LIGHT_FLOAT else other

    run = finished(n.save(tmp_path), monkeypatch, Luck())
    assert repairing.LIGHT_FLOAT not in run.repairs.kept
    assert {t.speedup.ratio for t in run.repairs.trials if t.name == repairing.LIGHT_FLOAT and t.speedup} == {0.97}


def test_a_plan_with_repairs_is_replayed_to_the_byte_without_a_clock(
    hurried: None, graphs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = swish_net(graphs, tmp_path)
    first = finished(path, monkeypatch, {"saturating_swish": 1.5})
    plan = plan_from_json(first.candidate.plan.to_json())
    data = {"x": np.random.default_rng(0).standard_normal((200, 8, 8, 8), np.float32)}
    monkeypatch.setattr(repairing, "quick_speedup", None)
    again = job.run(Request(model=str(path), data=data, max_drop=None, plan=plan))
    assert again.data == first.data
    assert again.repairs.trials == ()


def test_a_repair_that_fails_costs_nothing_but_itself(
    hurried: None, graphs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = repairing.repaired

    def failing(model: Any, repair: Any) -> Any:
        if repair.name == "saturating_swish":
            raise ModelError("it changed the model", slug="pass-changed-model")
        return whole(model, repair)

    monkeypatch.setattr(repairing, "repaired", failing)
    run = finished(swish_net(graphs, tmp_path), monkeypatch, {"sub_to_add": 1.3})
    assert run.repairs.kept == ("sub_to_add",)
    failed = next(step for step in assemble(run).search if "HardSwish" in step.change)
    assert "pass-changed-model" in failed.reason and not failed.kept


def products_net(graphs: Any, folder: Path) -> Path:
    """Attention on [N, 12, 16] with one head."""
    n = graphs.Net()
    x = n.input(("N", 12, 16))
    q, k, v = (n.op("Add", n.matmul(x, 16, 16), n.vector(16)) for _ in range(3))
    shares = n.op("Softmax", n.op("MatMul", q, n.op("Transpose", k, perm=[0, 2, 1]), name="scores"), axis=-1)
    n.output(n.matmul(n.op("MatMul", shares, v, name="mixed"), 16, 4))
    return n.save(folder)


SEARCH = {"target": "openvino:vnni", "scheme": None, "shape": (12, 16), "effort": "fast"}
PRODUCTS = {"scores", "mixed"}


@pytest.mark.parametrize(("ratio", "kept"), [(1.5, True), (1.08, False), (1.0, False)])
def test_products_of_two_changing_matrices_are_in_integers_where_that_is_clearly_faster(
    hurried: None, graphs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, kept: bool
) -> None:
    pytest.importorskip("openvino", reason="openvino is an extra: pip install fewbits[openvino]")
    run = finished(products_net(graphs, tmp_path), monkeypatch, {repairing.PAIRED: ratio}, **SEARCH)
    assert (repairing.PAIRED in run.repairs.kept) == kept
    assert PRODUCTS.issubset(run.candidate.integer) == kept
    report = assemble(run)
    islands = {island.node: island.rule for island in report.executed.islands or () if not island.repaired}
    assert "runtime-differs" not in islands.values()
    assert bool(PRODUCTS & set(islands)) != kept
    plan = plan_from_json(run.candidate.plan.to_json())
    data = {"x": np.random.default_rng(0).standard_normal((200, 12, 16), np.float32)}
    again = job.run(Request(model=str(tmp_path / "net.onnx"), data=data, max_drop=None, plan=plan))
    assert again.data == run.data


def test_one_lucky_look_does_not_round_a_product(
    hurried: None, graphs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="openvino is an extra: pip install fewbits[openvino]")
    looks = iter([1.3, 1.08])

    class Luck(dict[str, float]):
        def get(self, name: str, other: float = 0.9) -> float:  # type: ignore[override]
            return next(looks) if name == repairing.PAIRED else other

    run = finished(products_net(graphs, tmp_path), monkeypatch, Luck(), **SEARCH)
    assert repairing.PAIRED not in run.repairs.kept
    assert {t.speedup.ratio for t in run.repairs.trials if t.name == repairing.PAIRED and t.speedup} == {1.08}


def test_who_names_a_scheme_gets_no_product_rounded_for_speed(
    hurried: None, graphs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="openvino is an extra: pip install fewbits[openvino]")
    asked = {**SEARCH, "scheme": "w8a8"}
    run = finished(products_net(graphs, tmp_path), monkeypatch, {repairing.PAIRED: 1.5}, **asked)
    assert repairing.PAIRED not in {trial.name for trial in run.repairs.trials}
    assert not PRODUCTS & set(run.candidate.integer)


def test_they_are_given_up_before_any_layer_where_the_budget_would_be_missed(
    hurried: None, graphs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="openvino is an extra: pip install fewbits[openvino]")
    inside = iter([False, *[True] * 99])
    monkeypatch.setattr(loop.BudgetLoop, "_inside", lambda self, outcome: next(inside))
    asked = {**SEARCH, "max_drop": 0.5}
    run = finished(products_net(graphs, tmp_path), monkeypatch, {repairing.PAIRED: 1.5}, **asked)
    assert [t.kept for t in run.repairs.trials if t.name == repairing.PAIRED] == [True]
    assert repairing.PAIRED not in run.repairs.kept, "what was kept is what the file has"
    assert "products of two changing matrices in integers" in {step.change for step in run.trail}
    assert not PRODUCTS & set(run.candidate.integer)
    assert len(run.candidate.integer) == 4, "every product with a weight stays"
