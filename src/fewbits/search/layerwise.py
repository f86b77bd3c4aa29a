"""Layer by layer on the quantized prefix: codes that answer for each other's errors, and biases corrected.

The quantized model is written with all that is known so far and run up to the next layers; what they are fed is what
they will be fed by the runtime, errors of the prefix included. From its first moment follows how far a layer's mean
output is off, and the bias takes that back; from its second, which codes make the least error of the output.

What a plan records are the steps, not the numbers: the same plan and data give the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from math import prod
from typing import final

import numpy as np

from fewbits.algorithms.rounders.gptaq import RIDGE, aimed, codes_and_scales
from fewbits.algorithms.rounders.gptq import gptq_codes
from fewbits.algorithms.transforms.bias_correction import BiasCorrection
from fewbits.calibration.statistics import Statistics
from fewbits.calibration.unfolding import InputMoments, Window, unfolded, window_of
from fewbits.datasets.base import Dataset
from fewbits.flow import NOTHING_LEARNED, Learned, Progress, check_plan, rebiased, silent, stream
from fewbits.models.onnx.feeding import model_batches, real_rows, run_options, shard_size
from fewbits.models.onnx.model import OnnxModel
from fewbits.models.onnx.prefixes import PrefixRuns
from fewbits.numerics.format import Int
from fewbits.numerics.granularity import PerChannel, PerTensor
from fewbits.numerics.qtensor import QParams, QTensor, as_array
from fewbits.planning.plan import Decision, Plan, TransformStep
from fewbits.planning.site import OpView, Role, Site
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Options, Session
from fewbits.search.building import written
from fewbits.search.memory import room_beside
from fewbits.targets.base import Target

STEP = "bias_correction"
ROUNDER = "gptq"
# Of weights narrower than eight bits: there the layers before leave an error worth taking back.
NARROW_ROUNDER = "gptaq"
ROUNDERS_FED = (ROUNDER, NARROW_ROUNDER)
# Moments over more examples change codes no more (measured on ResNet-20 and Tiny Darknet).
_MAX_EXAMPLES = 128
# The share of the calibration examples that moments are taken of; the others tell whether it helped.
_LEARNING = 0.75
# Bytes of tensors of one model that are kept between looks, at most.
_KEPT_BYTES = 256 * 2**20
# Looks at the quantized model: in a deeper one several layers are done at each.
_MAX_LOOKS = 32
# Positions at which a convolution's inputs are unfolded for the second moment: so many, or four for each input.
_POSITIONS = 6144
_POSITIONS_PER_INPUT = 4
# Bits from which on a weight is not narrow.
_WIDE = 8
# Inputs of one output beyond which the second moment would take over a gigabyte.
_MAX_INPUTS = 11_000


def asks_for_correction(plan: Plan) -> bool:
    """Returns whether a plan has its biases corrected."""
    return any(step.name == STEP for step in plan.transforms)


def asks_for_rounding(plan: Plan) -> bool:
    """Returns whether a plan has codes chosen by the inputs of their layers."""
    return any(_rounded(decision) for decision in plan.quantized)


def _rounded(decision: Decision) -> bool:
    return decision.role is Role.WEIGHT and decision.rounder in ROUNDERS_FED and decision.is_static


def with_correction(plan: Plan) -> Plan:
    """Returns the plan with its biases corrected."""
    return plan if asks_for_correction(plan) else replace(plan, transforms=(*plan.transforms, TransformStep(name=STEP)))


def with_rounding(plan: Plan) -> Plan:
    """Returns the plan with its biases corrected, and all weights of integer layers rounded by their layers' inputs."""
    decisions = tuple(
        replace(d, rounder=_rounder(d)) if d.role is Role.WEIGHT and d.is_static else d for d in plan.decisions
    )
    return with_correction(replace(plan, decisions=decisions))


def _rounder(decision: Decision) -> str:
    assert decision.scheme is not None and isinstance(decision.scheme.format, Int)
    return ROUNDER if decision.scheme.format.bits >= _WIDE else NARROW_ROUNDER


# What layers may learn, in the order in which it is tried: words, and the plan that asks for it.
LESSONS: tuple[tuple[str, Callable[[Plan], Plan]], ...] = (
    ("biases corrected", with_correction),
    ("codes by the inputs of their layers", with_rounding),
)


def same_lessons(plan: Plan, other: Plan) -> Plan:
    """Returns a plan that asks for what another one of the same model asks for."""
    rounders = {d.site: d.rounder for d in other.quantized}
    decisions = tuple(
        d if d.is_float or d.site not in rounders else replace(d, rounder=rounders[d.site]) for d in plan.decisions
    )
    same = replace(plan, decisions=decisions)
    return with_correction(same) if asks_for_correction(other) else same


def learning_part(calibration: np.ndarray) -> np.ndarray:
    """Returns the calibration examples that moments are taken of."""
    return calibration[: min(_MAX_EXAMPLES, max(1, int(_LEARNING * len(calibration))))]


def closeness_part(calibration: np.ndarray) -> np.ndarray:
    """Returns the calibration examples that played no part in moments; all where there is but one."""
    rest = calibration[max(1, int(_LEARNING * len(calibration))) :]
    return rest[:_MAX_EXAMPLES] if len(rest) else calibration


_Value = tuple[Site, QTensor | QParams]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerLayer:
    """An integer layer with a weight, as the quantized model is asked for what feeds it."""

    op: OpView
    weight: str
    bias: str | None
    source: int
    axis: int
    window: Window | None


@final
class Layerwise:
    """What is learned layer by layer, for plans of one model; what was learned for a plan is kept.

    Args:
      model: The float model, as it is quantized.
      target: The rules.
      statistics: Of its activation sites.
      dataset: Examples; None where there are none.
      calibration: Those of the calibration part, ascending.
      max_memory: Bytes that the run may take; what is left of them is for tensors that are kept between looks.
      seed: Of the sample of positions.
      progress: Told of each look at the quantized model.
    """

    def __init__(
        self,
        model: OnnxModel,
        target: Target,
        statistics: Statistics,
        dataset: Dataset | None,
        calibration: np.ndarray,
        *,
        max_memory: int | None = None,
        seed: int = 0,
        progress: Progress = silent,
    ) -> None:
        self._model = model
        self._max_memory = max_memory
        self._target = target
        self._statistics = statistics
        self._dataset = dataset
        self._indices = learning_part(calibration)
        self._seed = seed
        self._progress = progress
        self._means: dict[str, np.ndarray] = {}
        self._known: dict[tuple[object, ...], Learned] = {}

    def of(self, plan: Plan) -> Learned:
        """Returns corrected biases and chosen codes by site; nothing where the plan asks for neither."""
        asks = asks_for_correction(plan) or asks_for_rounding(plan)
        if not asks or not len(self._indices) or self._dataset is None:
            return NOTHING_LEARNED
        key = (plan.decisions, plan.links, plan.transforms)
        if key not in self._known:
            self._known[key] = self._learn(plan)
        return self._known[key]

    def _learn(self, plan: Plan) -> Learned:
        layers = integer_layers(self._model, self._target, plan)
        if not layers:
            return NOTHING_LEARNED
        correcting = asks_for_correction(plan)
        if correcting:
            self._see_float([layer.op.outputs[0] for layer in layers if layer.bias is not None])
        # Codes that were kept small for 16-bit accumulators stay so: the feedback of errors would move some beyond.
        free = self._target.variant.pair_limit is None
        rounders = {d.site: d.rounder if free else None for d in plan.quantized}
        integer = check_plan(self._model, self._target, plan)
        values = dict(_by_name(stream(self._model, plan, self._target, self._statistics)))
        excess: dict[str, BiasCorrection] = {}
        weights: dict[str, QTensor] = {}
        room = room_beside(self._model, plan.quantized, self._max_memory)
        limit = _KEPT_BYTES if room is None else min(_KEPT_BYTES, room // 2)
        runs = tuple(PrefixRuns(self._batches, self._open, limit=limit) for _ in ("quantized", "float"))
        looks = np.array_split(np.arange(len(layers)), min(len(layers), _MAX_LOOKS))
        for number, group in enumerate(looks):
            self._progress("layer by layer", number, len(looks))
            data = written(self._model, plan, self._target, integer, values.values())
            taken, changing = [layers[i] for i in group], [layer.op.name for layer in layers[group[0] :]]
            wanted = {layer.op.name for layer in taken if rounders[layer.weight] in ROUNDERS_FED}
            aiming = {layer.op.name for layer in taken if rounders[layer.weight] == NARROW_ROUNDER}
            seen = self._moments(runs, data, taken, values, changing=changing, second=wanted, cross=aiming)
            for layer in taken:
                moments, scale = seen[layer.op.name]
                site, tensor = values[layer.weight]
                assert isinstance(tensor, QTensor)
                if layer.op.name in wanted and moments.rows:
                    tensor = _rerounded(self._model.weight(layer.weight), tensor, moments, layer)
                    weights[layer.weight] = tensor
                    values[layer.weight] = site, tensor
                if correcting and layer.bias is not None:
                    mean = self._mean_output(tensor, moments, scale, layer, values[layer.bias][1])
                    excess[layer.bias] = BiasCorrection(excess=mean - self._means[layer.op.outputs[0]])
            values.update(_by_name(rebiased(values.values(), self._model, plan, self._target, excess)))
        return Learned(corrections=excess, weights=weights)

    def _see_float(self, outputs: list[str]) -> None:
        missing = [name for name in outputs if name not in self._means]
        if missing:
            self._means.update(self._mean_outputs(self._model.serialized(extra_outputs=missing), missing))

    def _open(self, data: bytes) -> Session:
        return RUNTIMES["ort"].open(data, run_options(self._model, Options()))

    def _batches(self) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        assert self._dataset is not None, "without examples nothing is learned"
        for feeds, batch in model_batches(self._model, self._dataset, self._indices, size=shard_size(self._model)):
            yield feeds, len(batch.index)

    def _mean_outputs(self, data: bytes, names: list[str]) -> dict[str, np.ndarray]:
        """Returns the mean of each tensor per channel (axis 1; the last of a matrix product), float64."""
        totals: dict[str, np.ndarray] = {}
        counts = dict.fromkeys(names, 0)
        session = self._open(data)
        for feeds, count in self._batches():
            outputs = session.run(feeds)
            for name, value in real_rows(self._model, {name: outputs[name] for name in names}, count).items():
                axis = 1 if self._model.view.producer[name].op == "Conv" else value.ndim - 1
                axes = tuple(i for i in range(value.ndim) if i != axis)
                totals[name] = totals.get(name, 0) + value.sum(axis=axes, dtype=np.float64)
                counts[name] += value.size // value.shape[axis]
        return {name: totals[name] / counts[name] for name in names}

    def _moments(
        self,
        runs: tuple[PrefixRuns, ...],
        data: bytes,
        layers: list[IntegerLayer],
        values: dict[str, tuple[Site, QTensor | QParams]],
        *,
        changing: list[str],
        second: set[str],
        cross: set[str],
    ) -> dict[str, tuple[InputMoments, float]]:
        """Returns the moments of what feeds each layer, in steps of its scale, and that scale; by the layer's name.

        Args:
          runs: Of the quantized and of the float model, up to there.
          data: The quantized model.
          layers: Which.
          values: What it was written of, with the scales of activations.
          changing: Names of these layers and all behind them, whose weights and biases are not known yet.
          second: Names of layers whose second moment is wanted.
          cross: Of those, names of layers whose cross moment with the float model's inputs is wanted.
        """
        sources = {layer.op.name: layer.source for layer in layers}
        scales = {layer.op.name: float(as_array(values[layer.op.inputs[layer.source]][1].scale)) for layer in layers}
        found = {layer.op.name: _empty(layer, values[layer.weight][1]) for layer in layers}
        examples = max(1, len(self._indices))
        looks = runs[0].look(data, sources, changing)
        floats = runs[1].look(self._model.serialized(), sources, changing) if cross else repeat(({}, 0))
        for number, ((outputs, count), (others, _)) in enumerate(zip(looks, floats, strict=False)):
            kept, unrounded = real_rows(self._model, outputs, count), real_rows(self._model, others, count)
            for layer in layers:
                name = layer.op.name
                step, seed = np.float32(scales[name]), (self._seed, number)
                rows = 0
                if name in second:
                    size = found[name].mean.shape[1]
                    wanted = max(_POSITIONS, _POSITIONS_PER_INPUT * size)
                    rows = -(-wanted * len(kept[name]) // examples)
                total, positions, sample = sampled_inputs(
                    np.rint(kept[name] / step), layer.window, rows=rows, seed=seed
                )
                beside = None
                if name in cross:  # the same seed draws the same positions
                    beside = sampled_inputs(unrounded[name] / step, layer.window, rows=rows, seed=seed)[2]
                found[name].add(total, positions, sample, beside)
        return {name: (moments, scales[name]) for name, moments in found.items()}

    def _mean_output(
        self, weight: QTensor, moments: InputMoments, scale: float, layer: IntegerLayer, bias: QTensor | QParams
    ) -> np.ndarray:
        """Returns the mean output of the quantized layer per channel, float64: exact but for its last rounding."""
        assert isinstance(bias, QTensor) and layer.bias is not None
        rows = as_rows(np.asarray(weight.dequantize(), dtype=np.float64), layer.axis)
        groups = moments.mean.shape[0]
        per_group = rows.reshape(groups, -1, rows.shape[1])
        products = (per_group @ (moments.mean * scale)[:, :, None]).reshape(-1)
        # The bias as it is in the plan; what was corrected before is taken off again by the next correction.
        return np.asarray(products + self._model.weight(layer.bias).astype(np.float64).reshape(-1))


def integer_layers(model: OnnxModel, target: Target, plan: Plan) -> list[IntegerLayer]:
    """Returns the integer layers with a weight of their own, in graph order."""
    view = model.view
    decisions = {d.site: d for d in plan.quantized if d.is_static and d.role is not Role.ACTIVATION}
    layers = []
    for op in view.ops:
        rule = target.rules.get(op.op)
        weight = None if rule is None else rule.weight_input(op)
        if rule is None or weight is None or weight not in decisions or len(view.consumers[weight]) > 1:
            continue
        bias = rule.bias_input(op)
        if bias is not None and (bias not in decisions or len(view.consumers[bias]) > 1):
            bias = None
        source = op.inputs.index(rule.activation_inputs(op)[0])
        shape = tuple(d or 0 for d in view.tensors[weight].shape or ())
        window = window_of(op.attributes, shape) if op.op == "Conv" else None
        if len(shape) < 2 or (op.op == "Conv") != (window is not None) or op.op not in ("Conv", "Gemm", "MatMul"):
            continue
        if op.op != "Conv" and len(shape) != 2:
            continue
        layers.append(IntegerLayer(op=op, weight=weight, bias=bias, source=source, axis=rule.axis(op), window=window))
    return layers


def _by_name(values: Iterable[_Value]) -> Iterator[tuple[str, _Value]]:
    return ((site.name, (site, value)) for site, value in values)


def _empty(layer: IntegerLayer, weight: QTensor | QParams) -> InputMoments:
    assert isinstance(weight, QTensor)
    groups = 1 if layer.window is None else layer.window.group
    return InputMoments(groups=groups, size=prod(weight.shape) // weight.shape[layer.axis])


def sampled_inputs(
    steps: np.ndarray, window: Window | None, *, rows: int, seed: tuple[int, ...]
) -> tuple[np.ndarray, int, np.ndarray]:
    """Returns sum, count and a sample of a layer's inputs, for ``InputMoments.add``."""
    if window is not None:
        return unfolded(steps, window, rows=rows, seed=seed)
    lines = steps.reshape(-1, steps.shape[-1])
    drawn = lines
    if rows < len(lines):
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
        drawn = lines[np.sort(generator.choice(len(lines), rows, replace=False))]
    return lines.sum(axis=0, dtype=np.float64)[None], len(lines), drawn[:, None, :]


def as_rows(weight: np.ndarray, axis: int) -> np.ndarray:
    """Returns a weight as [outputs, inputs]."""
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def _rerounded(weight: np.ndarray, tensor: QTensor, moments: InputMoments, layer: IntegerLayer) -> QTensor:
    """Returns the weight with codes chosen by the second moment of the layer's inputs.

    With the cross moment too they aim at the float layer's output, and the scales of rows may change.
    """
    rows = as_rows(weight, layer.axis)
    outputs, size = rows.shape
    if size > _MAX_INPUTS:
        return tensor
    whole = isinstance(tensor.scheme.granularity, PerTensor)
    scale = np.broadcast_to(np.asarray(as_array(tensor.scale)).reshape(1 if whole else -1, 1), (outputs, 1)).copy()
    per_row = replace(tensor.scheme, granularity=PerChannel(0))
    each = outputs // len(moments.second)
    codes = np.empty((outputs, size), dtype=np.asarray(tensor.codes).dtype)
    for number, second in enumerate(moments.second):
        part = slice(number * each, (number + 1) * each)
        params = QParams(scheme=per_row, scale=scale[part], zero_point=np.zeros_like(scale[part]))
        wanted = np.ascontiguousarray(rows[part])
        if moments.cross is not None:
            wanted = np.ascontiguousarray(aimed(wanted, second, moments.cross[number], ridge=RIDGE))
        if moments.cross is None or whole:
            codes[part] = gptq_codes(wanted, second, params)
        else:
            best = codes_and_scales(wanted, second, params)
            codes[part], scale[part] = best.codes, np.asarray(best.scale)
    if not _fits(codes, tensor.scheme.format):
        return tensor
    shape = np.moveaxis(weight, layer.axis, 0).shape
    codes = np.ascontiguousarray(np.moveaxis(codes.reshape(shape), 0, layer.axis))
    before = np.asarray(as_array(tensor.scale))
    kept = before if whole else scale.reshape(before.shape)
    return QTensor(codes=codes, params=QParams(scheme=tensor.scheme, scale=kept, zero_point=tensor.params.zero_point))


def _fits(codes: np.ndarray, fmt: object) -> bool:
    """Returns whether 32-bit accumulators hold every sum of products with 8-bit activations."""
    assert isinstance(fmt, Int)
    return int(np.abs(codes.astype(np.int64)).sum(axis=1).max(initial=0)) * 255 < 1 << 31
