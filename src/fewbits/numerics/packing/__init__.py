"""The catalog of packing layouts: every module of this folder exposes ``LAYOUT``, how one reader wants its tensors."""

from __future__ import annotations

from fewbits._base.catalog import Catalog
from fewbits.numerics.packing.base import Layout

LAYOUTS: Catalog[Layout] = Catalog(__name__, "LAYOUT", kind="packing layout")
