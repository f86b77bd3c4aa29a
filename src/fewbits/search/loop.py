"""The budget loop, first version: ranges by evidence, then the most harmful nodes back to float.

1. Every range rule that the effort allows is tried with all integers; the one whose outputs stay closest to float on
   the selection data is kept. (Size and speed are the same, so closeness decides.) Then factors are moved from
   channels to the weights that read them, ranges go by the output errors of the layers that read each site, biases are
   corrected, and each stays so where that is closer still.
2. Where the budget would be missed, each weighted node alone is set back to float, and the nodes are ordered by how
   much that helps, those put off that cost speed; then they go back one after the other until the forecast says "met".
3. A node alone may not show its harm (a tensor is spoiled until both its ends are float), so some went back for
   nothing: each is tried in integers once more, the largest first, and stays so where the budget still holds.
4. Where no mix would keep the budget, the float model is the result if the selection data show with confidence that all
   integers do not; a few examples that only seem to say so leave the word to the verdict. The same where the mix that
   would keep it is not faster than float, and all integers are.
5. The best so far is kept throughout. The verdict data play no part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import final

from fewbits._base.catalog import nearest
from fewbits._base.errors import UsageError
from fewbits.calibration.statistics import Statistics
from fewbits.evidence.paired import PairedBound
from fewbits.flow import NOTHING_LEARNED, Learned
from fewbits.measurement.outcome import Outcome, Progress, Reference
from fewbits.models.onnx.model import OnnxModel
from fewbits.planning.plan import Plan
from fewbits.planning.site import Role
from fewbits.search.building import Candidate, build
from fewbits.search.draft import draft_plan
from fewbits.search.layerwise import LESSONS, asks_for_correction, same_lessons
from fewbits.search.ranging import RANGED
from fewbits.search.transforming import Variant
from fewbits.targets import FIRST_FORMS, Forms
from fewbits.targets.base import Target

# Range rules of activations and weights that an effort tries, the likeliest winner first.
EFFORTS: dict[str, tuple[tuple[str, str], ...]] = {
    "fast": (("mse", "mse"), ("minmax", "minmax")),
    "balanced": (("mse", "mse"), ("minmax", "minmax"), ("percentile:99.99", "mse")),
    "best": (
        ("mse", "mse"),
        ("minmax", "minmax"),
        ("minmax", "mse"),
        ("percentile:99.99", "mse"),
        ("percentile:99.999", "mse"),
        ("percentile:99.9", "mse"),
        ("entropy", "mse"),
    ),
}


def check_effort(name: str) -> None:
    """Raises UsageError(slug="unknown-name") unless there is such an effort."""
    if name not in EFFORTS:
        raise UsageError(f"unknown effort {name!r}; {nearest(name, list(EFFORTS))}", slug="unknown-name")


# Why a node that could run in integers does not.
_GIVEN_BACK = "back to float: among what cost the most closeness on the selection data"
# The part of another candidate's distance to float below which one is closer beyond doubt.
_CLEARLY = 0.8
# The same for a step that is right by its derivation, on the very same examples.
CLOSER = 0.95
# Distance to float before layers learn, in nats, above which it says nothing of the distance after.
FAR_KL = 0.3
# Distance to float above which one node is looked for that makes it, in nats per example: total variation may then be
# up to sqrt(KL / 2) = 3 % (Pinsker's inequality). One layer of KWT-1 makes all but a hundredth of its 9 millinats.
_SUSPECT_KL = 0.002
# Distance to float below which nothing is mended: of some hundred examples, not one answer is likely to change.
_CLOSE_KL = 0.001
# Why a channel that hid the others was evened there all the same, or was not.
_EVENED = ("one channel hid the others, and outputs stay close", "outputs would not stay close")
# By how much the distance must fall for a node to go back to float without need.
_WORTH_A_NODE = 4.0
# Nodes of the order that are timed before they go back to float.
_TIMED = 6
# Nodes that are set back alone before any goes; the others follow by the noise of their own tensors.
_RANKED = {"fast": 16, "balanced": 64, "best": 100_000}
# How many of the lessons an effort tries: corrected biases, then codes by the inputs of their layers.
TAUGHT = {"fast": 1, "balanced": 2, "best": 2}
# Examples on which single nodes are compared: KL separates them with a few dozen.
_RANKING_EXAMPLES = 128
# Nodes that go back to float between two looks at the selection data: one each, until a quarter of all have gone, then
# more at a time, because by then the order matters little and every look costs a pass.
_SINGLE_STEPS = 0.25


def close_enough(outcome: Outcome) -> bool:
    """Returns whether outputs are so close to float that what is left is below the noise of some hundred examples."""
    kl = outcome.quality.kl
    return kl is not None and kl < _CLOSE_KL


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One candidate that was tried.

    Args:
      change: What it changes against the one kept before.
      drop: Loss of the metric on the selection data.
      kl: The finer gauge on the selection data: mean KL in nats, or noise over signal.
      integer_nodes: Nodes placed to run in integers.
      kept: Whether it is the best so far.
      reason: Why, or why not.
    """

    change: str
    drop: float | None
    kl: float | None
    integer_nodes: int
    kept: bool
    reason: str


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SearchResult:
    """The best candidate and the trail to it; no candidate where none could keep the budget.

    Args:
      candidate: The best so far.
      met: Whether the forecast from the selection data is inside the budget.
      trail: What was tried, in order.
      stopped: Why the search ended early; None where it ended by itself.
    """

    candidate: Candidate
    met: bool
    trail: tuple[Trial, ...]
    stopped: str | None = None


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """All that the loop needs.

    Args:
      model: The float model.
      target: The rules.
      base: Seed, hashes and versions for the plans.
      statistics: Of all activation sites.
      refuted: Whether the selection data alone show, with confidence, that an outcome is outside the budget.
      pays: Whether a candidate is faster than float by more than noise, asked of a clock.
      slower: Whether a candidate is slower than another one, asked of a clock.
      forms: Of nodes, where the model runs faster so; what rounds more than the first forms is given up first.
      reference: The float model on the selection data.
      bound: Turns an outcome into the bound that the verdict will probably see.
      max_drop: The budget; None where none is asked, and ranges alone are searched.
      certifiable: The smallest budget that the verdict's number of examples can show to be kept.
      effort: Key of EFFORTS.
      deadline: Clock time by which the loop ends with the best so far; None for no limit.
      progress: Told of each step.
      learn: What is learned layer by layer for a plan that asks for it; nothing where there are no examples.
      ranges: A plan with the range rule of each activation site chosen by what layers that read it make of its error.
      variants: Equal models in which other numbers are rounded, for a plan of this one; or only where channels are
        lopsided.
      use: Told with which of them the search goes on.
      hopeless: Why giving nodes back cannot win, asked once before it is tried: a candidate that is slower than float
        with all integers only gets slower. None where nothing speaks against it.
    """

    model: OnnxModel
    target: Target
    base: Plan
    statistics: Statistics
    reference: Reference
    bound: Callable[[Outcome], PairedBound]
    max_drop: float | None
    certifiable: float
    effort: str
    deadline: float | None
    progress: Progress
    hopeless: Callable[[Candidate], str | None] = lambda candidate: None
    forms: Forms = FIRST_FORMS
    slower: Callable[[Candidate, Candidate], bool] = lambda candidate, other: False
    refuted: Callable[[Outcome], bool] = lambda outcome: True
    pays: Callable[[Candidate], bool] = lambda candidate: True
    learn: Callable[[Plan], Learned] = lambda plan: NOTHING_LEARNED
    ranges: Callable[[Plan], Plan] = lambda plan: plan
    variants: Callable[[Plan, Forms, bool], Iterable[Variant]] = lambda plan, forms, lopsided: ()
    use: Callable[[OnnxModel, Statistics], None] = lambda model, statistics: None


@final
class BudgetLoop:
    """The working state of one search; ``run`` may be called once."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._trail: list[Trial] = []
        self._stopped: str | None = None
        self._learned: Learned = NOTHING_LEARNED

    def run(self) -> SearchResult:
        """Returns the best candidate."""
        candidate, outcome = self._best_of_all_integers()
        for finer, given_up in _finer(self._task.forms):
            if self._inside(outcome):
                break
            self._note(given_up, outcome, candidate, kept=False, reason="loss outside the budget")
            self._task = replace(self._task, forms=finer)
            candidate, outcome = self._best_of_all_integers()
        if self._inside(outcome):
            return self._result(self._insured(candidate, outcome), met=True)
        hopeless = self._task.hopeless(candidate)
        if hopeless is not None:
            self._stopped = hopeless
            return self._result(candidate, met=False)
        return self._give_back(candidate, outcome)

    def _best_of_all_integers(self) -> tuple[Candidate, Outcome]:
        return self._taught(*self._ranged(*self._transformed(*self._choose_ranges())))

    def _inside(self, outcome: Outcome) -> bool:
        """Returns whether the verdict will probably be "met".

        Where not even a model without a flip could be shown to keep the budget, the loss itself decides: more data, and
        not more float, is then what is missing.
        """
        task = self._task
        if task.max_drop is None:
            return True
        bound = task.bound(outcome)
        return (bound.drop if task.max_drop < task.certifiable else bound.bound) <= task.max_drop

    def _result(self, candidate: Candidate, *, met: bool) -> SearchResult:
        return SearchResult(candidate=candidate, met=met, trail=tuple(self._trail), stopped=self._stopped)

    def _late(self) -> bool:
        if self._task.deadline is None or time.monotonic() < self._task.deadline:
            return False
        self._stopped = "the time budget was used up; the best so far was kept [time-budget]"
        return True

    def _build(self, plan: Plan) -> Candidate:
        task = self._task
        # A mix of float and integers is tried with what all integers were taught: it changes little, and costs much.
        learned = self._learned if asks_for_correction(plan) else NOTHING_LEARNED
        return build(task.model, plan, task.target, task.statistics, learned=learned)

    def _measure(self, candidate: Candidate, stage: str, *, limit: int | None = None) -> Outcome:
        return self._task.reference.compare(candidate.data, self._task.progress, stage=stage, limit=limit)

    def _note(self, change: str, outcome: Outcome, candidate: Candidate, *, kept: bool, reason: str) -> None:
        self._trail.append(
            Trial(
                change=change,
                drop=self._task.bound(outcome).drop,
                kl=outcome.quality.gauge,
                integer_nodes=len(candidate.integer),
                kept=kept,
                reason=reason,
            )
        )

    def _choose_ranges(self) -> tuple[Candidate, Outcome]:
        task = self._task
        best: tuple[Candidate, Outcome] | None = None
        for activations, weights in EFFORTS[task.effort]:
            if best is not None and self._late():
                break
            plan = draft_plan(
                task.model,
                task.target,
                forms=task.forms,
                activation_range=activations,
                weight_range=weights,
                base=task.base,
            )
            candidate = self._build(plan)
            if best is not None and candidate.data == best[0].data:
                continue
            outcome = self._measure(candidate, f"ranges {activations}/{weights}")
            # A few percent are noise of the selection examples: the likelier rule, tried first, then stays.
            better = best is None or outcome.quality.gauge < _CLEARLY * best[1].quality.gauge
            reason = "closest to float so far" if better else "not clearly closer to float than the one kept"
            change = f"all integer, activation ranges {activations}, weight ranges {weights}"
            self._note(change, outcome, candidate, kept=better, reason=reason)
            if better:
                best = candidate, outcome
        assert best is not None
        return best

    def _transformed(self, candidate: Candidate, outcome: Outcome) -> tuple[Candidate, Outcome]:
        """Returns the candidate of the equal model that is quantized best; the search goes on with that model."""
        best = self._task
        near = close_enough(outcome)  # then only what is plain without asking answers
        for variant in self._task.variants(candidate.plan, best.forms, near):
            if self._late():
                break
            self._task = replace(best, model=variant.model, statistics=variant.statistics)
            other = self._build(variant.plan)
            closer = self._measure(other, variant.what)
            wins = close_enough(closer) if near else closer.quality.gauge < CLOSER * outcome.quality.gauge
            slower = wins and variant.more_nodes and best.slower(other, candidate)
            won, lost = _EVENED if near else ("closer to float", "not closer to float than without")
            self._note(
                variant.what,
                closer,
                other,
                kept=wins and not slower,
                reason="slower" if slower else won if wins else lost,
            )
            if wins and not slower:
                candidate, outcome, best = other, closer, self._task
            if close_enough(outcome):
                break
        self._task = best
        best.use(best.model, best.statistics)
        return candidate, outcome

    def _ranged(self, candidate: Candidate, outcome: Outcome) -> tuple[Candidate, Outcome]:
        """Returns the candidate with range rules site by site, where that brings it closer to float.

        However close it is: ResNet-20 was at 0.2 millinats on calibration pictures held out, and at 2.4 on others.
        """
        if self._late():
            return candidate, outcome
        plan = self._task.ranges(candidate.plan)
        if plan == candidate.plan:
            return candidate, outcome
        other = self._build(plan)
        closer = self._measure(other, RANGED)
        kept = closer.quality.gauge < CLOSER * outcome.quality.gauge
        reason = "closer to float" if kept else "not closer to float than without"
        self._note(RANGED, closer, other, kept=kept, reason=reason)
        return (other, closer) if kept else (candidate, outcome)

    def _taught(self, candidate: Candidate, outcome: Outcome) -> tuple[Candidate, Outcome]:
        """Returns the candidate with what its layers learn from examples, where that brings it closer to float.

        Biases are corrected first; then, beside that, codes are chosen by the inputs of their layers.
        """
        for what, teach in LESSONS[: TAUGHT[self._task.effort]]:
            if self._late() or close_enough(outcome):
                break
            plan = teach(candidate.plan)
            learned, before = self._task.learn(plan), self._learned
            if not learned:
                break
            self._learned = learned
            other = self._build(plan)
            closer = self._measure(other, what)
            kept = closer.quality.gauge < CLOSER * outcome.quality.gauge
            reason = "closer to float" if kept else "not closer to float than without"
            self._note(what, closer, other, kept=kept, reason=reason)
            if kept:
                candidate, outcome = other, closer
            else:
                self._learned = before
        return candidate, outcome

    def _insured(self, candidate: Candidate, outcome: Outcome) -> Candidate:
        """Returns the candidate without the node that alone makes most of its distance to float, if that costs no time.

        A few selection examples may show no loss by luck where the outputs are far off; closeness tells sooner.
        """
        task, kl = self._task, outcome.quality.kl
        if task.max_drop is None or kl is None or kl <= _SUSPECT_KL or self._late():
            return candidate
        for name in self._spoiler(candidate):
            fewer = self._build(self._without(candidate.plan, (name,)))
            closer = self._measure(fewer, "1 node float")
            wins = closer.quality.gauge * _WORTH_A_NODE <= kl and self._inside(closer)
            slower = wins and task.slower(fewer, candidate)
            reason = (
                "slower without it in integers"
                if slower
                else f"alone it makes {100 * (1 - closer.quality.gauge / kl):.0f}% of the distance, and no speed"
                if wins
                else "not much closer to float without it in integers"
            )
            kept = wins and not slower
            self._note(f"{name} back to float", closer, fewer, kept=kept, reason=reason)
            if kept:
                return fewer
        return candidate

    def _spoiler(self, start: Candidate) -> list[str]:
        """Returns the one node that alone may make most of the distance to float; none where no half of them does.

        Halves go back to float: the one that holds it takes most of the distance with it, and is halved again.
        """
        names = self._worst_first(start)
        whole = self._measure(start, "looking for one node", limit=_RANKING_EXAMPLES).quality.gauge
        while len(names) > 1:
            halves = names[: (len(names) + 1) // 2], names[(len(names) + 1) // 2 :]
            for half in halves:
                if self._late():
                    return []
                built = self._build(self._without(start.plan, tuple(half)))
                gauge = self._measure(built, "looking for one node", limit=_RANKING_EXAMPLES).quality.gauge
                if gauge * _WORTH_A_NODE <= whole:
                    names = half
                    break
            else:
                return []
        return names

    def _worst_first(self, start: Candidate) -> list[str]:
        """Returns the nodes with weights in codes, those first of which what they read is rounded worst.

        The node that spoils most is nearly always among them.
        """
        names = [name for name in _coded(start) if self._weights(start.plan, name)]
        return sorted(names, key=lambda name: self._worst_sqnr(start, name))

    def _rank(self, start: Candidate) -> list[str]:
        """Returns the nodes by how much closer to float the model comes when they alone go back, most helpful first."""
        task = self._task
        names = self._worst_first(start)
        gauges: dict[str, float] = {}
        ranked = names[: _RANKED[task.effort]]
        for number, name in enumerate(ranked):
            task.progress("ranking nodes", number, len(ranked))
            if self._late():
                break
            plan = self._without(start.plan, (name,))
            outcome = self._measure(self._build(plan), "ranking nodes", limit=_RANKING_EXAMPLES)
            gauges[name] = outcome.quality.gauge
        order = sorted(gauges, key=lambda name: (gauges[name], names.index(name)))
        return order + [name for name in names if name not in gauges] if not self._stopped else order

    def _worst_sqnr(self, candidate: Candidate, name: str) -> float:
        """Returns the lowest signal to noise ratio of what a node reads: its weight and its quantized inputs."""
        op = self._task.model.view.by_name[name]
        facts = (candidate.sites.get(tensor) for tensor in op.inputs)
        return min((f.sqnr_db for f in facts if f is not None and f.sqnr_db is not None), default=float("inf"))

    def _without(self, plan: Plan, nodes: tuple[str, ...]) -> Plan:
        """Returns the plan with these nodes float, the range rules kept."""
        fresh = draft_plan(
            self._task.model,
            self._task.target,
            forms=self._task.forms.without(nodes),
            base=plan,
        )
        fresh = same_lessons(fresh, plan).ranged_as(plan)
        before = {d.site for d in plan.quantized}
        told = tuple(
            replace(d, reason=_GIVEN_BACK) if d.is_float and d.site in before and d.node in nodes else d
            for d in fresh.decisions
        )
        return replace(fresh, decisions=told)

    def _give_back(self, start: Candidate, outcome: Outcome) -> SearchResult:
        """Sets the most harmful nodes back to float until the forecast is inside the budget."""
        task = self._task
        assert task.max_drop is not None
        order, first = self._cheap_first(start, self._rank(start)), outcome
        fallback = start if task.bound(outcome).drop <= task.max_drop else None
        given: list[str] = []
        while order:
            if self._late():
                break
            step = 1 if len(given) < _SINGLE_STEPS * (len(order) + len(given)) else max(1, len(order) // 4)
            taken, order = order[:step], order[step:]
            given += taken
            candidate = self._build(self._without(start.plan, tuple(given)))
            if not _coded(candidate):
                break
            outcome = self._measure(candidate, f"{len(given)} nodes float")
            met = self._inside(outcome)
            inside = task.bound(outcome).drop <= task.max_drop
            if fallback is None and inside:
                fallback = candidate
            reason = (
                "inside the budget"
                if met
                else "loss inside, its bound not yet"
                if inside
                else "loss outside the budget"
            )
            self._note(
                f"{', '.join(taken)} back to float",
                outcome,
                candidate,
                kept=met or fallback is candidate,
                reason=reason,
            )
            if met:
                best = self._take_again(start, given, candidate)
                if task.pays(best) or not task.pays(start) or task.refuted(first):
                    return self._result(best, met=True)
                change = "all integer after all"
                reason = "the mix is not faster than float, and so few selection examples do not condemn all integers"
                self._note(change, first, start, kept=True, reason=reason)
                return self._result(start, met=False)
        # The most integers whose measured loss is inside: the verdict may still be undecided, and says what is missing.
        if fallback is not None:
            return self._result(fallback, met=False)
        if self._stopped is not None or not task.refuted(first):
            return self._result(start, met=False)  # too few selection examples to condemn it: the verdict will tell
        return self._result(self._float(start), met=False)

    def _cheap_first(self, start: Candidate, order: list[str]) -> list[str]:
        """Returns the order with those of the first nodes put off that cost speed: one Conv may break a whole chain."""
        costly = []
        for number, name in enumerate(order[:_TIMED]):
            self._task.progress("timing nodes", number, min(len(order), _TIMED))
            if self._late():
                break
            if self._task.slower(self._build(self._without(start.plan, (name,))), start):
                costly.append(name)
        return [name for name in order if name not in costly] + costly

    def _take_again(self, start: Candidate, given: list[str], best: Candidate) -> Candidate:
        """Returns the best candidate with every node in integers again that the budget does not need in float."""
        last = given[-1]  # without it the budget was missed
        left = list(given)
        for name in sorted(given, key=lambda name: (-self._weight_elements(start.plan, name), given.index(name))):
            if (name == last and len(left) == len(given)) or len(left) == 1:
                continue
            if self._late():
                break
            fewer = tuple(other for other in left if other != name)
            candidate = self._build(self._without(start.plan, fewer))
            outcome = self._measure(candidate, f"{len(fewer)} nodes float")
            met = self._inside(outcome)
            reason = "inside the budget without it in float" if met else "needed in float"
            self._note(f"{name} in integers again", outcome, candidate, kept=met, reason=reason)
            if met:
                left, best = list(fewer), candidate
        return best

    def _weight_elements(self, plan: Plan, name: str) -> int:
        return sum(self._task.model.view.tensors[weight].elements for weight in self._weights(plan, name))

    def _weights(self, plan: Plan, name: str) -> tuple[str, ...]:
        """Returns the weights of a node that a plan has in codes."""
        held = {d.site for d in plan.quantized if d.role is Role.WEIGHT}
        return tuple(tensor for tensor in self._task.model.view.by_name[name].inputs if tensor in held)

    def _float(self, start: Candidate) -> Candidate:
        """Returns the candidate without any integer node: the float model in canonical form."""
        return self._build(self._without(start.plan, _coded(start)))


def _finer(forms: Forms) -> Iterator[tuple[Forms, str]]:
    """Yields forms that round less, with words for what is given up before any layer."""
    if forms.coarse:
        yield (forms := replace(forms, coarse=())), "one scale a weight"
    if forms.paired:
        yield replace(forms, paired=()), "products of two changing matrices in integers"


def _coded(candidate: Candidate) -> tuple[str, ...]:
    """Returns the nodes that may go back to float: those that multiply integers, and those that pick rows of codes."""
    tables = (decision.node for decision in candidate.plan.quantized if decision.stored)
    return tuple(dict.fromkeys((*candidate.integer, *tables)))
