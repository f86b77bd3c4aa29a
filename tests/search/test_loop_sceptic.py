"""What the loop decides on, one decision at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fewbits.datasets import open_dataset
from fewbits.evidence import trinomial_bound
from fewbits.flow import observe
from fewbits.measurement.metrics import METRICS
from fewbits.measurement.outcome import Outcome, Reference
from fewbits.models.onnx.opening import open_model
from fewbits.planning.plan import Plan
from fewbits.planning.site import Role
from fewbits.runtimes.base import Options
from fewbits.search.building import activation_sites
from fewbits.search.draft import draft_plan
from fewbits.search.loop import BudgetLoop, Task
from fewbits.targets import resolve_target


@pytest.mark.parametrize(
    ("drop", "bound", "certifiable", "inside"),
    [
        (0.005, 0.010, 0.005, True),
        (0.005, 0.011, 0.005, False),  # the loss alone is no evidence
        (0.005, 0.030, 0.020, True),  # no number of flips could show more
        (0.011, 0.030, 0.020, False),
    ],
)
def test_the_bound_decides_wherever_it_could_be_inside(
    drop: float, bound: float, certifiable: float, inside: bool
) -> None:
    seen = SimpleNamespace(drop=drop, bound=bound)
    task: Any = SimpleNamespace(max_drop=0.01, certifiable=certifiable, bound=lambda outcome: seen)
    outcome: Any = None
    assert BudgetLoop(task)._inside(outcome) is inside


@contextmanager
def a_task(runs: ModuleType, folder: Path) -> Iterator[Task]:
    model, target = open_model(runs.small_net(folder / "net.onnx")), resolve_target("ort-cpu:vnni")
    dataset, indices = open_dataset(runs.small_data(64)), np.arange(64)
    statistics = observe(model, dataset, indices, activation_sites(draft_plan(model, target)))
    with Reference(model, dataset, indices, metric=METRICS["agreement"], output="y", options=Options()) as reference:
        yield Task(
            model=model,
            target=target,
            base=Plan(target=target.full_name, decisions=(), seed=11, hashes={"model": "m"}),
            statistics=statistics,
            reference=reference,
            bound=lambda outcome: trinomial_bound(6, 0, 64),
            max_drop=0.01,
            certifiable=0.0,
            effort="fast",
            deadline=None,
            progress=lambda *anything: None,
        )


def test_giving_a_node_back_keeps_the_ranges_that_were_chosen(runs: ModuleType, tmp_path: Path) -> None:
    with a_task(runs, tmp_path) as task:
        plan = draft_plan(
            task.model, task.target, activation_range="percentile:99.9", weight_range="mse", base=task.base
        )
        left = BudgetLoop(task)._without(plan, ("conv2",))
    rules = {role: {d.range_rule for d in left.quantized if d.role is role} for role in (Role.ACTIVATION, Role.WEIGHT)}
    assert rules == {Role.ACTIVATION: {"percentile:99.9"}, Role.WEIGHT: {"mse"}}
    assert {d.node for d in left.quantized if d.role is Role.WEIGHT} == {"conv1", "fc"}
    assert (left.seed, left.hashes) == (11, {"model": "m"})


class Conv2Hurts(BudgetLoop):  # type: ignore[misc]
    """The budget holds where conv2 is float; the ranking is misled and puts it second."""

    def _rank(self, start: Any) -> list[str]:
        return ["conv1", "conv2", "fc"]

    def _build(self, plan: Plan) -> Any:
        self.last = super()._build(plan)
        return self.last

    def _inside(self, outcome: Outcome) -> bool:
        return "conv2" not in self.last.integer


def test_what_came_back_to_integers_is_in_the_candidate_that_is_handed_over(runs: ModuleType, tmp_path: Path) -> None:
    with a_task(runs, tmp_path) as task:
        found = Conv2Hurts(task).run()
    assert found.met
    assert {"conv1", "fc"} <= set(found.candidate.integer)
    assert "conv2" not in found.candidate.integer
    assert [trial.kept for trial in found.trail if trial.change == "conv1 in integers again"] == [True]
