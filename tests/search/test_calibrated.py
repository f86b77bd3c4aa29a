"""What calibration never showed is told, with the node and the tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from fewbits.calibration.histogram import histogram_of
from fewbits.flow import observe
from fewbits.models.onnx.opening import open_model
from fewbits.planning.site import Role
from fewbits.search import sessions
from fewbits.search.calibrated import only_value, unchanging_sites, untaken_branches
from fewbits.search.draft import draft_plan
from fewbits.search.job import run
from fewbits.search.preparing import Request
from fewbits.targets import resolve_target


@pytest.mark.parametrize(("bias", "word"), [(-100.0, "always 0, and its scale is 1"), (100.0, "is always 6, and its")])
def test_a_tensor_that_never_changes_is_named(bias: float, word: str, net: Any, bench: Any) -> None:
    """ReLU6 of values far below 0 or far above 6: dead, or saturated for good."""
    n = net()
    weight = n.weight(8, 4, 3, 3)
    x = n.op("Conv", n.input((None, 4, 8, 8)), weight, n.const(np.full(8, bias)), name="dead", pads=[1, 1, 1, 1])
    n.output(n.conv(n.clip(x), 8, 4))
    model = bench.open(n)
    plan = draft_plan(model, resolve_target("ort-cpu"))
    examples = bench.examples({"x": np.random.default_rng(0).standard_normal((6, 4, 8, 8)).astype(np.float32)})
    sites = tuple(d.site for d in plan.quantized if d.role is Role.ACTIVATION)
    statistics = observe(model, examples, np.arange(6), sites)
    found = unchanging_sites(plan, statistics)
    assert len(found) == 1
    assert word in found[0] and "all 6 calibration examples" in found[0] and "[site-unchanging]" in found[0]
    assert "Conv 'dead'" in found[0]


def test_one_value_is_told_from_several() -> None:
    assert only_value(histogram_of(np.full(9, -2.5, np.float32))) == -2.5
    assert only_value(histogram_of(np.array([2.5, 0.0], np.float32))) is None
    assert only_value(histogram_of(np.array([2.5, 2.4], np.float32))) is None
    assert only_value(histogram_of(np.zeros(0, np.float32))) is None


def test_tensors_that_change_are_not_named(net: Any, bench: Any) -> None:
    n = net()
    n.output(n.conv(n.relu(n.conv(n.input((None, 4, 8, 8)), 4, 8)), 8, 4))
    model = bench.open(n)
    plan = draft_plan(model, resolve_target("ort-cpu"))
    examples = bench.examples({"x": np.random.default_rng(0).standard_normal((6, 4, 8, 8)).astype(np.float32)})
    sites = tuple(d.site for d in plan.quantized if d.role is Role.ACTIVATION)
    assert unchanging_sites(plan, observe(model, examples, np.arange(6), sites)) == ()


def _branching(net: Any, folder: Path) -> Any:
    """Returns y = gemm(x) if sum(x) > 0 else relu(x), then a gemm."""
    n = net()
    x = n.input((1, 16))

    def branch(kind: str) -> Any:
        node = helper.make_node(kind, [x], [f"{kind}_out"], name=f"in_{kind}")
        out = helper.make_tensor_value_info(f"{kind}_out", TensorProto.FLOAT, [1, 16])
        return helper.make_graph([node], kind, [], [out])

    positive = n.op("Greater", n.op("ReduceSum", x, keepdims=0), n.const(0.0))
    chosen = n.op("If", positive, name="choose", then_branch=branch("Relu"), else_branch=branch("Neg"))
    n.output(n.gemm(chosen, 16, 4), shape=[1, 4])
    return open_model(n.save(folder, checked=False))


@pytest.mark.parametrize(("signs", "untaken"), [((1, 1), ["else"]), ((-1, -1), ["then"]), ((1, -1), [])])
def test_a_branch_that_no_calibration_example_takes_is_named(
    signs: tuple[int, int], untaken: list[str], net: Any, bench: Any, tmp_path: Path
) -> None:
    model = _branching(net, tmp_path)
    x = np.stack([sign * np.ones(16, np.float32) for sign in signs])
    found = untaken_branches(model, bench.examples({"x": x}), np.arange(2))
    assert [f"takes its {branch} branch" in text for text, branch in zip(found, untaken, strict=True)] == [True] * len(
        untaken
    )
    assert all("If 'choose'" in text and "[branch-untaken]" in text for text in found)


def test_a_model_without_branches_is_not_run(net: Any, bench: Any) -> None:
    n = net()
    n.output(n.gemm(n.input((None, 16)), 16, 4))
    assert untaken_branches(bench.open(n), bench.examples({}), np.arange(5)) == ()


def test_a_whole_run_tells_of_branches_tensors_and_sessions(
    net: Any, runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each note stands in the warnings of the result, from where the report and the summary take it."""
    runs.hurry(monkeypatch)
    monkeypatch.setattr(sessions, "changes_answers", lambda found: True)  # whatever the machine rounds
    n = net()
    x = n.input((1, 16))

    def branch(kind: str) -> Any:
        node = helper.make_node(kind, [x], [f"{kind}_out"], name=f"in_{kind}")
        out = helper.make_tensor_value_info(f"{kind}_out", TensorProto.FLOAT, [1, 16])
        return helper.make_graph([node], kind, [], [out])

    positive = n.op("Greater", n.op("ReduceSum", x, keepdims=0), n.const(-1e6))
    chosen = n.op("If", positive, name="choose", then_branch=branch("Relu"), else_branch=branch("Neg"))
    dead = n.relu(n.op("Gemm", chosen, n.weight(16, 16), n.const(np.full(16, -100.0)), transB=1))
    live = n.relu(n.gemm(chosen, 16, 16))
    n.output(n.gemm(n.op("Concat", live, dead, axis=1), 32, 4), shape=[1, 4])
    path = n.save(tmp_path, checked=False)
    data = {"x": np.random.default_rng(0).standard_normal((60, 16)).astype(np.float32)}
    done = run(Request(model=str(path), data=data, scheme="w8a8", metric="agreement", allow_slower=True, max_drop=None))
    slugs = [warning.rpartition("[")[2] for warning in done.warnings]
    assert "branch-untaken]" in slugs
    assert "site-unchanging]" in slugs
    assert "sessions-differ]" in slugs
