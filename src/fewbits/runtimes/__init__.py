"""The catalog of runtimes: how a file is opened, run, timed and read back here."""

from __future__ import annotations

from pathlib import Path

from fewbits._base.catalog import Catalog
from fewbits.runtimes.base import Options, Runtime, Session

RUNTIMES: Catalog[Runtime] = Catalog(__name__, "RUNTIME", kind="runtime")


def open_session(model: bytes | Path, options: Options) -> Session:
    """Returns a session of the runtime that the options name; raises what that runtime's ``open`` raises."""
    return RUNTIMES[options.runtime].open(model, options)
