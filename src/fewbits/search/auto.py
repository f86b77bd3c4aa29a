"""``--target auto``: what each runtime here would make of a model, timed side by side, before any verdict."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import final

from fewbits._base.cpu import instruction_set, native_bf16
from fewbits._base.errors import TargetError
from fewbits.measurement.benchmark import ModelFiles
from fewbits.measurement.latency import LatencyResult, Speedup, measure_latency
from fewbits.runtimes import open_session
from fewbits.runtimes.base import Options, Tensors
from fewbits.search.preparing import Prepared, Request, asked_placement, versions, wanted_scheme
from fewbits.targets import resolve_target
from fewbits.targets.base import Target

AUTO = "auto"
_FLOAT, _QUANTIZED = "float", "quantized"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What one target would give.

    Args:
      target: With its instruction set.
      float_ms: Time of the float model there.
      quantized_ms: Time of the quantized file there.
      float_speedup: Of the float model over the first target's float model.
      quantized_speedup: Of the quantized file over the same.
      kept: Whether this target was taken.
    """

    target: str
    float_ms: float
    quantized_ms: float
    float_speedup: Speedup
    quantized_speedup: Speedup
    kept: bool

    @property
    def best_ms(self) -> float:
        """Time of the faster of the two."""
        return min(self.float_ms, self.quantized_ms)


def rungs(request: Request) -> tuple[tuple[Target, ...], tuple[str, ...]]:
    """Returns the targets that ``auto`` compares, ONNX Runtime first, and notes on those that it does not.

    OpenVINO counts twice where this CPU multiplies bfloat16: with the rest in float32, and in bfloat16.
    """
    first = resolve_target("ort-cpu")
    if find_spec("openvino") is None:
        text = "the target openvino was not tried: pip install 'fewbits[openvino]'; ort-cpu was taken"
        return (first,), (f"{text} [auto-alone]",)
    isas = (instruction_set(), *(("bf16",) if native_bf16() else ()))
    found, notes = [first], []
    for isa in isas:
        target = resolve_target(f"openvino:{isa}")
        try:
            wanted_scheme(request, target)
        except TargetError:
            notes.append(f"{target.full_name} was not tried: it does not write {request.scheme!r} [auto-alone]")
        else:
            found.append(target)
    return tuple(found), tuple(notes)


def retargeted(prepared: Prepared, target: Target) -> Prepared:
    """Returns what was opened for another target; model and data stay open."""
    request, model = replace(prepared.request, target=target.full_name), prepared.model
    wanted = wanted_scheme(request, target)
    placement = asked_placement(request, model, target, wanted)
    base = replace(prepared.base, target=target.full_name, versions=versions(target))
    return replace(prepared, request=request, target=target, placement=placement, base=base)


def time_offers(
    files: Mapping[str, tuple[ModelFiles, Options]],
    candidates: Mapping[str, tuple[ModelFiles, Options]],
    *,
    feeds: Tensors,
    batch: int,
    seconds: float,
    seed: int,
) -> tuple[Offer, ...]:
    """Returns what each target would give, all timed in turn in one measurement; the fastest one is kept.

    Args:
      files: The float model by target, with the options that it is opened with there; the first is the baseline.
      candidates: The quantized file of each.
      feeds: One example.
      batch: How many examples that is.
      seconds: How long is measured.
      seed: Of the order.
    """
    sessions = {
        f"{target} {kind}": open_session(file.model, replace(options, data_folder=file.data_folder))
        for kind, named in ((_FLOAT, files), (_QUANTIZED, candidates))
        for target, (file, options) in named.items()
    }
    alone = all(options.threads == 1 for _, options in files.values())
    result = measure_latency(
        {name: partial(session.run, feeds) for name, session in sessions.items()},
        baseline=f"{next(iter(files))} {_FLOAT}",
        batch=batch,
        seconds=seconds,
        seed=seed,
        clock=time.thread_time_ns if alone else time.perf_counter_ns,
    )
    offers = [_offer(target, result) for target in files]
    best = min(offers, key=lambda offer: offer.best_ms)
    return tuple(replace(offer, kept=offer is best) for offer in offers)


def taken(offers: tuple[Offer, ...]) -> tuple[str, ...]:
    """Returns which target was taken, and what the others would have given, as a note."""
    times = [f"{o.target} {o.quantized_ms:.3g} ms (float {o.float_ms:.3g})" for o in offers]
    kept = [offer.target for offer in offers if offer.kept]
    return tuple(f"{name} was taken, the fastest of {', '.join(times)} [target-taken]" for name in kept)


def _offer(target: str, result: LatencyResult) -> Offer:
    def over(kind: str) -> Speedup:
        return result.speedup(f"{target} {kind}", over=result.baseline)

    return Offer(
        target=target,
        float_ms=result.timings[f"{target} {_FLOAT}"].p50_ms,
        quantized_ms=result.timings[f"{target} {_QUANTIZED}"].p50_ms,
        float_speedup=over(_FLOAT),
        quantized_speedup=over(_QUANTIZED),
        kept=False,
    )
