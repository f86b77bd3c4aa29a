"""The scripts that train a classifier and a recommender, made small: parts share no document, and files quantize."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import fewbits
from fewbits.search import preparing

torch = pytest.importorskip("torch", reason="torch is an extra: make test TORCH=1")
pytest.importorskip("onnxscript", reason="onnxscript comes with the extra torch")
pytestmark = [
    pytest.mark.torch,
    # The exporter warns of libraries that are not there, and of its own old names.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("train_text_classifier", "train_recommender")


@pytest.fixture(scope="module")
def scripts() -> Any:
    sys.path.insert(0, str(EXAMPLES))
    yield {name: importlib.import_module(name) for name in NAMES}
    sys.path.remove(str(EXAMPLES))
    for name in NAMES:
        sys.modules.pop(name, None)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources whose words differ in part, in the form of the real ones; in each, some words stand together."""
    folder, rng = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))

    def words(source: int, count: int) -> str:
        numbers = rng.integers(0, 120, count) + 60 * source
        numbers[1::2] = numbers[::2][: len(numbers[1::2])] ^ 1  # every second word follows from the one before
        return " ".join("".join(letters[[n // 26 % 26, n % 26, n * 7 % 26]]) for n in numbers)

    plays = "\n".join(f"Somebody:\n{words(0, 8)}" for _ in range(2000))
    (folder / "tinyshakespeare.txt").write_text(plays, encoding="utf-8")
    articles = "".join(f"\n = Title {i} = \n{words(1, 300)}\n" for i in range(40))
    (folder / "wikitext2_valid.txt").write_text(articles, encoding="utf-8")
    (folder / "tinystories_dev.json").write_text(json.dumps([words(2, 100) for _ in range(120)]), encoding="utf-8")
    return folder


def sizes(script: ModuleType) -> Any:
    if script.__name__ == "train_text_classifier":
        return script.Sizes(vocabulary=512, width=32, heads=2, layers=1, epochs=1, batch=32)
    return script.Sizes(vocabulary=512, width=16, hidden=32, epochs=2, batch=128)


def test_documents_are_dealt_whole_and_every_source_in_the_same_shares(scripts: Any, texts: Path) -> None:
    script = scripts["train_text_classifier"]
    documents = script.read_documents(texts)
    dealt = script.deal(documents, seed=1)
    assert sorted(i for chosen in dealt.values() for i in chosen) == list(range(len(documents)))
    assert not any("somebody" in document.words for document in documents)  # who speaks is not part of the text
    for source in range(3):
        own = [i for i, document in enumerate(documents) if document.source == source]
        total = sum(len(documents[i].words) for i in own)
        longest = max(len(documents[i].words) for i in own)
        for part, share in script.PARTS.items():
            words = sum(len(documents[i].words) for i in dealt[part] if i in own)
            assert abs(words - share * total) <= longest


def test_numbers_of_words_come_from_training_alone_and_rows_are_padded_behind(scripts: Any, texts: Path) -> None:
    script = scripts["train_text_classifier"]
    documents = script.read_documents(texts)
    dealt = script.deal(documents, seed=0)
    known = script.number_words([documents[i] for i in dealt["training"]], 100)
    assert sorted(known.values()) == list(range(2, 100))
    rows = script.examples(documents, dealt["eval"], known, seed=0)
    assert set((rows["groups"] // 10_000).tolist()) <= set(dealt["eval"])
    assert np.unique(rows["groups"], return_counts=True)[1].max() <= script.PASSAGE // script.SHORTEST + 1
    assert len(set(np.bincount(rows["labels"]).tolist())) == 1
    lengths = (rows["ids"] != 0).sum(axis=1)
    assert lengths.min() >= script.SHORTEST and lengths.max() <= script.LENGTH
    assert all((row[:count] != 0).all() for row, count in zip(rows["ids"], lengths, strict=True))


def test_every_question_has_its_true_answer_once_and_where_the_label_says(scripts: Any, texts: Path) -> None:
    script = scripts["train_recommender"]
    documents = script.read_documents(texts)
    dealt = script.deal(documents, seed=0)
    known = script.number_words([documents[i] for i in dealt["training"]], 300)
    part = script.gaps(documents, dealt["eval"], known)
    asked = script.questions(part, script.frequencies(part["word"], 300), 500, seed=0)
    true = asked["candidates"][np.arange(500), asked["labels"]]
    assert ((asked["candidates"] == true[:, None]).sum(axis=1) == 1).all()
    assert set(map(tuple, np.c_[asked["chosen"], true].tolist())) <= set(
        map(tuple, np.c_[part["chosen"], part["word"]].tolist())
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_small_one_learns_and_its_file_is_quantized_under_a_budget(
    scripts: Any, texts: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(preparing._LATENCY_SECONDS, "balanced", 0.05)
    script = scripts[name]
    right = script.make(texts, tmp_path, sizes=sizes(script), most=6000)
    chance = 1 / 3 if name == "train_text_classifier" else 1 / script.CANDIDATES
    assert right > 1.5 * chance
    with np.load(tmp_path / "calibration.npz") as one, np.load(tmp_path / "eval.npz") as other:
        assert not set((one["groups"] // 10_000).tolist()) & set((other["groups"] // 10_000).tolist())
    for scheme in ("fp16", "w8a16", "w4a16-g32"):
        result = fewbits.quantize(
            tmp_path / "model.onnx",
            data=tmp_path / "calibration.npz",
            eval=tmp_path / "eval.npz",
            scheme=scheme,
            allow_slower=True,
        )
        assert result.report.metric.name == "top-1"
        assert result.report.metric.float == pytest.approx(right, abs=0.002)
        assert result.report.metric.drop < 0.05
        assert result.report.size.ratio > 1.5
