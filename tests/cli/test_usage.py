"""Options that cannot be meant: code 2, one line, the nearest name, and no work done before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("quantise",), ("unknown verb 'quantise'", "did you mean 'quantize'?")),
        (("zzz",), ("unknown verb 'zzz'", "one of: inspect, plan")),
        (("--jsn",), ("--jsn",)),
        (("inspect",), ("MODEL", "see 'fewbits inspect --help'")),
        (("inspect", "MODEL", "--targt", "ort-cpu"), ("--targt", "--target")),
        (("inspect", "MODEL", "--target", "ort-cpo"), ("did you mean 'ort-cpu'?", "[unknown-name]")),
        (("inspect", "MODEL", "--target", "ort-cpu:vnnni"), ("did you mean 'vnni'?",)),
        (("targets", "openvina"), ("unknown target 'openvina'",)),
        (("quantize", "MODEL", "--data", "DATA"), ("--output",)),
        (("quantize", "MODEL", "-o", "OUT"), ("give --data DATA", "[data-missing]")),
        (("quantize", "MODEL", "-o", "OUT", "--data", "DATA", "--scheme", "w8a9"), ("did you mean 'w8a8'?",)),
        (("quantize", "MODEL", "-o", "OUT", "--data", "DATA", "--metric", "top1"), ("did you mean 'top-1'?",)),
        (("quantize", "MODEL", "-o", "OUT", "--data", "DATA", "--effort", "balancd"), ("did you mean 'balanced'?",)),
        (("plan", "MODEL", "--effort", "bst"), ("did you mean 'best'?",)),
        (("quantize", "MODEL", "-o", "OUT", "--data", "DATA", "--max-drop", "5"), ("write a percentage", "'5%'")),
        (("quantize", "MODEL", "-o", "OUT", "--data", "DATA", "--max-drop", "one"), ("'one'", "[max-drop]")),
        (("quantize", "MODEL", "-o", "OUT", "--data", "DATA", "--max-drop", "nan"), ("[max-drop]",)),
        (("quantize", "MODEL", "-o", "OUT", "--data", "DATA", "--max-drop", "-1%"), ("[max-drop]",)),
        (("quantize", "MODEL", "-o", "OUT", "--data", "DATA", "--confidence", "101%"), ("[confidence]",)),
        (("quantize", "MODEL", "-o", "OUT", "--data", "DATA", "--time-budget", "soon"), ("10m",)),
        (("quantize", "MODEL", "-o", "OUT", "--data", "DATA", "--time-budget", "nan"), ("10m",)),
        (("quantize", "MODEL", "-o", "OUT", "--data", "DATA", "--jobs", "0"), ("--jobs", "at least 1")),
        (("quantize", "MODEL", "-o", "OUT", "--data", "DATA", "--seed", "-1"), ("--seed", "at least 0")),
        (("quantize", "MODEL", "-o", "OUT", "--data", "DATA", "--seed", "x"), ("--seed",)),
        (("quantize", "MODEL", "-o", "OUT", "--data", "DATA", "--plan", "none.json"), ("none.json", "[plan-")),
        (("quantize", "MODEL", "-o", "OUT", "--data", "DATA", "--plan", "MODEL"), ("[plan-",)),
        (("quantize", "MODEL", "-o", "OUT", "--data", "DATA", "--plan", "P", "--scheme", "w8a8"), ("--scheme",)),
        (("quantize", "MODEL", "-o", "OUT", "--data", "DATA", "--score-output", "logit"), ("it has: logits",)),
        (("quantize", "MODEL", "-o", "OUT", "--data", "DATA", "--labels-key", "label"), ("did you mean 'labels'?",)),
        (("quantize", "MODEL", "-o", "OUT", "--data", "DATA", "--metric", "nowhere:f"), ("[metric-not-found]",)),
        (("quantize", "MODEL", "-o", "OUT", "--data", "DATA", "--metric", "math:nof"), ("[metric-not-found]",)),
        (("quantize", "MODEL", "-o", "OUT", "--data", "DATA", "--metric", "math:pi"), ("is not a function",)),
        (("plan", "MODEL", "--plan", "P"), ("--plan",)),
        (("plan", "MODEL", "-o", "MODEL"), ("[output-is-input]",)),
        (("plan", "MODEL", "--data", "DATA", "-o", "DATA"), ("[output-is-input]",)),
        (("plan", "MODEL", "-o", "."), ("is a folder",)),
        (("plan", "MODEL", "--search"), ("[data-missing]",)),
        (("verify", "OUT", "--model", "MODEL"), ("go together",)),
        (("measure", "MODEL", "MODEL"), ("--data",)),
        (("measure", "MODEL", "MODEL", "--data", "DATA", "--metric", "topp-1"), ("did you mean 'top-1'?",)),
    ],
    ids=lambda value: " ".join(value) if value and value[0] in ("quantize", "plan") else None,
)  # fmt: skip
def test_an_impossible_wish_is_refused_in_one_line(
    cli: Callable[..., Any], runs: ModuleType, out: Path, tmp_path: Path, args: tuple[str, ...], words: tuple[str, ...]
) -> None:
    plan = out / "plan.json"
    new = tmp_path / "new"
    kept = out if args[0] == "verify" else new
    places = {"MODEL": runs.DIGITS, "DATA": runs.DIGITS_DATA, "OUT": kept, "P": plan}
    before = runs.snapshot(tmp_path)
    cli(*(places.get(arg, arg) for arg in args)).refused(2, *words)
    assert runs.snapshot(tmp_path) == before, "a refusal left something behind"
    assert not new.exists()


def test_no_verb_shows_help_as_a_usage_error(cli: Callable[..., Any]) -> None:
    done = cli()
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: fewbits")


def test_output_equal_to_an_input_is_refused(cli: Callable[..., Any], runs: ModuleType, tmp_path: Path) -> None:
    model = tmp_path / "m" / "net.onnx"
    model.parent.mkdir()
    model.write_bytes(runs.DIGITS.read_bytes())
    for place in (model, model.parent, tmp_path):
        done = cli("quantize", model, "--data", runs.DIGITS_DATA, "-o", place, "--overwrite")
        done.refused(2, "[output-is-input]")
    assert model.read_bytes() == runs.DIGITS.read_bytes()


def test_an_output_that_exists_is_kept_without_overwrite(cli: Callable[..., Any], runs: ModuleType, out: Path) -> None:
    before = runs.snapshot(out)
    cli("quantize", runs.DIGITS, "--data", runs.DIGITS_DATA, "-o", out).refused(2, "--overwrite", "[output-exists]")
    assert runs.snapshot(out) == before


def test_a_folder_that_is_not_ours_is_never_replaced(cli: Callable[..., Any], runs: ModuleType, tmp_path: Path) -> None:
    place = tmp_path / "thesis"
    place.mkdir()
    (place / "chapter1.txt").write_text("years of work")
    done = cli("quantize", runs.DIGITS, "--data", runs.DIGITS_DATA, "-o", place, "--overwrite")
    done.refused(2, "[output-foreign]")
    assert runs.snapshot(tmp_path) == {"thesis/chapter1.txt": b"years of work"}


def test_overwrite_replaces_an_output_of_ours(cli: Callable[..., Any], runs: ModuleType, out: Path) -> None:
    done = cli("quantize", runs.DIGITS, "--data", runs.DIGITS_DATA, "--scheme", "w8a8", "-o", out, "--overwrite")
    assert done.code == 0, done.err
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert cli("verify", out).code == 0


def test_an_existing_plan_file_needs_overwrite(cli: Callable[..., Any], runs: ModuleType, tmp_path: Path) -> None:
    place = tmp_path / "plan.json"
    place.write_text("edited by hand")
    cli("plan", runs.DIGITS, "-o", place).refused(2, "--overwrite", "[output-exists]")
    assert place.read_text() == "edited by hand"
    assert cli("plan", runs.DIGITS, "-o", place, "--overwrite").code == 0
    assert place.read_text() != "edited by hand"
