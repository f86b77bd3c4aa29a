"""Integer weights, with integer activations or with those of the model."""

from __future__ import annotations

from fewbits.numerics.named import NamedScheme
from fewbits.numerics.shorthand import read_model_scheme

# What people ask for by name; every other ``wBITSaBITS[-gSIZE][-asym][-dynamic]`` is read all the same.
_NAMES = (
    "w8a8",
    "w8a8-dynamic",
    "w8a16",
    "w4a8",
    "w4a16",
    "w4a16-g128",
    "w4a16-g32-asym",
    "w3a16-g128",
    "w2a16-g64",
)

SCHEMES: tuple[NamedScheme, ...] = tuple(found for name in _NAMES if (found := read_model_scheme(name)) is not None)
