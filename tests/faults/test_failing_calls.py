"""A disk that is full or fails: exit code 6, one line, the old output as it was, nothing else left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

WRITING = ("os:write", "os:fsync", "os:rename", "fewbits._base.posix:exchange")
KINDS = ("inside", "outside")


@pytest.fixture
def line(lab: Any, finished: Path, tmp_path: Path) -> list[Any]:
    """The command line of a short run whose model lies in one file."""
    model = shutil.copy(finished / "net.onnx", tmp_path / "net.onnx")
    return ["quantize", model, "--scheme", "w8a16", "--allow-slower", "-q", "--overwrite", "-o"]


@pytest.fixture
def old(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished / "out", tmp_path / "old"))


def spread(model: Path) -> None:
    """Moves the weights of a model into a file beside it."""
    onnx.save_model(onnx.load(model), model, save_as_external_data=True, location="net.bin", size_threshold=0)


def squeeze(lab: Any, line: list[Any], old: Path, disk: Path, rooms: range, *, lazy: bool) -> list[int]:
    """Runs with so much room left, and more until it is enough; returns the rooms that were too small."""
    out = Path(shutil.copytree(old, disk / "out"))
    small = []
    for room in rooms:
        free = os.statvfs(disk)
        (disk / "ballast").write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - room)))
        before = lab.runs.snapshot(disk)
        done = lab.run(*line, out, lazy=lazy)
        if done.code == 0:
            break
        done.refused(6, "[disk-full]")
        assert lab.runs.snapshot(disk) == before
        small.append(room)
        (disk / "ballast").unlink()
    assert lab.run("verify", out).code == 0
    return small


def test_a_disk_without_room_for_the_data_file_keeps_the_old_output(
    lab: Any, line: list[Any], old: Path, little_disk: Callable[[int], Path]
) -> None:
    spread(line[1])
    assert squeeze(lab, line, old, little_disk(1024), range(1), lazy=True) == [0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_full_after_any_number_of_bytes_leaves_the_old_output(
    lab: Any, line: list[Any], old: Path, little_disk: Callable[[int], Path], told: Any, kind: str
) -> None:
    if kind == "outside":
        spread(line[1])
    small = squeeze(lab, line, old, little_disk(1024), range(0, 400_000, 12_000), lazy=kind == "outside")
    assert len(small) > 5
    told(f"6 disk-full at {len(small)} sizes from 0 to {small[-1] // 1000} kB, then 0")


def failing(lab: Any, line: list[Any], old: Path, code: str, *, step: int) -> int:
    """Lets the n-th call that changes the disk fail, for every step-th n until a run succeeds; returns the failures."""
    # The first call is not counted: with it Python tries a folder for temporary files; another is as good.
    slug = "[disk-full]" if code in ("ENOSPC", "EDQUOT") else "[output-unwritable]"
    for tried, number in enumerate(range(2, 400, step)):
        place = old.parent / "place"
        out = Path(shutil.copytree(old, place / "out"))
        before = lab.runs.snapshot(place)
        done = lab.run(*line, out, faults=[(WRITING, number, code)])
        if done.code == 0:
            assert tried, "no call failed"
            return tried
        done.refused(6, slug)
        assert lab.runs.snapshot(place) == before, number
        assert lab.outlived() == []
        shutil.rmtree(place)
    raise AssertionError("no run succeeded")


def test_a_write_that_fails_leaves_the_old_output(lab: Any, line: list[Any], old: Path) -> None:
    assert failing(lab, line, old, "EIO", step=20) >= 1


@pytest.mark.slow
@pytest.mark.parametrize(("code", "step"), [("EIO", 1), ("EROFS", 3), ("EDQUOT", 3)])
def test_whichever_write_sync_or_rename_fails_the_old_output_stays(
    lab: Any, line: list[Any], old: Path, told: Any, code: str, step: int
) -> None:
    tried = failing(lab, line, old, code, step=step)
    assert tried > 5
    told(f"6 in {tried} runs, then 0")


@pytest.mark.parametrize(
    ("code", "slug"), [("EIO", "Input/output error"), pytest.param("ENOSPC", "[disk-full]", marks=pytest.mark.slow)]
)
def test_a_data_file_that_cannot_be_written_leaves_the_old_output(
    lab: Any, line: list[Any], old: Path, code: str, slug: str
) -> None:
    spread(line[1])
    before = lab.runs.snapshot(old.parent / "old")
    done = lab.run(*line, old, lazy=True, faults=[("fewbits.export._data_file:DataFile.append", 1, code)])
    done.refused(6, slug)
    assert lab.runs.snapshot(old) == before
    assert not list(old.parent.glob(".old*"))
