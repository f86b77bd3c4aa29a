"""Sequential bias correction: layer by layer, each fed by the quantized layers before it, on calibration examples.

The quantized model is written with the corrections so far, run up to the next layers, and their mean outputs are
compared with those of the float model. What a plan records is the step, not the numbers: the same plan and data give
the same corrections.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import numpy as np

from fewbits.algorithms.transforms.bias_correction import BiasCorrection
from fewbits.calibration.statistics import Statistics
from fewbits.datasets.base import Dataset
from fewbits.flow import NO_CORRECTIONS, Corrections, Progress, check_plan, rebiased, silent, stream
from fewbits.models.onnx.editing import exposing
from fewbits.models.onnx.feeding import model_batches, real_rows, run_options, shard_size
from fewbits.models.onnx.model import OnnxModel
from fewbits.planning.plan import Plan, TransformStep
from fewbits.planning.site import Role
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Options
from fewbits.search.building import written
from fewbits.targets.base import Target

STEP = "bias_correction"
# A mean over so many examples is known to within a sixteenth of the spread over examples.
_MAX_EXAMPLES = 256
# Looks at the quantized model: in a deeper one several layers are corrected at each.
_MAX_LOOKS = 32


def asks_for_correction(plan: Plan) -> bool:
    """Returns whether a plan has its biases corrected."""
    return any(step.name == STEP for step in plan.transforms)


def with_correction(plan: Plan) -> Plan:
    """Returns the plan with its biases corrected."""
    return plan if asks_for_correction(plan) else replace(plan, transforms=(*plan.transforms, TransformStep(name=STEP)))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A layer whose bias is quantized: the names of its bias, and of the tensor that it makes."""

    bias: str
    output: str


@final
class Corrector:
    """Corrections for plans of one model; what was computed for a plan is kept.

    Args:
      model: The float model, as it is quantized.
      target: The rules.
      statistics: Of its activation sites.
      dataset: Examples; None where there are none.
      indices: Those of the calibration part, ascending.
      progress: Told of each look at the quantized model.
    """

    def __init__(
        self,
        model: OnnxModel,
        target: Target,
        statistics: Statistics,
        dataset: Dataset | None,
        indices: np.ndarray,
        *,
        progress: Progress = silent,
    ) -> None:
        self._model = model
        self._target = target
        self._statistics = statistics
        self._dataset = dataset
        self._indices = indices[:_MAX_EXAMPLES]
        self._progress = progress
        self._means: dict[str, np.ndarray] = {}
        self._known: dict[tuple[object, ...], Corrections] = {}

    def of(self, plan: Plan) -> Corrections:
        """Returns the correction of each bias by its name; none where the plan does not ask for them."""
        if not asks_for_correction(plan) or not len(self._indices):
            return NO_CORRECTIONS
        key = (plan.decisions, plan.links, plan.transforms)
        if key not in self._known:
            self._known[key] = self._correct(plan)
        return self._known[key]

    def _correct(self, plan: Plan) -> Corrections:
        layers = self._layers(plan)
        if not layers:
            return NO_CORRECTIONS
        self._see_float([layer.output for layer in layers])
        # Scales and codes of everything but the biases stay as they are: they are computed once.
        integer = check_plan(self._model, self._target, plan)
        found: dict[str, BiasCorrection] = {}
        looks = np.array_split(np.arange(len(layers)), min(len(layers), _MAX_LOOKS))
        values = list(stream(self._model, plan, self._target, self._statistics))
        for number, group in enumerate(looks):
            self._progress("correcting biases", number, len(looks))
            data = written(self._model, plan, self._target, integer, values)
            names = [layers[i].output for i in group]
            means = self._mean_outputs(exposing(data, names), names)
            for i in group:
                layer = layers[i]
                found[layer.bias] = BiasCorrection(excess=means[layer.output] - self._means[layer.output])
            values = list(rebiased(values, self._model, plan, found))
        return found

    def _layers(self, plan: Plan) -> list[_Layer]:
        """Returns the layers with a quantized bias of their own, in graph order."""
        view = self._model.view
        layers = []
        for decision in plan.quantized:
            readers = view.consumers.get(decision.site, ())
            if decision.role is Role.BIAS and len(readers) == 1:
                layers.append(_Layer(bias=decision.site, output=readers[0].outputs[0]))
        order = {name: place for place, name in enumerate(view.producer)}
        return sorted(layers, key=lambda layer: order[layer.output])

    def _see_float(self, outputs: list[str]) -> None:
        missing = [name for name in outputs if name not in self._means]
        if missing:
            self._means.update(self._mean_outputs(self._model.serialized(extra_outputs=missing), missing))

    def _mean_outputs(self, data: bytes, names: list[str]) -> dict[str, np.ndarray]:
        """Returns the mean of each tensor per channel (axis 1), float64, over the examples."""
        assert self._dataset is not None, "without examples nothing is corrected"
        session = RUNTIMES["ort"].open(data, run_options(self._model, Options()))
        totals: dict[str, np.ndarray] = {}
        counts = dict.fromkeys(names, 0)
        for feeds, batch in model_batches(self._model, self._dataset, self._indices, size=shard_size(self._model)):
            outputs = session.run(feeds)
            for name, value in real_rows(
                self._model, {name: outputs[name] for name in names}, len(batch.index)
            ).items():
                axes = tuple(i for i in range(value.ndim) if i != 1)
                totals[name] = totals.get(name, 0) + value.sum(axis=axes, dtype=np.float64)
                counts[name] += value.size // value.shape[1]
        return {name: totals[name] / counts[name] for name in names}
