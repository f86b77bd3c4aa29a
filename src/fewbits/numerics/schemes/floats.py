"""Floating-point codes: 16 bits as they are, 8 bits under a scale."""

from __future__ import annotations

from fewbits.numerics.format import Format
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import Granularity, PerBlock, PerChannel, PerGroup, PerTensor, PerToken
from fewbits.numerics.named import ArrayScheme, NamedScheme
from fewbits.numerics.scheme import Scheme

_E4M3 = FORMATS["fp8_e4m3"]
_VLLM = "vLLM, FP8 W8A8"


def _cast(name: str, fmt: Format) -> NamedScheme:
    scheme = Scheme(format=fmt, granularity=PerTensor(), symmetric=True, scaled=False)
    return NamedScheme(name=name, weight=ArrayScheme(name=name, scheme=scheme, source=fmt.source))


def _fp8(name: str, granularity: Granularity) -> ArrayScheme:
    scheme = Scheme(format=_E4M3, granularity=granularity, symmetric=True)
    return ArrayScheme(name=name, scheme=scheme, source=_VLLM)


SCHEMES: tuple[NamedScheme, ...] = (
    _cast("fp16", FORMATS["fp16"]),
    _cast("bf16", FORMATS["bf16"]),
    NamedScheme(name="fp8", weight=_fp8("fp8", PerChannel(0)), activation=_fp8("fp8", PerTensor())),
    NamedScheme(
        name="fp8-dynamic",
        weight=_fp8("fp8-dynamic", PerChannel(0)),
        activation=_fp8("fp8-dynamic", PerToken(-1)),
        dynamic=True,
    ),
    NamedScheme(
        name="fp8-block",
        weight=_fp8("fp8-block", PerBlock(128, 128)),
        activation=_fp8("fp8-block", PerGroup(axis=-1, size=128)),
        dynamic=True,
    ),
)
