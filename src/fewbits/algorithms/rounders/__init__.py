"""The catalog of rounders: how codes are chosen under given scales."""

from __future__ import annotations

from fewbits._base.catalog import Catalog
from fewbits.algorithms.rounders.base import Rounder

ROUNDERS: Catalog[Rounder] = Catalog(__name__, "ALGORITHM", kind="rounder")
