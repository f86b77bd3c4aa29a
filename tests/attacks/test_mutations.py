"""A file that chance has changed is refused in one line, or does its work: never a trace, a hang, half an output."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from attacks.case import INERT, REFUSED, RESOURCES, SECRET, Case
from attacks.mutations import mutate
from attacks.parts import examples, honest, save
from attacks.running import faults, tree

_ALLOWED = INERT | {REFUSED, RESOURCES, 7}
# Of the changed models that are accepted, one in so many is quantized too.
_QUANTIZED = 8
_FORCED = ("--scheme", "w8a8", "--allow-slower")


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A folder with an honest model and data for it."""
    folder = tmp_path_factory.mktemp("good")
    save(folder, honest())
    examples(folder)
    return folder


def seeds(kind: str, first: int, count: int, step: int) -> list:
    return [
        pytest.param(kind, range(begin, begin + step), id=f"{kind}-{begin}", marks=pytest.mark.slow)
        for begin in range(first, first + count, step)
    ]


def wrong_with(seed: int, kind: str, good: Path, warm, place: Path) -> list[str]:
    """Returns every fault that the file of a seed leads to; time is judged by the alarm alone."""
    (place / "outside").mkdir(parents=True)
    (place / "outside" / "secret.bin").write_bytes(SECRET)
    source = good / ("model.onnx" if kind == "onnx" else "examples.npz")
    changed = place / f"changed.{kind}"
    changed.write_bytes(mutate(source.read_bytes(), seed, fields=kind == "onnx"))
    model, data = (changed, good / "examples.npz") if kind == "onnx" else (good / "model.onnx", changed)
    before = tree(place)
    ran = [warm.run("inspect", model, folder=place)] if kind == "onnx" else []
    if not ran or (ran[0].code == 0 and seed % _QUANTIZED == 0):
        ran.append(warm.run("quantize", model, "--data", data, *_FORCED, "-o", place / "out", folder=place))
    case = Case(name=f"{kind}/{seed}", kind="model", allowed=_ALLOWED, make=lambda folder: folder)
    found = [fault for fault in faults(case, ran, place, before) if " took " not in fault]
    shutil.rmtree(place)
    return found


def test_a_seed_always_makes_the_same_file_and_seldom_the_honest_one(good):
    data = (good / "model.onnx").read_bytes()
    made = [mutate(data, seed, fields=True) for seed in range(200)]
    assert made == [mutate(data, seed, fields=True) for seed in range(200)]
    assert len(set(made)) > 170
    assert sum(one == data for one in made) < 10


def test_well_formed_changes_of_fields_parse_as_protobuf(good):
    # Else the mutations would test the parser alone.
    import onnx
    from google.protobuf.message import DecodeError

    data, parsed = (good / "model.onnx").read_bytes(), 0
    for seed in range(200):
        try:
            onnx.load_model_from_string(mutate(data, seed, fields=True))
        except DecodeError:
            continue
        parsed += 1
    assert parsed > 80


@pytest.mark.parametrize(("kind", "count"), [("onnx", 30), ("npz", 10)])
def test_a_few_changed_files_are_refused_or_work(kind, count, good, warm, tmp_path):
    wrong = {seed: found for seed in range(count) if (found := wrong_with(seed, kind, good, warm, tmp_path / "place"))}
    assert not wrong


@pytest.mark.parametrize(("kind", "chosen"), [*seeds("onnx", 0, 1000, 100), *seeds("npz", 0, 300, 100)])
def test_a_changed_file_is_refused_or_works(kind, chosen, good, warm, tmp_path):
    wrong = {seed: found for seed in chosen if (found := wrong_with(seed, kind, good, warm, tmp_path / "place"))}
    assert not wrong
