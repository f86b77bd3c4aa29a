"""OCP's microscaling formats: blocks of 32 with a power of two for a scale; and the policies by which it is chosen."""

from __future__ import annotations

from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import PerGroup
from fewbits.numerics.named import ArrayScheme, NamedScheme
from fewbits.numerics.scaling import Exponents, PowerOfTwo
from fewbits.numerics.scheme import Scheme

_BLOCK = 32
_ELEMENTS = {
    "mxfp8": "fp8_e4m3",
    "mxfp8_e5m2": "fp8_e5m2",
    "mxfp6": "fp6_e3m2",
    "mxfp6_e2m3": "fp6_e2m3",
    "mxfp4": "fp4_e2m1",
    "mxint8": "mxint8",
}


def _mx(name: str, element: str, policy: Exponents) -> NamedScheme:
    scheme = Scheme(
        format=FORMATS[element],
        granularity=PerGroup(axis=-1, size=_BLOCK),
        symmetric=True,
        scale=FORMATS["e8m0"],
    )
    array = ArrayScheme(
        name=name, scheme=scheme, rule=PowerOfTwo(policy), source="OCP Microscaling Formats (MX) 1.0, 5 and 6.3"
    )
    return NamedScheme(name=name, weight=array, activation=array, dynamic=True)


# The plain name is the specification's own policy, floor.
SCHEMES: tuple[NamedScheme, ...] = tuple(
    _mx(name if policy is Exponents.FLOOR else f"{name}-{policy.value}", element, policy)
    for name, element in _ELEMENTS.items()
    for policy in Exponents
)
