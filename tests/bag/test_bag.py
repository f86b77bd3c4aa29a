"""Every model of the bag goes through the main job and comes out whole, or is refused in one line."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

_NETWORKS = Path(__file__).parent / "networks"
# Eight bits with fitted ranges leave 30 dB at a single layer; a network of this depth keeps two thirds of that.
_SQNR_DB = 20.0
_COMPARED = 64


def _bag() -> ModuleType:
    name = "fewbits_test_bag"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, _NETWORKS / "__init__.py", submodule_search_locations=[str(_NETWORKS)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


bag = _bag()
# What does not go through yet, and why.
_BROKEN: dict[str, str] = {}


def _cases(*, refused: bool) -> list[Any]:
    found = []
    for name, case in bag.CASES.items():
        marks = [] if case.quick else [pytest.mark.slow]
        if name in _BROKEN:
            marks.append(pytest.mark.xfail(strict=True, reason=_BROKEN[name]))
        if (case.refused is not None) == refused:
            found.append(pytest.param(case, id=name, marks=marks))
    return found


def _arguments(case: Any, files: Any, out: Path) -> list[Any]:
    metric = ["--metric", f"bag_metrics:{case.metric}"] if case.metric else []
    return ["quantize", files.model, "--data", files.data, "--max-drop", "5%", "--effort", "fast", *metric, "-o", out]


def _float_model(path: Path) -> bytes:
    """Returns the model as ONNX Runtime takes it: without the names of nodes, of which it refuses equal ones."""
    model = onnx.load(path)
    for node in model.graph.node:
        node.ClearField("name")
    return bytes(model.SerializeToString())


def _interface(model: Path | bytes) -> list[tuple[str, ...]]:
    session = ort.InferenceSession(
        model if isinstance(model, bytes) else str(model), providers=["CPUExecutionProvider"]
    )
    inputs = [("input", i.name, i.type, str(i.shape)) for i in session.get_inputs()]
    return inputs + [("output", o.name, o.type) for o in session.get_outputs()]


def _sqnr_db(want: np.ndarray, got: np.ndarray) -> float:
    want, got = want.astype(np.float64), got.astype(np.float64)
    noise = ((got - want) ** 2).sum()
    return float(10 * np.log10((want**2).sum() / noise)) if noise else np.inf


@pytest.mark.parametrize("case", _cases(refused=False))
def test_it_goes_through_and_the_file_answers_as_the_float_model_did(
    case: Any, cli: Callable[..., Any], tmp_path: Path
) -> None:
    from fewbits.reporting.schema import from_json

    made = case.make()
    files, out = bag.save(made, tmp_path, case.name, external=case.external), tmp_path / "out"
    # A file that is slower would be kept back, and nothing be seen of it here.
    done = cli(*_arguments(case, files, out), "--allow-slower")
    assert done.code in (0, 3), done.err
    assert all(line.startswith("note: ") for line in done.err.splitlines()), done.err

    checked = cli("verify", out)
    assert checked.code == 0, checked.err
    report = from_json((out / "report.json").read_text())
    assert report.executed is not None and report.executed.integer_nodes >= case.integer, report.executed.kernels
    assert not report.float_kept

    original = _float_model(files.model)
    assert _interface(out / "model.onnx") == _interface(original)
    want = bag.run_float(original, made.arrays, _COMPARED)
    got = bag.run_float(out / "model.onnx", made.arrays, _COMPARED)
    for name, values in want.items():
        assert got[name].dtype == values.dtype
        assert got[name].shape == values.shape
        assert np.isfinite(got[name]).all()
        assert _sqnr_db(values, got[name]) >= _SQNR_DB, name


@pytest.mark.parametrize("case", _cases(refused=True))
def test_what_nothing_here_can_run_is_refused_in_one_line(
    case: Any, runs: ModuleType, cli: Callable[..., Any], tmp_path: Path
) -> None:
    files, out = bag.save(case.make(), tmp_path, case.name), tmp_path / "out"
    code, slug = case.refused
    cli(*_arguments(case, files, out)).refused(code, f"[{slug}]", f"{case.name}.onnx")
    assert not out.exists()


def test_a_foreign_operator_that_runs_stays_float_and_is_named(cli: Callable[..., Any], tmp_path: Path) -> None:
    case = bag.CASES["contrib_gelu"]
    files, out = bag.save(case.make(), tmp_path, case.name), tmp_path / "out"
    done = cli(*_arguments(case, files, out), "--allow-slower", "--json")
    islands = {island["node"]: island for island in done.json["executed"]["islands"]}
    assert islands["contrib_gelu"]["rule"] == "custom-domain"
    assert "com.microsoft" in islands["contrib_gelu"]["why"]
    operators = [(node.domain, node.op_type) for node in onnx.load(out / "model.onnx").graph.node]
    assert ("com.microsoft", "Gelu") in operators


def test_without_a_metric_an_output_of_one_column_is_refused_in_one_line(
    cli: Callable[..., Any], tmp_path: Path
) -> None:
    case = bag.CASES["recommender"]
    made = case.make()
    unlabelled = replace(made, arrays={name: a for name, a in made.arrays.items() if name != "labels"})
    files = bag.save(unlabelled, tmp_path, case.name)
    arguments = _arguments(replace(case, metric=None), files, tmp_path / "out")
    cli(*arguments).refused(4, "[agreement-needs-classes]", "--metric", "liked")


@pytest.mark.slow
def test_the_report_gives_the_operator_set_that_came_in(cli: Callable[..., Any], tmp_path: Path) -> None:
    case = bag.CASES["old_classifier_opset9"]
    files, out = bag.save(case.make(), tmp_path, case.name), tmp_path / "out"
    assert cli(*_arguments(case, files, out), "--json").json["model"]["opset"] == 9


def test_weights_inside_bodies_are_listed(cli: Callable[..., Any], tmp_path: Path) -> None:
    files = bag.save(bag.CASES["control_flow"].make(), tmp_path, "control_flow")
    listed = cli("inspect", files.model, "--json").json["inner_weights"]
    assert {(one["op"], one["tensor"], one["bytes"]) for one in listed} == {
        ("If", "then_w", 4 * 32 * 32),
        ("If", "else_w", 4 * 32 * 32),
        ("Loop", "loop_w", 4 * 32 * 32),
    }


@pytest.mark.slow
def test_a_table_read_twice_does_not_make_the_file_larger(cli: Callable[..., Any], tmp_path: Path) -> None:
    case = bag.CASES["tied"]
    files, out = bag.save(case.make(), tmp_path, case.name), tmp_path / "out"
    done = cli(*_arguments(case, files, out), "--allow-slower", "--json")
    assert done.json["size"]["ratio"] >= 1.0
