"""From a plan to a file: the flow poured into the target's exporter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np

from fewbits.calibration.histogram import Histogram
from fewbits.calibration.statistics import Statistics
from fewbits.export import EXPORTERS
from fewbits.flow import NOTHING_LEARNED, Learned, check_plan, stream
from fewbits.models.onnx.model import OnnxModel
from fewbits.numerics.format import Int
from fewbits.numerics.granularity import PerGroup
from fewbits.numerics.qtensor import QParams, QTensor, as_array
from fewbits.planning.plan import Plan
from fewbits.planning.site import Role, Site
from fewbits.targets import dynamic_nodes
from fewbits.targets.base import Target


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFacts:
    """What became of one site.

    Args:
      bits_per_weight: Stored bits per element, scales included; None for activations.
      sqnr_db: Signal over quantization noise of the tensor: exact for constants, on calibration data for activations.
      scale_bytes: Bytes of scales and zero points.
      elements: Elements of the tensor, for one example.
    """

    bits_per_weight: float | None
    sqnr_db: float | None
    scale_bytes: int
    elements: int


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """A plan made into a file.

    Args:
      plan: The plan.
      data: The file.
      integer: Nodes placed to multiply integers, whether their ranges are fixed or those of each run.
      sites: Facts by site name.
    """

    plan: Plan
    data: bytes
    integer: tuple[str, ...]
    sites: Mapping[str, SiteFacts] = field(default_factory=dict)


def build(
    model: OnnxModel,
    plan: Plan,
    target: Target,
    statistics: Statistics,
    *,
    metadata: Mapping[str, str] | None = None,
    data_file: Path | None = None,
    learned: Learned = NOTHING_LEARNED,
) -> Candidate:
    """Returns the file that a plan means: the same plan and statistics give the same bytes.

    Args:
      model: The model.
      plan: The plan.
      target: The rules.
      statistics: Of the activation sites.
      metadata: Key-value pairs for the file.
      data_file: Where large tensors go as they come; None for one file.
      learned: What examples say of biases and codes, where the plan asks for it.
    Raises: what ``check_plan`` raises for a plan that the target cannot run.
    """
    integer = check_plan(model, target, plan)
    sink = EXPORTERS[target.exporter].open(model, plan, integer=integer, metadata=metadata or {}, data_file=data_file)
    facts = {}
    for site, value in stream(model, plan, target, statistics, learned=learned):
        sink.write(site, value)
        if isinstance(value, QParams):
            facts[site.name] = _activation_facts(value, statistics.histograms.get(site.name), model, site.name)
        else:
            facts[site.name] = _constant_facts(value, model.slabs(site.name))
    running = (*integer, *running_dynamic(model, plan, target))
    return Candidate(plan=plan, data=sink.close(), integer=running, sites=facts)


def running_dynamic(model: OnnxModel, plan: Plan, target: Target) -> tuple[str, ...]:
    """Returns the nodes of a plan that quantize their inputs as they come."""
    return dynamic_nodes(model.view, target, (d.site for d in plan.decisions if d.dynamic))


def written(
    model: OnnxModel,
    plan: Plan,
    target: Target,
    integer: tuple[str, ...],
    values: Iterable[tuple[Site, QTensor | QParams]],
) -> bytes:
    """Returns the file of values that the flow gave, without facts about them."""
    sink = EXPORTERS[target.exporter].open(model, plan, integer=integer, metadata={})
    for site, value in values:
        sink.write(site, value)
    return sink.close()


def _decibels(signal: float, noise: float) -> float | None:
    return None if noise == 0 or signal == 0 else float(10 * np.log10(signal / noise))


def _constant_facts(value: QTensor, original: Iterator[np.ndarray]) -> SiteFacts:
    """Returns the facts of a fixed tensor, whose values come in slabs along the first axis."""
    signal = noise = 0.0
    start = 0
    # Blocks that lie across rows are not cut between them.
    granularity = value.scheme.granularity
    across = np.asarray(value.dequantize()) if isinstance(granularity, PerGroup) and granularity.axis == 0 else None
    for slab in original:
        rows = slice(start, start + len(slab)) if slab.ndim else ...
        back = np.asarray(_rows_of(value, rows).dequantize()) if across is None else across[rows]
        signal += float((slab.astype(np.float64) ** 2).sum())
        noise += float(((back.astype(np.float64) - slab) ** 2).sum())
        start += len(slab) if slab.ndim else 0
    groups = int(np.prod(value.scale.shape)) if value.scheme.scaled else 0
    codes = int(np.prod(value.shape)) * value.scheme.format.stored_bits
    return SiteFacts(
        bits_per_weight=value.bits_per_weight,
        sqnr_db=_decibels(signal, noise),
        scale_bytes=(value.stored_bits - codes + 7) // 8 if isinstance(granularity, PerGroup) else groups * 5,
        elements=int(np.prod(value.shape)),
    )


def _rows_of(value: QTensor, rows: Any) -> QTensor:
    """Returns some rows of a tensor, with their scales where each row has its own."""
    codes = np.asarray(value.codes)[rows]
    params = value.params
    scale = as_array(params.scale)
    if scale.ndim and scale.shape[0] == value.shape[0]:
        params = replace(params, scale=scale[rows], zero_point=params.zero_point[rows])
    return QTensor(codes=codes, params=params)


def _activation_facts(value: QParams, histogram: Histogram | None, model: OnnxModel, name: str) -> SiteFacts:
    return SiteFacts(
        bits_per_weight=None,
        sqnr_db=None if histogram is None else activation_sqnr(value, histogram),
        scale_bytes=5,
        elements=model.view.tensors[name].elements,
    )


def activation_sqnr(value: QParams, histogram: Histogram) -> float | None:
    """Returns the signal over quantization noise of an activation in decibels, from its histogram."""
    fmt = value.scheme.format
    assert isinstance(fmt, Int)
    used = np.flatnonzero(histogram.counts)
    centers, counts = histogram.centers()[used], histogram.counts[used]
    scale, zero = float(as_array(value.scale)), float(value.zero_point)
    codes = np.clip(np.round(centers / scale) + zero, fmt.min_code, fmt.max_code)
    wrong = (codes - zero) * scale - centers
    return _decibels(float((centers**2 * counts).sum()), float((wrong**2 * counts).sum()))


def activation_sites(plan: Plan) -> tuple[str, ...]:
    """Returns the activation sites whose statistics a plan may need.

    Linked sites too: when the node behind which their root lies goes back to float, they stand on their own.
    """
    return tuple(d.site for d in plan.quantized if d.role is Role.ACTIVATION)
