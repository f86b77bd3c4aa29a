"""Odd environments, streams and places: the job is done, or refused in one line before it begins."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BARE = {"LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def model(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(finished / "net.onnx", tmp_path / "net.onnx"))


def line(model: Path, out: Path) -> list[Any]:
    return ["quantize", model, "--scheme", "w8a16", "--effort", "fast", "--allow-slower", "-o", out]


def through_shell(runs: Any, redirect: str, env: dict[str, str], args: list[Any]) -> Any:
    """Runs the command line as a shell would, with its streams led elsewhere."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m fewbits "$@" {redirect}', sys.executable, *map(str, args)],
        capture_output=True,
        env=env,
        timeout=120,
        check=False,
    )
    return runs.Done(code=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirect", "code", "lines"),
    [(">&-", 0, 0), ("2>/dev/full", 0, 0), (">&- 2>&-", 0, 0), (">/dev/full", 6, 1), ("<&-", 0, 0)],
    ids=["stdout closed", "stderr full", "both closed", "stdout full", "stdin closed"],
)
def test_a_whole_run_bears_closed_and_full_streams(
    runs: Any, model: Path, tmp_path: Path, told: Any, redirect: str, code: int, lines: int
) -> None:
    done = through_shell(runs, redirect, {**os.environ, **runs.PLAIN}, line(model, tmp_path / "out"))
    assert (done.code, len(done.err.splitlines())) == (code, lines), done
    assert runs.shell("verify", tmp_path / "out").code == 0, "the output is complete whoever listens"
    told(str(code))


@pytest.mark.slow
def test_a_refusal_bears_a_full_stderr(runs: Any, tmp_path: Path, told: Any) -> None:
    done = through_shell(
        runs, "2>/dev/full", {**os.environ, **runs.PLAIN}, line(tmp_path / "none.onnx", tmp_path / "out")
    )
    assert (done.code, done.out) == (4, "")
    told("4")


@pytest.mark.slow
def test_a_whole_run_needs_no_home_no_locale_and_no_terminal(runs: Any, model: Path, tmp_path: Path, told: Any) -> None:
    out = tmp_path / "aus gäbe"
    done = subprocess.run(
        [sys.executable, "-m", "fewbits", *map(str, line(model, out))],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env=BARE,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode("ascii")
    assert runs.shell("verify", out).code == 0
    told("0")


@pytest.mark.slow
def test_a_terminal_that_hangs_up_ends_nothing_half(runs: Any, model: Path, tmp_path: Path, told: Any) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "fewbits", *map(str, line(model, tmp_path / "out"))],
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env={**os.environ, **runs.PLAIN, "TERM": "xterm"},
    )
    os.close(follower)
    os.close(leader)
    code = process.wait(60)
    assert code in (0, 6)
    assert (tmp_path / "out").exists() == (code == 0)
    told(str(code))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["missing", "read-only", "full", "tiny"])
def test_the_folder_for_temporary_files_may_be_missing_read_only_or_full(
    lab: Any, model: Path, tmp_path: Path, told: Any, little_disk: Callable[[int], Path], kind: str
) -> None:
    temp = tmp_path / "missing" if kind == "missing" else little_disk(64)
    if kind == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", temp], check=True)
    if kind == "full":
        (temp / "ballast").write_bytes(bytes(64 * 1024))
    done = lab.run(*line(model, tmp_path / "out"), temp=temp)
    if done.code:
        done.refused(6)
        assert not (tmp_path / "out").exists()
    assert lab.outlived() == []
    told(str(done.code))


@pytest.mark.slow
def test_read_only_inputs_in_a_read_only_folder_are_enough(
    lab: Any, finished: Path, tmp_path: Path, told: Any, little_disk: Callable[[int], Path]
) -> None:
    disk = little_disk(1024)
    shutil.copy(finished / "net.onnx", disk / "net.onnx")
    data = lab.runs.save_data(disk / "data.npz", lab.runs.small_data(60))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    before = lab.runs.snapshot(disk)
    done = lab.run(*line(disk / "net.onnx", tmp_path / "out"), "--data", data)
    assert (done.code, done.err) == (0, "")
    assert lab.runs.snapshot(disk) == before
    refused = lab.run(*line(disk / "net.onnx", disk / "out"))
    refused.refused(6, "[output-unwritable]")
    told("0; an output there: 6 output-unwritable")


@pytest.mark.slow
def test_an_output_that_is_or_holds_an_input_is_refused(lab: Any, model: Path, told: Any) -> None:
    before = lab.runs.snapshot(model.parent)
    for out in (model, model.parent, model / "out"):
        lab.run(*line(model, out), "--overwrite").refused(2, "[output-is-input]")
    after = lab.runs.snapshot(model.parent)
    assert {name: after[name] for name in before} == before
    told("2 output-is-input")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["output", "model", "broken output"])
def test_links_are_followed_and_stay(
    lab: Any, finished: Path, model: Path, tmp_path: Path, told: Any, what: str
) -> None:
    place, link = tmp_path / "place", tmp_path / "link"
    if what == "model":
        link.symlink_to(model)
        done = lab.run(*line(link, place))
    else:
        if what == "output":
            shutil.copytree(finished / "out", place)
        link.symlink_to(place)
        done = lab.run(*line(model, link), "--overwrite")
    assert (done.code, done.err) == (0, "")
    assert link.is_symlink()
    assert place.is_dir() and not place.is_symlink()
    assert lab.run("verify", place).code == 0
    told("0")
