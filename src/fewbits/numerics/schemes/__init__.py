"""The catalog of named compositions: what ``--scheme NAME`` means for the weights and activations of a model.

Every module of this folder exposes ``SCHEMES``, a tuple of ``NamedScheme``; names are the field's shorthands. Beside
those that are listed, the catalog reads every shorthand that ``shorthand.py`` spells.
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
    from fewbits.numerics.named import ArrayScheme, NamedScheme


class SchemeCatalog(Mapping[str, "NamedScheme"]):
    """Named schemes, read from the family files at first use."""

    @cached_property
    def _schemes(self) -> dict[str, NamedScheme]:
        own = [f"{__name__}.{m.name}" for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
        theirs = [point.value for point in entry_points(group=__name__)]
        # Ours last: a stranger adds names and replaces none.
        return {scheme.name: scheme for module in (*theirs, *own) for scheme in importlib.import_module(module).SCHEMES}

    def _find(self, name: str) -> NamedScheme | None:
        from fewbits.numerics.shorthand import read_model_scheme

        return self._schemes.get(name) or read_model_scheme(name)

    def __getitem__(self, name: str) -> NamedScheme:
        found = self._find(name)
        if found is None:
            raise UnknownNameError(
                f"unknown scheme {name!r}; {nearest(name, sorted(self._schemes))}", slug="unknown-name"
            )
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._schemes)

    def __len__(self) -> int:
        return len(self._schemes)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def of_array(self, name: str) -> ArrayScheme:
        """Returns how one array is quantized: by a named scheme's weights, or by ``FORMAT[-gSIZE]`` and the like.

        Raises: UnknownNameError(slug="scheme-shorthand") with the nearest name.
        """
        from fewbits.numerics.formats import FORMATS
        from fewbits.numerics.shorthand import read_array_scheme

        named = self._find(name)
        found = read_array_scheme(name) if named is None else named.weight
        if found is None:
            known = sorted({*self._schemes, *FORMATS, *(f"{fmt}-g128" for fmt in FORMATS)})
            raise UnknownNameError(
                f"cannot read scheme {name!r}; {nearest(name, known)} (`fewbits formats` lists all; a format takes "
                "-g128, -channel, -asym, -scale-fp16)",
                slug="scheme-shorthand",
            )
        return found


SCHEMES = SchemeCatalog()
