"""When the float model is handed over, and whose graph is whose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

from fewbits.measurement import benchmark
from fewbits.measurement.latency import Speedup
from fewbits.runtimes.base import Numbers
from fewbits.search import job
from fewbits.search.finished import Finished
from fewbits.search.preparing import Request
from fewbits.search.repairing import unrepaired

SLOWER = Speedup(ratio=0.8, low=0.7, high=0.9, confidence=0.95)
UNSURE = Speedup(ratio=0.95, low=0.8, high=1.1, confidence=0.95)
FASTER = Speedup(ratio=2.0, low=1.9, high=2.1, confidence=0.95)


def finished(
    runs: ModuleType, folder: Path, patch: pytest.MonkeyPatch, speedup: Speedup, *, bigger: bool = False, **more: Any
) -> Finished:
    """Runs the small net on data that need no search for long, with this speed and size."""
    whole = benchmark.measure_performance

    def measured(files: Any, **options: Any) -> benchmark.Performance:
        return replace(whole(files, **{**options, "seconds": 0.05}), speedup=speedup)

    patch.setattr(job, "measure_performance", measured)
    # Which operators stay float goes by the clock.
    patch.setattr(job, "repair", lambda prepared, statistics, *more: unrepaired(prepared, statistics))
    patch.setattr(benchmark, "peak_bytes", lambda *anything: None)
    if bigger:
        stat = Path.stat

        def grown(path: Path, **options: Any) -> Any:
            found = stat(path, **options)
            if path.name != "model.onnx":
                return found
            values = list(found)
            values[6] += 1_000_000
            return type(found)(values)

        patch.setattr(Path, "stat", grown)
    request = Request(
        model=str(runs.small_net(folder / "net.onnx")),
        data=runs.small_data(80),
        effort="fast",
        scheme="w8a8",
        target="ort-cpu:vnni",
        **more,
    )
    return job.run(request)


@pytest.mark.parametrize(
    ("speedup", "bigger", "asked", "words"),
    [
        (SLOWER, False, False, "0.80x of the float model's speed"),
        (SLOWER, False, True, None),
        (UNSURE, False, False, None),
        (UNSURE, True, False, "neither smaller nor faster"),
        (FASTER, True, False, None),
    ],
    ids=["slower", "slower-but-asked-for", "smaller", "neither", "faster"],
)
def test_a_file_that_does_not_win_is_not_handed_over(
    runs: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    speedup: Speedup,
    bigger: bool,
    asked: bool,
    words: str | None,
) -> None:
    found = finished(runs, tmp_path, monkeypatch, speedup, bigger=bigger, allow_slower=asked)
    assert found.float_kept is (words is not None)
    original = found.prepared.model.original
    assert (found.data == original) is found.float_kept
    if words is not None:
        assert found.float_reason is not None and words in found.float_reason
        assert found.judged.figure == found.judged.float_figure
        assert found.judged.bound.harmful == found.judged.bound.helpful == 0


def test_each_graph_was_executed_from_its_own_file(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = finished(runs, tmp_path, monkeypatch, FASTER)
    assert found.ran.executed.count(Numbers.INTEGER) == 4, "two convolutions, the pool, the last layer"
    assert found.ran.float_executed.count(Numbers.INTEGER) == 0
    assert found.ran.float_executed.bytes_moved > found.ran.executed.bytes_moved


@pytest.mark.parametrize(
    ("over", "asked", "kept"), [(SLOWER, False, True), (SLOWER, True, False), (FASTER, False, False)]
)
def test_a_mended_float_model_that_beats_the_quantized_one_is_handed_over(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: Speedup, asked: bool, kept: bool
) -> None:
    whole = benchmark.measure_performance

    def measured(files: Any, **options: Any) -> benchmark.Performance:
        found = whole(files, **{**options, "seconds": 0.05})
        return replace(found, speedup=FASTER, mended=FASTER, over_mended=over)

    runs.hurry(monkeypatch)
    monkeypatch.setattr(job, "measure_performance", measured)
    net = onnx.load(runs.small_net(tmp_path / "net.onnx"))
    first = net.graph.node[0]
    net.graph.node.insert(0, onnx.helper.make_node("Identity", [first.input[0]], ["copied"], name="copy"))
    net.graph.node[1].input[0] = "copied"
    onnx.save(net, tmp_path / "copied.onnx")
    request = Request(
        model=str(tmp_path / "copied.onnx"), data=runs.small_data(80), scheme="w8a8", target="ort-cpu:vnni",
        allow_slower=asked,
    )  # fmt: skip
    found = job.run(request)
    assert found.float_kept is kept
    if kept:
        assert "mended, it runs 2.00x" in (found.float_reason or "")
        assert found.data != found.prepared.model.original
        assert "Identity" not in {node.op_type for node in onnx.load_from_string(found.data).graph.node}
        assert found.judged is not None and found.judged.figure == found.judged.float_figure
        assert any("smaller-but-slower" in warning for warning in found.warnings)
    elif not asked:
        assert any("float-mended" in warning for warning in found.warnings)
