"""Ctrl-C, a child that dies or is starved, little memory, few files: one line, no hang, no process left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

WRITING = ("os:write", "os:fsync", "os:rename", "fewbits._base.posix:exchange")
SEND = "fewbits.runtimes.bounded:_send"
STAGES = {
    "calibration": ("fewbits.search.job:observe", 1),
    "search": ("fewbits.measurement.outcome:Reference.compare", 1),
    "verdict": ("fewbits.search.job:make_golden", 1),
    "writing": (WRITING, 6),
}
AGAIN = [("fewbits._base.files:OutputFolder._leave", 1, "SIGINT")]


@pytest.fixture
def job(lab: Any, tmp_path: Path) -> list[Any]:
    """The command line of a search on the small net."""
    model = lab.runs.small_net(tmp_path / "net.onnx")
    data = lab.runs.save_data(tmp_path / "data.npz", lab.runs.small_data(90))
    return ["quantize", model, "--data", data, "--max-drop", "5%", "--effort", "fast", "--allow-slower", "-q"]


@pytest.fixture
def short(job: list[Any]) -> list[Any]:
    """The command line of the shortest run."""
    return [*job[:2], "--scheme", "w8a16", "--allow-slower", "-q"]


@pytest.fixture
def old(finished: Path, tmp_path: Path) -> Path:
    """An output to be overwritten, in a folder of its own."""
    return Path(shutil.copytree(finished / "out", tmp_path / "place" / "out"))


def clean(lab: Any, old: Path, before: dict[str, bytes]) -> None:
    """Asserts that nothing is left of a run: no file, hidden or temporary, and no process."""
    assert lab.runs.snapshot(old.parent) == before
    assert [path.name for path in lab.temp.iterdir() if path.name != ".ses"] == []  # that one is ONNX Runtime's own
    assert lab.outlived() == []


def interrupt(lab: Any, job: list[Any], old: Path, stage: str, times: str) -> None:
    before = lab.runs.snapshot(old.parent)
    point, number = STAGES[stage]
    done = lab.run(
        *job, "-o", old, "--overwrite", faults=[(point, number, "SIGINT"), *(AGAIN if times == "twice" else [])]
    )
    done.refused(130, "interrupted")
    clean(lab, old, before)


def test_ctrl_c_twice_while_writing_leaves_nothing(lab: Any, short: list[Any], old: Path) -> None:
    interrupt(lab, short, old, "writing", "twice")


@pytest.mark.slow
@pytest.mark.parametrize("times", ["once", "twice"])
@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_in_each_stage_leaves_nothing(
    lab: Any, job: list[Any], old: Path, told: Any, stage: str, times: str
) -> None:
    interrupt(lab, job, old, stage, times)
    told("130 interrupted")


@pytest.mark.slow
def test_ctrl_c_when_the_output_is_in_place_is_told_and_changes_nothing(
    lab: Any, job: list[Any], old: Path, told: Any
) -> None:
    done = lab.run(*job, "-o", old, "--overwrite", faults=[("fewbits._base.files:OutputFolder._leave", 1, "SIGINT")])
    assert done.code in (0, 3)
    assert "is complete" in done.err
    assert len(done.err.splitlines()) == 1
    assert sorted(p.name for p in old.parent.iterdir()) == ["out"]
    assert lab.run("verify", old).code == 0
    told(f"{done.code}, complete")


def test_a_killed_child_is_told_in_one_line(lab: Any, short: list[Any], old: Path) -> None:
    before = lab.runs.snapshot(old.parent)
    done = lab.run(*short, "-o", old, "--overwrite", faults=[(SEND, 1, "child SIGKILL")])
    done.refused(6, "net.onnx")
    clean(lab, old, before)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_a_child_killed_later_is_told_or_replaced(
    lab: Any, short: list[Any], old: Path, told: Any, number: int
) -> None:
    done = lab.run(*short, "-o", old, "--overwrite", faults=[(SEND, number, "child SIGKILL")])
    assert done.code in (0, 4, 6)
    if done.code:
        done.refused(done.code, "net.onnx")
    assert lab.outlived() == []
    assert lab.run("verify", old).code == 0
    told(str(done.code))


@pytest.mark.slow
def test_a_starved_child_is_told_in_one_line(lab: Any, job: list[Any], old: Path, told: Any) -> None:
    before = lab.runs.snapshot(old.parent)
    lab.start(*job, "-o", old, "--overwrite", faults=[(SEND, 1, "child SIGSTOP")])
    done = lab.end(90)
    done.refused(6, "[model-too-slow]")
    clean(lab, old, before)
    told("6 model-too-slow")


@pytest.mark.parametrize(("files", "codes"), [(64, {0}), pytest.param(12, {0, 6}, marks=pytest.mark.slow)])
def test_few_open_files_are_enough_or_told(lab: Any, short: list[Any], old: Path, files: int, codes: set[int]) -> None:
    done = lab.run(*short, "-o", old, "--overwrite", limits={"RLIMIT_NOFILE": files})
    assert done.code in codes, done
    if done.code == 6:
        done.refused(6)
    assert lab.outlived() == []
    assert [p.name for p in old.parent.iterdir()] == ["out"]


def limited(runs: Any, megabytes: float, *args: Any) -> Any:
    """Runs the command line in a process whose address space is limited from the start."""
    done = subprocess.run(
        ["sh", "-c", f'ulimit -v {int(megabytes * 1024)}; exec "$0" -m fewbits "$@"', sys.executable, *map(str, args)],
        capture_output=True,
        env={**os.environ, **runs.PLAIN},
        timeout=120,
        check=False,
    )
    return runs.Done(code=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())


@pytest.mark.parametrize("megabytes", [24, 100, 350])
def test_too_little_address_space_is_refused_before_work(
    lab: Any, job: list[Any], tmp_path: Path, megabytes: int
) -> None:
    done = limited(lab.runs, megabytes, *job, "-o", tmp_path / "none")
    done.refused(6, "[out-of-memory]", f"{megabytes} MB")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_around_the_forecast_of_memory_a_run_ends_well_or_is_refused(lab: Any, tmp_path: Path, told: Any) -> None:
    rng = np.random.default_rng(0)
    weights = {f"w{i}": (rng.standard_normal((3000, 3000)) / 55).astype(np.float32) for i in range(3)}
    nodes = [
        helper.make_node(
            "MatMul", ["x" if i == 0 else f"h{i}", f"w{i}"], ["y" if i == 2 else f"h{i + 1}"], name=f"m{i}"
        )
        for i in range(3)
    ]
    model = lab.runs.save_model(tmp_path / "wide.onnx", nodes, weights, shape=["batch", 3000], out=["batch", 3000])
    data = lab.runs.save_data(tmp_path / "d.npz", {"x": rng.standard_normal((60, 3000)).astype(np.float32)})
    forecast = lab.runs.shell("plan", model, "--json")
    memory = forecast.json["memory_bytes"] / 2**20
    seen = []
    for share in (0.8, 1.0, 1.2, 1.6, 2.4):
        out = tmp_path / f"out{share}"
        line = ("quantize", model, "--data", data, "--scheme", "w8a8", "--effort", "fast", "--allow-slower", "-q")
        done = limited(lab.runs, share * memory, *line, "-o", out)
        if done.code != 0:
            done.refused(6)
            assert not out.exists()
        shutil.rmtree(out, ignore_errors=True)
        seen.append(f"{share:g}x: {done.code}")
    assert seen[-1].endswith(" 0"), seen
    told(f"forecast {memory:.0f} MB; " + ", ".join(seen))
