"""From a finished run to report.json, records and timings: measured values are named and put in their place."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fewbits._base.cpu import cores, cpu_flags, cpu_name
from fewbits.measurement.benchmark import Performance
from fewbits.measurement.executed import mac_bits
from fewbits.measurement.latency import Speedup, Timing
from fewbits.numerics.granularity import PerGroup
from fewbits.planning.macs import count_macs
from fewbits.planning.record import Record
from fewbits.reporting import schema
from fewbits.reporting.words import faster, halves_sentence, headline, smaller
from fewbits.runtimes.base import Numbers
from fewbits.search.building import SiteFacts
from fewbits.search.finished import Finished, Judged, Ran
from fewbits.search.preparing import versions

_FLOAT_SCHEME = "float32"


def assemble(run: Finished) -> schema.Report:
    """Returns the report of a finished run."""
    prepared = run.prepared
    request, parts = prepared.request, prepared.parts
    report = schema.Report(
        headline="",
        verdict="no budget" if run.verdict is None else run.verdict.status,
        float_kept=run.float_kept,
        warnings=run.warnings,
        metric=_metric(run, run.judged),
        size=schema.Size(
            float_bytes=prepared.model.file_bytes,
            quantized_bytes=run.file_bytes,
            ratio=prepared.model.file_bytes / run.file_bytes,
        ),
        latency=schema.Latency() if run.ran is None else _latency(run, run.ran),
        memory=_memory(run),
        executed=schema.Executed() if run.ran is None else _executed(run, run.ran),
        flips=schema.Flips()
        if run.judged is None
        else schema.Flips(harmful=run.judged.bound.harmful, helpful=run.judged.bound.helpful),
        layers=_layers(run),
        search=_search(run),
        model=schema.ModelFacts(
            name=prepared.model.name,
            sha256=prepared.model.sha256,
            opset=prepared.model.opset,
            parameters=prepared.model.parameters,
            macs=sum(count_macs(run.graph).values()),
        ),
        data=schema.DataFacts()
        if parts is None
        else schema.DataFacts(
            calibration_examples=len(parts.calibration),
            selection_examples=len(parts.selection),
            verdict_examples=len(parts.verdict),
            sha256=parts.data.digest(),
            split_rule=parts.rule,
        ),
        target=prepared.target.full_name,
        seed=request.seed,
        versions=versions(prepared.target),
        environment=schema.Environment(cpu=cpu_name(), isa=_isa(), cores=cores()),
        reasons=_reasons(run),
    )
    sentence = f"Float model kept: {run.float_reason}." if run.float_kept else headline(report)
    if run.halved:
        sentence = halves_sentence(report, run.float_reason or "")
    elif run.judged is None and not run.float_kept:
        sentence = _weights_sentence(run, report)
    empty = schema.nulls(report)
    # A reason stands only where a value is missing.
    reasons = {
        key: why for key, why in report.reasons.items() if any(n == key or n.startswith(f"{key}.") for n in empty)
    }
    return report.model_copy(update={"headline": sentence, "reasons": reasons})


def _weights_sentence(run: Finished, report: schema.Report) -> str:
    """Returns the first line where nothing was judged: what was done, and what is not known."""
    gains = ", ".join(text for text in (smaller(report), faster(report)) if text)
    widths = Counter(d.scheme.format.stored_bits for d in run.candidate.plan.quantized if d.scheme is not None)
    counts = [f"{count} weights stored in {bits} bits" for bits, count in sorted(widths.items())]
    return f"{', '.join(counts)}, {gains}; the loss was not measured: {run.unmeasured}."


def _search(run: Finished) -> tuple[schema.Candidate, ...]:
    """Returns everything that was tried: targets and repairs, which go by speed, then candidates, by closeness."""
    offers = [
        schema.Candidate(
            step=number,
            change=f"target {offer.target}: float {offer.float_ms:.3g} ms, quantized {offer.quantized_ms:.3g} ms",
            kept=offer.kept,
            reason=f"{offer.float_speedup.ratio:.2f}x and {offer.quantized_speedup.ratio:.2f}x as fast as float on "
            f"{run.offers[0].target}",
        )
        for number, offer in enumerate(run.offers, start=1)
    ]
    repairs = [
        schema.Candidate(
            step=number,
            change=f"repair: {trial.what}",
            kept=trial.kept,
            reason=trial.failed
            if trial.speedup is None
            else f"{trial.speedup.ratio:.2f}x as fast as before ({trial.speedup.low:.2f} to {trial.speedup.high:.2f})",
        )
        for number, trial in enumerate(run.repairs.trials, start=len(offers) + 1)
    ]
    candidates = [
        schema.Candidate(
            step=number,
            change=trial.change,
            selection_drop=trial.drop,
            selection_kl=trial.kl,
            integer_nodes=trial.integer_nodes,
            kept=trial.kept,
            reason=trial.reason,
        )
        for number, trial in enumerate(run.trail, start=len(offers) + len(repairs) + 1)
    ]
    return (*offers, *repairs, *candidates)


def _isa() -> str:
    """Returns the widest instruction set for 8-bit products that this CPU has."""
    wide = ("amx_int8", "avx512_vnni", "avx_vnni", "avx2", "i8mm", "asimddp")
    return next((flag for flag in wide if flag in cpu_flags()), "unknown")


def _metric(run: Finished, judged: Judged | None) -> schema.Metric:
    metric = run.prepared.metric
    points = metric.bounds == (0.0, 1.0)
    named = schema.Metric(
        name=metric.name,
        direction="higher" if metric.higher_is_better else "lower",
        unit="points" if points else "relative",
        confidence=run.prepared.request.confidence,
        budget=run.prepared.request.max_drop,
    )
    if judged is None:
        return named
    bound, quality = judged.bound, judged.quality
    figures = {
        "float": judged.float_figure,
        "quantized": judged.figure,
        "drop": bound.drop,
        "bound": bound.bound,
        "method": bound.method,
        "confidence": bound.confidence,
        "examples": bound.n,
        "examples_needed": None if judged.verdict is None else judged.verdict.examples_needed,
        "split": "verdict part: played no part in choosing ranges or nodes",
        "quality": schema.Quality(kl=quality.kl, sqnr_db=quality.sqnr_db, agreement=quality.agreement),
    }
    return schema.Metric.model_validate({**named.model_dump(), **figures})


def _accuracy_level(run: Finished) -> dict[str, int]:
    """Returns how exactly the runtime's block operators compute, where the file holds any: it changes the answer."""
    level = run.prepared.target.accuracy_level
    blocks = any(d.scheme and isinstance(d.scheme.granularity, PerGroup) for d in run.candidate.plan.quantized)
    return {"accuracy_level": level} if blocks and level is not None and not run.float_kept else {}


def _latency(run: Finished, ran: Ran) -> schema.Latency:
    performance = ran.performance
    speedup = performance.speedup
    return schema.Latency(
        float_ms=performance.float_timing.p50_ms,
        quantized_ms=performance.timing.p50_ms,
        speedup=speedup.ratio,
        speedup_low=speedup.low,
        speedup_high=speedup.high,
        confidence=speedup.confidence,
        p50=performance.timing.p50_ms,
        p90=performance.timing.p90_ms,
        p99=performance.timing.p99_ms,
        throughput=performance.timing.throughput,
        threads=performance.options.threads,
        batch=performance.batch,
        runtime=performance.runtime,
        isa=_isa(),
        session_options={**performance.session_options, **_accuracy_level(run), "clock": performance.clock},
    )


def _memory(run: Finished) -> schema.Memory:
    ran = run.ran
    graph = run.graph
    running = set() if run.float_kept else set(run.candidate.integer)
    variant = run.prepared.target.variant
    sites = {} if run.float_kept else run.candidate.sites
    model = run.prepared.model
    stored = {d.site for d in run.candidate.plan.quantized if d.role.value != "activation"} if sites else set()
    floats = model.parameters - sum(sites[name].elements for name in stored)
    weights = 4 * floats + sum(_stored_bytes(sites[name]) for name in stored)
    return schema.Memory(
        peak_bytes=None if ran is None else ran.performance.peak_bytes,
        weights_bytes=weights,
        bytes_moved=None if ran is None else ran.executed.bytes_moved,
        mac_bits=mac_bits(graph, running, activation_bits=variant.activation.bits, weight_bits=variant.weight.bits),
        float_peak_bytes=None if ran is None else ran.performance.float_peak_bytes,
        float_weights_bytes=4 * model.parameters,
        float_bytes_moved=None if ran is None else ran.float_executed.bytes_moved,
    )


def _stored_bytes(facts: SiteFacts) -> int:
    bits = (facts.bits_per_weight or 0.0) * facts.elements
    return round(bits / 8)


def _executed(run: Finished, ran: Ran) -> schema.Executed:
    executed = ran.executed
    left = {island.node for island in executed.islands}
    floating = run.float_reason is not None
    mended = () if floating else tuple(i for i in run.repairs.before if i.node not in left)
    return schema.Executed(
        integer_nodes=executed.count(Numbers.INTEGER),
        float_nodes=executed.count(Numbers.FLOAT),
        integer_nodes_before=None if floating else run.repairs.integer_nodes,
        float_nodes_before=None if floating else run.repairs.float_nodes,
        repairs=None if floating or run.repairs.integer_nodes is None else run.repairs.kept,
        by_dtype=executed.by_dtype,
        kernels=executed.kernels,
        islands=tuple(
            schema.Island(node=island.node, op=island.op, rule=island.rule, repaired=repaired, why=island.why)
            for repaired, islands in ((False, executed.islands), (True, mended))
            for island in islands
        ),
    )


def _layers(run: Finished) -> tuple[schema.Layer, ...]:
    found = []
    facts_by_site: Mapping[str, SiteFacts] = {} if run.float_kept else run.candidate.sites
    for decision in run.candidate.plan.decisions:
        facts = facts_by_site.get(decision.site)
        floating = decision.is_float or run.float_kept
        algorithm = None if floating else " + ".join(filter(None, (decision.range_rule, decision.rounder)))
        tensor = run.graph.tensors[decision.site]
        found.append(
            schema.Layer(
                site=decision.site,
                node=decision.node,
                op=decision.op,
                role=decision.role.value,
                scheme=_FLOAT_SCHEME if floating or decision.scheme is None else decision.scheme.name,
                bits_per_weight=32.0 if floating else None if facts is None else facts.bits_per_weight,
                algorithm=algorithm,
                sqnr_db=None if facts is None else facts.sqnr_db,
                reason=(run.float_reason or "") if run.float_kept else decision.reason,
                scale_bytes=0 if facts is None else facts.scale_bytes,
                elements=tensor.elements,
            )
        )
    return tuple(found)


def _reasons(run: Finished) -> dict[str, str]:
    reasons = {
        "layers.bits_per_weight": "an activation flows, it is not stored",
        "layers.sqnr_db": "the site stayed float, or its codes lose nothing",
        "layers.algorithm": "the site stayed float",
        "metric.quality.kl": "the output has no classes on its last axis",
        "metric.quality.agreement": "the output has no classes on its last axis",
        "metric.quality.sqnr_db": "the outputs are equal to the bit",
        "memory.peak_bytes": "this system does not tell a process's peak memory",
        "memory.float_peak_bytes": "this system does not tell a process's peak memory",
        "latency.speedup_high": "too few blocks for an interval",
        "latency.speedup_low": "too few blocks for an interval",
    }
    before = ("executed.integer_nodes_before", "executed.float_nodes_before", "executed.repairs")
    reasons |= dict.fromkeys(before, "no repair was tried: a plan was applied, or the float model was kept")
    tried = "repairs are judged by speed, on the graph as it runs"
    reasons |= dict.fromkeys(("search.selection_drop", "search.selection_kl", "search.integer_nodes"), tried)
    if run.judged is None:
        reasons |= dict.fromkeys(("metric", "flips", "data"), run.unmeasured)
    if run.ran is None:
        peaks = ("memory.peak_bytes", "memory.float_peak_bytes")
        reasons |= dict.fromkeys(("latency", "memory", "executed", *peaks), run.unmeasured)
    if run.verdict is not None and run.verdict.status == "undecided":
        reasons["metric.examples_needed"] = run.verdict.reason
    return reasons


def records(run: Finished) -> tuple[Record, ...]:
    """Returns the measured facts that do not depend on the clock."""
    prepared = run.prepared
    name, seed = prepared.metric.name, prepared.request.seed
    unit = "points" if prepared.metric.bounds == (0.0, 1.0) else "relative"
    runtime = {} if run.ran is None else {"runtime": run.ran.performance.runtime}
    where = {"split": "verdict", **runtime, "threads": str(prepared.request.threads)}

    def fact(metric: str, subject: str, value: float | None, unit: str, **more: Any) -> Record:
        return Record(metric=metric, subject=subject, value=value, unit=unit, seed=seed, conditions=where, **more)

    found = []
    if run.judged is not None:
        bound, quality = run.judged.bound, run.judged.quality
        sqnr = quality.sqnr_db if quality.sqnr_db < float("inf") else None
        found += [
            fact(name, "float", run.judged.float_figure, "metric", n=bound.n),
            fact(name, "quantized", run.judged.figure, "metric", n=bound.n),
            fact(f"{name} loss", "difference", bound.drop, unit, bound=bound.bound, n=bound.n),
            fact("harmful flips", "difference", float(bound.harmful), "examples", n=bound.n),
            fact("helpful flips", "difference", float(bound.helpful), "examples", n=bound.n),
            fact("kl", "difference", quality.kl, "nats per example", n=bound.n),
            fact("sqnr", "difference", sqnr, "dB", n=bound.n),
        ]
    found += [
        fact("size", "float", float(prepared.model.file_bytes), "bytes"),
        fact("size", "quantized", float(run.file_bytes), "bytes"),
    ]
    if run.ran is not None:
        found += [
            fact("integer nodes", "quantized", float(run.ran.executed.count(Numbers.INTEGER)), "nodes"),
            fact("float nodes", "quantized", float(run.ran.executed.count(Numbers.FLOAT)), "nodes"),
        ]
    return tuple(found)


def timings(run: Finished) -> str:
    """Returns timings.json: everything that a clock measured, every block of it, and the seconds of each stage."""
    head = {
        "schema_version": 1,
        "cpu": cpu_name(),
        "isa": list(cpu_flags()),
        "stage_seconds": dict(run.seconds),
        "repairs": [
            {"repair": trial.name, "kept": trial.kept, **({} if trial.speedup is None else _speedup(trial.speedup))}
            for trial in run.repairs.trials
        ],
        "targets": [asdict(offer) for offer in run.offers],
    }
    document = head if run.ran is None else {**_measured(run.ran), **head}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _measured(ran: Ran) -> dict[str, Any]:
    performance = ran.performance
    latency = performance.latency
    return {
        "float": _timing(performance.float_timing),
        "quantized": _timing(performance.timing),
        "speedup": _speedup(performance.speedup),
        "float_mended": None if performance.mended is None else _speedup(performance.mended),
        "speedup_over_float_mended": None if performance.over_mended is None else _speedup(performance.over_mended),
        "clock": performance.clock,
        "blocks_ms": {name: list(blocks) for name, blocks in latency.block_ms.items()},
        "batch": performance.batch,
        "options": dict(performance.session_options),
        "runtime": performance.runtime,
        "memory": {"peak_bytes": performance.peak_bytes, "float_peak_bytes": performance.float_peak_bytes},
        "integers_given_up": None if ran.integers is None else _given_up(ran.integers),
        "nodes": [
            {"node": node.name, "op": node.op, "numbers": node.numbers.value, "microseconds": node.microseconds}
            for node in ran.executed.nodes
        ],
    }


def _given_up(integers: Performance) -> dict[str, Any]:
    """Returns the timing of the quantized file in whose stead 16-bit weights are handed over."""
    return {
        "quantized": _timing(integers.timing),
        "speedup": _speedup(integers.speedup),
        "blocks_ms": {name: list(blocks) for name, blocks in integers.latency.block_ms.items()},
    }


def _timing(timing: Timing) -> dict[str, float]:
    return dict(asdict(timing))


def _speedup(speedup: Speedup) -> dict[str, float | None]:
    return {key: (None if value in (0.0, float("inf")) else value) for key, value in asdict(speedup).items()}
