"""The examples run as they stand, each in a process and a folder of its own, and print what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HURRIED = Path(__file__).with_name("hurried.py")
# Need torch, and minutes; test_training_scripts.py runs the last two made small.
NOT_RUN = {"train_demo_model", "train_text_classifier", "train_recommender"}
# Script -> lines that must be printed, and files that must lie in the working directory afterwards.
PROMISED = {
    "quickstart": (("verdict: met", "the quantized model reads a"), ("fewbits-quickstart/model.onnx",)),
    "custom_metric": (("Budget met: custom_metric:confidence", "method of the bound: betting"), ()),
    "edit_and_replay_plan": (
        (
            "edited.json: nodes in float: ",
            "stem/conv (Conv): kept float by hand",
            "the same plan gives the same bytes: True",
        ),
        ("plan.json", "edited.json"),
    ),
    "pack_for_a_runtime": (
        ("back to the bit: True", "ONNX Runtime sees our weight: True", "[layout-shape]", "5.125 bits a weight"),
        ("gptq.safetensors",),
    ),
    "compare_two_models": (("budget 2%: met", "budget 0.1%: undecided", "examples would decide"), ()),
}


def test_every_example_is_run_here_and_named_in_the_readme():
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert scripts == set(PROMISED) | NOT_RUN
    readme = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert all(f"({script}.py)" in readme for script in scripts)


@pytest.mark.parametrize("name", PROMISED)
def test_an_example_runs_and_prints_what_it_promises(name, tmp_path):
    words, left = PROMISED[name]
    done = subprocess.run(
        [sys.executable, str(HURRIED), str(ROOT / "examples" / f"{name}.py")],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for word in words:
        assert word in done.stdout
    for file in left:
        assert (tmp_path / file).is_file()
