"""The reference store: paired, bounded in memory, gone afterwards whatever happens."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from fewbits._base.errors import DataError, ModelError, UsageError
from fewbits.datasets import open_dataset
from fewbits.measurement.metrics import resolve_metric
from fewbits.measurement.outcome import Reference, score_output
from fewbits.models.onnx.model import OnnxModel
from fewbits.models.onnx.opening import open_model
from fewbits.runtimes.base import Options


def silent(stage: str, done: int, total: int) -> None:
    return None


@pytest.fixture
def model(runs: ModuleType, tmp_path: Path) -> OnnxModel:
    return open_model(runs.small_net(tmp_path / "net.onnx"))


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, empty."""
    place = tmp_path / "temp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def reference(model: OnnxModel, data: Any, *, metric: str = "agreement", count: int | None = None) -> Reference:
    dataset = open_dataset(data)
    return Reference(
        model,
        dataset,
        np.arange(dataset.count if count is None else count),
        metric=resolve_metric(metric, labelled=dataset.has_labels),
        output=model.view.outputs[0],
        options=Options(),
    )


def test_a_model_agrees_with_itself_to_the_bit(model: OnnxModel, runs: ModuleType) -> None:
    with reference(model, runs.small_data(70)) as kept:
        outcome = kept.compare(model.original, silent, stage="same")
        assert kept.examples == 70
    assert outcome.scores.tolist() == [1.0] * 70
    assert outcome.quality.sqnr_db == float("inf")


def test_scores_stand_in_the_order_of_the_examples(model: OnnxModel, runs: ModuleType) -> None:
    import onnxruntime as ort

    x = runs.small_data(70)["x"]
    y = ort.InferenceSession(model.original, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    labels = y.argmax(axis=1)
    labels[[3, 40, 69]] = (labels[[3, 40, 69]] + 1) % 10
    with reference(model, {"x": x, "labels": labels}, metric="top-1") as kept:
        outcome = kept.compare(model.original, silent, stage="same")
    assert np.flatnonzero(outcome.float_scores == 0).tolist() == [3, 40, 69]
    assert np.array_equal(outcome.float_scores, outcome.scores)


def test_a_limit_stops_after_whole_batches(model: OnnxModel, runs: ModuleType) -> None:
    with reference(model, runs.small_data(100)) as kept:
        outcome = kept.compare(model.original, silent, stage="few", limit=33)
    assert len(outcome.scores) == len(outcome.float_scores) == 64, "two shards of 32"


def test_the_float_model_runs_once_for_many_candidates(
    model: OnnxModel, runs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[str] = []
    with reference(model, runs.small_data(64)) as kept:
        for number in range(3):
            kept.compare(model.original, lambda stage, *_: stages.append(stage), stage=f"candidate {number}")
    assert stages.count("float model") == 2, "two shards, once"
    assert len(stages) == 2 + 3 * 2


def test_temporary_files_are_gone_afterwards_and_after_an_exception(
    model: OnnxModel, runs: ModuleType, temp: Path
) -> None:
    with reference(model, runs.small_data(64)) as kept:
        kept.compare(model.original, silent, stage="x")
        assert len(list(temp.rglob("*.npz"))) == 2, "the float outputs lie on disk"
    assert list(temp.iterdir()) == []
    arrays = runs.small_data(64)
    arrays["x"][50] = np.nan
    with pytest.raises(DataError, match="example 50"), reference(model, arrays) as kept:
        kept.compare(model.original, silent, stage="x")
    assert list(temp.iterdir()) == []
    with pytest.raises(RuntimeError), reference(model, runs.small_data(4)) as kept:
        raise RuntimeError
    assert list(temp.iterdir()) == []


def test_a_reference_that_is_not_entered_leaves_nothing(model: OnnxModel, runs: ModuleType, temp: Path) -> None:
    reference(model, runs.small_data(4))
    assert list(temp.iterdir()) == []


def test_memory_does_not_grow_with_the_examples(runs: ModuleType, tmp_path: Path) -> None:
    # Outputs of 64 kB an example: 1,000 of them would be 64 MB.
    rng = np.random.default_rng(0)
    path = runs.save_model(
        tmp_path / "wide.onnx",
        [helper.make_node("Conv", ["x", "w"], ["y"], name="c", pads=[1, 1, 1, 1])],
        {"w": rng.standard_normal((64, 3, 3, 3)).astype(np.float32)},
        shape=["batch", 3, 16, 16],
        out=["batch", 64, 16, 16],
    )
    model = open_model(path)
    one = rng.standard_normal((32, 3, 16, 16)).astype(np.float32)

    def stream(count: int) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, count, 32):
            yield {"x": one + np.float32(start)}

    peaks = {}
    for count in (96, 960):
        kept = reference(model, lambda count=count: stream(count))
        tracemalloc.start()
        with kept:
            outcome = kept.compare(path, silent, stage="x")
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(outcome.scores) == count
    # A batch of outputs, as float64 in the meter, is 4 MB; what may grow is a score of 8 bytes and its bookkeeping.
    assert peaks[960] < peaks[96] + 0.5e6, peaks


def test_the_output_that_counts_is_chosen_or_refused(model: OnnxModel) -> None:
    assert score_output(model, None) == "y"
    with pytest.raises(UsageError, match="it has: y"):
        score_output(model, "z")


def test_an_output_without_a_batch_is_refused(runs: ModuleType, tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], name="r", keepdims=0)]
    model = open_model(runs.save_model(tmp_path / "n.onnx", nodes, {}, shape=["batch", 3, 16, 16], out=[]))
    with pytest.raises(ModelError, match="first axis is not the batch"), reference(model, runs.small_data(8)) as kept:
        kept.compare(model.original, silent, stage="x")


def test_outputs_of_other_shapes_cannot_be_compared(model: OnnxModel, runs: ModuleType) -> None:
    proto = onnx.load_model_from_string(model.original)
    proto.graph.node[-1].output[0] = "z"
    proto.graph.node.append(helper.make_node("Transpose", ["z"], ["y"], name="t"))
    with pytest.raises(ModelError), reference(model, runs.small_data(8)) as kept:
        kept.compare(proto.SerializeToString(), silent, stage="x")


def test_a_fixed_batch_is_filled_up_and_the_surplus_dropped(runs: ModuleType, tmp_path: Path) -> None:
    proto = onnx.load(str(runs.small_net(tmp_path / "n.onnx")))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 16
    onnx.save(proto, str(tmp_path / "fixed.onnx"))
    model = open_model(tmp_path / "fixed.onnx")
    with reference(model, runs.small_data(37)) as kept:
        outcome = kept.compare(model.original, silent, stage="x")
    assert len(outcome.scores) == 37
    assert outcome.quality.agreement == 1.0


def test_a_float_model_that_gives_nan_is_refused_with_the_example(runs: ModuleType, tmp_path: Path) -> None:
    nodes = [helper.make_node("Log", ["x"], ["l"], name="l"), helper.make_node("Flatten", ["l"], ["y"], name="f")]
    model = open_model(runs.save_model(tmp_path / "n.onnx", nodes, {}, shape=["batch", 2, 2], out=["batch", 4]))
    x = np.ones((70, 2, 2), np.float32)
    x[45, 0, 1] = -1
    with pytest.raises(ModelError, match=r"example 45.*output-nan"), reference(model, {"x": x}) as kept:
        kept.compare(model.original, silent, stage="x")


def test_a_model_that_ends_in_argmax_is_judged_by_its_answers(runs: ModuleType, tmp_path: Path) -> None:
    proto = onnx.load(str(runs.small_net(tmp_path / "n.onnx")))
    proto.graph.node[-1].output[0] = "z"
    proto.graph.node.append(helper.make_node("ArgMax", ["z"], ["y"], name="a", axis=1, keepdims=0))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.INT64, ["batch"]))
    onnx.save(proto, str(tmp_path / "a.onnx"))
    model = open_model(tmp_path / "a.onnx")
    import onnxruntime as ort

    x = runs.small_data(40)["x"]
    answers = ort.InferenceSession(model.original, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    labels = answers.copy()
    labels[:5] += 1
    with reference(model, {"x": x}) as kept:
        assert kept.compare(model.original, silent, stage="x").scores.tolist() == [1.0] * 40
    with reference(model, {"x": x, "labels": labels}, metric="top-1") as kept:
        assert kept.compare(model.original, silent, stage="x").scores.tolist() == [0.0] * 5 + [1.0] * 35
