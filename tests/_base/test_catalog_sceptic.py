"""A catalog reads its folder once: a plan of a thousand sites looks names up thousands of times."""

from __future__ import annotations

import pytest

from fewbits._base import catalog
from fewbits._base.catalog import Catalog


def test_a_folder_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    whole = catalog.entry_points

    def counted(*, group: str) -> object:
        looks.append(group)
        return whole(group=group)

    monkeypatch.setattr(catalog, "entry_points", counted)
    rules: Catalog[object] = Catalog("fewbits.algorithms.ranges", "ALGORITHM", kind="range rule")
    assert looks == [], "listing is put off to the first look"
    for _ in range(3):
        assert rules["mse"] is not rules["minmax"]
        assert "percentile" in rules and len(rules) == len(list(rules))
    assert looks == ["fewbits.algorithms.ranges"]
