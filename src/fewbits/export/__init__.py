"""The catalog of exporters: sinks that take (site, value) and write one file format."""

from __future__ import annotations

from fewbits._base.catalog import Catalog
from fewbits.export.base import Exporter

EXPORTERS: Catalog[Exporter] = Catalog(__name__, "EXPORTER", kind="exporter")
