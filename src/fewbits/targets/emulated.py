"""No runtime that is shipped to: weights of fewer than 8 bits computed as ort-cpu computes those of 8.

A weight of 4 bits is written as an int8 code between -8 and 7. The numbers are those of a runtime that has the kernels,
the accuracy is that of the file that runs here; size and speed are those of 8 bits, and say nothing of such a runtime.
"""

from __future__ import annotations

from dataclasses import replace

from fewbits.numerics.format import Int
from fewbits.targets.base import Variant
from fewbits.targets.ort_cpu import TARGET as _ORT_CPU

_ACTIVATIONS = Int(bits=8, signed=False)
_BITS = (8, 7, 6, 5, 4, 3, 2)

TARGET = replace(
    _ORT_CPU,
    name="emulated",
    summary="accuracy of weights of 2 to 8 bits, activations of 8; size and speed are of 8 bits",
    variants={
        f"w{bits}a8": Variant(
            activation=_ACTIVATIONS,
            weight=Int(bits=bits, signed=True),
            pair_limit=None,
            note=f"weights of {bits} bits in int8 codes, activations of 8",
        )
        for bits in _BITS
    },
    isa="w4a8",
    stored={},
    schemes=tuple(f"w{bits}a8" for bits in _BITS),
    by_scheme=True,
)
