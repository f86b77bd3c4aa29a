"""fewbits: name the accuracy you can afford to lose; get back the smallest, fastest model that keeps it.

    import fewbits
    result = fewbits.quantize("model.onnx", data="examples.npz", max_drop="1%")
    result.save("out")

Importing this package loads no framework; each function loads what it needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fewbits._base.errors import (
    DataError,
    FewbitsError,
    InputError,
    ModelError,
    NumericsError,
    ResourceError,
    SecurityError,
    TargetError,
    UsageError,
    VerificationError,
)
from fewbits._version import VERSION as __version__  # noqa: N811

if TYPE_CHECKING:
    from fewbits import evidence
    from fewbits.api import inspect, load_plan, measure, plan, quantize, quantize_array, report, verify
    from fewbits.numerics.formats import FORMATS as formats  # noqa: N811

_PLACES = {
    "quantize": "fewbits.api",
    "inspect": "fewbits.api",
    "plan": "fewbits.api",
    "measure": "fewbits.api",
    "verify": "fewbits.api",
    "report": "fewbits.api",
    "load_plan": "fewbits.api",
    "quantize_array": "fewbits.api",
}

__all__ = [
    "DataError",
    "FewbitsError",
    "InputError",
    "ModelError",
    "NumericsError",
    "ResourceError",
    "SecurityError",
    "TargetError",
    "UsageError",
    "VerificationError",
    "__version__",
    "evidence",
    "formats",
    "inspect",
    "load_plan",
    "measure",
    "plan",
    "quantize",
    "quantize_array",
    "report",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    if name == "formats":
        return importlib.import_module("fewbits.numerics.formats").FORMATS
    if name == "evidence":
        return importlib.import_module("fewbits.evidence")
    raise AttributeError(f"module 'fewbits' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
