"""The catalog of runtimes: how a file is opened, run, timed and read back here."""

from __future__ import annotations

from fewbits._base.catalog import Catalog
from fewbits.runtimes.base import Runtime

RUNTIMES: Catalog[Runtime] = Catalog(__name__, "RUNTIME", kind="runtime")
