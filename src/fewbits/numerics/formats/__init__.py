"""The catalog of element formats: every module of this folder exposes ``FORMATS``, a tuple; names map to formats."""

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
    from fewbits.numerics.format import Format


class FormatCatalog(Mapping[str, "Format"]):
    """Formats by name, read from the family files at first use."""

    @cached_property
    def _formats(self) -> dict[str, Format]:
        own = [f"{__name__}.{m.name}" for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
        theirs = [point.value for point in entry_points(group=__name__)]
        # Ours last: a stranger adds names and replaces none.
        return {fmt.name: fmt for module in (*theirs, *own) for fmt in importlib.import_module(module).FORMATS}

    def __getitem__(self, name: str) -> Format:
        if name not in self._formats:
            raise UnknownNameError(
                f"unknown format {name!r}; {nearest(name, sorted(self._formats))}", slug="unknown-name"
            )
        return self._formats[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._formats)

    def __repr__(self) -> str:
        return f"<formats: {', '.join(self)}>"

    def __len__(self) -> int:
        return len(self._formats)

    def __contains__(self, name: object) -> bool:
        return name in self._formats


FORMATS = FormatCatalog()
