"""Shorthands that are read by their parts: ``int4-g128``, ``nf4-g64-scale-fp16``, ``w4a16-g128``, ``w8a8-dynamic``."""

from __future__ import annotations

import re

from fewbits.numerics.codebook import Codebook
from fewbits.numerics.format import Format, Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import Granularity, PerBlock, PerChannel, PerFlat, PerGroup, PerTensor, PerToken
from fewbits.numerics.named import FULL_RANGE, ArrayScheme, NamedScheme
from fewbits.numerics.scaling import MeanMagnitude, ScaleRule
from fewbits.numerics.scheme import Scheme

_OPTIONS = (
    r"(?:-(?:g(?P<group>[1-9]\d*)|f(?P<flat>[1-9]\d*)|b(?P<rows>[1-9]\d*)x(?P<columns>[1-9]\d*)"
    r"|(?P<kind>tensor|channel|token)))?(?P<asymmetric>-asym)?(?:-scale-(?P<scale>[a-z0-9_]+))?"
)
_ARRAY = re.compile(rf"(?P<format>[a-z0-9_]+?){_OPTIONS}")
_MODEL = re.compile(rf"w(?P<weight>\d+)a(?P<activation>\d+){_OPTIONS}(?P<dynamic>-dynamic)?")
# Activations of so many bits are not quantized: they stay in the floating-point type that the model has.
_KEPT_BITS = 16


def read_array_scheme(name: str) -> ArrayScheme | None:
    """Returns the scheme of one array that ``FORMAT[-gSIZE | -fSIZE | -bROWSxCOLUMNS | -channel | -token | -tensor]
    [-asym][-scale-FORMAT]`` spells, per tensor where nothing is said; None for other words.

    >>> read_array_scheme("int4-g128").scheme.name
    'int4 per-group(-1, 128) symmetric'
    >>> read_array_scheme("uint4-g32-asym-scale-fp16").scheme.name
    'uint4 per-group(-1, 32) asymmetric, scale fp16'
    """
    match = _ARRAY.fullmatch(name)
    if match is None or match["format"] not in FORMATS:
        return None
    return _array_scheme(name, FORMATS[match["format"]], match, default=PerTensor())


def read_model_scheme(name: str) -> NamedScheme | None:
    """Returns the scheme of a model that ``wBITSaBITS[granularity of the weights][-asym][-dynamic]`` spells.

    Weights are signed integers, a scale a channel where nothing is said; with ``-asym`` unsigned with zero points.
    Activations of 16 bits stay as they are; of fewer, they are unsigned per tensor, or dynamic: signed per token.
    None for other words.

    >>> read_model_scheme("w4a16-g128").weight.scheme.name
    'int4 per-group(-1, 128) symmetric'
    """
    match = _MODEL.fullmatch(name)
    if match is None or f"int{match['weight']}" not in FORMATS or f"int{match['activation']}" not in FORMATS:
        return None
    dynamic, bits = bool(match["dynamic"]), int(match["activation"])
    if bits > _KEPT_BITS or (dynamic and bits == _KEPT_BITS):
        return None
    sign = "u" if match["asymmetric"] else ""
    weight = _array_scheme(name, FORMATS[f"{sign}int{match['weight']}"], match, default=PerChannel(0))
    if weight is None or bits == _KEPT_BITS:
        return None if weight is None else NamedScheme(name=name, weight=weight)
    return NamedScheme(name=name, weight=weight, activation=activation_scheme(bits, dynamic=dynamic), dynamic=dynamic)


def activation_scheme(bits: int, *, dynamic: bool) -> ArrayScheme:
    """Returns how integer activations are quantized: unsigned per tensor, or at run time signed per token."""
    name = f"int{bits}-token" if dynamic else f"uint{bits}-asym"
    found = read_array_scheme(name)
    assert found is not None
    return found


def _array_scheme(name: str, fmt: Format, match: re.Match[str], *, default: Granularity) -> ArrayScheme | None:
    asymmetric = bool(match["asymmetric"])
    if (asymmetric and not isinstance(fmt, Int)) or (match["scale"] and match["scale"] not in FORMATS):
        return None
    scheme = Scheme(
        format=fmt,
        granularity=_granularity(match, default),
        symmetric=not asymmetric,
        scale=FORMATS[match["scale"]] if match["scale"] else None,
    )
    return ArrayScheme(name=name, scheme=scheme, rule=rule_of(fmt))


def rule_of(fmt: Format) -> ScaleRule:
    """Returns how scales are chosen where a shorthand names a format alone: by the mean for one and two values."""
    few = isinstance(fmt, Codebook) and set(fmt.values) <= {-1.0, 0.0, 1.0}
    return MeanMagnitude() if few else FULL_RANGE


def _granularity(match: re.Match[str], default: Granularity) -> Granularity:
    if match["group"]:
        return PerGroup(axis=-1, size=int(match["group"]))
    if match["flat"]:
        return PerFlat(int(match["flat"]))
    if match["rows"]:
        return PerBlock(int(match["rows"]), int(match["columns"]))
    return {"tensor": PerTensor(), "channel": PerChannel(0), "token": PerToken(-1), None: default}[match["kind"]]


def for_array(scheme: Scheme) -> ArrayScheme:
    """Returns a scheme of the caller's own as one that can be applied, by the full range."""
    return ArrayScheme(name=scheme.name, scheme=scheme, rule=rule_of(scheme.format))
