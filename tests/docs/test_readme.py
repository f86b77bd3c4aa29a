"""What the README tells a stranger to type works, in its order, and gives what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HURRIED = ROOT / "tests" / "examples" / "hurried.py"
QUICKSTART = README[README.index("## A CNN of your own") : README.index("## What the answer means")]
LONGEST = 150


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a model and examples under the names that the README uses."""
    folder = tmp_path_factory.mktemp("readme")
    demo = Path(str(files("fewbits"))) / "demo"
    shutil.copy(demo / "digits.onnx", folder / "model.onnx")
    shutil.copy(demo / "digits.npz", folder / "examples.npz")
    return folder


def run(place: Path, script: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(HURRIED), str(script), *arguments],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_commands_of_the_quickstart_work_in_their_order(place):
    commands = re.findall(r"^fewbits (.+?)(?: +#.*)?$", QUICKSTART, re.MULTILINE)
    assert [line.split()[0] for line in commands] == ["inspect", "plan", "quantize", "verify"]
    printed = [run(place, ROOT / "src" / "fewbits" / "__main__.py", *line.split()) for line in commands]
    assert "image: float32" in printed[0]
    assert "verdict" in printed[1]
    assert printed[2].startswith("Budget met")
    assert "golden outputs equal to the bit" in printed[3]
    for name in ("model.onnx", "plan.json", "report.html", "report.json", "README.md", "manifest.json"):
        assert (place / "out" / name).is_file()


def test_the_python_of_the_quickstart_works(place):
    shutil.rmtree(place / "out", ignore_errors=True)
    script = next(text for text in re.findall(r"```python\n(.*?)```", QUICKSTART, re.DOTALL) if "quantize" in text)
    (place / "quickstart.py").write_text(script, encoding="utf-8")
    assert run(place, place / "quickstart.py").startswith("Budget met")
    assert (place / "out" / "model.onnx").is_file()


def test_the_numbers_of_examples_are_the_planner_s():
    from fewbits.evidence import examples_needed

    told = re.search(r"(\d+) examples show a loss of at most 1 point; for 0.5 points it takes (\d+)", README)
    assert told is not None
    assert (int(told[1]), int(told[2])) == (examples_needed(0.01), examples_needed(0.005))


def test_every_verb_is_named_and_the_readme_stays_short():
    from fewbits.cli import _VERBS

    works = next(line for line in README.splitlines() if line.startswith("| `inspect`"))
    assert set(re.findall(r"`([a-z]+)`", works.split("|")[1])) == set(_VERBS)
    assert len(README.splitlines()) <= LONGEST


def test_what_the_readme_calls_missing_is_missing():
    from fewbits.cli import _VERBS, group

    works = next(line for line in README.splitlines() if line.startswith("| `inspect`"))
    later = works.split("|")[2]
    assert not set(re.findall(r"`([a-z]+)`", later)) & set(_VERBS)
    command = group.get_command(None, "quantize")  # type: ignore[arg-type]
    have = {option for parameter in command.params for option in parameter.opts}
    assert not set(re.findall(r"`(--[a-z-]+)`", later)) & have
