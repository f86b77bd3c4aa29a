"""Codes of weights in blocks by evidence: rules are tried on some calibration examples and judged on others.

A layer's inputs enter by their second moment alone. Of three examples in four it is what scales and codes go by; of the
fourth it tells, exactly, the output error of each candidate. The plan records the choice and its reason; the same plan
and data give the same codes again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from fewbits.algorithms.block_weights import MINMAX, TRIED_RULES, needs_inputs, quantize_blocks
from fewbits.algorithms.rounders.gptq import Feedback, feedback
from fewbits.calibration.moments import SecondMoment, bytes_of
from fewbits.datasets.base import Dataset
from fewbits.datasets.checks import check_values
from fewbits.flow import NOTHING_LEARNED, Learned, Progress, silent
from fewbits.models.onnx.feeding import model_batches, real_rows, run_options, shard_size
from fewbits.models.onnx.model import OnnxModel
from fewbits.numerics.granularity import PerGroup
from fewbits.numerics.qtensor import QTensor
from fewbits.planning.plan import Decision, Plan
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Options
from fewbits.targets import stored_rule
from fewbits.targets.base import Target

# Of so many examples one is held out, and fewer than two such fours tell nothing.
_HELD_OUT = 4
_LEAST_EXAMPLES = 2 * _HELD_OUT
# Ranges and rounders that are tried beside those of a run without data, which are kept unless another pair errs less.
_CANDIDATES = tuple((rule, rounder) for rounder in ("nearest", "gptq") for rule in TRIED_RULES)
# Bytes of second moments in work at a time, unless one alone takes more; the data flow once for each such group.
_GROUP_BYTES = 512 * 2**20
# Bytes beyond which an input is too wide for one: about 11 500 columns.
_MOST_BYTES = 2**31


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A weight in blocks, and the tensor that it is multiplied with."""

    decision: Decision
    input: str
    columns: int


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Seen:
    """The second moments of one input: of the examples that codes go by, and of those held out."""

    fit: SecondMoment
    held: SecondMoment


@final
class Blockwise:
    """Chooses and makes the codes of weights in blocks, for plans of one model.

    Args:
      model: The float model.
      target: The rules.
      dataset: Examples; None where there are none.
      calibration: Those of the calibration part, ascending.
      max_memory: Bytes that the run may take; a quarter of them for second moments.
      progress: Told of each shard.
    """

    def __init__(
        self,
        model: OnnxModel,
        target: Target,
        dataset: Dataset | None,
        calibration: np.ndarray,
        *,
        max_memory: int | None = None,
        progress: Progress = silent,
    ) -> None:
        self._model = model
        self._target = target
        self._dataset = dataset
        self._held = calibration[_HELD_OUT - 1 :: _HELD_OUT]
        self._fit = np.setdiff1d(calibration, self._held, assume_unique=True)
        self._group_bytes = _GROUP_BYTES if max_memory is None else max_memory // 4
        self._progress = progress
        self._made: dict[tuple[object, ...], QTensor] = {}

    @property
    def has_evidence(self) -> bool:
        """Whether there are examples enough to choose by."""
        return self._dataset is not None and len(self._fit) + len(self._held) >= _LEAST_EXAMPLES

    def memory(self, plan: Plan) -> int:
        """Returns the bytes of second moments that are held at a time for a plan."""
        widths = {layer.input: layer.columns for layer in self._layers(plan.quantized)}
        each = [2 * bytes_of(columns) for columns in widths.values()]
        return min(sum(each), max(self._group_bytes, max(each, default=0)))

    def choose(self, plan: Plan) -> Plan:
        """Returns the plan with the range and the rounder of each weight in blocks whose held-out error is least."""
        if not self.has_evidence:
            return plan
        chosen: dict[str, Decision] = {}
        for layers, seen in self._groups(self._layers(plan.quantized)):
            for layer, moments, passed in _fed(layers, seen):
                chosen[layer.decision.site] = self._best(layer, moments, passed)
        return replace(plan, decisions=tuple(chosen.get(d.site, d) for d in plan.decisions))

    def of(self, plan: Plan) -> Learned:
        """Returns the codes that a plan wants chosen by the inputs of their layers."""
        wanted = [layer for layer in self._layers(plan.quantized) if _needs_inputs(layer.decision)]
        if not wanted or self._dataset is None or not len(self._fit):
            return NOTHING_LEARNED
        missing = [layer for layer in wanted if _key(layer.decision) not in self._made]
        for layers, seen in self._groups(missing):
            for layer, moments, passed in _fed(layers, seen):
                self._made[_key(layer.decision)] = self._quantized(layer.decision, moments, passed)
        found = {layer.decision.site: self._made.get(_key(layer.decision)) for layer in wanted}
        return Learned(weights={site: tensor for site, tensor in found.items() if tensor is not None})

    def _layers(self, decisions: Iterable[Decision]) -> list[_Layer]:
        """Returns the weights in blocks that are multiplied with something, not too wide, in the plan's order."""
        view = self._model.view
        layers = []
        for decision in decisions:
            scheme, op = decision.scheme, view.by_name.get(decision.node)
            rule = None if op is None else stored_rule(op, self._target)
            if op is None or rule is None or rule.blocks is None or rule.blocks.multiplies is None:
                continue
            if op.scope:  # what flows inside a body is not seen from outside
                continue
            if scheme is None or not decision.stored or not isinstance(scheme.granularity, PerGroup):
                continue
            name = op.inputs[rule.blocks.multiplies]
            columns = (view.tensors[decision.site].shape or (0, 0))[scheme.granularity.axis] or 0
            if not view.is_constant(name) and 2 * bytes_of(columns) <= _MOST_BYTES:
                layers.append(_Layer(decision=decision, input=name, columns=columns))
        return layers

    def _groups(self, layers: list[_Layer]) -> Iterator[tuple[list[_Layer], dict[str, _Seen]]]:
        """Yields layers with the second moments of their inputs, as many at a time as memory allows."""
        widths = {layer.input: layer.columns for layer in layers}
        group: list[str] = []
        for name in [*widths, ""]:
            taken = sum(2 * bytes_of(widths[other]) for other in group)
            if group and (not name or taken + 2 * bytes_of(widths[name]) > self._group_bytes):
                seen = self._see({other: widths[other] for other in group})
                yield [layer for layer in layers if layer.input in seen], seen
                group = []
            group.append(name)

    def _see(self, widths: dict[str, int]) -> dict[str, _Seen]:
        """Returns the second moments of some inputs of the float model."""
        assert self._dataset is not None, "without examples nothing is seen"
        found = {name: _Seen(fit=SecondMoment(k), held=SecondMoment(k)) for name, k in widths.items()}
        model, done, count = self._model, 0, len(self._fit) + len(self._held)
        inner = [name for name in found if name not in model.view.inputs]
        session = RUNTIMES["ort"].open(model.serialized(extra_outputs=inner), run_options(model, Options()))
        for part, indices in (("fit", self._fit), ("held", self._held)):
            for feeds, batch in model_batches(model, self._dataset, indices, size=shard_size(model)):
                check_values(batch)
                outputs = session.run(feeds)
                tensors = {name: feeds[name] if name in feeds else outputs[name] for name in found}
                for name, values in real_rows(model, tensors, len(batch.index)).items():
                    (found[name].fit if part == "fit" else found[name].held).add(values)
                done += len(batch.index)
                self._progress("inputs of layers", done, count)
        return found

    def _quantized(self, decision: Decision, moments: _Seen, passed: Feedback | None) -> QTensor:
        assert decision.scheme is not None
        return quantize_blocks(
            self._model.weight(decision.site),
            decision.scheme,
            rule=decision.range_rule or MINMAX,
            rounder=decision.rounder or "nearest",
            second_moment=moments.fit.total,
            passed=passed,
        )

    def _best(self, layer: _Layer, moments: _Seen, passed: Feedback) -> Decision:
        """Returns the decision of the candidate with the least error on the examples held out."""
        scheme = layer.decision.scheme
        assert scheme is not None and isinstance(scheme.granularity, PerGroup)
        values = self._model.weight(layer.decision.site)
        turned = scheme.granularity.axis == 0
        best, least, plain, fed = layer.decision, float("inf"), 0.0, float("inf")
        kept: QTensor | None = None
        drafted = layer.decision.range_rule or MINMAX, layer.decision.rounder or "nearest"
        for rule, rounder in dict.fromkeys((drafted, *_CANDIDATES)):
            tried = replace(layer.decision, range_rule=rule, rounder=rounder)
            tensor = self._quantized(tried, moments, passed)
            off = values - np.asarray(tensor.dequantize())
            error = moments.held.output_error(off.T if turned else off)
            if (rule, rounder) == drafted:
                plain = error
            if rounder != "nearest":
                fed = min(fed, error)
            if error < least:
                best, least, kept = tried, error, tensor
        if kept is not None and _needs_inputs(best):
            self._made[_key(best)] = kept
        why = _evidence(best, drafted, (least, plain, fed), len(self._held))
        return replace(best, reason=f"{best.reason}; {why}")


def _fed(layers: list[_Layer], seen: dict[str, _Seen]) -> Iterator[tuple[_Layer, _Seen, Feedback]]:
    """Yields layers with what their inputs say; layers of one input share it, those whose inputs overflow are left."""
    for name, moments in seen.items():
        if not moments.fit.finite or not moments.held.finite:
            continue
        passed = feedback(moments.fit.total)
        for layer in layers:
            if layer.input == name:
                yield layer, moments, passed


def _needs_inputs(decision: Decision) -> bool:
    return needs_inputs(decision.range_rule, decision.rounder)


def _key(decision: Decision) -> tuple[object, ...]:
    return decision.site, decision.scheme, decision.range_rule, decision.rounder


def _evidence(best: Decision, drafted: tuple[str, str], errors: tuple[float, float, float], examples: int) -> str:
    """Returns why a candidate was taken, in words; errors are the least, the drafted one's, and that of gptq."""
    least, plain, fed = errors
    where = f"on {examples} calibration examples held out"
    rule, rounder = best.range_rule, best.rounder
    if plain <= 0:
        return f"{rule}, {rounder}: no output error {where}"
    if (rule, rounder) == drafted:
        return f"{rule}, {rounder}: nothing tried errs less {where} (gptq {fed / plain:.2f} times as much)"
    beside = "" if rounder != "nearest" else f" (gptq {fed / plain:.2f})"
    return f"{rule}, {rounder}: {least / plain:.2f} of the output error of {', '.join(drafted)} {where}{beside}"
