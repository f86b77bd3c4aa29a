"""Where and how the files of a target run here."""

from __future__ import annotations

from fewbits.runtimes.base import Options
from fewbits.targets.base import Target


def session_options(target: Target, *, threads: int = 1) -> Options:
    """Returns the options of every session that measures a file for a target."""
    return Options(runtime=target.runtime, threads=threads, precision=target.variant.precision)
