"""The flow: Model + Plan + data -> (site, quantized value), one after the other. Reads plans, never makes choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from fewbits._base.errors import TargetError, UsageError
from fewbits.algorithms.ranges import parse_range_rule
from fewbits.algorithms.rounders import ROUNDERS
from fewbits.calibration.histogram import histogram_of
from fewbits.calibration.statistics import Merger, Statistics
from fewbits.datasets.checks import check_values
from fewbits.models.onnx.feeding import fixed_batch, model_batches, real_rows, shard_size
from fewbits.models.onnx.model import OnnxModel
from fewbits.numerics.format import Int
from fewbits.numerics.qtensor import QParams, QTensor, quantize
from fewbits.numerics.scaling import MIN_SCALE, affine_from_amax, choose_affine
from fewbits.planning.plan import Decision, Plan
from fewbits.planning.site import GraphView, Role, Site
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Options
from fewbits.targets.base import OpRule, Target
from fewbits.targets.placement import candidate, integer_nodes

if TYPE_CHECKING:
    from fewbits.datasets.base import Batch, Dataset

Progress = Callable[[str, int, int], None]

# A bias code above this leaves less than half of the int32 accumulator to the products.
_MAX_BIAS_CODE = 2.0**30
# Bits with which a channel without weights still tells its bias.
_BARE_BIAS_CODE = 2.0**20


def silent(stage: str, done: int, total: int) -> None:
    """Reports no progress."""


def check_plan(model: OnnxModel, target: Target, plan: Plan) -> tuple[str, ...]:
    """Returns the nodes that run in integers under a plan.

    Raises: UsageError(slug="plan-other-model") where the plan names sites that the model does not have;
      TargetError(slug="plan-illegal") where it quantizes a weight whose node could not run in integers.
    """
    tensors = model.view.tensors
    for decision in plan.decisions:
        if decision.site not in tensors:
            raise UsageError(
                f"the plan names a site {decision.site!r} that {model.name} does not have; it is another model's plan",
                slug="plan-other-model",
            )
        if not decision.is_float:
            _check_decision(decision, target)
    quantized = {d.site for d in plan.quantized}
    integer = integer_nodes(model.view, target, quantized)
    running = set(integer)
    for decision in plan.quantized:
        if decision.role is Role.ACTIVATION:
            continue
        readers = model.view.consumers.get(decision.site, ())
        lame = next((op for op in readers if op.name not in running), None)
        if lame is None:
            continue
        rule = candidate(lame, model.view, target)
        missing = _missing(lame.outputs[0], rule, lame.inputs, quantized) if isinstance(rule, OpRule) else rule.text
        raise TargetError(
            f"the plan quantizes {decision.site!r}, but {lame.label} {lame.name!r} cannot run in integers on "
            f"{target.full_name}: {missing}; set the site to 'float' too, or quantize what is missing",
            slug="plan-illegal",
        )
    return integer


def _missing(output: str, rule: OpRule, inputs: tuple[str, ...], quantized: set[str]) -> str:
    lacking = [name for i, name in enumerate(inputs) if name and name not in quantized]
    return f"not quantized: {', '.join(repr(name) for name in (*lacking, output)[:3])}"


def _check_decision(decision: Decision, target: Target) -> None:
    assert decision.scheme is not None
    if decision.range_rule is not None:
        parse_range_rule(decision.range_rule)
    if decision.rounder is not None and decision.rounder not in ROUNDERS:
        ROUNDERS[decision.rounder]
    fmt = decision.scheme.format
    variant = target.variant
    allowed = {
        Role.ACTIVATION: (variant.activation,),
        Role.CONSTANT: (variant.activation,),
        Role.WEIGHT: (variant.weight,),
        Role.BIAS: (Int(bits=32, signed=True),),
    }[decision.role]
    if fmt not in allowed:
        names = " or ".join(f.name for f in allowed)
        raise TargetError(
            f"{target.full_name} runs {decision.role.value} {decision.site!r} as {names}, not {fmt.name}; "
            f"write {names} or 'float'",
            slug="format-not-legal",
        )


# --- observing ----------------------------------------------------------------------------------------------------


def observe(
    model: OnnxModel,
    dataset: Dataset,
    indices: np.ndarray,
    sites: tuple[str, ...],
    *,
    jobs: int = 1,
    progress: Progress = silent,
) -> Statistics:
    """Returns the statistics of the sites over the examples.

    The examples flow in fixed shards through sessions of one thread each; a shard's tensors are dropped before the next
    one is read. Any number of jobs gives the same bits.

    Args:
      model: The float model.
      dataset: Examples.
      indices: Which of them, ascending.
      sites: Names of activation tensors.
      jobs: Shards in work at a time; memory grows with it, and with nothing else.
      progress: Told of each shard.
    """
    session = RUNTIMES["ort"].open(model.serialized(extra_outputs=sites), Options())
    fixed = fixed_batch(model)
    inner = [name for name in sites if name not in model.view.inputs]

    def one(shard: tuple[dict[str, np.ndarray], Batch]) -> tuple[Statistics, int]:
        feeds, batch = shard
        check_values(batch)
        count = len(batch.index)
        outputs = session.run(feeds)
        tensors = {**{name: feeds[name] for name in sites if name in feeds}, **{n: outputs[n] for n in inner}}
        kept = real_rows(tensors, count, fed=fixed or count)
        return Statistics(histograms={}, examples=0).update(kept, examples=count), count

    merger, done = Merger(), 0
    shards = model_batches(model, dataset, indices, size=shard_size(model))
    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        while window := list(islice(shards, max(1, jobs))):
            for statistics, count in pool.map(one, window):
                merger.add(statistics)
                done += count
                progress("calibrating", done, len(indices))
    return merger.result()


# --- quantizing ---------------------------------------------------------------------------------------------------


def activation_params(plan: Plan, statistics: Statistics) -> dict[str, QParams]:
    """Returns scale and zero point of every quantized activation; linked sites have their root's."""
    links = {link.member: link for link in plan.links}
    found: dict[str, QParams] = {}
    for decision in plan.quantized:
        if decision.role is Role.ACTIVATION and decision.site not in links:
            found[decision.site] = _activation(decision, statistics)
    for decision in plan.quantized:
        if decision.role is Role.ACTIVATION and decision.site in links:
            root = links[decision.site].root
            if root not in found:
                raise UsageError(
                    f"the plan links {decision.site!r} to {root!r}, which is not quantized; set both to 'float'",
                    slug="plan-illegal",
                )
            found[decision.site] = found[root]
    return found


def _activation(decision: Decision, statistics: Statistics) -> QParams:
    assert decision.scheme is not None and isinstance(decision.scheme.format, Int)
    rule, parameter = parse_range_rule(decision.range_rule or "minmax")
    fmt = decision.scheme.format
    symmetric = decision.scheme.symmetric
    low, high = rule.from_histogram(statistics.histograms[decision.site], fmt, symmetric=symmetric, parameter=parameter)
    if symmetric:
        scale, zero = affine_from_amax(np.asarray(high), fmt)
    else:
        scale, zero = choose_affine(np.asarray(low), np.asarray(high), fmt)
    return QParams(scheme=decision.scheme, scale=np.asarray(scale), zero_point=np.asarray(zero))


def stream(
    model: OnnxModel, plan: Plan, target: Target, statistics: Statistics
) -> Iterator[tuple[Site, QTensor | QParams]]:
    """Yields every quantized site with its value, in the plan's order, activations first.

    A weight or bias comes as QTensor, an activation as QParams. Weights are read one at a time.
    """
    params = activation_params(plan, statistics)
    view = model.view
    for decision in plan.quantized:
        if decision.role is Role.ACTIVATION:
            yield _site(decision, view), params[decision.site]
    scales: dict[str, np.ndarray] = {}
    for decision in plan.quantized:
        if decision.role is Role.CONSTANT:
            yield _site(decision, view), _constant(decision, model.weight(decision.site))
        elif decision.role is Role.WEIGHT:
            tensor = _weight(decision, model, target, params)
            scales[decision.site] = np.asarray(tensor.scale).reshape(-1)
            yield _site(decision, view), tensor
        elif decision.role is Role.BIAS:
            rule = target.rules[decision.op]
            op = view.by_name[decision.node]
            weight = rule.weight_input(op)
            assert weight is not None and decision.scheme is not None
            scale = scales[weight] * params[rule.activation_inputs(op)[0]].scale
            bias = model.weight(decision.site)
            yield _site(decision, view), _bias(decision, bias, np.broadcast_to(scale, bias.shape))


def _site(decision: Decision, view: GraphView) -> Site:
    shape = view.tensors[decision.site].shape or ()
    return Site(name=decision.site, role=decision.role, op=decision.op, node=decision.node, shape=shape)


def _constant(decision: Decision, values: np.ndarray) -> QTensor:
    assert decision.scheme is not None and isinstance(decision.scheme.format, Int)
    rule, parameter = parse_range_rule(decision.range_rule or "minmax")
    fmt = decision.scheme.format
    low, high = rule.from_histogram(
        histogram_of(values, where=f"constant {decision.site!r}"), fmt, symmetric=False, parameter=parameter
    )
    scale, zero = choose_affine(np.asarray(low), np.asarray(high), fmt)
    shape = (1,) * values.ndim
    params = QParams(scheme=decision.scheme, scale=scale.reshape(shape), zero_point=zero.reshape(shape))
    return quantize(values, params)


def _bias(decision: Decision, bias: np.ndarray, scale: np.ndarray) -> QTensor:
    """Returns int32 codes; the quotient in float64, because float32 holds only 24 of the 31 bits."""
    assert decision.scheme is not None
    scale = scale.astype(np.float32)
    codes = decision.scheme.format.encode(bias.astype(np.float64) / scale.astype(np.float64))
    return QTensor(codes=codes, params=QParams(scheme=decision.scheme, scale=scale, zero_point=np.zeros_like(scale)))


def _weight(decision: Decision, model: OnnxModel, target: Target, params: Mapping[str, QParams]) -> QTensor:
    assert decision.scheme is not None and isinstance(decision.scheme.format, Int)
    scheme, values = decision.scheme, model.weight(decision.site)
    assert isinstance(scheme.format, Int)
    rule, parameter = parse_range_rule(decision.range_rule or "minmax")
    groups = scheme.granularity.to_groups(values)
    amax = np.asarray(rule.from_groups(groups, scheme.format, parameter=parameter))
    scale, _ = affine_from_amax(amax, scheme.format)
    scale = np.asarray(scale, dtype=np.float64)
    if target.variant.pair_limit is not None:
        scale = np.maximum(scale, pair_scale(groups, target.variant.pair_limit))
    for op in model.view.consumers.get(decision.site, ()):
        op_rule = target.rules[op.op]
        bias = op_rule.bias_input(op)
        if bias is not None:
            activation = float(params[op_rule.activation_inputs(op)[0]].scale)
            scale = scale_for_bias(scale, amax, model.weight(bias), activation)
    shape = scheme.granularity.scale_shape(values.shape)
    scale32 = scale.astype(np.float32).reshape(shape)
    params_of = QParams(scheme=scheme, scale=scale32, zero_point=np.zeros_like(scale32))
    return ROUNDERS[decision.rounder or "nearest"].choose(values, params_of)


def pair_scale(groups: np.ndarray, limit: int) -> np.ndarray:
    """Returns the smallest scales with which no two codes of a channel exceed ``limit`` together.

    The two largest magnitudes a >= b of a channel become codes of at most a/s + 1/2 and b/s + 1/2; with
    s = (a + b) / (limit - 1) they stay within the limit, whichever two the kernel adds at 16 bits.

    Args:
      groups: [channels, elements].
      limit: Largest allowed |code_i| + |code_j|.
    Returns: [channels] float64.
    """
    magnitudes = np.abs(groups).astype(np.float64)
    if magnitudes.shape[1] == 1:
        return np.asarray(magnitudes[:, 0] / (limit - 1))
    largest = -np.partition(-magnitudes, 1, axis=1)[:, :2]
    return np.asarray(largest.sum(axis=1) / (limit - 1))


def scale_for_bias(scale: np.ndarray, amax: np.ndarray, bias: np.ndarray, activation_scale: float) -> np.ndarray:
    """Returns weight scales under which every bias fits its int32 code with the scale activation * weight.

    A channel with tiny weights and a large bias gets a larger scale (its weights then round to fewer codes, which is
    what they are worth beside the bias); a channel without weights gets a scale that tells its bias to 20 bits.

    Args:
      scale: [channels] float64.
      amax: [channels], largest weight magnitude.
      bias: [channels].
      activation_scale: Scale of the layer's input.
    """
    magnitude = np.abs(bias.astype(np.float64))
    needed = magnitude / (activation_scale * _MAX_BIAS_CODE)
    bare = np.maximum(magnitude / (activation_scale * _BARE_BIAS_CODE), MIN_SCALE)
    fitted = np.maximum(scale, needed)
    return np.asarray(np.where((amax == 0) & (magnitude > 0), bare, fitted))
