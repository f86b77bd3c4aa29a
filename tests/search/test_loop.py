"""The budget loop keeps the best so far, whatever stops it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fewbits._base.errors import UsageError
from fewbits.datasets import open_dataset
from fewbits.evidence import PairedBound
from fewbits.flow import observe
from fewbits.measurement.metrics import METRICS
from fewbits.measurement.outcome import Outcome, Reference
from fewbits.models.onnx.opening import open_model
from fewbits.planning.plan import Plan
from fewbits.runtimes.base import Options
from fewbits.search.building import activation_sites, activation_sqnr, build
from fewbits.search.draft import draft_plan
from fewbits.search.loop import EFFORTS, BudgetLoop, SearchResult, Task, check_effort
from fewbits.search.verdict_data import loss_bound
from fewbits.targets import resolve_target


@pytest.fixture
def search(runs: ModuleType, tmp_path: Path) -> Callable[..., SearchResult]:
    """Runs a loop on the small net; the bound is what the test makes of an outcome."""
    model, target = open_model(runs.small_net(tmp_path / "net.onnx")), resolve_target("ort-cpu:vnni")
    dataset = open_dataset(runs.small_data(64))
    plan = draft_plan(model, target)
    indices = np.arange(64)
    statistics = observe(model, dataset, indices, activation_sites(plan))

    def run(bound: Callable[[Outcome], float], *, kind: Any = BudgetLoop, **options: Any) -> SearchResult:
        def bounded(outcome: Outcome) -> PairedBound:
            real = loss_bound(METRICS["agreement"], outcome, confidence=0.95)
            value = bound(outcome)
            return PairedBound(**{**{k: getattr(real, k) for k in real.__slots__}, "drop": value, "bound": value})

        given: dict[str, Any] = {
            "max_drop": 0.01, "certifiable": 0.0, "effort": "fast", "deadline": None, "progress": lambda *_: None,
        } | options  # fmt: skip
        with Reference(
            model, dataset, indices, metric=METRICS["agreement"], output="y", options=Options()
        ) as reference:
            task = Task(
                model=model,
                target=target,
                base=Plan(target=target.full_name, decisions=()),
                statistics=statistics,
                reference=reference,
                bound=bounded,
                **given,
            )
            return kind(task).run()  # type: ignore[no-any-return]

    return run


def test_an_inside_loss_ends_the_search_with_all_integers(search: Callable[..., SearchResult]) -> None:
    found = search(lambda outcome: 0.0)
    assert found.met
    assert len(found.trail) == len(EFFORTS["fast"])
    assert len(found.candidate.integer) == 4, "two convolutions, the pool, the last layer"


@pytest.mark.parametrize("effort", EFFORTS)
def test_an_effort_tries_its_ranges_and_keeps_the_closest(search: Callable[..., SearchResult], effort: str) -> None:
    found = search(lambda outcome: 0.0, effort=effort)
    assert len(found.trail) == len(EFFORTS[effort])
    best: float | None = None
    for trial in found.trail:  # another rule is kept where it is clearly closer, and the first of them in any case
        assert trial.kl is not None
        assert trial.kept is (best is None or trial.kl < 0.8 * best)
        best = trial.kl if trial.kept else best


def test_a_hopeless_budget_ends_with_floats_alone(search: Callable[..., SearchResult]) -> None:
    found = search(lambda outcome: 1.0)
    assert not found.met
    assert found.candidate.integer == ()
    assert found.stopped is None


def test_a_deadline_that_has_passed_keeps_the_first_candidate(search: Callable[..., SearchResult]) -> None:
    found = search(lambda outcome: 1.0, effort="best", deadline=time.monotonic() - 1)
    assert len(found.trail) == 1
    assert not found.met
    assert found.stopped is not None
    assert len(found.candidate.integer) == 4


def test_where_no_bound_could_be_shown_the_loss_itself_decides(search: Callable[..., SearchResult]) -> None:
    found = search(lambda outcome: 0.005, certifiable=0.02)
    assert found.met, "no number of floats would let the verdict's examples show more"
    assert len(found.candidate.integer) == 4


def test_without_a_budget_only_ranges_are_searched(search: Callable[..., SearchResult]) -> None:
    found = search(lambda outcome: 1.0, max_drop=None, effort="balanced")
    assert found.met
    assert len(found.trail) == len(EFFORTS["balanced"])


class NeedsFloat(BudgetLoop):  # type: ignore[misc]
    """A loop whose budget holds as soon as conv2 is float, whatever else is."""

    def _build(self, plan: Plan) -> Any:
        self.last = super()._build(plan)
        return self.last

    def _inside(self, outcome: Outcome) -> bool:
        return "conv2" not in self.last.integer


def test_nodes_that_went_to_float_for_nothing_come_back(search: Callable[..., SearchResult]) -> None:
    found = search(lambda outcome: 1.0, kind=NeedsFloat)
    assert found.met
    weighted = {"conv1", "conv2", "fc"}
    assert weighted & set(found.candidate.integer) == {"conv1", "fc"}


def test_an_unknown_effort_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'best'"):
        check_effort("bset")


def test_the_same_plan_and_statistics_give_the_same_bytes(runs: ModuleType, tmp_path: Path) -> None:
    model, target = open_model(runs.small_net(tmp_path / "net.onnx")), resolve_target("ort-cpu:vnni")
    dataset = open_dataset(runs.small_data(100))
    plan = draft_plan(model, target)
    made = [
        build(model, plan, target, observe(model, dataset, np.arange(100), activation_sites(plan), jobs=jobs)).data
        for jobs in (1, 2, 5)
    ]
    assert made[0] == made[1] == made[2]


def test_the_reported_sqnr_of_an_activation_is_that_of_its_values(runs: ModuleType, tmp_path: Path) -> None:
    from fewbits.calibration.histogram import histogram_of
    from fewbits.flow import activation_params
    from fewbits.numerics.qtensor import quantize

    model, target = open_model(runs.small_net(tmp_path / "net.onnx")), resolve_target("ort-cpu:vnni")
    plan = draft_plan(model, target)
    dataset = open_dataset(runs.small_data(64))
    statistics = observe(model, dataset, np.arange(64), activation_sites(plan))
    params = activation_params(plan, statistics)["x"]
    x = runs.small_data(64)["x"]
    wrong = np.asarray(quantize(x, params).dequantize(), np.float64) - x
    exact = 10 * np.log10((x.astype(np.float64) ** 2).sum() / (wrong**2).sum())
    found = activation_sqnr(params, histogram_of(x, where="x"))
    assert found is not None
    # Bin centres stand for values. A step of this range (8 / 255 = 0.03) holds many bins near 0 and few at the ends.
    assert abs(found - exact) < 0.5


def test_a_node_that_makes_the_distance_alone_goes_back_where_that_costs_no_time(
    search: Callable[..., SearchResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget is kept on the selection data, but outputs are far off, and one node is why."""
    from dataclasses import replace

    from fewbits.search import loop

    measure = loop.BudgetLoop._measure

    def far_off(self: Any, candidate: Any, stage: str, *, limit: int | None = None) -> Any:
        outcome = measure(self, candidate, stage, limit=limit)
        kl = 0.1 if "conv2" in candidate.integer else 0.001
        return replace(outcome, quality=replace(outcome.quality, kl=kl))

    monkeypatch.setattr(loop.BudgetLoop, "_measure", far_off)
    found = search(lambda outcome: 0.0)
    assert found.met and "conv2" not in found.candidate.integer
    assert "99% of the distance" in found.trail[-1].reason
    kept = search(lambda outcome: 0.0, slower=lambda candidate, other: True)
    assert "conv2" in kept.candidate.integer
    assert "slower" in kept.trail[-1].reason


def test_selection_examples_too_few_to_condemn_leave_the_word_to_the_verdict(
    search: Callable[..., SearchResult],
) -> None:
    condemned = search(lambda outcome: 1.0, refuted=lambda outcome: True)
    assert condemned.candidate.integer == ()
    spared = search(lambda outcome: 1.0, refuted=lambda outcome: False)
    assert len(spared.candidate.integer) == 4
    assert not spared.met


def test_a_mix_that_is_not_faster_than_float_gives_way_to_all_integers_that_are_not_condemned(
    search: Callable[..., SearchResult],
) -> None:
    tries: list[int] = []

    def bounded(outcome: Outcome) -> float:  # outside with all integers, inside once a node is float
        tries.append(1)
        return 1.0 if outcome.quality.gauge > 1e-6 and len(tries) < 4 else 0.0

    pays = {"pays": lambda candidate: len(candidate.integer) == 4}
    spared = search(bounded, refuted=lambda outcome: False, **pays)
    assert len(spared.candidate.integer) == 4
    tries.clear()
    condemned = search(bounded, refuted=lambda outcome: True, **pays)
    assert len(condemned.candidate.integer) < 4


class _Nothing(frozenset[str]):
    """A candidate of which nothing is float."""

    plan = None


class Harms:
    """Stands for a loop whose nodes add what they harm; those that are float add nothing."""

    def __init__(self, harms: dict[str, float]) -> None:
        self.harms, self.looks = harms, 0

    def spoiler(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        def measure(loop: Any, floats: frozenset[str], stage: str, *, limit: int) -> SimpleNamespace:
            self.looks += 1
            left = sum(harm for name, harm in self.harms.items() if name not in floats)
            return SimpleNamespace(quality=SimpleNamespace(gauge=left))

        monkeypatch.setattr(BudgetLoop, "_late", lambda loop: False)
        monkeypatch.setattr(BudgetLoop, "_worst_first", lambda loop, start: list(self.harms))
        monkeypatch.setattr(BudgetLoop, "_without", lambda loop, plan, nodes: frozenset(nodes))
        monkeypatch.setattr(BudgetLoop, "_build", lambda loop, plan: plan)
        monkeypatch.setattr(BudgetLoop, "_measure", measure)
        start: Any = _Nothing()
        return BudgetLoop.__new__(BudgetLoop)._spoiler(start)


@pytest.mark.parametrize("count", [1, 2, 3, 50, 64])
def test_the_one_node_that_makes_the_distance_is_found_in_a_few_looks(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    for culprit in range(count):
        harms = {f"n{i}": 4.0 * count if i == culprit else 1.0 for i in range(count)}
        found = Harms(harms)
        assert found.spoiler(monkeypatch) == [f"n{culprit}"]
        assert found.looks <= 1 + 2 * int(np.ceil(np.log2(max(count, 2))))


def test_where_many_nodes_make_the_distance_two_looks_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Harms({f"n{i}": 1.0 for i in range(50)})
    assert found.spoiler(monkeypatch) == []
    assert found.looks == 3
