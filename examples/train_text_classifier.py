"""Trains a small transformer to tell which of three sources a few words are from, and writes it as ONNX and NPZ.

    pip install 'fewbits[torch]'
    python examples/train_text_classifier.py --texts FOLDER -o text-classifier
    fewbits quantize text-classifier/model.onnx --data text-classifier/calibration.npz \
        --eval text-classifier/eval.npz --target ort-cpu -o quantized

FOLDER has tinyshakespeare.txt, wikitext2_valid.txt and, there or in ../stories260k, tinystories_dev.json. Documents
(articles, stories, runs of speeches) are dealt to training, calibration and evaluation as a whole, so that no part
knows another's names; the words are those of the training part. NPZ files hold ``ids``, ``labels`` and, as ``groups``,
the passage that each example is from: what stands together is not independent, and the verdict must know. One core,
about a minute; the same seed gives the same model on the same machine.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Ids = NDArray[np.int64]

SOURCES = ("shakespeare", "wikipedia", "stories")
PARTS = {"training": 0.7, "calibration": 0.1, "eval": 0.2}
SEED = 0
# Lines of the plays that make a document: they have no marks between scenes.
LINES = 400
# Words of a passage.
PASSAGE = 100
LENGTH = 16
SHORTEST = 6
UNKNOWN, PADDING = 1, 0
OPSET = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of the network and of its training."""

    vocabulary: int = 8192
    width: int = 96
    heads: int = 4
    layers: int = 2
    epochs: int = 3
    batch: int = 64
    rate: float = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The words of one document.

    Args:
      source: Index in ``SOURCES``.
      words: In lower case, in order.
    """

    source: int
    words: tuple[str, ...]


# ---- data ------------------------------------------------------------------------------------------------------------


def read_documents(folder: Path) -> list[Document]:
    """Returns all documents of the three sources."""
    plays = (folder / "tinyshakespeare.txt").read_text(encoding="utf-8").splitlines()
    articles = re.split(r"\n = [^=\n]+ = \n", (folder / "wikitext2_valid.txt").read_text(encoding="utf-8"))
    stories = folder / "tinystories_dev.json"
    if not stories.exists():
        stories = folder.parent / "stories260k" / "tinystories_dev.json"
    texts: tuple[Sequence[str], ...] = (
        # Speakers' names, alone on a line, would tell the source by themselves.
        [
            "\n".join(line for line in plays[i : i + LINES] if not line.endswith(":"))
            for i in range(0, len(plays), LINES)
        ],
        [article.replace("<unk>", " ").replace("@-@", "-") for article in articles],
        json.loads(stories.read_text(encoding="utf-8")),
    )
    found = []
    for source, several in enumerate(texts):
        for text in several:
            words = tuple(re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower()))
            if len(words) >= LENGTH:
                found.append(Document(source=source, words=words))
    return found


def deal(documents: Sequence[Document], seed: int) -> dict[str, list[int]]:
    """Returns the numbers of the documents of each part: of every source the same share of words."""
    order = np.random.default_rng(seed).permutation(len(documents))
    parts: dict[str, list[int]] = {name: [] for name in PARTS}
    for source in range(len(SOURCES)):
        own = [int(i) for i in order if documents[i].source == source]
        total, seen = sum(len(documents[i].words) for i in own), 0
        ends = np.cumsum(list(PARTS.values()))
        for number in own:
            place = min(int(np.searchsorted(ends, seen / total, side="right")), len(PARTS) - 1)
            parts[list(PARTS)[place]].append(number)
            seen += len(documents[number].words)
    return parts


def passages(number: int, places: Ids | int) -> Ids:
    """Returns numbers of the passages of a document in which words stand."""
    return np.asarray(number * 10_000 + np.asarray(places) // PASSAGE, np.int64)


def number_words(documents: Sequence[Document], size: int) -> dict[str, int]:
    """Returns the numbers of the commonest words: 0 is padding, 1 any other word."""
    counts = Counter(word for document in documents for word in document.words)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[: size - 2]
    return {word: place + 2 for place, word in enumerate(ranked)}


def examples(documents: Sequence[Document], chosen: Sequence[int], known: dict[str, int], seed: int) -> dict[str, Ids]:
    """Returns runs of 6 to 16 words, [n, 16], zeros behind, in random order; equally many of each source."""
    rng = np.random.default_rng(seed)
    rows: list[list[tuple[list[int], int]]] = [[] for _ in SOURCES]
    for number in chosen:
        words, start = documents[number].words, 0
        while start + SHORTEST <= len(words):
            count = int(rng.integers(SHORTEST, LENGTH + 1))
            ids = [known.get(word, UNKNOWN) for word in words[start : start + count]]
            passage = int(passages(number, start))
            rows[documents[number].source].append((ids + [PADDING] * (LENGTH - len(ids)), passage))
            start += count
    least = min(len(several) for several in rows)
    kept = [(ids, group, source) for source, several in enumerate(rows)
            for ids, group in (several[i] for i in rng.permutation(len(several))[:least])]  # fmt: skip
    kept = [kept[i] for i in rng.permutation(len(kept))]
    return {
        "ids": np.array([ids for ids, _, _ in kept], np.int64),
        "labels": np.array([source for _, _, source in kept], np.int64),
        "groups": np.array([group for _, group, _ in kept], np.int64),
    }


# ---- network ---------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """Attention and two linear layers, each behind a LayerNorm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_linear = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        normed = self.before_attention(x)
        query, key, value = (
            linear(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5) + mask
        mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.narrow(functional.gelu(self.wide(self.before_linear(x))))


class Classifier(nn.Module):
    """Tables of words and places, layers of attention, the mean over words, one linear layer."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.words = nn.Embedding(sizes.vocabulary, sizes.width)
        self.places = nn.Parameter(torch.randn(LENGTH, sizes.width) * 0.02)
        self.layers = nn.ModuleList([Layer(sizes.width, sizes.heads) for _ in range(sizes.layers)])
        self.norm, self.head = nn.LayerNorm(sizes.width), nn.Linear(sizes.width, len(SOURCES))

    def forward(self, ids: Tensor) -> Tensor:
        there = (ids != PADDING).to(self.places.dtype)
        mask = (there[:, None, None, :] - 1) * 1e4
        x = self.words(ids) + self.places
        for layer in self.layers:
            x = layer(x, mask)
        weights = there / there.sum(dim=1, keepdim=True)
        return self.head(self.norm((x * weights[:, :, None]).sum(dim=1)))


def train(part: dict[str, Ids], sizes: Sizes, seed: int) -> Classifier:
    """Returns the trained network: Adam, the rate falling to 0 along a cosine, some words hidden."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    model = Classifier(sizes)
    ids, labels = torch.from_numpy(part["ids"]), torch.from_numpy(part["labels"])
    steps = sizes.epochs * (len(ids) // sizes.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=sizes.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for _ in range(sizes.epochs):
        order = torch.randperm(len(ids))
        for rows in order[: len(ids) // sizes.batch * sizes.batch].split(sizes.batch):
            batch = ids[rows]
            hidden = (torch.rand(batch.shape) < 0.1) & (batch != PADDING)
            loss = functional.cross_entropy(model(batch.masked_fill(hidden, UNKNOWN)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


# ---- files -----------------------------------------------------------------------------------------------------------


def write(model: nn.Module, example: tuple[Tensor, ...], parts: dict[str, dict[str, Ids]], folder: Path) -> None:
    """Writes model.onnx, whose first axis is the batch, and an NPZ for each part but that of training."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name in parts["eval"] if name not in ("labels", "groups")]
    torch.onnx.export(
        model,
        example,
        str(folder / "model.onnx"),
        input_names=names,
        output_names=["scores"],
        dynamic_shapes=tuple({0: torch.export.Dim("N")} for _ in names),
        opset_version=OPSET,
        external_data=False,
        dynamo=True,
        verbose=False,
    )
    for name, arrays in parts.items():
        if name != "training":
            np.savez_compressed(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]


def make(texts: Path, folder: Path, *, sizes: Sizes, seed: int = SEED, most: int | None = None) -> float:
    """Trains and writes the model; returns the part of the evaluation examples that it tells right.

    Args:
      texts: Where the texts lie.
      folder: Where the files go.
      sizes: Of the network.
      seed: Of everything drawn.
      most: Training examples at most.
    """
    documents = read_documents(texts)
    dealt = deal(documents, seed)
    known = number_words([documents[i] for i in dealt["training"]], sizes.vocabulary)
    parts = {name: examples(documents, chosen, known, seed) for name, chosen in dealt.items()}
    model = train({name: values[:most] for name, values in parts["training"].items()}, sizes, seed)
    write(model, (torch.from_numpy(parts["eval"]["ids"][:2]),), parts, folder)
    with torch.no_grad():
        scores = model(torch.from_numpy(parts["eval"]["ids"]))
    return float((scores.argmax(dim=1).numpy() == parts["eval"]["labels"]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, default=Path("text-classifier"))
    parser.add_argument("--seed", type=int, default=SEED)
    given = parser.parse_args()
    torch.set_num_threads(1)
    right = make(given.texts, given.out, sizes=Sizes(), seed=given.seed)
    print(f"{given.out / 'model.onnx'}: {100 * right:.2f} % of the evaluation examples right")


if __name__ == "__main__":
    main()
