"""Transforms by evidence: factors of channels are folded in where examples come closer to float.

What a plan records is the name of the transform and the layers it was done to; a replay computes the factors again from
the same model and calibration examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from fewbits.algorithms.transforms._channels import grouped
from fewbits.algorithms.transforms.equalization import equalizing_factors
from fewbits.algorithms.transforms.smoothing import Channels, Rounding, least_error_factors, reading
from fewbits.calibration.statistics import Statistics
from fewbits.datasets.base import Dataset
from fewbits.flow import observe
from fewbits.models.onnx.equalizing import LayerLink, folded, links_of, smoothed_name
from fewbits.models.onnx.feeding import model_batches, run_options, shard_size
from fewbits.models.onnx.model import OnnxModel
from fewbits.planning.plan import Plan, TransformStep
from fewbits.planning.slopes import slope_of
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Options
from fewbits.search.building import activation_sites
from fewbits.search.draft import draft_plan
from fewbits.search.layerwise import learning_part
from fewbits.targets import Forms
from fewbits.targets.base import Kind, Target

SMOOTHING = "smoothing"
EQUALIZATION = "equalization"
# Words for the trail, by name, in the order in which they are tried.
TRANSFORMED = {
    SMOOTHING: "channels smoothed between layers",
    EQUALIZATION: "channels equalized between layers",
}
# A division behind an input of the graph takes time at each run: by what the error must fall for it.
_WORTH_A_NODE = 0.5
# What is left of the expected error where channels are lopsided: one is so large that it hides the others. Layers of
# ResNet-20 keep a half to all of it; the input of KWT-1, where one feature is 35 times as large, a hundredth.
_LOPSIDED = 0.1
# Operators that hand codes on.
_ROUND_NOTHING = ("MaxPool", "Identity")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """The examples that factors are computed from.

    Args:
      dataset: Examples.
      indices: Those of the calibration part, ascending.
      target: Whose formats decide how large the steps are.
    """

    dataset: Dataset
    indices: np.ndarray
    target: Target


def transformed(model: OnnxModel, step: TransformStep, evidence: Evidence, *, worth: float = 1.0) -> OnnxModel | None:
    """Returns the model with one transform, the same function; None where it changes nothing.

    Args:
      model: The float model.
      step: Which transform, and the layers that it is done to; all where none are named.
      evidence: Examples of the calibration part.
      worth: What of the expected error may be left at most where channels are smoothed.
    """
    links = tuple(link for link in links_of(model) if not step.where or link.giver in step.where)
    if not links:
        return None
    factors = _smoothing(model, links, evidence, worth) if step.name == SMOOTHING else _equalization(model, links)
    return folded(model, factors, links, TransformStep(name=step.name))


def replayed(model: OnnxModel, steps: Iterable[TransformStep], evidence: Evidence) -> OnnxModel:
    """Returns the model with the transforms that a plan records."""
    for step in steps:
        if step.name in TRANSFORMED:
            model = transformed(model, step, evidence) or model
    return model


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Variant:
    """An equal model in which other numbers are rounded.

    Args:
      what: What was done to it, in words.
      model: The model.
      statistics: Of its activation sites.
      plan: What is quantized, by the range rules of the plan before.
      more_nodes: Whether it has nodes that the model before had not.
    """

    what: str
    model: OnnxModel
    statistics: Statistics
    plan: Plan
    more_nodes: bool


def variants(
    model: OnnxModel, plan: Plan, evidence: Evidence, *, forms: Forms, lopsided: bool = False, jobs: int = 1
) -> Iterator[Variant]:
    """Yields the model with each transform that changes something, one at a time, observed and planned anew.

    With ``lopsided`` it is smoothed alone, where one channel hides the others.
    """
    if model.folder is not None:
        return
    for name, what in TRANSFORMED.items():
        if lopsided and name != SMOOTHING:
            continue
        made = transformed(model, TransformStep(name=name), evidence, worth=_LOPSIDED if lopsided else 1.0)
        if made is None:
            continue
        fresh = redrafted(plan, made, evidence.target, forms)
        seen = observe(made, evidence.dataset, evidence.indices, activation_sites(fresh), jobs=jobs)
        more = len(made.view.ops) > len(model.view.ops)
        yield Variant(what=what, model=made, statistics=seen, plan=fresh, more_nodes=more)


def redrafted(plan: Plan, model: OnnxModel, target: Target, forms: Forms) -> Plan:
    """Returns the plan for an equal model, by the same range rules."""
    return draft_plan(model, target, forms=forms, base=plan).ranged_as(plan)


def before_transforms(plan: Plan) -> Plan:
    """Returns a plan as it reads for the model as it is opened: what is behind a smoothed input is the input."""
    return _renamed(plan, {smoothed_name(name): name for name in _smoothed(plan)})


def after_transforms(plan: Plan) -> Plan:
    """Returns what ``before_transforms`` was given."""
    return _renamed(plan, {name: smoothed_name(name) for name in _smoothed(plan)})


def _smoothed(plan: Plan) -> set[str]:
    """Returns the inputs of the graph behind which the plan has a division."""
    places = {place for step in plan.transforms if step.name in TRANSFORMED for place in step.where}
    sites = {decision.site for decision in plan.decisions}
    return {name for name in places if {name, smoothed_name(name)} & sites}


def _renamed(plan: Plan, names: dict[str, str]) -> Plan:
    def new(name: str) -> str:
        return names.get(name, name)

    decisions = tuple(replace(decision, site=new(decision.site)) for decision in plan.decisions)
    links = tuple(replace(link, root=new(link.root), member=new(link.member)) for link in plan.links)
    return replace(plan, decisions=decisions, links=links)


def _smoothing(
    model: OnnxModel, links: tuple[LayerLink, ...], evidence: Evidence, worth: float
) -> dict[str, np.ndarray]:
    """Returns the factors of each link under which the least error is expected of rounding, if that is worth it."""
    variant = evidence.target.variant
    steps = {
        "weight_steps": (1 << (variant.weight.bits - 1)) - 1,
        "activation_steps": (1 << variant.activation.bits) - 1,
    }
    seen = channels_of(model, links, evidence)
    found = {}
    for link in links:
        readings = [
            reading(grouped(model.weight(taker.weight), axis=taker.axis, groups=taker.groups), seen[taker.source])
            for taker in link.takers
        ]
        free = np.zeros(link.channels, dtype=bool)
        for start, stop in link.free:
            free[start:stop] = True
        factors, after, before = least_error_factors(readings, free=free, **steps)
        if after < min(worth, _WORTH_A_NODE if link.input_axis is not None else 1.0) * before:
            found[link.giver] = np.asarray(factors)
    return found


def channels_of(model: OnnxModel, links: tuple[LayerLink, ...], evidence: Evidence) -> dict[str, Channels]:
    """Returns what each channel of the links' tensors was seen to be, by the tensor that a layer reads.

    Only of the examples that layers learn from: the others tell whether it helped. They come in fixed shards and in
    order, so that the sums of squares are the same each time.
    """
    seen = learning_part(evidence.indices)
    axes = {taker.source: taker.source_axis for link in links for taker in link.takers}
    before = {name: _rounded_before(model, name, evidence.target) for name in axes}
    slopes: dict[str, float] = {}
    for name, earlier in before.items():
        axes |= dict.fromkeys(earlier, axes[name])
        slopes |= earlier
    tallies = {name: _Tally() for name in axes}
    session = RUNTIMES["ort"].open(model.serialized(extra_outputs=tuple(axes)), run_options(model, Options()))
    for feeds, _ in model_batches(model, evidence.dataset, seen, size=shard_size(model)):
        outputs = {**feeds, **session.run(feeds)}
        for name, axis in axes.items():
            tallies[name].add(np.moveaxis(outputs[name], axis, -1).reshape(-1, outputs[name].shape[axis]))
    roundings = {name: tally.rounding(slopes.get(name, 1.0)) for name, tally in tallies.items()}
    return {
        name: Channels(power=tallies[name].power, roundings=tuple(roundings[tensor] for tensor in (name, *earlier)))
        for name, earlier in before.items()
    }


class _Tally:
    """What was seen of a tensor's channels so far."""

    def __init__(self) -> None:
        self._low: np.ndarray | float = 0.0
        self._high: np.ndarray | float = 0.0
        self._squares: np.ndarray | float = 0.0
        self._negative: np.ndarray | float = 0.0
        self._count = 0

    def add(self, rows: np.ndarray) -> None:
        """Counts rows, [positions, channels]."""
        self._low = np.minimum(self._low, rows.min(axis=0))
        self._high = np.maximum(self._high, rows.max(axis=0))
        self._squares = self._squares + np.square(rows, dtype=np.float64).sum(axis=0)
        self._negative = self._negative + np.count_nonzero(rows < 0, axis=0)
        self._count += len(rows)

    @property
    def power(self) -> np.ndarray:
        """Mean square of each channel."""
        return np.asarray(self._squares / self._count)

    def rounding(self, slope: float) -> Rounding:
        """Returns what its rounding depends on; negative values go on times the slope."""
        negative = np.asarray(self._negative / self._count)
        return Rounding(
            low=np.asarray(self._low, dtype=np.float64),
            high=np.asarray(self._high, dtype=np.float64),
            share=1 - negative * (1 - slope * slope),
        )


def _rounded_before(model: OnnxModel, name: str, target: Target) -> dict[str, float]:
    """Returns the inputs of LeakyRelu operators that a tensor comes through, where the target rounds these once more.

    With the slope of negative values that each has in front of it.
    """
    view, found = model.view, {}
    while (op := view.producer.get(name)) is not None:
        slope = slope_of(op)
        if slope is None and op.op not in _ROUND_NOTHING:
            break
        name = op.inputs[0]
        rule = target.rules.get(op.op)
        if slope is not None and rule is not None and rule.kind is Kind.LIGHT:
            found[name] = slope
    return found


def _equalization(model: OnnxModel, links: tuple[LayerLink, ...]) -> dict[str, np.ndarray]:
    """Returns the factors that bring the channels of weights to one size, swept over all links."""
    links = tuple(link for link in links if link.is_whole)
    if not links:
        return {}
    sizes: list[np.ndarray] = []
    places: dict[str, int] = {}
    takes = {taker.node: taker for link in links for taker in link.takers}
    for link in links:
        for taker in link.takers:
            places[taker.node] = len(sizes)
            sizes.append(np.abs(grouped(model.weight(taker.weight), axis=taker.axis, groups=taker.groups)).max(axis=3))
    for link in links:
        if link.giver not in takes:
            first = link.divided[0]
            weight = model.weight(first.name)
            places[link.giver] = len(sizes)
            sizes.append(np.abs(np.moveaxis(weight, first.axis, 0).reshape(1, weight.shape[first.axis], -1)))
    pairs = [(places[link.giver], tuple(places[taker.node] for taker in link.takers)) for link in links]
    return {link.giver: found for link, found in zip(links, equalizing_factors(sizes, pairs), strict=True)}
