"""What a hostile file is: how it is made, what it is given to, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

# Exit codes of the contract that answer a hostile file; 1 (a bug) is never among them.
MET, NOT_MET, USAGE, REFUSED, TARGET, RESOURCES, ESCAPE = 0, 3, 2, 4, 5, 6, 7
# The file does its work, or has nothing to quantize; what is strange in it does no harm.
INERT: Final = frozenset({MET, NOT_MET, TARGET})
Kind = Literal["model", "data", "plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One hostile file.

    Args:
      name: Unique; the folder's name when written, and the row of the table.
      kind: What the file is taken for: a model, data, or a plan.
      allowed: Exit codes that are a right answer.
      make: Writes into an empty folder and returns the hostile file (or folder). A folder ``outside`` stands beside
        it, with a file ``secret.bin`` that nobody may read or change.
      what: A few words more, where the name does not say it.
      partner: Makes what it is used with, where that is not the usual: data for a model, a model for data.
    """

    name: str
    kind: Kind
    allowed: frozenset[int]
    make: Callable[[Path], Path]
    what: str = ""
    partner: Callable[[Path], Path] | None = None

    @property
    def group(self) -> str:
        """The part of the name before the slash."""
        return self.name.partition("/")[0]


def required(case: Case) -> str:
    """Returns the required outcome in words.

    >>> required(Case(name="a/b", kind="data", allowed=frozenset({4, 7}), make=lambda folder: folder))
    'refused (4 or 7)'
    """
    refusals = sorted(case.allowed - INERT)
    codes = f"refused ({' or '.join(map(str, refusals))})" if refusals else ""
    if case.allowed >= INERT:
        return f"inert, or {codes}" if codes else "inert"
    return codes


# What stands in the file outside; finite as float32, so that it could pass as weights.
SECRET: Final = b"fewbits-secret.." * 64
