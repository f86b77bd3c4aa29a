"""What a model is taught from its calibration examples: factors between layers, ranges, biases and codes.

The model that is taught may be exchanged for an equal one on the way (``use``); what was learned belongs to one model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import final

import numpy as np

from fewbits.calibration.statistics import Statistics
from fewbits.datasets.base import Dataset
from fewbits.flow import Learned
from fewbits.measurement.outcome import Outcome, Reference
from fewbits.models.onnx.model import OnnxModel
from fewbits.planning.plan import Plan
from fewbits.runtimes.base import Options
from fewbits.search.blockwise import Blockwise
from fewbits.search.building import build
from fewbits.search.layerwise import LESSONS, Layerwise, closeness_part
from fewbits.search.loop import CLOSER, FAR_KL, TAUGHT, close_enough
from fewbits.search.preparing import Prepared, asked_placement
from fewbits.search.ranging import by_output_error
from fewbits.search.repairing import Repaired
from fewbits.search.transforming import Evidence, Variant, variants
from fewbits.targets import Forms

# Calibration examples that are asked where those that nothing is learned from see nothing to mend.
_COMPARED = 256


@final
class Teacher:
    """The model of a run as it is now, and what its layers learn.

    Args:
      prepared: What was opened.
      options: How sessions are opened.
    """

    def __init__(self, prepared: Prepared, options: Options) -> None:
        self.prepared = prepared
        self.statistics = Statistics(histograms={}, examples=0)
        self._options = options
        self._made: tuple[Prepared, Layerwise] | None = None
        self._blocks: Blockwise | None = None

    def learned_layers(self, plan: Plan) -> Learned:
        """Returns what layers learn for a plan of the model as it is now."""
        return self._layerwise().of(plan)

    def variants(self, plan: Plan, forms: Forms, lopsided: bool = False) -> Iterator[Variant]:
        """Yields equal models that may be quantized better, or that lopsided channels ask for; ``use`` takes one."""
        jobs = self.prepared.request.jobs
        if (evidence := self.evidence()) is not None:
            yield from variants(self.prepared.model, plan, evidence, forms=forms, lopsided=lopsided, jobs=jobs)

    def ranged(self, plan: Plan) -> Plan:
        """Returns the plan with range rules by the output errors of layers; as it is where the effort is "fast"."""
        prepared, parts = self.prepared, self.prepared.parts
        if parts is None or self.prepared.request.effort == "fast":
            return plan
        return by_output_error(
            prepared.model,
            prepared.target,
            plan,
            parts.data,
            parts.calibration,
            jobs=self.prepared.request.jobs,
            seed=self.prepared.request.seed,
            progress=self.prepared.request.progress,
        )

    def use(self, model: OnnxModel, statistics: Statistics) -> None:
        """Goes on with an equal model."""
        if model is not self.prepared.model:
            placement = asked_placement(self.prepared.request, model, self.prepared.target, None)
            self.prepared = replace(self.prepared, model=model, placement=placement)
        self.statistics = statistics

    def evidence(self) -> Evidence | None:
        """Returns what factors between layers are computed from; None without calibration examples."""
        parts = self.prepared.parts
        if parts is None or not len(parts.calibration) or self.prepared.request.weights_only:
            return None
        return Evidence(dataset=parts.data, indices=parts.calibration, target=self.prepared.target)

    def transformed(self, repaired: Repaired) -> Plan:
        """Returns the plan of the equal model that is quantized best, by calibration examples; the run goes on with it.

        Those decide that no layer learns from; where these see little to mend, all, since what a few examples suffer
        may not be among them. Where outputs are far from float before layers learn, models are compared with what
        layers learn.
        """
        parts = self.prepared.parts
        if parts is None or not len(parts.calibration):
            return repaired.plan
        with self._reference(closeness_part(parts.calibration)) as reference:
            least = self._distance(repaired.plan, reference)
            if not close_enough(least):
                return self._best_variant(repaired, reference, least)
        with self._reference(parts.calibration[:_COMPARED]) as reference:
            least = self._distance(repaired.plan, reference)
            return (
                self._evened(repaired, reference)
                if close_enough(least)
                else self._best_variant(repaired, reference, least)
            )

    def _evened(self, repaired: Repaired, reference: Reference) -> Plan:
        """Returns the plan of the equal model without lopsided channels, where outputs stay close to float.

        Outputs of some hundred examples that are close already do not tell models apart; sizes of channels do.
        """
        start = self.prepared.model, self.statistics
        for variant in self.variants(repaired.plan, repaired.forms, lopsided=True):
            self.use(variant.model, variant.statistics)
            if close_enough(self._distance(variant.plan, reference)):
                return variant.plan
            self.use(*start)
        return repaired.plan

    def _best_variant(self, repaired: Repaired, reference: Reference, least: Outcome) -> Plan:
        """Returns the plan of the equal model whose outputs are clearly closest to float; ``least`` is of this one."""
        best = start = self.prepared.model, self.statistics
        plan = repaired.plan
        far = (least.quality.kl or 0.0) > FAR_KL
        if far:
            least = self._distance(self._lessons(plan), reference)
        for variant in self.variants(repaired.plan, repaired.forms):
            self.use(variant.model, variant.statistics)
            found = self._distance(self._lessons(variant.plan) if far else variant.plan, reference)
            if found.quality.gauge < CLOSER * least.quality.gauge:
                best, plan, least = (variant.model, variant.statistics), variant.plan, found
            self.use(*start)
            if close_enough(least):
                break
        self.use(*best)
        return plan

    def _examples(self) -> tuple[Dataset | None, np.ndarray]:
        """Returns the data, and which of them calibrate, ascending; none where there are none."""
        parts = self.prepared.parts
        return (None, np.zeros(0, np.int64)) if parts is None else (parts.data, parts.calibration)

    def _layerwise(self) -> Layerwise:
        """Returns what teaches the layers of the model as it is now."""
        prepared = self.prepared
        if self._made is None or self._made[0] is not prepared:
            made = Layerwise(
                prepared.model,
                prepared.target,
                self.statistics,
                *self._examples(),
                max_memory=self.prepared.request.max_memory,
                seed=self.prepared.request.seed,
                progress=self.prepared.request.progress,
            )
            self._made = prepared, made
        return self._made[1]

    def blockwise(self) -> Blockwise:
        """Returns what chooses the codes of weights in blocks; the model is not repaired where there are such."""
        if self._blocks is None:
            self._blocks = Blockwise(
                self.prepared.model,
                self.prepared.target,
                *self._examples(),
                max_memory=self.prepared.request.max_memory,
                progress=self.prepared.request.progress,
            )
        return self._blocks

    def learned(self, plan: Plan) -> Learned:
        """Returns all that a plan asks to be learned from examples."""
        layers, blocks = self._layerwise().of(plan), self.blockwise().of(plan)
        return Learned(corrections=layers.corrections, weights={**layers.weights, **blocks.weights})

    def taught(self, plan: Plan) -> Plan:
        """Returns the plan with what its layers learn, where that brings other calibration examples closer to float."""
        parts = self.prepared.parts
        if parts is None or not len(parts.calibration):
            return plan
        with self._reference(closeness_part(parts.calibration)) as reference:
            best, least = plan, self._distance(plan, reference)
            ranged = self.ranged(plan)
            if ranged != plan:
                found = self._distance(ranged, reference)
                if found.quality.gauge < CLOSER * least.quality.gauge:
                    best, plan, least = ranged, ranged, found
            for _, teach in LESSONS[: TAUGHT[self.prepared.request.effort]]:
                taught = teach(plan)
                if (close_enough(least) and self._close_on_all(best)) or not self._layerwise().of(taught):
                    break
                found = self._distance(taught, reference)
                if found.quality.gauge < least.quality.gauge:
                    best, least = taught, found
        return best

    def _close_on_all(self, plan: Plan) -> bool:
        """Returns whether outputs are close to float on the calibration examples that layers learn from too."""
        parts = self.prepared.parts
        assert parts is not None
        with self._reference(parts.calibration[:_COMPARED]) as reference:
            return close_enough(self._distance(plan, reference))

    def _lessons(self, plan: Plan) -> Plan:
        """Returns the plan with all that its layers may learn."""
        taught = LESSONS[: TAUGHT[self.prepared.request.effort]]
        return taught[-1][1](plan) if taught else plan

    def _reference(self, indices: np.ndarray) -> Reference:
        """Returns the float model on some calibration examples."""
        prepared = self.prepared
        assert prepared.parts is not None
        return Reference(
            prepared.model,
            prepared.parts.data,
            indices,
            metric=prepared.selection_metric,
            output=prepared.output,
            options=self._options,
        )

    def _distance(self, plan: Plan, reference: Reference) -> Outcome:
        """Returns how far from float a plan's file is, with all that the plan asks to be learned."""
        learned = self._layerwise().of(plan)
        built = build(self.prepared.model, plan, self.prepared.target, self.statistics, learned=learned)
        return reference.compare(built.data, self.prepared.request.progress, stage="layer by layer")
