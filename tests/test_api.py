"""The same from Python: results as values, data in every form, and refusals as exceptions of the drawn tree."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import fewbits

_SUPPORT = Path(__file__).parent / "support" / "runs.py"


@pytest.fixture(scope="session")
def runs() -> ModuleType:
    """The module tests/support/runs.py."""
    name = "fewbits_test_runs"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, _SUPPORT)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(autouse=True)
def _hurried(runs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.hurry(monkeypatch)


@pytest.fixture
def net(runs: ModuleType, tmp_path: Path) -> Path:
    return Path(runs.small_net(tmp_path / "net.onnx"))


@pytest.fixture
def forced(runs: ModuleType, net: Path) -> Callable[..., Any]:
    """Quantizes the small net without a search."""
    return lambda data, **more: fewbits.quantize(net, data=data, scheme="w8a8", allow_slower=True, **more)


def content(folder: Path) -> str:
    return str(json.loads((folder / "manifest.json").read_text())["content_sha256"])


def test_every_public_name_is_there_and_no_other_resolves() -> None:
    for name in fewbits.__all__:
        assert getattr(fewbits, name) is not None
    assert dir(fewbits) == sorted(fewbits.__all__)
    with pytest.raises(AttributeError, match="quantise"):
        fewbits.quantise  # noqa: B018 - the access is the test


def test_a_result_shows_itself(runs: ModuleType, tmp_path: Path) -> None:
    told: list[str] = []
    stages: list[str] = []
    result = fewbits.quantize(
        runs.DIGITS,
        data=runs.digits(300),
        max_drop=0.01,
        effort="fast",
        notice=told.append,
        progress=lambda stage, done, total: stages.append(stage),
    )
    assert result.verdict == result.report.verdict == "undecided"
    assert result.exit_code == 3
    assert len(told) == 1 and "[budget-too-small]" in told[0]
    assert told[0] in result.report.warnings
    assert {"calibrating", "verdict"} <= set(stages)
    assert str(result).splitlines()[0] == result.report.headline[: len(str(result).splitlines()[0])]
    page = result._repr_html_()
    assert page.startswith("<iframe srcdoc=") and "sandbox" in page.partition(">")[0]
    assert "<script" not in page
    assert result.plan.quantized
    folder = result.save(tmp_path / "out")
    assert (folder / "model.onnx").read_bytes() == result.model_bytes
    assert json.loads((folder / "report.json").read_text())["verdict"] == "undecided"


def test_saving_never_replaces_what_it_should_not(
    runs: ModuleType, net: Path, forced: Callable[..., Any], tmp_path: Path
) -> None:
    result = forced(runs.small_data(60))
    result.save(tmp_path / "a" / "out")
    with pytest.raises(fewbits.UsageError, match="output-exists"):
        result.save(tmp_path / "a" / "out")
    result.save(tmp_path / "a" / "out", overwrite=True)
    for place in (net, tmp_path):
        with pytest.raises(fewbits.UsageError, match="output-is-input"):
            result.save(place, overwrite=True)
    assert net.exists()


def test_data_in_every_form_give_the_same_bytes(
    runs: ModuleType, forced: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.still(monkeypatch)
    arrays = runs.small_data(90)

    def stream() -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, 90, 7):
            yield {"x": arrays["x"][start : start + 7]}

    npz = runs.save_data(tmp_path / "d.npz", arrays)
    forms = {"npz": npz, "dict": arrays, "iterable": list(stream()), "once": stream(), "call": stream}
    found = {name: content(forced(data).save(tmp_path / name)) for name, data in forms.items()}
    assert len(set(found.values())) == 1, found


def test_a_plan_object_is_replayed_and_a_changed_one_differs(
    runs: ModuleType, net: Path, forced: Callable[..., Any], tmp_path: Path
) -> None:
    from fewbits.planning.site import Role

    first = forced(runs.small_data(90))
    again = fewbits.quantize(net, data=runs.small_data(90), plan=first.plan)
    assert again.model_bytes == first.model_bytes
    (tmp_path / "p.json").write_text(first.plan.to_json())
    assert fewbits.load_plan(tmp_path / "p.json") == first.plan
    other = fewbits.quantize(
        net, data=runs.small_data(90), plan=first.plan.with_range_rule(Role.ACTIVATION, "percentile:80")
    )
    assert other.model_bytes != first.model_bytes


def test_a_pathlike_and_a_string_are_the_same_model(runs: ModuleType, net: Path) -> None:
    class Somewhere:
        def __fspath__(self) -> str:
            return str(net)

    assert fewbits.inspect(Somewhere()) == fewbits.inspect(str(net)) == fewbits.inspect(net)  # type: ignore[arg-type]


def test_the_other_verbs_return_values(runs: ModuleType, net: Path, forced: Callable[..., Any], tmp_path: Path) -> None:
    data = runs.small_data(90)
    out = forced(data).save(tmp_path / "out")
    compared = fewbits.measure(net, out, data=data, max_drop="20%")
    assert (compared.metric, compared.bound.n, compared.verdict) == ("agreement", 90, "met")
    said = fewbits.plan(net, data=data)
    assert sum(part or 0 for part in (said.calibration_examples, said.selection_examples, said.verdict_examples)) == 90
    verified = fewbits.verify(out, model=net, data=data)
    assert verified.golden_equal and verified.figure is not None
    page = (out / "report.html").read_bytes()
    assert fewbits.report(out).read_bytes() == page


@pytest.mark.parametrize(
    ("wish", "error", "words"),
    [
        ({"data": None}, fewbits.UsageError, "data-missing"),
        ({"data": 7}, fewbits.UsageError, "data-kind"),
        ({"effort": "bset"}, fewbits.UsageError, "did you mean 'best'"),
        ({"seed": -1}, fewbits.UsageError, "--seed"),
        ({"jobs": 0}, fewbits.UsageError, "--jobs"),
        ({"time_budget": 0.0}, fewbits.UsageError, "--time-budget"),
        ({"time_budget": float("nan")}, fewbits.UsageError, "--time-budget"),
        ({"max_drop": 5}, fewbits.UsageError, "max-drop"),
        ({"confidence": 1.0}, fewbits.UsageError, "confidence"),
        ({"target": "ort-cpu:avx9"}, fewbits.UsageError, "instruction set"),
        ({"plan": "nowhere.json"}, fewbits.UsageError, "nowhere.json"),
    ],
)
def test_an_impossible_wish_is_an_exception_with_a_slug(
    runs: ModuleType, net: Path, wish: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        fewbits.quantize(net, **{"data": runs.small_data(20), **wish})
    assert isinstance(caught.value, fewbits.FewbitsError)
    assert caught.value.slug and "\n" not in caught.value.message


def test_every_exception_has_its_exit_code() -> None:
    codes = {
        fewbits.UsageError: 2, fewbits.InputError: 4, fewbits.ModelError: 4, fewbits.DataError: 4,
        fewbits.NumericsError: 4, fewbits.TargetError: 5, fewbits.ResourceError: 6, fewbits.SecurityError: 7,
        fewbits.VerificationError: 8, fewbits.FewbitsError: 1,
    }  # fmt: skip
    for error, code in codes.items():
        assert error("what", slug="slug").exit_code == code
        assert str(error("what", slug="slug")) == "what [slug]"


def test_an_array_is_quantized_with_the_words_of_the_formats() -> None:
    values = np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32)
    for scheme in ("int8", "int8-channel", "int4-g128"):
        found = fewbits.quantize_array(values, scheme)
        wrong = np.abs(np.asarray(found.dequantize()) - values)
        # Symmetric, by the largest magnitude: nothing is clipped, so no value is off by more than half a step (1 ulp).
        assert wrong.max() <= np.asarray(found.scale).max() / 2 * (1 + 1e-6)
    with pytest.raises(fewbits.UsageError):
        fewbits.quantize_array(values, "int99")
    with pytest.raises(fewbits.NumericsError):
        fewbits.quantize_array(np.array([1.0, np.nan], np.float32), "int8")


def test_a_failed_run_leaves_no_temporary_file(
    runs: ModuleType, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    place = tmp_path / "temp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    arrays = runs.small_data(200)
    arrays["x"][199] = np.inf
    with pytest.raises(fewbits.DataError, match="example 199"):
        fewbits.quantize(net, data=arrays, effort="fast")
    assert list(place.iterdir()) == []
    fewbits.quantize(net, data=runs.small_data(60), scheme="w8a8")
    assert list(place.iterdir()) == []
