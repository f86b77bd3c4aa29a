"""External data: what is followed, and what is refused, in the layouts that people have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fewbits._base.errors import Exit, FewbitsError
from fewbits.models.onnx.opening import open_model
from fewbits.runtimes.base import Options
from fewbits.runtimes.ort import RUNTIME


@pytest.fixture
def outside(net: Any, tmp_path: Path) -> Path:
    """A model with its weights in model.onnx_data beside it."""
    n = net()
    x = n.input(("N", 16))
    n.output(n.gemm(n.relu(n.gemm(x, 16, 24)), 24, 8))
    folder = tmp_path / "outside"
    folder.mkdir()
    onnx.save_model(
        n.model(), folder / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=0
    )
    return folder


def runs(path: Path) -> np.ndarray:
    model = open_model(path)
    x = np.ones((2, 16), np.float32)
    return next(iter(RUNTIME.open(model.original, Options(data_folder=model.folder)).run({"x": x}).values()))


def refusal(path: Path) -> FewbitsError:
    with pytest.raises(FewbitsError) as caught:
        open_model(path)
    assert "\n" not in str(caught.value)
    return caught.value


def cached(outside: Path, hub: Path) -> Path:
    """Lays a model out as a Hugging Face cache does; returns the path that a user has."""
    repository = hub / "models--someone--net"
    snapshot = repository / "snapshots" / "0123abcd" / "onnx"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, name in enumerate(("model.onnx", "model.onnx_data")):
        (outside / name).rename(repository / "blobs" / (f"{number}" * 8))
        (snapshot / name).symlink_to(Path("..", "..", "..", "blobs", f"{number}" * 8))
    return snapshot / "model.onnx"


def test_the_layout_of_a_hugging_face_cache_is_accepted(outside: Path, tmp_path: Path) -> None:
    expected = runs(outside / "model.onnx")
    np.testing.assert_array_equal(runs(cached(outside, tmp_path / "hub")), expected)


def test_a_snapshot_may_not_link_beyond_its_own_blobs(outside: Path, tmp_path: Path) -> None:
    path = cached(outside, tmp_path / "hub")
    data = path.parent / "model.onnx_data"
    other = tmp_path / "hub" / "models--someone--else" / "blobs"
    other.mkdir(parents=True)
    (other / "secret").write_bytes(data.read_bytes())
    data.unlink()
    data.symlink_to(other / "secret")
    error = refusal(path)
    assert (error.slug, error.exit_code) == ("external-data-escape", Exit.SECURITY)


def test_a_link_to_the_whole_folder_and_one_to_the_model_alone_are_followed(outside: Path, tmp_path: Path) -> None:
    expected = runs(outside / "model.onnx")
    (tmp_path / "linked").symlink_to(outside)
    np.testing.assert_array_equal(runs(tmp_path / "linked" / "model.onnx"), expected)
    (tmp_path / "alone.onnx").symlink_to(outside / "model.onnx")
    np.testing.assert_array_equal(runs(tmp_path / "alone.onnx"), expected)


def test_a_hard_link_is_refused(outside: Path, tmp_path: Path) -> None:
    os.link(outside / "model.onnx_data", tmp_path / "second-name")
    error = refusal(outside / "model.onnx")
    assert (error.slug, error.exit_code) == ("external-data-escape", Exit.SECURITY)
    assert "hard link" in error.message


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_is_no_regular_file_is_refused_unread(kind: str, outside: Path) -> None:
    data = outside / "model.onnx_data"
    data.unlink()
    if kind == "fifo":
        os.mkfifo(data)
    elif kind == "folder":
        data.mkdir()
    else:
        data.symlink_to("/dev/zero")
    assert refusal(outside / "model.onnx").exit_code is Exit.SECURITY


@pytest.mark.parametrize(
    ("key", "value"),
    [("offset", "-8"), ("offset", "99999999"), ("offset", "9" * 30), ("offset", "none"), ("length", "-1"),
     ("length", "1"), ("length", "99999999")],
)  # fmt: skip
def test_an_offset_or_length_that_cannot_be_is_refused(key: str, value: str, outside: Path) -> None:
    path = outside / "model.onnx"
    proto = onnx.load_model(path, load_external_data=False)
    entries = proto.graph.initializer[0].external_data
    found = next((entry for entry in entries if entry.key == key), None) or entries.add()
    found.key, found.value = key, value
    path.write_bytes(proto.SerializeToString())
    assert refusal(path).slug == "model-broken"


def test_the_hash_of_a_model_covers_its_data_files(outside: Path) -> None:
    before = open_model(outside / "model.onnx").sha256
    data = bytearray((outside / "model.onnx_data").read_bytes())
    data[5] ^= 1
    (outside / "model.onnx_data").write_bytes(data)
    assert open_model(outside / "model.onnx").sha256 != before
