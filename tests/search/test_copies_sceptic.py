"""Copies among the verdict examples are told, wherever the verdict examples come from: the bound counts them all."""

from __future__ import annotations

import numpy as np

from fewbits.datasets import open_dataset
from fewbits.search.verdict_data import SHARES, assign_parts


def test_copies_within_eval_are_told() -> None:
    data = open_dataset({"x": np.arange(300, dtype=np.float32)[:, None]})
    repeated = np.repeat(np.arange(1000, 1100, dtype=np.float32), 20)[:, None]
    parts = assign_parts(data, open_dataset({"x": repeated}), shares=SHARES[True, True], seed=0)
    assert len(parts.verdict) == 100  # a copy is no example of its own
    assert [note for note in parts.notes if "[duplicate-examples]" in note and "--eval" in note]
    assert any(note.startswith("1900 examples") for note in parts.notes)
    clean = assign_parts(data, open_dataset({"x": np.unique(repeated)[:, None]}), shares=SHARES[True, True], seed=0)
    assert clean.notes == ()
