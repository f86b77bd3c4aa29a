"""Repairs of the executed graph: what falls back to float is rewritten, measured again, and kept where it helps.

Each repair is tried on top of those kept before: the file is built from a few examples, and timed beside the best file
so far, the two interleaved. It stays where the whole interval of the ratio says "faster" by a margin, so that noise
decides nothing. The last thing tried is the opposite of a repair: leaving all operators without weights float.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path
from typing import final

import numpy as np

from fewbits._base.errors import FewbitsError, UsageError
from fewbits.calibration.statistics import Statistics
from fewbits.flow import observe
from fewbits.measurement.benchmark import quick_speedup
from fewbits.measurement.executed import FloatIsland, read_executed
from fewbits.measurement.latency import Speedup
from fewbits.models.onnx.feeding import shard_size
from fewbits.models.onnx.model import OnnxModel
from fewbits.models.onnx.repairs import BY_NAME, REPAIRS, Repair, repaired
from fewbits.planning.plan import Plan
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import ExecutedNode, Numbers, Options
from fewbits.search.building import activation_sites, build
from fewbits.search.costs import CostTable, Form, node_times, pattern_of, shapes_seen, table_of
from fewbits.search.draft import draft_plan
from fewbits.search.preparing import Prepared, asked_placement
from fewbits.targets import (
    FIRST_FORMS,
    Forms,
    forms_without_ranges,
    may_be_coarse,
    may_be_dynamic,
    may_be_paired,
    place,
)
from fewbits.targets.base import Kind

LIGHT_FLOAT = "light_float"
DYNAMIC = "dynamic"
BY_COST = "by_cost"
PAIRED = "paired"
# Runs of a profile of which costs are read, and patterns that are tried in float: each takes two files and a second.
_COSTED_RUNS = 16
_PATTERNS_TRIED = 8
# Seconds for which two files are timed; the interval narrows with their root.
_SECONDS = 0.6
# A ratio whose lower end is below this is not worth another graph; two sessions of one file differ by up to 0.7 %.
_WORTH = 1.02
# Products of two changing matrices round more than layers do: what makes up for that, in each of two looks.
_WORTH_ROUNDING = 1.05
# Operators without weights are in integers for speed alone, and round once more: where float costs no more than this in
# the medians of two looks, they are float. Medians, as the interval of a noisy machine reaches below every other time.
_NOT_SLOWER = 0.99


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RepairTrial:
    """One repair that was tried.

    Args:
      name: Its name.
      what: What it does, in words.
      speedup: Of the file with it over the best file before; None where there was none to time.
      kept: Whether it stayed.
      failed: Why there was none: a fault of ours that costs the user nothing but this repair.
    """

    name: str
    what: str
    speedup: Speedup | None
    kept: bool
    failed: str = ""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Repairs:
    """What was changed, and what it brought.

    Args:
      before: Float islands of the file without repairs.
      kept: Names of the repairs that stayed.
      trials: What was measured of each that was tried.
      integer_nodes: Nodes that ran in integers without repairs; None where nothing was tried.
      float_nodes: Those that ran in float.
      costs: What each pattern of layers costs in each form, and which form it got; None where forms were not chosen.
    """

    before: tuple[FloatIsland, ...] = ()
    kept: tuple[str, ...] = ()
    trials: tuple[RepairTrial, ...] = ()
    integer_nodes: int | None = None
    float_nodes: int | None = None
    costs: CostTable | None = None


NO_REPAIRS = Repairs()


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Repaired:
    """A model with its repairs, and where its plan starts.

    Args:
      prepared: With the repaired model.
      statistics: Of its activation sites, over the whole calibration part.
      plan: All integers but for what is kept float.
      forms: Which nodes stay float, or quantize their inputs as they come, because the model runs faster so.
      repairs: What was done.
    """

    prepared: Prepared
    statistics: Statistics
    plan: Plan
    forms: Forms
    repairs: Repairs


def unrepaired(prepared: Prepared, statistics: Statistics) -> Repaired:
    """Returns the model as it is."""
    plan = draft_plan(prepared.model, prepared.target, base=prepared.base)
    return Repaired(prepared=prepared, statistics=statistics, plan=plan, forms=FIRST_FORMS, repairs=NO_REPAIRS)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _State:
    """One way to write the model, and the file that it gives."""

    model: OnnxModel
    forms: Forms
    data: bytes


class _Bar(Enum):
    """What the time of another way to write a model has to show."""

    FASTER = auto()  # by more than noise
    NO_SLOWER = auto()  # in the median of two looks: it rounds less
    CLEARLY_FASTER = auto()  # in each of two looks: it rounds more


@final
class _Loop:
    """The working state of one repair."""

    def __init__(self, prepared: Prepared, options: Options, feeds: dict[str, np.ndarray]) -> None:
        self._prepared = prepared
        self._options = replace(options, data_folder=prepared.model.folder)  # what stays float lies where it came from
        self._feeds = feeds
        self._trials: list[RepairTrial] = []

    def built(self, model: OnnxModel, forms: Forms, statistics: Statistics | None = None) -> _State:
        """Returns a file that runs as the final one will; its ranges come from one shard of examples."""
        prepared = self._prepared
        plan = draft_plan(model, prepared.target, forms=forms, base=prepared.base)
        if statistics is None and not activation_sites(plan):
            statistics = Statistics(histograms={}, examples=0)
        if statistics is None:
            assert prepared.parts is not None, "repairs are measured on data"
            few = prepared.parts.calibration[: shard_size(model)]
            statistics = observe(model, prepared.parts.data, few, activation_sites(plan))
        data = build(model, plan, prepared.target, statistics).data
        return _State(model=model, forms=forms, data=data)

    def better(self, name: str, what: str, best: _State, other: _State, bar: _Bar = _Bar.FASTER) -> bool:
        """Returns whether another file is as much faster than the best as the bar says, and notes what was measured."""
        if other.data == best.data:
            return False
        found = self._timed(best, other, again=0)
        kept = found.low > (_WORTH_ROUNDING if bar is _Bar.CLEARLY_FASTER else _WORTH)
        if bar is _Bar.NO_SLOWER and not kept and found.ratio >= _NOT_SLOWER:
            found = min(found, self._timed(best, other, again=1), key=lambda speedup: speedup.ratio)
            kept = found.ratio >= _NOT_SLOWER
        if bar is _Bar.CLEARLY_FASTER and kept:
            found = min(found, self._timed(best, other, again=1), key=lambda speedup: speedup.low)
            kept = found.low > _WORTH_ROUNDING
        self._trials.append(RepairTrial(name=name, what=what, speedup=found, kept=kept))
        return kept

    def _timed(self, best: _State, other: _State, *, again: int) -> Speedup:
        return quick_speedup(
            (best.data, other.data),
            feeds=self._feeds,
            options=self._options,
            seconds=_SECONDS,
            seed=self._prepared.request.seed + again,
        )

    def run(self, statistics: Statistics) -> tuple[_State, Repairs]:
        """Returns the best way found, and what was tried."""
        first = self._start(statistics)
        islands, integer, floats = self._executed(first)
        best = self._paired(self._lightened(self._both_ways(first)))
        best, costs = self._by_cost(best)
        kept = [step.name for step in best.model.steps[len(self._prepared.model.steps) :]]
        formed = dict.fromkeys(
            t.name for t in self._trials if t.kept and t.name in (DYNAMIC, LIGHT_FLOAT, PAIRED, BY_COST)
        )
        return best, Repairs(
            before=islands,
            kept=(*kept, *formed),
            trials=tuple(self._trials),
            integer_nodes=integer,
            float_nodes=floats,
            costs=None if costs is None else replace(costs, repairs=tuple(kept)),
        )

    def _both_ways(self, first: _State) -> _State:
        """Returns the best of two ways: repairs with operators without weights in integers, and with them in float.

        One repair may pay only beside another, and only in one of the two: neither way is the better start for all.
        """
        start = self._dynamic(first) if self._may_choose else first
        best, mark = self._with_repairs(start), len(self._trials)
        light = self._light_float(start) if self._may_choose_light else start
        if light is start:
            return best
        other = self._with_repairs(light)
        what = "the repairs with operators without weights left float"
        wins = self.better(LIGHT_FLOAT, what, best, other, _Bar.NO_SLOWER)
        lost = slice(0, mark) if wins else slice(mark, len(self._trials))
        self._trials[lost] = [replace(t, kept=t.kept and t.name == DYNAMIC) for t in self._trials[lost]]
        return other if wins else best

    def _with_repairs(self, best: _State) -> _State:
        for repair in REPAIRS:
            try:
                other = self._with(best, repair)
            except FewbitsError as error:
                trial = RepairTrial(name=repair.name, what=repair.what, speedup=None, kept=False, failed=str(error))
                self._trials.append(trial)
                continue
            if other is not None and self.better(repair.name, repair.what, best, other):
                best = other
        return best

    def _by_cost(self, best: _State) -> tuple[_State, CostTable | None]:
        """Returns the best way with each pattern of layers in the form that is fastest here, and what each costs."""
        request, target = self._prepared.request, self._prepared.target
        if not target.dynamic or not request.searches:
            return best, None
        model = best.model
        able = set(may_be_dynamic(model.view, target))
        files = {
            Form.FLOAT: self.built(model, _all_in_float(model)),
            Form.STATIC: self.built(model, FIRST_FORMS),
            **({Form.DYNAMIC: self.built(model, Forms(dynamic=tuple(sorted(able))))} if able else {}),
        }
        static = set(place(model.view, target).integer)
        running = {Form.FLOAT: static | able, Form.STATIC: static, Form.DYNAMIC: able}
        nodes = {form: self._profiled(state) for form, state in files.items()}
        patterns = _patterns(model, nodes[Form.FLOAT], running[Form.FLOAT])
        table = table_of(
            {form: node_times(found, model.view) for form, found in nodes.items()},
            {form: running[form] for form in files},
            patterns,
            runtime=RUNTIMES[target.runtime].name,
            target=target.full_name,
            threads=self._options.threads,
        )
        best = self._cheapest_products(best, table, patterns, able)
        best = self._coarse(best)
        light = set(_light(model, self._prepared))
        dearer = [(p, tuple(n for n, found in patterns.items() if found == p)) for p in table.dearer_in_integers()]
        # Weights in float make the file larger: that is for speed, and --allow-slower says that speed does not decide.
        free = [(p, names) for p, names in dearer if not request.allow_slower or light.issuperset(names)]
        for pattern, names in free[:_PATTERNS_TRIED]:
            best = self._in_float(best, pattern, names)
        chosen = {pattern: _form(best, patterns, pattern) for pattern in dict.fromkeys(patterns.values())}
        return best, replace(table, chosen=chosen)

    def replayed(self, costs: CostTable) -> tuple[_State, Repairs]:
        """Returns the way that a cost table of an earlier run says: nothing is timed."""
        model, target = self._prepared.model, self._prepared.target
        for name in costs.repairs:
            made = repaired(model, BY_NAME[name]) if name in BY_NAME else None
            model = made or model
        nodes = {*place(model.view, target).integer, *may_be_dynamic(model.view, target)}
        patterns = _patterns(model, self._profiled(self.built(model, _all_in_float(model)), runs=1), nodes)
        if patterns and not costs.chosen.keys() & set(patterns.values()):
            raise UsageError(
                f"the cost table has none of the {len(set(patterns.values()))} patterns of {model.name}: it is another "
                "model's; give the costs.json of a run of this one, or leave --costs out",
                slug="costs-other-model",
            )
        chosen = {name: costs.chosen.get(pattern) for name, pattern in patterns.items()}
        forms = Forms(
            keep_float=tuple(name for name, form in chosen.items() if form is Form.FLOAT),
            dynamic=tuple(name for name, form in chosen.items() if form in (Form.DYNAMIC, Form.COARSE)),
            coarse=tuple(name for name, form in chosen.items() if form is Form.COARSE),
        )
        done = {step.name for step in model.steps}
        kept = tuple(name for name in costs.repairs if name in done)
        return self.built(model, forms), Repairs(kept=kept, costs=costs)

    def _cheapest_products(self, best: _State, table: CostTable, patterns: dict[str, str], able: set[str]) -> _State:
        """Returns the best way, or the one in which each product has the form that took least time."""
        smaller = self._prepared.request.allow_slower
        known = {
            p: {f: us for f, us in c.items() if f is not Form.FLOAT or not smaller}
            for p, c in table.microseconds.items()
        }
        cheapest = {p: min(costs, key=lambda form: costs[form]) for p, costs in known.items() if costs}
        wanted = {name: cheapest.get(patterns[name], Form.STATIC) for name in able}
        dynamic = tuple(sorted(name for name, form in wanted.items() if form is Form.DYNAMIC))
        floats = {name for name, form in wanted.items() if form is Form.FLOAT}
        keep_float = tuple(sorted({*best.forms.keep_float} - able | floats))
        same = set(dynamic) == set(best.forms.dynamic) and set(keep_float) == set(best.forms.keep_float)
        if not able or same:
            return best
        other = self.built(best.model, Forms(keep_float=keep_float, dynamic=dynamic))
        return other if self.better(BY_COST, "each product in the form that took least time", best, other) else best

    def _coarse(self, best: _State) -> _State:
        """Returns the best way, or the one with one scale a weight wherever a kernel likes that better."""
        names = may_be_coarse(best.model.view, self._prepared.target, best.forms.dynamic)
        names = tuple(name for name in names if name not in best.forms.keep_float)
        if not names:
            return best
        other = self.built(best.model, replace(best.forms, coarse=names))
        return other if self.better(BY_COST, f"one scale a weight: {len(names)} LSTM", best, other) else best

    def _in_float(self, best: _State, pattern: str, names: tuple[str, ...]) -> _State:
        """Returns the best way, or the one with all nodes of a pattern left float."""
        if set(names) <= set(best.forms.keep_float) or set(names) & set(best.forms.dynamic):
            return best
        other = self.built(best.model, best.forms.without(names))
        what = f"left float: {len(names)} x {pattern}"
        return other if self.better(BY_COST, what, best, other) else best

    def _profiled(self, state: _State, *, runs: int = _COSTED_RUNS) -> tuple[ExecutedNode, ...]:
        with tempfile.TemporaryDirectory(prefix="fewbits-costs-") as folder:
            file = Path(folder) / "model.onnx"
            file.write_bytes(state.data)
            runtime = RUNTIMES[self._prepared.target.runtime]
            return runtime.executed(file, self._options, self._feeds, runs=runs)

    def _with(self, best: _State, repair: Repair) -> _State | None:
        """Returns the best way with one repair more; None where that changes nothing."""
        made = repaired(best.model, repair)
        if made is None:
            return None
        # Named nodes may have gone; what is kept float is asked anew of the repaired graph.
        if self._prepared.request.dynamic_only:
            return self.built(made, forms_without_ranges(made.view, self._prepared.target))
        forms = Forms(
            keep_float=_light(made, self._prepared) if best.forms.keep_float else (),
            dynamic=may_be_dynamic(made.view, self._prepared.target) if best.forms.dynamic else (),
        )
        return self.built(made, forms)

    def _start(self, statistics: Statistics) -> _State:
        model = self._prepared.model
        unranged = self._prepared.request.dynamic_only
        forms = forms_without_ranges(model.view, self._prepared.target) if unranged else FIRST_FORMS
        return self.built(model, forms, statistics)

    def _lightened(self, best: _State) -> _State:
        """Returns the best way with products that quantize their inputs as they come, and with less in integers."""
        best = best if best.forms.dynamic or not self._may_choose else self._dynamic(best)
        return best if best.forms.keep_float or not self._may_choose_light else self._light_float(best)

    @property
    def _may_choose(self) -> bool:
        """Whether a product may get ranges of each run: a forced scheme says which it has."""
        return self._prepared.request.scheme is None

    @property
    def _may_choose_light(self) -> bool:
        return not self._prepared.request.dynamic_only

    def _light_float(self, best: _State) -> _State:
        light = _light(best.model, self._prepared)
        if not light:
            return best
        other = self.built(best.model, replace(best.forms, keep_float=light))
        what = "operators without weights left float"
        return other if self.better(LIGHT_FLOAT, what, best, other, _Bar.NO_SLOWER) else best

    def _dynamic(self, best: _State) -> _State:
        able = may_be_dynamic(best.model.view, self._prepared.target)
        if not able:
            return best
        other = self.built(best.model, replace(best.forms, dynamic=able))
        return other if self.better(DYNAMIC, "products whose inputs are quantized as they come", best, other) else best

    def _paired(self, best: _State) -> _State:
        """Returns the best way, or the one in which products of two changing matrices run in integers too."""
        names = may_be_paired(best.model.view, self._prepared.target) if self._prepared.request.searches else ()
        if not names:
            return best
        other = self.built(best.model, replace(best.forms, paired=names))
        what = f"products of two changing matrices in integers: {len(names)}"
        return other if self.better(PAIRED, what, best, other, _Bar.CLEARLY_FASTER) else best

    def _executed(self, state: _State) -> tuple[tuple[FloatIsland, ...], int, int]:
        """Returns the islands of the first file and its nodes in integers and in float."""
        target = self._prepared.target
        with tempfile.TemporaryDirectory(prefix="fewbits-repair-") as folder:
            file = Path(folder) / "model.onnx"
            file.write_bytes(state.data)
            nodes = RUNTIMES[target.runtime].executed(file, self._options, self._feeds)
        placed = asked_placement(self._prepared.request, state.model, target, None)
        executed = read_executed(nodes, placed, state.model.view)
        return executed.islands, executed.count(Numbers.INTEGER), executed.count(Numbers.FLOAT)


def _patterns(model: OnnxModel, run: tuple[ExecutedNode, ...], nodes: set[str]) -> dict[str, str]:
    """Returns the patterns of nodes, by the shapes that they had in a run of the float model."""
    shapes = shapes_seen(run, model.view)
    return {op.name: pattern_of(op, model.view, shapes) for op in model.view.ops if op.name in nodes}


def _form(state: _State, patterns: dict[str, str], pattern: str) -> Form:
    """Returns the form that was asked of all nodes of a pattern.

    A light operator between float ones runs in float all the same; "static" then says: integers where its neighbours
    have them.
    """
    name = next(name for name, found in patterns.items() if found == pattern)
    forms = state.forms
    if name in forms.keep_float or name in forms.coarse:
        return Form.COARSE if name in forms.coarse else Form.FLOAT
    return Form.DYNAMIC if name in forms.dynamic else Form.STATIC


def _all_in_float(model: OnnxModel) -> Forms:
    return Forms(keep_float=tuple(op.name for op in model.view.ops))


def _light(model: OnnxModel, prepared: Prepared) -> tuple[str, ...]:
    """Returns the nodes without weights that would run in integers."""
    target = prepared.target
    return tuple(
        name
        for name in place(model.view, target).integer
        if target.rules[model.view.by_name[name].op].kind is Kind.LIGHT
    )


def repair(prepared: Prepared, statistics: Statistics, options: Options, feeds: dict[str, np.ndarray]) -> Repaired:
    """Returns the model with the repairs that make it faster, and its statistics.

    Args:
      prepared: What was opened.
      statistics: Of the activation sites of the model as it is.
      options: Of the timed sessions.
      feeds: One example.
    """
    loop, costs = _Loop(prepared, options, feeds), prepared.request.costs
    best, repairs = loop.run(statistics) if costs is None else loop.replayed(costs)
    model = prepared.model
    if best.model is not model:
        placement = asked_placement(prepared.request, best.model, prepared.target, None)
        prepared = replace(prepared, model=best.model, placement=placement)
    if best.model is not model or best.forms.paired:
        statistics = _observed(prepared, best.forms)
    plan = draft_plan(prepared.model, prepared.target, forms=best.forms, base=prepared.base)
    return Repaired(prepared=prepared, statistics=statistics, plan=plan, forms=best.forms, repairs=repairs)


def _observed(prepared: Prepared, forms: Forms) -> Statistics:
    """Returns the statistics of all sites that nodes may have in these forms, or in the first."""
    parts, request = prepared.parts, prepared.request
    if parts is None or request.dynamic_only:
        return Statistics(histograms={}, examples=0)
    sites = activation_sites(draft_plan(prepared.model, prepared.target, forms=Forms(paired=forms.paired)))
    return observe(prepared.model, parts.data, parts.calibration, sites, jobs=request.jobs, progress=request.progress)
