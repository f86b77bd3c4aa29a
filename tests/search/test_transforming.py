"""Transforms by evidence: kept where examples come closer to float, and replayed from the plan to the same bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import fewbits
from fewbits._base.errors import UsageError
from fewbits.datasets import open_dataset
from fewbits.models.onnx.equalizing import links_of
from fewbits.models.onnx.opening import open_model
from fewbits.planning.plan import TransformStep, plan_from_json
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Options
from fewbits.search import job, teaching, transforming
from fewbits.search.draft import draft_dynamic
from fewbits.search.preparing import Request
from fewbits.search.repairing import unrepaired
from fewbits.search.transforming import EQUALIZATION, SMOOTHING, TRANSFORMED, after_transforms, before_transforms
from fewbits.targets import TARGETS, forms_without_ranges, place_dynamic, place_forms


def skewed(graphs: Any, folder: Path, *, spread: int = 10) -> Path:
    """Two layers whose channels between them differ by up to 2**spread, and the weights behind make up for it."""
    n = graphs.Net(seed=3)
    sizes = np.exp2(np.linspace(-spread / 2, spread / 2, 16))
    x = n.input(("N", 16))
    first = n.const(n.rng.standard_normal((16, 16)) / 4 * sizes[:, None])
    h = n.relu(n.op("Gemm", x, first, n.const(n.rng.standard_normal(16) * sizes), transB=1))
    second = n.const(n.rng.standard_normal((10, 16)) / sizes)
    n.output(n.op("Gemm", h, second, transB=1))
    return n.save(folder)


def loud_input(graphs: Any, folder: Path) -> Path:
    """A layer on inputs of which one is a thousand times as large as the others."""
    n = graphs.Net(seed=4)
    weight = n.rng.standard_normal((16, 10)).astype(np.float32)
    weight[0] /= 1000
    n.output(n.op("Add", n.op("MatMul", n.input(("N", 4, 16)), n.const(weight)), n.vector(10)))
    return n.save(folder)


def loud_branch(graphs: Any, folder: Path) -> Path:
    """Two layers side by side, the second a thousand times as loud, and a layer that makes up for it."""
    n = graphs.Net(seed=5)
    x = n.input(("N", 16))
    quiet, loud = (n.op("Gemm", x, n.const(n.rng.standard_normal((8, 16)) / 4 * size), transB=1) for size in (1, 1024))
    joined = n.relu(n.op("Concat", quiet, loud, axis=1))
    n.output(n.op("Gemm", joined, n.const(n.rng.standard_normal((10, 16)) / np.repeat([1, 1024], 8)), transB=1))
    return n.save(folder)


def examples(shape: tuple[int, ...], *, loud: float = 1.0) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    values[..., 0] *= loud
    return values


def quantized(path: Path, data: np.ndarray, **more: Any) -> fewbits.Result:
    return fewbits.quantize(path, data={"x": data}, allow_slower=True, **more)


def names(result: fewbits.Result) -> list[str]:
    return [step.name for step in result.plan.transforms if step.name in TRANSFORMED]


def kl(result: fewbits.Result) -> float:
    judged = result.run.judged
    assert judged is not None and judged.quality.kl is not None
    return judged.quality.kl


@pytest.fixture(autouse=True)
def hurried(runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.hurry(monkeypatch)
    # Repairs go by the clock, and what they rewrite is another graph.
    monkeypatch.setattr(job, "repair", lambda prepared, statistics, *more: unrepaired(prepared, statistics))


@pytest.fixture
def unranged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets runs have ranges of each run alone, with no repairs."""

    def plain(prepared: Any, statistics: Any, *more: Any) -> Any:
        forms = forms_without_ranges(prepared.model.view, prepared.target)
        plan = draft_dynamic(prepared.model, prepared.target, base=prepared.base)
        return replace(unrepaired(prepared, statistics), forms=forms, plan=plan)

    monkeypatch.setattr(job, "repair", plain)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns what quantizes with no transform at all."""

    def run(path: Path, data: np.ndarray, **more: Any) -> fewbits.Result:
        with monkeypatch.context() as patch:
            patch.setattr(transforming, "TRANSFORMED", {})
            return quantized(path, data, **more)

    return run


@pytest.mark.parametrize(
    "how", [{"scheme": "w8a8"}, pytest.param({"max_drop": 0.02, "effort": "fast"}, marks=pytest.mark.slow)]
)
def test_channels_a_thousand_times_apart_collapse_without_and_hold_with_it(
    graphs: Any, tmp_path: Path, without: Any, how: dict[str, Any]
) -> None:
    path, data = skewed(graphs, tmp_path), examples((400, 16))
    with_it, plain = quantized(path, data, **how), without(path, data, **how)
    assert len(names(with_it)) == 1
    assert names(plain) == []
    if "scheme" in how:
        assert kl(plain) > 0.02
        assert kl(with_it) < kl(plain) / 20
    assert kl(with_it) < 0.002


def test_a_loud_input_is_divided_and_the_plan_replays_to_the_byte(graphs: Any, tmp_path: Path, without: Any) -> None:
    path, data = loud_input(graphs, tmp_path), examples((400, 4, 16), loud=1000)
    result, plain = quantized(path, data, scheme="w8a8"), without(path, data, scheme="w8a8")
    assert names(result) == [SMOOTHING]
    assert onnx.load_from_string(result.model_bytes).graph.node[0].op_type == "Div"
    assert kl(result) < kl(plain) / 20
    plan = plan_from_json(result.plan.to_json())
    again = quantized(path, data, plan=plan)
    assert again.model_bytes == result.model_bytes
    assert again.plan.transforms == plan.transforms
    assert again.plan.decisions == plan.decisions


def test_a_channel_that_hides_the_others_is_divided_though_outputs_are_close(
    graphs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unranged: None
) -> None:
    """Of ranges of each run one example in four hundred suffers, and those that calibrate do not show it."""
    data = examples((400, 4, 16), loud=1000)
    monkeypatch.setattr(teaching, "close_enough", lambda outcome: True)
    judged = {"eval": {"x": data[200:]}}
    asked = quantized(loud_input(graphs, tmp_path), data[:200], scheme="w8a8-dynamic", **judged)
    assert names(asked) == [SMOOTHING]
    again = quantized(tmp_path / "net.onnx", data[:200], **judged, plan=plan_from_json(asked.plan.to_json()))
    assert again.model_bytes == asked.model_bytes
    # What stays float is told by the rules of ranges of each run, though the model is another one now.
    placed = place_dynamic(asked.run.prepared.model.view, asked.run.prepared.target)
    assert asked.run.prepared.placement == placed
    assert placed != place_forms(asked.run.prepared.model.view, asked.run.prepared.target)
    with pytest.raises(UsageError, match="which are computed again from its calibration examples"):
        fewbits.quantize(tmp_path / "net.onnx", plan=asked.plan)
    even = quantized(tmp_path / "net.onnx", examples((200, 4, 16)), scheme="w8a8-dynamic", **judged)
    assert names(even) == []


def test_of_many_examples_some_tell_which_channel_hides_others_where_none_are_for_the_verdict_alone(
    graphs: Any, tmp_path: Path, unranged: None
) -> None:
    path, data = loud_input(graphs, tmp_path), examples((400, 4, 16), loud=1000)
    many = quantized(path, data, scheme="w8a8-dynamic")
    assert names(many) == [SMOOTHING]
    parts = many.run.prepared.parts
    assert len(parts.calibration) + len(parts.verdict) == 400
    assert 40 < len(parts.calibration) < 120  # a fifth of 400, give or take five standard deviations
    again = quantized(path, data, plan=plan_from_json(many.plan.to_json()))
    assert again.model_bytes == many.model_bytes
    # So few are all judged, and so are many examples of few groups.
    few = quantized(path, data[:90], scheme="w8a8-dynamic")
    assert (names(few), len(few.run.prepared.parts.verdict)) == ([], 90)
    grouped = {"x": data, "groups": np.arange(400) % 8}
    in_groups = fewbits.quantize(path, data=grouped, allow_slower=True, scheme="w8a8-dynamic")
    assert len(in_groups.run.prepared.parts.verdict) == 400


def test_a_quiet_branch_of_a_concat_is_not_rounded_away(graphs: Any, tmp_path: Path, without: Any) -> None:
    path, data = loud_branch(graphs, tmp_path), examples((400, 16))
    result, plain = quantized(path, data, scheme="w8a8"), without(path, data, scheme="w8a8")
    assert names(result) == [SMOOTHING]
    assert kl(result) < kl(plain) / 20


@pytest.mark.parametrize("name", [SMOOTHING, EQUALIZATION])
def test_each_replays_to_the_byte(graphs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path, data = skewed(graphs, tmp_path), examples((400, 16))
    monkeypatch.setattr(transforming, "TRANSFORMED", {name: "only this"})
    result = quantized(path, data, scheme="w8a8")
    assert names(result) == [name]
    again = quantized(path, data, plan=plan_from_json(result.plan.to_json()))
    assert again.model_bytes == result.model_bytes
    # Without the step the same plan gives another file, as good as none.
    bare = fewbits.planning.plan.replace(
        result.plan, transforms=tuple(step for step in result.plan.transforms if step.name != name)
    )
    assert quantized(path, data, plan=bare).model_bytes != result.model_bytes


def test_what_brings_nothing_closer_is_not_kept(graphs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors that skew what was even: each equal to the model in float, and further off in integers."""
    skewing = np.exp2(np.arange(16) % 8).astype(np.float32)
    for name in ("_smoothing", "_equalization"):
        monkeypatch.setattr(transforming, name, lambda model, links, *more: {k.giver: skewing for k in links})
    result = quantized(skewed(graphs, tmp_path, spread=0), examples((400, 16)), scheme="w8a8")
    assert names(result) == []


def test_sites_behind_a_smoothed_input_are_renamed_and_back(graphs: Any, tmp_path: Path) -> None:
    path, data = loud_input(graphs, tmp_path), examples((400, 4, 16), loud=1000)
    plan = quantized(path, data, scheme="w8a8").plan
    opened = before_transforms(plan)
    sites = {decision.site for decision in opened.decisions}
    assert "x" in sites
    assert sites <= set(open_model(str(path)).view.tensors) | {d.site for d in plan.decisions if "x" not in d.site}
    assert after_transforms(opened) == plan


def test_a_step_with_places_is_done_there_alone(graphs: Any, tmp_path: Path) -> None:
    n = graphs.Net(seed=3)
    sizes = np.exp2(np.linspace(-5, 5, 8))
    x = n.input(("N", 8))
    for _ in range(3):
        x = n.relu(n.op("Gemm", x, n.const(n.rng.standard_normal((8, 8)) * sizes[:, None] / sizes), transB=1))
    n.output(x)
    model = open_model(str(n.save(tmp_path)))
    prepared = job.prepare(
        Request(model=str(n.save(tmp_path)), data={"x": examples((100, 8))}, scheme="w8a8", max_drop=None)
    )
    assert prepared.parts is not None
    evidence = transforming.Evidence(
        dataset=prepared.parts.data, indices=prepared.parts.calibration, target=prepared.target
    )
    whole = transforming.transformed(model, TransformStep(name=EQUALIZATION), evidence)
    assert whole is not None and len(whole.steps[-1].where) == 2
    one = whole.steps[-1].where[:1]
    part = transforming.transformed(model, TransformStep(name=EQUALIZATION, where=one), evidence)
    assert part is not None and part.steps[-1].where == one
    changed = [w for w in model.ir_model.graph.initializers if not np.array_equal(model.weight(w), part.weight(w))]
    assert len(changed) == 2


@pytest.mark.parametrize(("target", "before"), [("ort-cpu", 1), ("emulated", 1), ("openvino", 0)])
def test_the_rounding_before_a_leaky_relu_counts_where_the_target_rounds_there(
    graphs: Any, tmp_path: Path, target: str, before: int
) -> None:
    n = graphs.Net(seed=6)
    h = n.op("LeakyRelu", n.conv(n.input(("N", 4, 8, 8)), 4, 6), alpha=0.25)
    n.output(n.conv(n.op("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2]), 6, 5))
    model = open_model(str(n.save(tmp_path)))
    data = examples((40, 4, 8, 8))
    evidence = transforming.Evidence(dataset=open_dataset({"x": data}), indices=np.arange(40), target=TARGETS[target])
    links = tuple(link for link in links_of(model) if link.input_axis is None)
    ((source, seen),) = transforming.channels_of(model, links, evidence).items()
    assert len(seen.roundings) == 1 + before
    view = model.view
    pooled, leaky = view.producer[source], view.producer[view.producer[source].inputs[0]]
    assert (pooled.op, leaky.op) == ("MaxPool", "LeakyRelu")
    names = [source, *[leaky.inputs[0]] * before]
    session = RUNTIMES["ort"].open(model.serialized(extra_outputs=tuple(names)), Options())
    found = session.run({"x": data[:30]})  # three quarters: the others tell whether it helped
    for name, rounding in zip(names, seen.roundings, strict=True):
        assert np.array_equal(rounding.low, np.minimum(found[name].min(axis=(0, 2, 3)), 0))
        assert np.array_equal(rounding.high, np.maximum(found[name].max(axis=(0, 2, 3)), 0))
        slope = 1.0 if name == source else 0.25
        share = np.where(found[name] < 0, slope**2, 1.0).mean(axis=(0, 2, 3))
        assert np.allclose(rounding.share, share, rtol=1e-12, atol=0)
