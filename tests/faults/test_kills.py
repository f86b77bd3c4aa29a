"""A run that is killed leaves the old output or the complete new one, and no process; the next one ends as if alone."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from fewbits._base.files import read_manifest, verify_manifest

KINDS = ("inside", "outside", "calibrated")
# Inside: one file with weights in codes. Outside: they lie in a data file. Calibrated: activations in codes too.
POINTS = {
    "inside": ("fewbits.search.job:make_golden", "fewbits._base.posix:write_new", "fewbits._base.posix:swap"),
    "calibrated": ("fewbits.search.job:observe", "fewbits._base.posix:write_new", "fewbits._base.posix:swap"),
    "outside": ("fewbits.export._data_file:DataFile.append", "fewbits._base.posix:write_new", "os:fsync"),
}


class Work:
    """A job of one kind: its command line, and what its output is before and after."""

    def __init__(self, lab: Any, folder: Path, kind: str, old: Path) -> None:
        runs = lab.runs
        lab.use(folder)
        self.lab, self.lazy = lab, kind == "outside"
        self.out = folder / "place" / "out"
        self.out.parent.mkdir()
        model = runs.small_net(folder / "net.onnx", seed=5)
        if self.lazy:
            proto = onnx.load(model)
            onnx.save_model(proto, model, save_as_external_data=True, location="net.bin", size_threshold=0)
        self.line = ["quantize", model, "--scheme", "w8a16", "--allow-slower", "-q"]
        if kind == "calibrated":
            data = runs.save_data(folder / "data.npz", runs.small_data(60))
            self.line = ["quantize", model, "--data", data, "--scheme", "w8a8", "--allow-slower", "-q"]
            assert self.run(folder / "first").code == 0
            shutil.copy(folder / "first" / "plan.json", folder / "plan.json")
            # Which repairs help is timed anew in each run; the plan of one run gives the same bytes each time.
            self.line[4:6] = ["--plan", folder / "plan.json"]
        begin = time.monotonic()
        done = self.run(folder / "whole")
        assert done.code == 0, done
        self.seconds = time.monotonic() - begin
        self.new = read_manifest(folder / "whole")["content_sha256"]
        self.old = read_manifest(old)["content_sha256"]
        self._old_folder = old
        assert self.old != self.new
        assert (folder / "whole" / "model.onnx.data").exists() == self.lazy

    def run(self, out: Path, **more: Any) -> Any:
        return self.lab.run(*self.line, "--overwrite", "-o", out, lazy=self.lazy, **more)

    def renew(self) -> None:
        """Puts the old output there, if it is not."""
        if not self.out.exists() or read_manifest(self.out)["content_sha256"] != self.old:
            shutil.rmtree(self.out, ignore_errors=True)
            shutil.copytree(self._old_folder, self.out)

    def state(self) -> str:
        """Tells what lies at the place of the output: "old", "new", or what is wrong with it."""
        wrong = verify_manifest(self.out)
        found = read_manifest(self.out)["content_sha256"]
        return "; ".join(map(str, wrong)) or {self.old: "old", self.new: "new"}.get(found, "another")

    def beside(self) -> list[str]:
        return sorted(path.name for path in self.out.parent.iterdir() if path != self.out)

    def has_begun_to_write(self) -> bool:
        return any(self.out.parent.glob(".out.fewbits-*.tmp/*"))


@pytest.fixture(scope="module")
def works(zygote: Any, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Work]:
    """Returns the job of a kind; each is made once."""
    made: dict[str, Work] = {}

    def make(kind: str) -> Work:
        if kind not in made:
            made[kind] = Work(zygote, tmp_path_factory.mktemp(kind), kind, finished / "out")
        zygote.use(made[kind].out.parents[1])
        return made[kind]

    return make


def kill_at_random(work: Work, rng: random.Random, *, writing: bool) -> str:
    """Kills one run, at any moment or shortly after it has begun to write; returns what it left."""
    work.renew()
    process = work.lab.start(*work.line, "--overwrite", "-o", work.out, lazy=work.lazy)
    if writing:
        until = time.monotonic() + 20
        while not work.has_begun_to_write() and time.monotonic() < until:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.06))
    else:
        time.sleep(rng.uniform(0, work.seconds))
    work.lab.kill(process)
    code = work.lab.end().code
    assert code in (0, -signal.SIGKILL)
    assert work.lab.outlived() == []
    return "ended" if code == 0 else work.state()


def killings(work: Work, count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    states = [kill_at_random(work, rng, writing=number % 2 == 0) for number in range(count)]
    assert set(states) <= {"old", "new", "ended"}, states
    assert "old" in states, "no kill came before the end"
    assert work.run(work.out).code == 0
    assert (work.state(), work.beside()) == ("new", [])
    return states


@pytest.mark.parametrize("kind", ["inside", "outside"])
def test_a_few_killed_runs_leave_the_old_or_the_new_output_and_no_process(
    works: Callable[[str], Work], kind: str
) -> None:
    killings(works(kind), 4, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_killed_runs_leave_the_old_or_the_new_output_and_no_process(
    works: Callable[[str], Work], told: Any, kind: str
) -> None:
    states = killings(works(kind), 20, seed=2)
    told(", ".join(f"{states.count(state)} {state}" for state in ("old", "new", "ended")) + "; 0 else")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_at_a_step_of_writing_leaves_the_old_or_the_new_output(
    works: Callable[[str], Work], told: Any, kind: str
) -> None:
    work = works(kind)
    states = []
    for point in POINTS[kind]:
        for number in (1, 3):
            work.renew()
            done = work.run(work.out, faults=[(point, number, "SIGKILL")])
            assert done.code in (-signal.SIGKILL, 0)
            states.append("ended" if done.code == 0 else work.state())
            assert work.lab.outlived() == []
    assert set(states) <= {"old", "new", "ended"}
    assert states.count("ended") <= 2, "most points were not reached"
    assert work.run(work.out).code == 0
    assert (work.state(), work.beside()) == ("new", [])
    told(", ".join(states))
