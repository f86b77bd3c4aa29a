"""verify finds one flipped bit anywhere; report rebuilds the page from what is stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

FILES = (
    "README.md", "costs.json", "golden.npz", "manifest.json", "model.onnx", "plan.json", "records.jsonl", "report.html",
    "report.json", "timings.json",
)  # fmt: skip


def _flip(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    at = min(len(data) - 1, int(place * len(data)))
    data[at] ^= 1
    path.write_bytes(data)


def test_an_untouched_output_verifies(cli: Callable[..., Any], written: Path) -> None:
    done = cli("verify", written)
    assert (done.code, done.err) == (0, "")
    assert "9 files" in done.out
    assert "equal to the bit" in done.out


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0], ids=["first", "middle", "last"])
def test_one_flipped_bit_in_any_file_is_found(cli: Callable[..., Any], out: Path, name: str, place: float) -> None:
    _flip(out / name, place)
    cli("verify", out).refused(8, "[manifest-")


def test_a_missing_and_an_added_file_are_named(cli: Callable[..., Any], out: Path) -> None:
    (out / "note.txt").write_text("mine")
    cli("verify", out).refused(8, "'note.txt' is extra")
    (out / "note.txt").unlink()
    (out / "records.jsonl").unlink()
    cli("verify", out).refused(8, "'records.jsonl' is missing")


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("x")])
def test_what_is_no_output_is_refused(cli: Callable[..., Any], tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "thing")
    for verb in ("verify", "report"):
        cli(verb, tmp_path / "thing").refused(8, "[manifest-missing]")


def test_a_forged_model_with_a_mended_manifest_fails_on_the_golden_outputs(
    cli: Callable[..., Any], runs: ModuleType, out: Path
) -> None:
    from fewbits._base.files import OutputFolder, read_manifest

    files = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "manifest.json"}
    timing = list(read_manifest(out)["timing_files"])
    files["model.onnx"] = runs.DIGITS.read_bytes()  # another model with the same input and output
    with OutputFolder(out, overwrite=True) as folder:
        for name, data in files.items():
            folder.write(name, data)
        folder.commit({}, timing_files=timing)
    cli("verify", out).refused(8, "[golden-differs]")


def test_verify_measures_the_same_figure_again(cli: Callable[..., Any], runs: ModuleType, written: Path) -> None:
    done = cli("verify", written, "--model", runs.DIGITS, "--data", runs.DIGITS_DATA, "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json["figure"] == json.loads((written / "report.json").read_text())["metric"]["quantized"]


def test_verify_refuses_other_data_and_another_model(
    cli: Callable[..., Any], runs: ModuleType, written: Path, tmp_path: Path
) -> None:
    few = runs.save_data(tmp_path / "few.npz", runs.digits(400))
    cli("verify", written, "--model", runs.DIGITS, "--data", few).refused(8, "data")
    changed = runs.digits()
    changed["labels"] = (changed["labels"] + 1) % 10
    other = runs.save_data(tmp_path / "other.npz", changed)
    cli("verify", written, "--model", runs.DIGITS, "--data", other).refused(8, "data")


def test_verify_works_with_a_labels_key_and_with_eval_data(
    cli: Callable[..., Any], runs: ModuleType, tmp_path: Path
) -> None:
    arrays = runs.digits(600)
    arrays["truth"] = arrays.pop("labels")
    data = runs.save_data(tmp_path / "data.npz", {n: a[:300] for n, a in arrays.items()})
    judge = runs.save_data(tmp_path / "eval.npz", {n: a[300:] for n, a in arrays.items()})
    done = cli(
        "quantize", runs.DIGITS, "--data", data, "--eval", judge, "--labels-key", "truth", "--effort", "fast", "-o",
        tmp_path / "o", "--json",
    )  # fmt: skip
    assert done.code in (0, 3), done.err
    assert done.json["metric"]["examples"] == 300
    again = cli("verify", tmp_path / "o", "--model", runs.DIGITS, "--data", judge, "--labels-key", "truth", "--json")
    assert again.code == 0, again.err
    assert again.json["figure"] == done.json["metric"]["quantized"]
    wrong = cli("verify", tmp_path / "o", "--model", runs.DIGITS, "--data", data, "--labels-key", "truth")
    wrong.refused(8, "data")
    replay = cli(
        "quantize", runs.DIGITS, "--data", data, "--eval", judge, "--labels-key", "truth", "--plan",
        tmp_path / "o" / "plan.json", "-o", tmp_path / "p",
    )  # fmt: skip
    assert replay.code == 0, replay.err
    again = cli("verify", tmp_path / "p", "--model", runs.DIGITS, "--data", judge, "--labels-key", "truth", "--json")
    assert again.code == 0, again.err


def test_verify_asks_for_the_score_output_that_the_run_had(
    cli: Callable[..., Any], runs: ModuleType, tmp_path: Path
) -> None:
    import onnx

    model = onnx.load(str(runs.DIGITS))
    model.graph.output.append(onnx.helper.make_tensor_value_info("twice", 1, ["batch", 10]))
    model.graph.node.append(onnx.helper.make_node("Neg", ["logits"], ["twice"], name="neg"))
    onnx.save(model, str(tmp_path / "two.onnx"))
    data = runs.save_data(tmp_path / "few.npz", runs.digits(300))
    done = cli(
        "quantize", tmp_path / "two.onnx", "--data", data, "--scheme", "w8a8", "--score-output", "twice", "-o",
        tmp_path / "o", "--allow-slower", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["metric"]["float"] < 0.2, "the smallest logit is seldom right"
    again = cli("verify", tmp_path / "o", "--model", tmp_path / "two.onnx", "--data", data, "--score-output", "twice")
    assert again.code == 0, again.err


def test_report_rebuilds_the_same_page(cli: Callable[..., Any], out: Path) -> None:
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "report.html").unlink()
    (out / "README.md").write_text("overwritten by a person")
    done = cli("report", out)
    assert done.code == 0, done.err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert cli("verify", out).code == 0


def test_report_refuses_a_changed_report_json(cli: Callable[..., Any], out: Path) -> None:
    text = (out / "report.json").read_text()
    (out / "report.json").write_text(text.replace('"verdict": "met"', '"verdict": "not met"'))
    cli("report", out).refused(8, "'report.json' is changed")


def test_golden_holds_no_example_of_the_data(written: Path, runs: ModuleType) -> None:
    with np.load(written / "golden.npz") as file:
        sizes = {name: file[name].size for name in file.files}
    pixels = runs.digits(1)["image"].size
    assert all(size < pixels for size in sizes.values()), sizes
