"""The catalog of transforms: an equal model that is easier to quantize. Model kinds fold the values in."""

from __future__ import annotations

from fewbits._base.catalog import Catalog
from fewbits.algorithms.transforms.base import Transform

TRANSFORMS: Catalog[type[Transform]] = Catalog(__name__, "ALGORITHM", kind="transform")
