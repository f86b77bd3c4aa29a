"""The benchmark networks compute something, are what torch writes, and see the same examples however they are read."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper


@pytest.fixture
def networks() -> ModuleType:
    return importlib.import_module("networks")


_SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenetv3", "efficientnet_b0", "minilm")]


@pytest.mark.parametrize("name", ["lstm", "gru", "vit_tiny", *_SLOW])
def test_a_network_is_alive_has_the_published_parameters_and_takes_any_batch(
    networks: ModuleType, name: str, tmp_path: Path
) -> None:
    path = networks.network(name, seed=3, folder=tmp_path)  # Refuses a dead one and a wrong number of parameters.
    common = importlib.import_module("common")
    session = common.session(path)
    three = networks.examples(name, 3, 9)
    whole = session.run(None, three)[0]
    for i in range(3):
        alone = session.run(None, {key: value[i : i + 1] for key, value in three.items()})[0]
        # Sums of up to some thousand float32 products in another order; logits have a spread of 3.
        np.testing.assert_allclose(alone[0], whole[i], rtol=0, atol=2e-3)


def test_a_seed_gives_one_file_and_another_seed_another(networks: ModuleType, tmp_path: Path) -> None:
    files = [networks.network("gru", seed=seed, folder=tmp_path / str(i)) for i, seed in enumerate((5, 5, 6))]
    first, second, other = (file.read_bytes() for file in files)
    assert first == second
    assert first != other


def test_a_dead_network_is_refused(networks: ModuleType, tmp_path: Path) -> None:
    path = networks.network("lstm", seed=3, folder=tmp_path)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "layer0.w":
            tensor.CopyFrom(numpy_helper.from_array(0 * numpy_helper.to_array(tensor), tensor.name))
    dead = tmp_path / "dead.onnx"
    onnx.save(model, dead)
    with pytest.raises(ValueError, match="dead network"):
        networks.check_alive(dead, networks.examples("lstm", 16, 1))


@pytest.mark.parametrize("name", ["minilm", "lstm"])
def test_an_npz_written_in_chunks_holds_the_examples_and_streams_them_one_by_one(
    networks: ModuleType, name: str, tmp_path: Path
) -> None:
    files = importlib.import_module("speed_files")
    wanted = networks.examples(name, 7, 11)
    networks.write_examples_npz(tmp_path / "x.npz", name, 7, 11, chunk=3)
    with np.load(tmp_path / "x.npz") as stored:
        assert {key: stored[key].tobytes() for key in stored} == {k: v.tobytes() for k, v in wanted.items()}
    streamed = list(files.stream(tmp_path / "x.npz"))
    assert len(streamed) == 7
    for key, value in wanted.items():
        np.testing.assert_array_equal(np.concatenate([each[key] for each in streamed]), value)


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_recurrent_networks_have_the_operators_and_the_outputs_of_torch(
    networks: ModuleType, kind: str, tmp_path: Path
) -> None:
    """The same weights, exported: the runtime executes as many of each op, and torch computes the same logits."""
    torch = pytest.importorskip("torch", reason="torch is an extra: make test TORCH=1")
    pytest.importorskip("onnxscript", reason="torch's exporter needs it")
    path = networks.network(kind, seed=3, folder=tmp_path)
    ours = onnx.load(path)
    weights = {t.name: numpy_helper.to_array(t).copy() for t in ours.graph.initializer}
    gates = {"lstm": (0, 2, 3, 1), "gru": (1, 0, 2)}[kind]  # Place in the ONNX file (i o f c; z r h) of torch's gates.

    class Network(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layers = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind](40, 256, 2, batch_first=True)
            self.head = torch.nn.Linear(256, 35)

        def forward(self, x: Any) -> Any:
            return self.head(self.layers(x)[0][:, -1])

    def ordered(value: np.ndarray) -> Any:
        return torch.from_numpy(np.concatenate([np.split(value, len(gates))[i] for i in gates]))

    network = Network().eval()
    with torch.no_grad():
        for i in range(2):
            w, r, b = (weights[f"layer{i}.{part}"][0] for part in "wrb")
            for name, value in {"weight_ih": w, "weight_hh": r, "bias_ih": b[: len(w)], "bias_hh": b[len(w) :]}.items():
                getattr(network.layers, f"{name}_l{i}").copy_(ordered(value))
        network.head.weight.copy_(torch.from_numpy(weights["head.weight"]))
        network.head.bias.copy_(torch.from_numpy(weights["head.bias"]))
    x = networks.examples(kind, 4, 9)["features"]
    common = importlib.import_module("common")
    found = common.session(path).run(None, {"features": x})[0]
    with torch.no_grad():
        wanted = network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3)  # As above: sums in another order.
    batch = torch.export.Dim("batch", min=1, max=64)
    theirs = tmp_path / "theirs.onnx"
    shapes = ({0: batch},)
    torch.onnx.export(network, (torch.from_numpy(x),), dynamo=True, dynamic_shapes=shapes, verbose=False).save(theirs)
    # The exporter sorts the gates of large weights in the graph, which the runtime folds when it opens the file. Of its
    # file the runtime also makes one Split of the two Slices that take a layer's initial state out of one tensor.
    executed = [common.executed_ops(each) for each in (path, theirs)]
    for ops in executed:
        ops["Slice"] += 2 * ops.pop("Split", 0)
    assert executed[0] == executed[1]
    assert ours.opset_import[0].version == onnx.load(theirs).opset_import[0].version
