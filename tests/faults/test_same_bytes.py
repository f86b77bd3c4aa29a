"""The same plan, model and data give the same bytes, wherever they run; what is reported is what is there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from fewbits._base.files import read_manifest


@pytest.fixture(scope="module")
def planned(zygote: Any, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data, the plan of a run, and what replaying it gives."""
    folder = tmp_path_factory.mktemp("planned")
    zygote.use(folder)
    shutil.copy(finished / "net.onnx", folder / "net.onnx")
    data = zygote.runs.save_data(folder / "data.npz", zygote.runs.small_data(80))
    line = ["quantize", folder / "net.onnx", "--data", data, "--allow-slower", "-q"]
    assert zygote.run(*line, "--scheme", "w8a8", "-o", folder / "first").code == 0
    shutil.copy(folder / "first" / "plan.json", folder / "plan.json")
    assert zygote.run(*line, "--plan", folder / "plan.json", "-o", folder / "out").code == 0
    return folder


def contents(out: Path) -> dict[str, str]:
    """Returns the hash of each file that does not depend on a clock."""
    return {name: entry["sha256"] for name, entry in read_manifest(out)["files"].items()}


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_any_number_of_jobs_gives_the_same_bytes(lab: Any, planned: Path, tmp_path: Path, told: Any, jobs: int) -> None:
    line = ["quantize", planned / "net.onnx", "--data", planned / "data.npz", "--allow-slower", "-q"]
    done = lab.run(*line, "--plan", planned / "plan.json", "--jobs", str(jobs), "-o", tmp_path / "out")
    assert done.code == 0, done
    assert contents(tmp_path / "out") == contents(planned / "out")
    told("same bytes")


@pytest.mark.slow
@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONHASHSEED": "1"},
        {"PYTHONHASHSEED": "4294967295", "LC_ALL": "C", "PYTHONUTF8": "0"},
        {"TZ": "Asia/Kathmandu", "HOME": "/nonexistent", "USER": "nobody"},
        {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"},
    ],
    ids=["hash seed", "locale", "time zone and home", "threads"],
)
def test_another_environment_gives_the_same_bytes_and_names_nothing_of_it(
    runs: Any, planned: Path, tmp_path: Path, told: Any, env: dict[str, str]
) -> None:
    moved = tmp_path / "canary-place"
    moved.mkdir()
    for name in ("net.onnx", "data.npz", "plan.json"):
        shutil.copy(planned / name, moved / name)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fewbits", "quantize", "net.onnx", "--data", "data.npz", "--plan", "plan.json"),
            *("--allow-slower", "--effort", "fast", "-q", "-o", "out"),
        ],
        cwd=moved,
        env={**os.environ, **runs.PLAIN, **env},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert contents(moved / "out") == contents(planned / "out")
    host = os.uname().nodename.encode()
    for name, content in runs.snapshot(moved / "out").items():
        assert b"canary-place" not in content, name
        assert len(host) < 4 or host not in content, name
    told("same bytes")


@pytest.mark.slow
def test_a_fresh_process_measures_the_figure_that_was_reported(planned: Path, runs: Any, told: Any) -> None:
    line = ("verify", planned / "out", "--model", planned / "net.onnx", "--data", planned / "data.npz")
    done = runs.shell(*line)
    assert done.code == 0, done
    figure = json.loads((planned / "out" / "report.json").read_text(encoding="utf-8"))["metric"]["quantized"]
    assert f"{figure:.4f}, as reported" in done.out
    told("equal")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["inside", "outside"])
def test_the_reported_size_is_that_on_disk(lab: Any, planned: Path, tmp_path: Path, told: Any, kind: str) -> None:
    model, out = Path(shutil.copy(planned / "net.onnx", tmp_path / "net.onnx")), tmp_path / "out"
    lazy = kind == "outside"
    if lazy:
        onnx.save_model(onnx.load(model), model, save_as_external_data=True, location="net.bin", size_threshold=0)
    assert lab.run("quantize", model, "--scheme", "w8a16", "--allow-slower", "-o", out, lazy=lazy).code == 0
    size = json.loads((out / "report.json").read_text(encoding="utf-8"))["size"]
    assert (out / "model.onnx.data").exists() == lazy
    assert size["quantized_bytes"] == sum(p.stat().st_size for p in out.glob("model.onnx*"))
    if not lazy:
        assert size["float_bytes"] == model.stat().st_size
    told(f"equal: {size['quantized_bytes']} bytes")


@pytest.mark.slow
def test_the_reported_size_of_a_float_model_with_a_data_file_is_that_on_disk(
    lab: Any, planned: Path, tmp_path: Path
) -> None:
    model, out = Path(shutil.copy(planned / "net.onnx", tmp_path / "net.onnx")), tmp_path / "out"
    onnx.save_model(onnx.load(model), model, save_as_external_data=True, location="net.bin", size_threshold=0)
    assert lab.run("quantize", model, "--scheme", "w8a16", "--allow-slower", "-o", out, lazy=True).code == 0
    size = json.loads((out / "report.json").read_text(encoding="utf-8"))["size"]
    assert size["float_bytes"] == sum(p.stat().st_size for p in tmp_path.glob("net.*"))
