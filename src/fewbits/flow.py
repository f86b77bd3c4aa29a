"""The flow: Model + Plan + data -> (site, quantized value), one after the other. Reads plans, never makes choices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, final

import numpy as np

from fewbits._base.errors import TargetError, UsageError
from fewbits.algorithms.block_weights import check_block_rule, needs_inputs, quantize_blocks
from fewbits.algorithms.half_weights import beyond_half
from fewbits.algorithms.kernel_limits import accumulator_scale, pair_scale, scale_for_bias
from fewbits.algorithms.ranges import parse_range_rule
from fewbits.algorithms.rounders import ROUNDERS
from fewbits.algorithms.transforms.bias_correction import BiasCorrection
from fewbits.calibration.histogram import histogram_of
from fewbits.calibration.statistics import Merger, Statistics
from fewbits.datasets.checks import check_values
from fewbits.models.onnx.feeding import model_batches, real_rows, run_options, shard_size
from fewbits.models.onnx.model import OnnxModel
from fewbits.numerics.format import Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import PerChannel, PerGroup, PerTensor
from fewbits.numerics.qtensor import QParams, QTensor, as_array, quantize
from fewbits.numerics.scaling import affine_from_amax, choose_affine
from fewbits.numerics.scheme import Scheme
from fewbits.planning.plan import Decision, Plan
from fewbits.planning.site import GraphView, OpView, Role, Site
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Options
from fewbits.targets import (
    block_fault,
    candidate,
    dynamic_nodes,
    dynamic_scheme,
    integer_nodes,
    storable,
    stored_rule,
)
from fewbits.targets._stored import half_fault, scope_fault
from fewbits.targets.base import OpRule, StoredRule, Target

if TYPE_CHECKING:
    from fewbits.datasets.base import Batch, Dataset

Progress = Callable[[str, int, int], None]


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Learned:
    """What was learned of a plan's layers from examples.

    Args:
      corrections: What is folded into biases before they are quantized, by site.
      weights: Codes that were chosen by the inputs of their layers, by site.
    """

    corrections: Mapping[str, BiasCorrection] = field(default_factory=dict)
    weights: Mapping[str, QTensor] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.corrections or self.weights)


NOTHING_LEARNED = Learned()


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
        if decision.stored:
            _check_stored(decision, target, model.view)
        elif decision.dynamic:
            _check_dynamic(decision, plan, target, model.view)
        elif not decision.is_float:
            _check_decision(decision, target, model.view.by_name.get(decision.node))
    quantized = {d.site for d in plan.quantized if d.is_static}
    signed = {
        d.site for d in plan.quantized if d.role is Role.ACTIVATION and d.scheme is not None and d.scheme.symmetric
    }
    integer = integer_nodes(model.view, target, quantized, signed=signed)
    running = set(integer)
    for decision in plan.quantized:
        if decision.role is Role.ACTIVATION or not decision.is_static:
            continue
        readers = model.view.consumers.get(decision.site, ())
        if not readers or any(op.name in running for op in readers):
            continue  # a reader kept float keeps the float tensor beside the codes
        lame = readers[0]
        rule = candidate(lame, model.view, target)
        if isinstance(rule, OpRule):
            lacking = [name for name in _wanted(lame, model.view, plan) if name not in quantized]
            missing = f"not quantized: {', '.join(repr(name) for name in lacking[:3])}"
        else:
            missing = rule.text
        raise TargetError(
            f"the plan quantizes {decision.site!r}, but {lame.label} {lame.name!r} cannot run in integers on "
            f"{target.full_name}: {missing}; set the site to 'float' too, or quantize what is missing",
            slug="plan-illegal",
        )
    return integer


def _wanted(op: OpView, view: GraphView, plan: Plan) -> list[str]:
    """Returns the plan's sites around a node; behind a clip that saturation does, the site is the clip's output."""
    sites = plan.by_site()
    output = op.outputs[0]
    behind = [name for reader in view.consumers.get(output, ()) for name in reader.outputs]
    around = [*op.inputs, *([output] if output in sites else behind)]
    return [name for name in around if name in sites] or [output]


def _check_decision(decision: Decision, target: Target, op: OpView | None) -> None:
    assert decision.scheme is not None
    if decision.range_rule is not None:
        parse_range_rule(decision.range_rule)
    if decision.rounder is not None and decision.rounder not in ROUNDERS:
        ROUNDERS[decision.rounder]
    scheme, variant = decision.scheme, target.variant
    formats = {
        Role.ACTIVATION: variant.activation,
        Role.CONSTANT: variant.activation,
        Role.WEIGHT: variant.weight,
        Role.BIAS: Int(bits=32, signed=True),
    }
    # Products of two changing matrices alone subtract no zero point.
    centred = (
        bool(target.paired) and variant.pair_limit is None and decision.role is Role.ACTIVATION and scheme.symmetric
    )
    wanted = target.centred if centred else formats[decision.role]
    if scheme.format != wanted:
        raise TargetError(
            f"{target.full_name} runs {decision.role.value} {decision.site!r} of {decision.op} {decision.node!r} as "
            f"{wanted.name}, not {scheme.format.name}; write {wanted.name} or 'float'",
            slug="format-not-legal",
        )
    flows = decision.role in (Role.ACTIVATION, Role.CONSTANT)
    axis = target.rules[decision.op].axis(op) if decision.role is Role.WEIGHT and op is not None else 0
    legal = (PerTensor(),) if flows else (PerTensor(), PerChannel(axis))
    # An activation's zero point must be free: at the lowest code it is what absorbs a ReLU.
    if scheme.granularity not in legal or (scheme.symmetric == flows and not centred):
        names = " or ".join(g.name for g in legal) + (", asymmetric" if flows else ", symmetric")
        raise TargetError(
            f"{target.full_name} takes {decision.role.value} {decision.site!r} of {decision.op} {decision.node!r} "
            f"{names}, not {scheme.granularity.name} {'symmetric' if scheme.symmetric else 'asymmetric'}; write that "
            "or 'float'",
            slug="format-not-legal",
        )


def _check_dynamic(decision: Decision, plan: Plan, target: Target, view: GraphView) -> None:
    """Raises unless all that read this weight quantize their other input as it comes."""
    running = set(dynamic_nodes(view, target, (d.site for d in plan.decisions if d.dynamic)))
    readers = view.consumers.get(decision.site, ())
    lame = next((op for op in readers if op.name not in running), None)
    if not readers or lame is not None or decision.role is not Role.WEIGHT:
        who = "nothing" if lame is None else f"{lame.label} {lame.name!r}"
        raise TargetError(
            f"the plan lets the readers of {decision.site!r} quantize their inputs as they come, but on "
            f"{target.full_name} {who} cannot; write 'float', or leave 'dynamic' out",
            slug="plan-illegal",
        )
    op = readers[0]
    scheme = dynamic_scheme(op, target)
    legal = [scheme, *([dynamic_scheme(op, target, coarse=True)] if target.dynamic[op.op].coarse else [])]
    if decision.scheme not in legal:
        raise TargetError(
            f"{target.full_name} multiplies {decision.site!r} as {scheme.name} with inputs that are quantized as they "
            f"come, not {'float' if decision.scheme is None else decision.scheme.name}; write that or 'float'",
            slug="format-not-legal",
        )
    parse_range_rule(decision.range_rule or "minmax")
    ROUNDERS[decision.rounder or "nearest"]


def _check_stored(decision: Decision, target: Target, view: GraphView) -> None:
    """Raises unless the target can hold this weight in codes of this scheme and compute in float."""
    assert decision.scheme is not None
    if not decision.scheme.scaled:
        _check_half(decision, decision.scheme, target, view)
        return
    op = view.by_name.get(decision.node)
    rule = None if op is None else stored_rule(op, target)
    if op is None or rule is None or decision.role is not Role.WEIGHT or not storable(decision.site, view):
        raise TargetError(
            f"{target.full_name} cannot hold {decision.site!r} in codes alone: it is no weight of an operator that "
            f"may ({', '.join(target.stored)}); write 'float'",
            slug="plan-illegal",
        )
    scheme, axis = decision.scheme, rule.axis(op)
    apart = scope_fault(decision.site, view)
    if apart is not None:
        raise TargetError(f"{target.full_name}: {apart}; write 'float'", slug="plan-illegal")
    if isinstance(scheme.granularity, PerGroup):
        _check_blocks(decision, scheme, rule, op, target, view)
        return
    if scheme.format != target.variant.weight or not scheme.symmetric or scheme.granularity != PerChannel(axis):
        raise TargetError(
            f"{target.full_name} stores {decision.site!r} as {target.variant.weight.name}, per-channel({axis}), "
            f"symmetric, not {scheme.name}; write that or 'float'",
            slug="format-not-legal",
        )


def _check_half(decision: Decision, scheme: Scheme, target: Target, view: GraphView) -> None:
    """Raises unless the target stores this tensor as this 16-bit float."""
    fault = half_fault(decision.site, scheme, view, target)
    if fault is None and decision.role is not Role.WEIGHT:
        fault = "only weights are stored so"
    if fault is not None:
        raise TargetError(
            f"{target.full_name} cannot hold {decision.site!r} as {scheme.name}: {fault}; write that or 'float'",
            slug="format-not-legal",
        )


def _check_blocks(
    decision: Decision, scheme: Scheme, rule: StoredRule, op: OpView, target: Target, view: GraphView
) -> None:
    """Raises unless the operator can hold its weight in these blocks."""
    fmt, blocks = scheme.format, scheme.granularity
    assert isinstance(blocks, PerGroup)
    plain = Scheme(format=fmt, granularity=blocks, symmetric=scheme.symmetric)
    if not isinstance(fmt, Int) or scheme not in (plain, replace(plain, scale=FORMATS["fp32"])):
        fault: str | None = "its codes are integers, its scales float32"
    elif fmt.signed != scheme.symmetric:
        fault = "symmetric codes are signed, asymmetric ones unsigned"
    elif blocks.size not in target.block_sizes:
        fault = f"blocks have {', '.join(map(str, target.block_sizes))} elements"
    else:
        fault = block_fault(decision.site, op, fmt, view, target)
        if fault is None and rule.blocks is not None and blocks.axis != rule.blocks.axis(op):
            fault = f"its blocks lie along axis {rule.blocks.axis(op)}"
    if fault is not None:
        channel = Scheme(format=target.variant.weight, granularity=PerChannel(rule.axis(op)), symmetric=True)
        raise TargetError(
            f"{target.full_name} cannot hold {decision.site!r} as {scheme.name}: {fault}; write {channel.name!r} or "
            "'float'",
            slug="format-not-legal",
        )
    check_block_rule(decision.range_rule or "minmax", decision.rounder or "nearest")


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
    session = RUNTIMES["ort"].open(model.serialized(extra_outputs=sites), run_options(model, Options()))
    inner = [name for name in sites if name not in model.view.inputs]

    def one(shard: tuple[dict[str, np.ndarray], Batch]) -> tuple[Statistics, int]:
        feeds, batch = shard
        check_values(batch)
        count = len(batch.index)
        outputs = session.run(feeds)
        tensors = {**{name: feeds[name] for name in sites if name in feeds}, **{n: outputs[n] for n in inner}}
        kept = real_rows(model, tensors, count)
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
            found[decision.site] = _scaled(found[root], links[decision.site].factor)
    return found


def _scaled(params: QParams, factor: float) -> QParams:
    """Returns the parameters of codes that stand for values so many times as large."""
    if factor == 1.0:
        return params
    scale = (np.asarray(params.scale, dtype=np.float64) * factor).astype(np.float32)
    return QParams(scheme=params.scheme, scale=scale, zero_point=params.zero_point)


def _activation(decision: Decision, statistics: Statistics) -> QParams:
    assert decision.scheme is not None and isinstance(decision.scheme.format, Int)
    rule, parameter = parse_range_rule(decision.range_rule or "minmax")
    fmt = decision.scheme.format
    symmetric = decision.scheme.symmetric
    key = decision.site, decision.range_rule, fmt, symmetric
    if key not in statistics.known:
        histogram = statistics.histograms[decision.site]
        statistics.known[key] = rule.from_histogram(histogram, fmt, symmetric=symmetric, parameter=parameter)
    low, high = statistics.known[key]
    if symmetric:
        scale, zero = affine_from_amax(np.asarray(high), fmt)
    else:
        scale, zero = choose_affine(np.asarray(low), np.asarray(high), fmt)
    return QParams(scheme=decision.scheme, scale=np.asarray(scale), zero_point=np.asarray(zero))


def stream(
    model: OnnxModel,
    plan: Plan,
    target: Target,
    statistics: Statistics,
    *,
    learned: Learned = NOTHING_LEARNED,
) -> Iterator[tuple[Site, QTensor | QParams]]:
    """Yields every quantized site with its value, in the plan's order, activations first.

    A weight or bias comes as QTensor, an activation as QParams. Weights are read one at a time.

    Args:
      model: The model.
      plan: The plan.
      target: The rules.
      statistics: Of the activation sites.
      learned: What examples say of biases and codes, where the plan asks for it.
    """
    params = activation_params(plan, statistics)
    view = model.view
    for decision in plan.quantized:
        if decision.role is Role.ACTIVATION:
            yield _site(decision, view), params[decision.site]
    scales = {name: np.asarray(as_array(each.scale)) for name, each in params.items()}
    for decision in plan.quantized:
        if decision.role is Role.CONSTANT:
            yield _site(decision, view), _constant(decision, model.weight(decision.site))
        elif decision.stored:
            yield _site(decision, view), learned.weights.get(decision.site) or _stored(decision, model)
        elif decision.dynamic:
            yield _site(decision, view), _weight(decision, model, target, {})
        elif decision.role is Role.WEIGHT:
            tensor = learned.weights.get(decision.site) or _weight(decision, model, target, params)
            scales[decision.site] = np.asarray(tensor.scale)
            yield _site(decision, view), tensor
        elif decision.role is Role.BIAS:
            yield _site(decision, view), _bias_of(decision, model, target, scales, learned.corrections)


def rebiased(
    values: Iterable[tuple[Site, QTensor | QParams]],
    model: OnnxModel,
    plan: Plan,
    target: Target,
    corrections: Mapping[str, BiasCorrection],
) -> Iterator[tuple[Site, QTensor | QParams]]:
    """Yields what ``stream`` gave, the biases of these corrections written anew, by the scales as they are now."""
    decisions = plan.by_site()
    known = list(values)
    scales = {site.name: np.asarray(as_array(value.scale)) for site, value in known if site.role is not Role.BIAS}
    for site, value in known:
        if site.name in corrections:
            value = _bias_of(decisions[site.name], model, target, scales, corrections)
        yield site, value


def _corrected(bias: np.ndarray, correction: BiasCorrection | None) -> np.ndarray:
    return bias if correction is None else np.asarray(correction.fold(bias, bias, axis=0)[1])


def _site(decision: Decision, view: GraphView) -> Site:
    shape = view.tensors[decision.site].shape or ()
    return Site(name=decision.site, role=decision.role, op=decision.op, node=decision.node, shape=shape)


def _constant(decision: Decision, values: np.ndarray) -> QTensor:
    assert decision.scheme is not None and isinstance(decision.scheme.format, Int)
    rule, parameter = parse_range_rule(decision.range_rule or "minmax")
    fmt = decision.scheme.format
    symmetric = decision.scheme.symmetric
    seen = histogram_of(values, where=f"constant {decision.site!r}")
    low, high = rule.from_histogram(seen, fmt, symmetric=symmetric, parameter=parameter)
    ends = np.asarray(low), np.asarray(high)
    scale, zero = affine_from_amax(ends[1], fmt) if symmetric else choose_affine(*ends, fmt)
    shape = (1,) * values.ndim
    params = QParams(scheme=decision.scheme, scale=scale.reshape(shape), zero_point=zero.reshape(shape))
    return quantize(values, params)


def _bias_of(
    decision: Decision,
    model: OnnxModel,
    target: Target,
    scales: Mapping[str, np.ndarray],
    corrections: Mapping[str, BiasCorrection],
) -> QTensor:
    """Returns the codes of a bias, corrected; its scale is that of the products that it is added to."""
    rule = target.rules[decision.op]
    op = model.view.by_name[decision.node]
    weight = rule.weight_input(op)
    assert weight is not None
    bias = _corrected(model.weight(decision.site), corrections.get(decision.site))
    product = scales[weight].reshape(-1) * scales[rule.activation_inputs(op)[0]]
    return _bias(decision, bias, np.broadcast_to(product, bias.shape))


def _bias(decision: Decision, bias: np.ndarray, scale: np.ndarray) -> QTensor:
    """Returns int32 codes; the quotient in float64, because float32 holds only 24 of the 31 bits."""
    assert decision.scheme is not None
    scale = scale.astype(np.float32)
    quotient = bias.astype(np.float64) / scale.astype(np.float64)
    if np.abs(quotient).max(initial=0.0) > decision.scheme.format.max_value:
        raise TargetError(
            f"bias {decision.site!r} of {decision.node!r} does not fit int32 beside its tiny activations; "
            "keep the node float (set its sites to 'float' in the plan)",
            slug="bias-out-of-range",
        )
    codes = decision.scheme.format.encode(quotient)
    return QTensor(codes=codes, params=QParams(scheme=decision.scheme, scale=scale, zero_point=np.zeros_like(scale)))


def _in_blocks(decision: Decision, scheme: Scheme, model: OnnxModel) -> QTensor:
    """Returns the codes of a weight in blocks; it is whole in memory while it is quantized."""
    rule, rounder = decision.range_rule or "minmax", decision.rounder or "nearest"
    if needs_inputs(rule, rounder):
        raise UsageError(
            f"the plan rounds {decision.site!r} by the inputs of its layer ({rule}, {rounder}), of which nothing is "
            "known; give --data DATA, or write 'mse' and 'nearest' in the plan",
            slug="data-missing",
        )
    return quantize_blocks(model.weight(decision.site), scheme, rule=rule, rounder=rounder)


def _half(decision: Decision, scheme: Scheme, model: OnnxModel) -> QTensor:
    """Returns the nearest 16-bit floats of a weight, slab by slab where it lies in a file.

    Raises: TargetError(slug="half-out-of-range") where one would have to saturate.
    """
    fault = beyond_half(model.slabs(decision.site), scheme.format)
    if fault is not None:
        raise TargetError(
            f"{decision.site!r} of {decision.node!r} cannot be stored as {scheme.format.name}: {fault}; set the site "
            "to 'float' in the plan",
            slug="half-out-of-range",
        )
    codes = np.empty(tuple(d or 0 for d in model.view.tensors[decision.site].shape or ()), scheme.format.code_dtype)
    start = 0
    for slab in model.slabs(decision.site):
        codes[start : start + len(slab)] = scheme.format.encode(slab)
        start += len(slab)
    scale = np.ones((), np.float32)
    return QTensor(codes=codes, params=QParams(scheme=scheme, scale=scale, zero_point=np.zeros_like(scale)))


def _stored(decision: Decision, model: OnnxModel) -> QTensor:
    """Returns the codes of a weight that is stored in them; slab by slab where it lies in a file.

    Scales are those of the whole range in both cases, so that the codes do not depend on where the weight lies.
    """
    assert decision.scheme is not None
    if not decision.scheme.scaled:
        return _half(decision, decision.scheme, model)
    assert isinstance(decision.scheme.format, Int)
    if isinstance(decision.scheme.granularity, PerGroup):
        return _in_blocks(decision, decision.scheme, model)
    scheme, fmt = decision.scheme, decision.scheme.format
    shape = tuple(d or 0 for d in model.view.tensors[decision.site].shape or ())
    axis = getattr(scheme.granularity, "axis", 0)
    amax = np.concatenate if axis == 0 else np.maximum.reduce
    found = [
        np.abs(slab).max(axis=tuple(i for i in range(slab.ndim) if i != axis)) for slab in model.slabs(decision.site)
    ]
    scale, _ = affine_from_amax(np.asarray(amax(found), dtype=np.float32), fmt)
    scale = np.asarray(scale, dtype=np.float32).reshape(scheme.granularity.scale_shape(shape))
    codes = np.empty(shape, fmt.code_dtype)
    start = 0
    for slab in model.slabs(decision.site):
        rows = slice(start, start + len(slab))
        part = scale[rows] if axis == 0 else scale
        codes[rows] = quantize(slab, QParams(scheme=scheme, scale=part, zero_point=np.zeros_like(part))).codes
        start += len(slab)
    return QTensor(codes=codes, params=QParams(scheme=scheme, scale=scale, zero_point=np.zeros_like(scale)))


def _kernel_limits(decision: Decision, values: np.ndarray, target: Target, view: GraphView) -> np.ndarray:
    """Returns the smallest scales with which nothing overflows: sums are of a channel, whatever shares a scale."""
    assert decision.scheme is not None
    op, rules = view.by_name[decision.node], target.dynamic if decision.dynamic else target.rules
    per_tensor = isinstance(decision.scheme.granularity, PerTensor)
    axis = rules[op.op].axis(op)
    channels = PerChannel(axis).to_groups(values) if per_tensor else decision.scheme.granularity.to_groups(values)
    least = accumulator_scale(channels, target.variant.activation)
    if target.variant.pair_limit is not None:
        least = np.maximum(least, pair_scale(channels, target.variant.pair_limit))
    return np.asarray(least.max(keepdims=True)) if per_tensor else least


def _weight(decision: Decision, model: OnnxModel, target: Target, params: Mapping[str, QParams]) -> QTensor:
    assert decision.scheme is not None and isinstance(decision.scheme.format, Int)
    scheme, values = decision.scheme, model.weight(decision.site)
    assert isinstance(scheme.format, Int)
    rule, parameter = parse_range_rule(decision.range_rule or "minmax")
    groups = scheme.granularity.to_groups(values)
    amax = np.asarray(rule.from_groups(groups, scheme.format, parameter=parameter))
    scale, _ = affine_from_amax(amax, scheme.format)
    scale = np.maximum(np.asarray(scale, dtype=np.float64), _kernel_limits(decision, values, target, model.view))
    for op in model.view.consumers.get(decision.site, ()) if params else ():
        op_rule = target.rules.get(op.op)
        if op_rule is None or (source := op_rule.activation_inputs(op)[0]) not in params:
            continue  # a reader kept float, or inside a body, keeps its float bias
        bias = op_rule.bias_input(op)
        activation = float(as_array(params[source].scale))
        offsets = np.zeros(1, np.float32) if bias is None else model.weight(bias)
        scale = scale_for_bias(scale, amax, offsets, activation)
    shape = scheme.granularity.scale_shape(values.shape)
    scale32 = scale.astype(np.float32).reshape(shape)
    params_of = QParams(scheme=scheme, scale=scale32, zero_point=np.zeros_like(scale32))
    return ROUNDERS[decision.rounder or "nearest"].choose(values, params_of)
