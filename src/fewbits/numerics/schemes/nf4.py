"""QLoRA's NF4: blocks of 64 in the order of memory; with double quantization their scales take 8 bits each."""

from __future__ import annotations

from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import PerFlat
from fewbits.numerics.named import ArrayScheme, NamedScheme
from fewbits.numerics.scheme import Scheme

_BLOCK = 64
_SECOND_BLOCK = 256
_SOURCE = "QLoRA (arXiv 2305.14314), 3"


def _nf4(name: str, scale: Scheme | None) -> NamedScheme:
    scheme = Scheme(format=FORMATS["nf4"], granularity=PerFlat(_BLOCK), symmetric=True, scale=scale)
    return NamedScheme(name=name, weight=ArrayScheme(name=name, scheme=scheme, source=_SOURCE))


# Scales are all positive: a minimum in the place of QLoRA's subtracted mean uses every code.
_SECOND = Scheme(
    format=FORMATS["uint8"],
    granularity=PerFlat(_SECOND_BLOCK),
    symmetric=False,
    minimum=FORMATS["fp32"],
)

SCHEMES: tuple[NamedScheme, ...] = (_nf4("nf4", None), _nf4("nf4-dq", _SECOND))
