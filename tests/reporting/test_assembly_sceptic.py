"""Every measured value stands in its own place: report, records and timings of a run whose figures all differ."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fewbits.evidence import PairedBound, Verdict
from fewbits.measurement.latency import LatencyResult, Speedup, Timing
from fewbits.measurement.quality import Quality
from fewbits.reporting import assembly
from fewbits.reporting.schema import Report
from fewbits.runtimes.base import Numbers
from fewbits.search import job
from fewbits.search.draft import draft_plan
from fewbits.search.finished import Finished, Judged
from fewbits.search.preparing import Request
from fewbits.search.repairing import unrepaired
from fewbits.targets import Forms

SLOW = Timing(p50_ms=8.0, p90_ms=9.0, p99_ms=10.0, throughput=125.0, calls=400, blocks=20)
QUICK = Timing(p50_ms=2.0, p90_ms=3.0, p99_ms=4.0, throughput=500.0, calls=401, blocks=20)
SPEEDUP = Speedup(ratio=4.0, low=3.5, high=4.5, confidence=0.9)
BOUND = PairedBound(
    drop=0.01,
    bound=0.03,
    lower=-0.02,
    method="exact-trinomial",
    exact=True,
    n=77,
    harmful=5,
    helpful=3,
    confidence=0.97,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A real run of the small net, its figures replaced by ones that no other has."""
    name = "fewbits_test_runs"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "support" / "runs.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    runs: ModuleType = sys.modules[name]
    with pytest.MonkeyPatch.context() as patch:
        runs.hurry(patch)
        # Which layers have which form goes by the clock, and the counts below are of one form.
        patch.setattr(job, "repair", lambda prepared, statistics, *more: unrepaired(prepared, statistics))
        request = Request(
            model=str(runs.small_net(tmp_path_factory.mktemp("net") / "net.onnx")),
            data=runs.small_data(90),
            effort="fast",
            allow_slower=True,
            max_drop=0.02,
            confidence=0.97,
            seed=5,
            target="ort-cpu:vnni",
        )
        done = job.run(request)
    performance = replace(
        done.ran.performance,
        latency=LatencyResult(
            baseline="float",
            batch=1,
            seed=5,
            confidence=0.9,
            timings={"float": SLOW, "quantized": QUICK},
            speedups={"quantized": SPEEDUP},
            block_ms={"float": (8.0,), "quantized": (2.0,)},
        ),
        timing=QUICK,
        float_timing=SLOW,
        speedup=SPEEDUP,
        peak_bytes=2_000,
        float_peak_bytes=9_000,
        quantized_bytes=1_000,
        float_bytes=3_000,
    )
    return replace(
        done,
        judged=Judged(
            bound=BOUND,
            verdict=Verdict(status="undecided", budget=0.02, bound=BOUND, examples_needed=1234, reason="too few"),
            quality=Quality(kl=0.125, sqnr_db=33.0, agreement=0.75),
            float_figure=0.91,
            figure=0.90,
        ),
        ran=replace(done.ran, performance=performance),
    )


@pytest.fixture(scope="module")
def report(run: Finished) -> Report:
    return assembly.assemble(run)


def test_the_metric_is_told_as_it_was_measured(report: Report) -> None:
    metric = report.metric
    assert (metric.float, metric.quantized, metric.drop, metric.bound) == (0.91, 0.90, 0.01, 0.03)
    assert (metric.examples, metric.examples_needed, metric.budget, metric.confidence) == (77, 1234, 0.02, 0.97)
    assert (metric.name, metric.direction, metric.unit, metric.method) == (
        "agreement", "higher", "points", "exact-trinomial",
    )  # fmt: skip
    assert (metric.quality.kl, metric.quality.sqnr_db, metric.quality.agreement) == (0.125, 33.0, 0.75)
    assert (report.flips.harmful, report.flips.helpful) == (5, 3)
    assert report.verdict == "undecided"


def test_float_and_quantized_are_not_mixed_up(run: Finished, report: Report) -> None:
    size, latency, memory = report.size, report.latency, report.memory
    sizes = len(run.prepared.model.original), len(run.data)
    assert (size.float_bytes, size.quantized_bytes, size.ratio) == (*sizes, sizes[0] / sizes[1])
    assert (latency.float_ms, latency.quantized_ms) == (8.0, 2.0)
    assert (latency.speedup, latency.speedup_low, latency.speedup_high, latency.confidence) == (4.0, 3.5, 4.5, 0.9)
    assert (latency.p50, latency.p90, latency.p99, latency.throughput) == (2.0, 3.0, 4.0, 500.0)
    assert (memory.peak_bytes, memory.float_peak_bytes) == (2_000, 9_000)
    assert (memory.bytes_moved, memory.float_bytes_moved) == (
        run.ran.executed.bytes_moved, run.ran.float_executed.bytes_moved,
    )  # fmt: skip
    assert memory.bytes_moved is not None and memory.float_bytes_moved is not None
    assert memory.bytes_moved < memory.float_bytes_moved, "codes are narrower"


def test_weights_are_counted_as_they_are_stored(report: Report) -> None:
    # small_net: three weights with a scale (float32) a channel, symmetric; three int32 biases with a scale a channel.
    weights, channels = 16 * 27 + 32 * 144 + 320, 16 + 32 + 10
    assert report.memory.weights_bytes == weights + 4 * channels + (4 + 4) * channels
    assert report.memory.float_weights_bytes == 4 * (weights + channels)
    positions = {"conv1": 16 * 16, "conv2": 8 * 8}
    macs = positions["conv1"] * 16 * 27 + positions["conv2"] * 32 * 144 + 320
    assert report.memory.mac_bits == {"8x8": macs}
    assert report.model.macs == macs


def test_nodes_and_examples_are_counted_where_they_belong(run: Finished, report: Report) -> None:
    assert report.executed.integer_nodes == run.ran.executed.count(Numbers.INTEGER) == 4
    assert report.executed.float_nodes == run.ran.executed.count(Numbers.FLOAT) == 0
    parts = run.prepared.parts
    sizes = [len(part) for part in (parts.calibration, parts.selection, parts.verdict)]
    assert len(set(sizes)) == 3, "else a swap would not show"
    facts = report.data
    assert [facts.calibration_examples, facts.selection_examples, facts.verdict_examples] == sizes
    assert report.seed == 5
    repairs = len(run.repairs.trials)
    assert [c.step for c in report.search] == list(range(1, repairs + len(run.trail) + 1))
    assert [(c.selection_drop, c.selection_kl) for c in report.search[repairs:]] == [
        (trial.drop, trial.kl) for trial in run.trail
    ]


def test_records_say_the_same(run: Finished) -> None:
    found = {(r.metric, r.subject): r.value for r in assembly.records(run)}
    assert found[("agreement", "float")] == 0.91
    assert found[("agreement", "quantized")] == 0.90
    assert found[("agreement loss", "difference")] == 0.01
    assert (found[("harmful flips", "difference")], found[("helpful flips", "difference")]) == (5.0, 3.0)
    assert (found[("kl", "difference")], found[("sqnr", "difference")]) == (0.125, 33.0)
    sizes = float(len(run.prepared.model.original)), float(len(run.data))
    assert (found[("size", "float")], found[("size", "quantized")]) == sizes
    assert (found[("integer nodes", "quantized")], found[("float nodes", "quantized")]) == (4.0, 0.0)
    loss = next(r for r in assembly.records(run) if r.metric == "agreement loss")
    assert (loss.bound, loss.n, loss.seed) == (0.03, 77, 5)


def test_timings_say_the_same(run: Finished) -> None:
    found = json.loads(assembly.timings(run))
    assert (found["float"]["p50_ms"], found["quantized"]["p50_ms"]) == (8.0, 2.0)
    assert (found["float"]["p99_ms"], found["quantized"]["p99_ms"]) == (10.0, 4.0)
    assert (found["speedup"]["low"], found["speedup"]["ratio"], found["speedup"]["high"]) == (3.5, 4.0, 4.5)
    assert found["blocks_ms"] == {"float": [8.0], "quantized": [2.0]}
    assert found["memory"] == {"peak_bytes": 2000, "float_peak_bytes": 9000}


def test_layers_bear_the_sqnr_of_their_own_codes(run: Finished, report: Report) -> None:
    """The weights' ratios, computed from the handed-over file alone."""
    import onnx
    from onnx import numpy_helper

    held = {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(run.data).graph.initializer}
    layers = {layer.site: layer for layer in report.layers}
    for name in ("w1", "w2", "w3"):
        original = run.prepared.model.weight(name).astype(np.float64)
        scale = held[f"{name}_s"].reshape(-1, *(1,) * (original.ndim - 1)).astype(np.float64)
        wrong = held[f"{name}_q"] * scale - original
        wanted = 10 * np.log10((original**2).sum() / (wrong**2).sum())
        # Ours rounds code * scale to float32: 2**-24 of a value, against an error of 2**-9 of it.
        assert layers[name].sqnr_db == pytest.approx(wanted, abs=1e-3)
        assert layers[name].bits_per_weight == pytest.approx(8 + 32 * original.shape[0] / original.size)


def test_a_weight_that_stays_float_is_counted_with_four_bytes(run: Finished) -> None:
    prepared = run.prepared
    plan = draft_plan(prepared.model, prepared.target, forms=Forms(keep_float=("conv1",)), base=prepared.base)
    mixed = replace(run, candidate=replace(run.candidate, plan=plan, integer=("conv2", "pool", "fc")))
    memory = assembly.assemble(mixed).memory
    kept, stored, channels = 16 * 27 + 16, 32 * 144 + 320, 32 + 10
    assert memory.weights_bytes == 4 * kept + stored + 4 * channels + (4 + 4) * channels
    assert memory.mac_bits == {"32x32": 16 * 16 * 16 * 27, "8x8": 8 * 8 * 32 * 144 + 320}
