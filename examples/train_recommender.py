"""Trains a two-tower recommender on which words stand together, and writes it as ONNX and NPZ.

    pip install 'fewbits[torch]'
    python examples/train_recommender.py --texts FOLDER -o recommender
    fewbits quantize recommender/model.onnx --data recommender/calibration.npz \
        --eval recommender/eval.npz --scheme w4a16-g32 -o quantized

What it is given is what a shop's recommender is: a few things that somebody chose (the words around a gap), and
candidates, of which one was chosen too. Words stand for goods: many of them, a few very common. Nearly all of the file
is two embedding tables. Texts, documents and parts are those of train_text_classifier.py; evaluation documents were
never seen. NPZ files hold ``chosen``, ``candidates``, ``labels`` (the place of the true one) and ``groups``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from train_text_classifier import SEED, UNKNOWN, Document, Ids, deal, number_words, passages, read_documents, write

# Words on each side of the gap.
SIDE = 4
CANDIDATES = 20
# Common things are drawn less often than they occur, as in word2vec.
FLATTENED = 0.75
# Most examples that calibrate or judge: enough, and a file of a few megabytes.
MOST = {"calibration": 4000, "eval": 10000}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of the towers and of their training."""

    vocabulary: int = 20000
    width: int = 64
    hidden: int = 128
    epochs: int = 3
    batch: int = 512
    rate: float = 2e-3


# ---- data ------------------------------------------------------------------------------------------------------------


def gaps(documents: Sequence[Document], chosen: Sequence[int], known: dict[str, int]) -> dict[str, Ids]:
    """Returns what stands around each known word, [n, 8], that word, and its passage."""
    around: list[Ids] = []
    words: list[Ids] = []
    groups: list[Ids] = []
    for number in chosen:
        ids = np.array([known.get(word, UNKNOWN) for word in documents[number].words], np.int64)
        if len(ids) <= 2 * SIDE:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(ids, 2 * SIDE + 1)
        places = np.flatnonzero(windows[:, SIDE] != UNKNOWN)
        windows = windows[places]
        around.append(np.delete(windows, SIDE, axis=1))
        words.append(windows[:, SIDE])
        groups.append(passages(number, places))
    return {"chosen": np.concatenate(around), "word": np.concatenate(words), "groups": np.concatenate(groups)}


def frequencies(words: Ids, size: int) -> np.ndarray:
    """Returns how often each number is drawn as a candidate."""
    counts = np.bincount(words, minlength=size).astype(np.float64) ** FLATTENED
    return counts / counts.sum()


def questions(part: dict[str, Ids], share: np.ndarray, most: int, seed: int) -> dict[str, Ids]:
    """Returns examples with 20 candidates each, one of them true, at a place that ``labels`` tells."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(part["word"]))[:most]
    candidates = rng.choice(len(share), (len(rows), CANDIDATES), p=share)
    true = part["word"][rows]
    # A drawn word that is the true one is drawn again until it is not.
    while (same := candidates == true[:, None]).any():
        candidates[same] = rng.choice(len(share), int(same.sum()), p=share)
    labels = rng.integers(0, CANDIDATES, len(rows))
    candidates[np.arange(len(rows)), labels] = true
    return {
        "chosen": part["chosen"][rows],
        "candidates": candidates.astype(np.int64),
        "labels": labels.astype(np.int64),
        "groups": part["groups"][rows],
    }


# ---- network ---------------------------------------------------------------------------------------------------------


class Tower(nn.Module):
    """A table, and two linear layers behind it."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.table = nn.Embedding(sizes.vocabulary, sizes.width)
        nn.init.normal_(self.table.weight, std=sizes.width**-0.5)
        self.first, self.second = nn.Linear(sizes.width, sizes.hidden), nn.Linear(sizes.hidden, sizes.width)

    def forward(self, ids: Tensor, *, pooled: bool) -> Tensor:
        found = self.table(ids)
        found = found.mean(dim=1) if pooled else found
        return found + self.second(functional.relu(self.first(found)))


class Recommender(nn.Module):
    """One tower for what was chosen, one for candidates; the score is the product of both."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.chosen, self.offered = Tower(sizes), Tower(sizes)

    def forward(self, chosen: Tensor, candidates: Tensor) -> Tensor:
        one, many = self.chosen(chosen, pooled=True), self.offered(candidates, pooled=False)
        return (many @ one.unsqueeze(2)).squeeze(2)


def train(part: dict[str, Ids], sizes: Sizes, seed: int) -> Recommender:
    """Returns the trained towers: the other words of a batch are the wrong answers, common ones held back."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    model = Recommender(sizes)
    around, words = torch.from_numpy(part["chosen"]), torch.from_numpy(part["word"])
    # What is common in a batch is a wrong answer as often as it occurs, and as a candidate less often: the difference
    # is taken off, as in Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling".
    counts = np.bincount(part["word"], minlength=sizes.vocabulary)
    often = torch.from_numpy(np.log(np.maximum(counts, 1) / counts.sum()).astype(np.float32))
    steps = sizes.epochs * (len(words) // sizes.batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=sizes.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for _ in range(sizes.epochs):
        order = torch.randperm(len(words))
        for rows in order[: len(words) // sizes.batch * sizes.batch].split(sizes.batch):
            ids = words[rows]
            one = model.chosen(around[rows], pooled=True)
            many = model.offered(ids, pooled=False)
            scores = one @ many.T - (1 - FLATTENED) * often[ids]
            same = (ids[:, None] == ids[None, :]) & ~torch.eye(len(ids), dtype=torch.bool)
            loss = functional.cross_entropy(scores.masked_fill(same, -1e4), torch.arange(len(ids)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


# ---- files -----------------------------------------------------------------------------------------------------------


def make(texts: Path, folder: Path, *, sizes: Sizes, seed: int = SEED, most: int | None = None) -> float:
    """Trains and writes the model; returns the part of the evaluation examples whose true candidate scores highest.

    Args:
      texts: Where the texts lie.
      folder: Where the files go.
      sizes: Of the towers.
      seed: Of everything drawn.
      most: Training examples at most.
    """
    documents = read_documents(texts)
    dealt = deal(documents, seed)
    known = number_words([documents[i] for i in dealt["training"]], sizes.vocabulary)
    parts = {name: gaps(documents, chosen, known) for name, chosen in dealt.items()}
    share = frequencies(parts["training"]["word"], sizes.vocabulary)
    asked = {name: questions(parts[name], share, count, seed) for name, count in MOST.items()}
    kept = np.random.default_rng(seed).permutation(len(parts["training"]["word"]))[:most]
    model = train({name: values[kept] for name, values in parts["training"].items()}, sizes, seed)
    example = tuple(torch.from_numpy(asked["eval"][name][:2]) for name in ("chosen", "candidates"))
    write(model, example, asked, folder)
    with torch.no_grad():
        scores = model(*(torch.from_numpy(asked["eval"][name]) for name in ("chosen", "candidates")))
    return float((scores.argmax(dim=1).numpy() == asked["eval"]["labels"]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, default=Path("recommender"))
    parser.add_argument("--seed", type=int, default=SEED)
    given = parser.parse_args()
    torch.set_num_threads(1)
    right = make(given.texts, given.out, sizes=Sizes(), seed=given.seed)
    print(
        f"{given.out / 'model.onnx'}: {100 * right:.2f} % of the evaluation examples right, of {CANDIDATES} candidates"
    )


if __name__ == "__main__":
    main()
