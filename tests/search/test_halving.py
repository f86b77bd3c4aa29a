"""Where a search would hand over the float model: its weights as 16-bit floats, if nothing is lost by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import fewbits
from fewbits import UsageError
from fewbits.measurement import benchmark
from fewbits.measurement.latency import Speedup
from fewbits.search import halving, job
from fewbits.search.handing_over import is_slower
from fewbits.search.repairing import unrepaired

LOST = Speedup(ratio=0.86, low=0.85, high=0.87, confidence=0.95)
EQUAL = Speedup(ratio=1.0, low=0.99, high=1.01, confidence=0.95)
FASTER = Speedup(ratio=1.5, low=1.4, high=1.6, confidence=0.95)
WIDTH = 48
Timed = Callable[..., None]


@pytest.fixture
def timed(runs: Any, monkeypatch: pytest.MonkeyPatch) -> Timed:
    """Returns what sets the clock: the speed of integers, and of 16-bit weights, over float and over mended float."""
    runs.hurry(monkeypatch)
    monkeypatch.setattr(job, "repair", lambda prepared, statistics, *more: unrepaired(prepared, statistics))
    for asked in ("pays", "loses_speed"):
        monkeypatch.setattr(job, asked, lambda *args, value=asked == "pays": value)
    monkeypatch.setattr(job, "hopeless", lambda *args: None)
    whole = job.measure_performance

    def set_clock(integers: Speedup, halves: Speedup = EQUAL, mended: Speedup | None = None) -> None:
        def measured(files: Any, **options: Any) -> benchmark.Performance:
            found = whole(files, **options)
            halved = files[1].model.name == "halves.onnx"
            return replace(
                found,
                speedup=halves if halved else integers,
                mended=None if found.mended is None else (mended or EQUAL),
                over_mended=None if found.over_mended is None else (halves if halved else integers),
            )

        monkeypatch.setattr(job, "measure_performance", measured)

    return set_clock


def saved(n: Any, folder: Path, *, copied: bool = False) -> Path:
    """Writes three products; where asked with a copy that opening takes away."""
    x = n.input(("N", WIDTH))
    x = n.op("Identity", x) if copied else x
    x = n.relu(n.gemm(x, WIDTH, 2 * WIDTH))
    n.output(n.gemm(n.relu(n.gemm(x, 2 * WIDTH, 2 * WIDTH)), 2 * WIDTH, 8))
    return Path(n.save(folder))


def examples(count: int = 600) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((count, WIDTH)).astype(np.float32)}


def quantized(path: Path, **more: Any) -> fewbits.Result:
    options: dict[str, Any] = {"max_drop": "2%", "effort": "fast", "target": "ort-cpu:vnni", "data": examples(), **more}
    return fewbits.quantize(path, **options)


def held_in_halves(data: bytes) -> int:
    return sum(t.data_type == onnx.TensorProto.FLOAT16 for t in onnx.load_from_string(data).graph.initializer)


def test_where_integers_lose_half_the_bytes_are_handed_over(net: Any, tmp_path: Path, timed: Timed) -> None:
    timed(LOST)
    result = quantized(saved(net(), tmp_path))
    report = result.report
    assert held_in_halves(result.model_bytes) == 3
    assert report.headline.startswith(f"16-bit weights: {report.size.ratio:.2f}× smaller, as fast as float. Budget met")
    assert report.headline.endswith("No integers: the quantized model runs at 0.86x of the float model's speed.")
    assert report.size.ratio is not None and report.size.ratio > 1.8
    assert (report.float_kept, report.verdict) == (False, "met")
    assert report.metric.quality.kl is not None and 0 < report.metric.quality.kl < 1e-5
    assert {layer.scheme.partition(" ")[0] for layer in report.layers} == {"fp16"}
    assert report.executed.integer_nodes == 0
    assert sum("[halves]" in warning for warning in report.warnings) == 1
    assert any("[smaller-but-slower]" in warning for warning in report.warnings)


def test_the_timings_of_the_integers_are_told_too(net: Any, tmp_path: Path, timed: Timed) -> None:
    timed(LOST)
    quantized(saved(net(), tmp_path)).save(tmp_path / "out")
    times = json.loads((tmp_path / "out" / "timings.json").read_text())
    assert times["speedup"]["ratio"] == EQUAL.ratio
    assert times["integers_given_up"]["speedup"]["ratio"] == LOST.ratio
    assert set(times["integers_given_up"]["blocks_ms"]) >= {"float", "quantized"}


def test_its_plan_gives_the_same_bytes_and_verdict_again(net: Any, tmp_path: Path, timed: Timed) -> None:
    timed(LOST)
    path = saved(net(), tmp_path)
    first = quantized(path)
    first.save(tmp_path / "out")
    again = quantized(path, plan=tmp_path / "out" / "plan.json")
    assert again.model_bytes == first.model_bytes
    assert again.plan == first.plan
    assert again.report.metric == first.report.metric


@pytest.mark.parametrize(
    "more",
    [{"scheme": "w8a8"}, {"halves": LOST}, {"saves": False}],
    ids=["a-scheme-was-asked-for", "slower-too", "hardly-smaller"],
)
def test_else_the_float_model_is_handed_over_byte_for_byte(
    net: Any, tmp_path: Path, timed: Timed, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    timed(LOST, more.pop("halves", EQUAL))
    if not more.pop("saves", True):
        monkeypatch.setattr(halving, "_WORTH", 3.0)
    path = saved(net(), tmp_path)
    result = quantized(path, **more)
    assert result.model_bytes == path.read_bytes()
    assert result.report.float_kept
    assert result.report.headline.startswith("Float model kept: the quantized model runs at 0.86x")


def test_integers_that_win_are_handed_over_as_ever(net: Any, tmp_path: Path, timed: Timed) -> None:
    timed(FASTER)
    result = quantized(saved(net(), tmp_path))
    assert held_in_halves(result.model_bytes) == 0
    assert result.report.executed.integer_nodes
    assert not any("[halves]" in warning for warning in result.report.warnings)


def test_a_slower_file_may_be_asked_for(net: Any, tmp_path: Path, timed: Timed) -> None:
    timed(LOST, LOST)
    assert quantized(saved(net(), tmp_path), allow_slower=True).report.executed.integer_nodes


def test_weights_beyond_float16_stay_in_32_bits(net: Any, tmp_path: Path, timed: Timed) -> None:
    timed(LOST)
    path = saved(net(), tmp_path)
    proto = onnx.load(path)
    weights = [t for t in proto.graph.initializer if len(t.dims) == 2]
    some = onnx.numpy_helper.to_array(weights[0]).copy()
    some[0, 0] = 1e5
    weights[0].CopyFrom(onnx.numpy_helper.from_array(some, weights[0].name))
    onnx.save(proto, path)
    result = quantized(path)
    assert held_in_halves(result.model_bytes) == 2
    assert result.report.float_kept is False
    left = next(layer for layer in result.report.layers if layer.site == weights[0].name)
    assert left.scheme == "float32"
    assert "float32, not fp16" in (left.reason or "")


def test_a_model_of_which_float16_holds_nothing_stays_as_it_is(net: Any, tmp_path: Path, timed: Timed) -> None:
    timed(LOST)
    path = saved(net(), tmp_path)
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).copy()
        if values.ndim == 2:
            values[0] *= 1e6
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, path)
    result = quantized(path)
    assert result.report.float_kept
    assert result.model_bytes == path.read_bytes()


def test_a_mended_model_that_beats_integers_is_halved_as_mended(net: Any, tmp_path: Path, timed: Timed) -> None:
    timed(LOST, EQUAL, mended=FASTER)
    path = saved(net(), tmp_path, copied=True)
    first = quantized(path)
    assert held_in_halves(first.model_bytes) == 3
    assert "Identity" not in {node.op_type for node in onnx.load_from_string(first.model_bytes).graph.node}
    first.save(tmp_path / "out")
    assert quantized(path, plan=tmp_path / "out" / "plan.json").model_bytes == first.model_bytes


def test_without_data_a_search_is_refused_as_before(net: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        quantized(saved(net(), tmp_path), data=None)
    assert caught.value.slug == "data-missing"


@pytest.mark.parametrize(
    ("halves", "floats", "taken"),
    [
        ("met", None, True),
        ("undecided", None, False),
        ("undecided", "undecided", True),
        ("undecided", "met", False),
        ("not met", "undecided", False),
        ("no budget", None, True),
    ],
)
def test_the_verdict_may_not_be_worse_than_that_of_float(halves: str, floats: str | None, taken: bool) -> None:
    def judged(status: str | None) -> Any:
        if status is None:
            return None
        return SimpleNamespace(verdict=None if status == "no budget" else SimpleNamespace(status=status))

    assert halving.judges_alike(judged(halves), judged(floats)) is taken


@pytest.mark.parametrize(
    ("ratio", "low", "high", "slower"),
    [(1.0, 0.99, 0.999, False), (0.985, 0.98, 0.99, False), (0.97, 0.9, 1.02, False), (0.97, 0.96, 0.98, True)],
)
def test_slower_is_what_is_sure_and_could_be_noticed(ratio: float, low: float, high: float, slower: bool) -> None:
    assert is_slower(Speedup(ratio=ratio, low=low, high=high, confidence=0.95)) is slower
