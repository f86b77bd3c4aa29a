"""Range rules of activations, site by site, by what they do to the outputs of the layers that read the site.

For a layer with weight W [outputs, K] and inputs x (unfolded where it is a convolution), rounding them to Q(x) makes

    error = mean |W (Q(x) - x)|^2 = tr(W E W^T),    E = the second moment of Q(x) - x,

whatever else is quantized. One run of the float model gives x for all rules. Ranges are those that each rule finds on
three calibration examples in four; x is of the fourth, so that no rule gains by having seen what it is judged on. A
site's error is the sum over all that read it in integers, each as a part of the power of its own output; a reader
without a weight (Add, Mul, pooling) passes the error on as it is, a LeakyRelu that of negative values times its slope.

What a plan records are the rules. Whether they bring the whole model closer is not for this file to say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import numpy as np

from fewbits.datasets.base import Dataset
from fewbits.flow import Progress, activation_params, observe, silent
from fewbits.models.onnx.feeding import model_batches, real_rows, run_options, shard_size
from fewbits.models.onnx.model import OnnxModel
from fewbits.numerics.format import Int
from fewbits.numerics.qtensor import QParams, as_array
from fewbits.planning.plan import Plan
from fewbits.planning.site import Role
from fewbits.planning.slopes import slope_of
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Options
from fewbits.search.building import activation_sites
from fewbits.search.layerwise import (
    IntegerLayer,
    as_rows,
    closeness_part,
    integer_layers,
    learning_part,
    sampled_inputs,
)
from fewbits.targets.base import Target

# Words for the trail.
RANGED = "ranges site by site, by the output errors of the layers that read them"
# Those that are tried: none costs a run of the model more.
RULES = ("mse", "minmax", "percentile:99.99", "percentile:99.999", "entropy")
# Fewer examples held out do not tell rules apart: with 12 of them Tiny Darknet came closer to float on these, and was
# a quarter further off on 400 others; with 54 ResNet-20 came closer on both (docs/adr/0016).
_LEAST_HELD = 32
# Positions of all examples together at which a layer's inputs, or the elements at which other values, are looked at.
_POSITIONS = 2048
_ELEMENTS = 1 << 16


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """Something that reads a site in integers: a layer with its weight [groups, outputs, K], or None for the rest.

    ``slope`` is that of negative values in a reader without a weight.
    """

    tensor: str
    root: str
    layer: IntegerLayer | None
    weight: np.ndarray | None
    slope: float = 1.0

    def output(self, values: np.ndarray) -> np.ndarray:
        """Returns what the reader makes of values [rows, groups, K]: W x, or a LeakyRelu of them, or themselves."""
        if self.weight is not None:
            return np.asarray(values.transpose(1, 0, 2) @ self.weight.transpose(0, 2, 1))
        return values if self.slope == 1.0 else np.where(values < 0, values * self.slope, values)


def by_output_error(
    model: OnnxModel,
    target: Target,
    plan: Plan,
    dataset: Dataset,
    calibration: np.ndarray,
    *,
    rules: tuple[str, ...] = RULES,
    jobs: int = 1,
    seed: int = 0,
    progress: Progress = silent,
) -> Plan:
    """Returns the plan with the range rule of least output error at each activation site that a layer reads.

    Args:
      model: The float model, as it is quantized.
      target: The rules of the runtime.
      plan: Says what is quantized; sites that no layer reads, and what is a tie, keep its rule.
      dataset: Examples.
      calibration: Those of the calibration part, ascending.
      rules: Range rules that are tried.
      jobs: Shards that are observed at a time.
      seed: Of the sample of positions.
      progress: Told of each shard.
    """
    readers = _readers(model, target, plan)
    fit, held = learning_part(calibration), closeness_part(calibration)
    if not readers or len(held) < _LEAST_HELD:
        return plan
    statistics = observe(model, dataset, fit, activation_sites(plan), jobs=jobs, progress=progress)
    drafted = {d.site: d.range_rule or "minmax" for d in plan.quantized if d.role is Role.ACTIVATION}
    tried = tuple(dict.fromkeys((*drafted.values(), *rules)))
    found = {rule: activation_params(plan.with_range_rule(Role.ACTIVATION, rule), statistics) for rule in tried}
    errors = _errors(model, readers, found, dataset, held, seed=seed, progress=progress)
    chosen: dict[str, tuple[str, str]] = {}
    for root in dict.fromkeys(reader.root for reader in readers):
        plain = drafted[root]
        costs = {
            rule: sum(each[rule] for r, each in zip(readers, errors, strict=True) if r.root == root) for rule in tried
        }
        best = min(tried, key=lambda rule: (costs[rule], rule != plain))
        part = costs[best] / costs[plain] if costs[plain] > 0 else 1.0
        told = f"{part:.2f} of the error of {plain} behind what reads it, on {len(held)} calibration examples held out"
        chosen[root] = (best, f"{best}: {told}") if best != plain else (plain, "")
    roots = {link.member: link.root for link in plan.links}
    decisions = []
    for decision in plan.decisions:
        rule, why = chosen.get(roots.get(decision.site, decision.site), (None, ""))
        if rule is None or not why or decision.is_float or decision.role is not Role.ACTIVATION:
            decisions.append(decision)
            continue
        decisions.append(replace(decision, range_rule=rule, reason=f"{decision.reason}; {why}"))
    return replace(plan, decisions=tuple(decisions))


def _readers(model: OnnxModel, target: Target, plan: Plan) -> list[_Reader]:
    """Returns all that read, in integers, sites whose codes some layer with a weight reads too."""
    view = model.view
    roots = {link.member: link.root for link in plan.links}
    moving = {link.node for link in plan.links}
    sites = {d.site for d in plan.quantized if d.role is Role.ACTIVATION}
    layers = {layer.op.name: layer for layer in integer_layers(model, target, plan)}
    readers = []
    for layer in layers.values():
        name = layer.op.inputs[layer.source]
        if name in sites:
            rows = as_rows(model.weight(layer.weight).astype(np.float64), layer.axis)
            groups = 1 if layer.window is None else layer.window.group
            weight = rows.reshape(groups, -1, rows.shape[1])
            readers.append(_Reader(tensor=name, root=roots.get(name, name), layer=layer, weight=weight))
    fed = {reader.root for reader in readers}
    for op in view.ops:
        if op.name in layers or op.name in moving or not any(name in sites for name in op.outputs):
            continue  # what gives float reads codes too, but is judged by nothing that follows
        for name in dict.fromkeys(op.inputs):
            if name in sites and roots.get(name, name) in fed:
                slope = slope_of(op) or 1.0
                readers.append(_Reader(tensor=name, root=roots.get(name, name), layer=None, weight=None, slope=slope))
    return readers


def _errors(
    model: OnnxModel,
    readers: list[_Reader],
    found: dict[str, dict[str, QParams]],
    dataset: Dataset,
    held: np.ndarray,
    *,
    seed: int,
    progress: Progress,
) -> list[dict[str, float]]:
    """Returns for each reader the error of its output under each rule, as a part of that output's power."""
    names = list(dict.fromkeys(reader.tensor for reader in readers))
    inner = [name for name in names if name not in model.view.inputs]
    session = RUNTIMES["ort"].open(model.serialized(extra_outputs=inner), run_options(model, Options()))
    wrong = [dict.fromkeys(found, 0.0) for _ in readers]
    power = [0.0] * len(readers)
    shards = model_batches(model, dataset, held, size=shard_size(model))
    for number, (feeds, batch) in enumerate(shards):
        outputs = session.run(feeds)
        tensors = {name: feeds[name] if name in feeds else outputs[name] for name in names}
        kept = real_rows(model, tensors, len(batch.index))
        for place, reader in enumerate(readers):
            inputs = _seen(kept[reader.tensor], reader, examples=len(held), seed=(seed, number, place))
            exact = reader.output(inputs)
            power[place] += float(np.square(exact).sum())
            for rule, params in found.items():
                off = reader.output(_rounded(inputs, params[reader.tensor])) - exact
                wrong[place][rule] += float(np.square(off).sum())
        progress("ranges by output error", number, number + 1)
    return [
        {rule: total / power[place] if power[place] > 0 else 0.0 for rule, total in each.items()}
        for place, each in enumerate(wrong)
    ]


def _seen(values: np.ndarray, reader: _Reader, *, examples: int, seed: tuple[int, ...]) -> np.ndarray:
    """Returns inputs of a layer at some positions, [rows, groups, K]; of other readers some values, [rows, 1, 1]."""
    if reader.layer is None:
        flat = values.reshape(-1)
        wanted = max(1, _ELEMENTS * len(values) // examples)
        drawn = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
        taken = flat if wanted >= len(flat) else flat[np.sort(drawn.choice(len(flat), wanted, replace=False))]
        return taken.astype(np.float64)[:, None, None]
    rows = -(-_POSITIONS * len(values) // examples)
    return sampled_inputs(values, reader.layer.window, rows=rows, seed=seed)[2].astype(np.float64)


def _rounded(values: np.ndarray, params: QParams) -> np.ndarray:
    """Returns what codes make of values; in float64, as no more is asked than which rule errs less."""
    fmt = params.scheme.format
    assert isinstance(fmt, Int)
    scale, zero = float(as_array(params.scale)), float(params.zero_point)
    return np.asarray((np.clip(np.rint(values / scale) + zero, fmt.min_value, fmt.max_value) - zero) * scale)
