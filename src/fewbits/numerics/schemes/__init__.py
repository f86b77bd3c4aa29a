"""The catalog of named compositions: what ``--scheme NAME`` means for the weights and activations of a model.

Every module of this folder exposes ``SCHEMES``, a tuple of ``NamedScheme``; names are the field's shorthands.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from fewbits._base.catalog import nearest
from fewbits._base.errors import UnknownNameError

if TYPE_CHECKING:
    from fewbits.numerics.schemes.integer import NamedScheme


class SchemeCatalog(Mapping[str, "NamedScheme"]):
    """Named schemes, read from the family files at first use."""

    @cached_property
    def _schemes(self) -> dict[str, NamedScheme]:
        own = [f"{__name__}.{m.name}" for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
        theirs = [point.value for point in entry_points(group=__name__)]
        # Ours last: a stranger adds names and replaces none.
        return {scheme.name: scheme for module in (*theirs, *own) for scheme in importlib.import_module(module).SCHEMES}

    def __getitem__(self, name: str) -> NamedScheme:
        if name not in self._schemes:
            raise UnknownNameError(
                f"unknown scheme {name!r}; {nearest(name, sorted(self._schemes))}", slug="unknown-name"
            )
        return self._schemes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._schemes)

    def __len__(self) -> int:
        return len(self._schemes)

    def __contains__(self, name: object) -> bool:
        return name in self._schemes


SCHEMES = SchemeCatalog()
