"""NVIDIA's NVFP4: blocks of 16 whose scales are themselves 8-bit floats under one float32 scale of the tensor."""

from __future__ import annotations

from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import PerGroup, PerTensor
from fewbits.numerics.named import ArrayScheme, NamedScheme
from fewbits.numerics.scaling import Invertible
from fewbits.numerics.scheme import Scheme

_ARRAY = ArrayScheme(
    name="nvfp4",
    scheme=Scheme(
        format=FORMATS["fp4_e2m1"],
        granularity=PerGroup(axis=-1, size=16),
        symmetric=True,
        scale=Scheme(format=FORMATS["ue4m3"], granularity=PerTensor(), symmetric=True),
    ),
    scale_rule=Invertible(),
    source="NVIDIA, Pretraining LLMs with NVFP4 (arXiv 2509.25149), 2",
)

SCHEMES: tuple[NamedScheme, ...] = (
    NamedScheme(name="nvfp4", weight=_ARRAY, activation=_ARRAY, dynamic=True),
    NamedScheme(name="nvfp4a16", weight=_ARRAY),
)
