"""Golden outputs: drawn from a recipe, equal to the bit on the same place, told apart from another model anywhere."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from fewbits._base.errors import VerificationError
from fewbits.measurement.golden import make_golden, replay_golden
from fewbits.runtimes.base import Options


@pytest.fixture
def net(runs: ModuleType, tmp_path: Path) -> Path:
    return Path(runs.small_net(tmp_path / "n.onnx"))


@pytest.fixture
def golden(runs: ModuleType, net: Path) -> bytes:
    return make_golden(net, runs.small_data(1), Options(), seed=7)


def _recipe(golden: bytes) -> dict[str, object]:
    with np.load(io.BytesIO(golden)) as file:
        return dict(json.loads(str(file["recipe"])))


def _with(golden: bytes, **changes: object) -> bytes:
    with np.load(io.BytesIO(golden)) as file:
        arrays = {name: file[name] for name in file.files if name != "recipe"}
    buffer = io.BytesIO()
    np.savez(buffer, recipe=np.array(json.dumps(_recipe(golden) | changes)), **arrays)
    return buffer.getvalue()


def test_it_replays_to_the_bit(net: Path, golden: bytes) -> None:
    replay = replay_golden(net, golden)
    assert (replay.equal, replay.same_place, replay.sqnr_db) == (True, True, float("inf"))


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(runs: ModuleType, net: Path, golden: bytes) -> None:
    assert make_golden(net, runs.small_data(1), Options(), seed=7) == golden
    assert make_golden(net, runs.small_data(1), Options(), seed=8) != golden


def test_it_depends_on_the_range_of_the_example_and_on_no_pixel(runs: ModuleType, net: Path, golden: bytes) -> None:
    shuffled = runs.small_data(1)["x"].reshape(-1)
    np.random.default_rng(0).shuffle(shuffled)
    assert make_golden(net, {"x": shuffled.reshape(1, 3, 16, 16)}, Options(), seed=7) == golden


def test_another_model_is_told_apart(runs: ModuleType, net: Path, golden: bytes, tmp_path: Path) -> None:
    other = runs.small_net(tmp_path / "other.onnx", seed=1)
    with pytest.raises(VerificationError, match="golden-differs"):
        replay_golden(other, golden)
    elsewhere = _with(golden, runtime="onnxruntime 0.0.1")
    with pytest.raises(VerificationError, match="golden-differs"):
        replay_golden(other, elsewhere)
    assert replay_golden(net, elsewhere).same_place is False


@pytest.mark.parametrize("damage", [lambda g: b"", lambda g: g[:-40], lambda g: b"text"])
def test_a_broken_file_is_a_refusal(net: Path, golden: bytes, damage: object) -> None:
    assert callable(damage)
    with pytest.raises(VerificationError, match="golden-broken"):
        replay_golden(net, damage(golden))


@pytest.mark.parametrize("changes", [{"sha256": "0"}, {"inputs": []}, {"outputs": ["a", "b"]}, {"inputs": 3}])
def test_a_recipe_that_does_not_draw_its_inputs_is_a_refusal(
    net: Path, golden: bytes, changes: dict[str, object]
) -> None:
    with pytest.raises(VerificationError, match="golden-broken"):
        replay_golden(net, _with(golden, **changes))


def test_integer_inputs_stay_within_what_the_example_had(tmp_path: Path, runs: ModuleType) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    table = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["t", "ids"], ["y"], name="g")],
        "n",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5, 4])],
        [numpy_helper.from_array(table, "t")],
    )
    path = tmp_path / "g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    feeds = {"ids": np.array([[0, 3, 11, 2, 1]])}
    assert replay_golden(path, make_golden(path, feeds, Options(), seed=0)).equal


def test_a_scalar_input_is_drawn_too(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Where", ["yes", "x", "z"], ["y"])]
    graph = helper.make_graph(
        nodes, "g", [value("x", 1, [4]), value("yes", 9, [])], [value("y", 1, [4])],
        [numpy_helper.from_array(np.zeros(4, np.float32), "z")],
    )  # fmt: skip
    path = tmp_path / "scalar.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    feeds = {"x": np.linspace(-1, 1, 4, dtype=np.float32), "yes": np.array(True)}
    assert replay_golden(path, make_golden(path, feeds, Options(), seed=3)).equal
