"""GGUF's block formats: Q4_0 to Q8_0 in blocks of 32, Q2_K to Q6_K in super-blocks of 256 with scales in two levels.

Signs are those of QTensor: Q4_1 stores a minimum m and reads ``d * code + m``; here the offset is -m. Sub-scales of
Q2_K, Q4_K and Q5_K are unsigned with zero point 0.
"""

from __future__ import annotations

from fewbits.numerics.block_rounding import EndsToEnds, LargestToEnd, LargestToReach
from fewbits.numerics.block_search import SUPER_BLOCK, SuperBlockSearch
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import PerGroup
from fewbits.numerics.named import ArrayScheme, NamedScheme, Solver
from fewbits.numerics.scheme import Scheme

_BLOCK = 32
_FP16 = FORMATS["fp16"]


def _named(name: str, scheme: Scheme, rule: Solver, divides: int) -> NamedScheme:
    array = ArrayScheme(name=name, scheme=scheme, rule=rule, divides=divides, source=f"ggml-common.h, block_{name}")
    return NamedScheme(name=name, weight=array)


def _block(name: str, codes: str, rule: Solver, *, minimum: bool = False) -> NamedScheme:
    scheme = Scheme(
        format=FORMATS[codes],
        granularity=PerGroup(axis=-1, size=_BLOCK),
        symmetric=not minimum,
        scale=_FP16,
        minimum=_FP16 if minimum else None,
    )
    return _named(name, scheme, rule, _BLOCK)


def _super_block(name: str, codes: str, size: int, sub_scales: str, *, minimum: bool = False) -> NamedScheme:
    sub = Scheme(
        format=FORMATS[sub_scales],
        granularity=PerGroup(axis=-1, size=SUPER_BLOCK // size),
        symmetric=True,
        scale=_FP16,
    )
    scheme = Scheme(
        format=FORMATS[codes],
        granularity=PerGroup(axis=-1, size=size),
        symmetric=not minimum,
        scale=sub,
        minimum=sub if minimum else None,
    )
    return _named(name, scheme, SuperBlockSearch(), SUPER_BLOCK)


SCHEMES: tuple[NamedScheme, ...] = (
    _block("q4_0", "int4", LargestToEnd()),
    _block("q4_1", "uint4", EndsToEnds(), minimum=True),
    _block("q5_0", "int5", LargestToEnd()),
    _block("q5_1", "uint5", EndsToEnds(), minimum=True),
    _block("q8_0", "int8", LargestToReach()),
    _super_block("q2_k", "uint2", 16, "uint4", minimum=True),
    _super_block("q3_k", "int3", 16, "int6"),
    _super_block("q4_k", "uint4", 32, "uint6", minimum=True),
    _super_block("q5_k", "uint5", 32, "uint6", minimum=True),
    _super_block("q6_k", "int6", 16, "int8"),
)
