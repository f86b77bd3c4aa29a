"""A folder is a catalog: every public module of a package is an entry, found by its file name, imported when used."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import entry_points
from typing import Generic, TypeVar, cast

from fewbits._base.errors import UnknownNameError

Entry = TypeVar("Entry")


def nearest(name: str, known: list[str]) -> str:
    """Returns ``did you mean 'x'?`` for the closest known name, else the list of all.

    >>> nearest("percentil", ["minmax", "percentile"])
    "did you mean 'percentile'?"
    >>> nearest("zzz", ["minmax", "mse"])
    'one of: minmax, mse'
    """
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else "one of: " + ", ".join(known)


class Catalog(Mapping[str, Entry], Generic[Entry]):
    """A read-only mapping from entry names to the constants that the modules of one folder expose.

    Listing the names imports no entry. Underscores of a file name read as hyphens: ``ort_cpu.py`` is ``ort-cpu``.
    Third parties add entries with an entry point in the group that bears the package's name.

    Args:
      package: Dotted name of the folder, e.g. ``fewbits.algorithms.ranges``.
      constant: Name of the constant that each module exposes, e.g. ``ALGORITHM``.
      kind: What one entry is called in messages, e.g. ``range rule``.
    """

    def __init__(self, package: str, constant: str, *, kind: str) -> None:
        self._package = package
        self._constant = constant
        self._kind = kind

    @cached_property
    def _modules(self) -> dict[str, str]:
        folder = importlib.import_module(self._package).__path__
        own = {
            module.name.replace("_", "-"): f"{self._package}.{module.name}"
            for module in pkgutil.iter_modules(folder)
            if not module.name.startswith("_") and module.name != "base"
        }
        theirs = {point.name: point.value for point in entry_points(group=self._package)}
        return {**theirs, **own}

    def __getitem__(self, name: str) -> Entry:
        modules = self._modules
        if name not in modules:
            raise UnknownNameError(
                f"unknown {self._kind} {name!r}; {nearest(name, sorted(modules))}", slug="unknown-name"
            )
        return cast(Entry, getattr(importlib.import_module(modules[name]), self._constant))

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._modules))

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules
