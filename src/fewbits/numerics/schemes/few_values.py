"""One bit and 1.58 bits."""

from __future__ import annotations

from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import Granularity, PerChannel, PerTensor
from fewbits.numerics.named import ArrayScheme, NamedScheme
from fewbits.numerics.scaling import MeanMagnitude
from fewbits.numerics.scheme import Scheme


def _few(name: str, granularity: Granularity, source: str) -> NamedScheme:
    scheme = Scheme(format=FORMATS[name], granularity=granularity, symmetric=True)
    return NamedScheme(name=name, weight=ArrayScheme(name=name, scheme=scheme, rule=MeanMagnitude(), source=source))


SCHEMES: tuple[NamedScheme, ...] = (
    _few("binary", PerChannel(0), "XNOR-Net (arXiv 1603.05279)"),
    _few("ternary", PerTensor(), "BitNet b1.58 (arXiv 2402.17764)"),
)
