"""Which slope negative values have behind a tensor: what a rounding before a LeakyRelu costs."""

from __future__ import annotations

from fewbits.planning.site import GraphView, OpView

# The slope of a LeakyRelu whose file names none (ONNX).
_LEAKY_SLOPE = 0.01


def slope_behind(site: str, view: GraphView) -> float | None:
    """Returns the slope of negative values in the LeakyRelu that alone reads a site; None elsewhere."""
    readers = view.consumers.get(site, ())
    return slope_of(readers[0]) if len(readers) == 1 else None


def slope_of(op: OpView) -> float | None:
    """Returns the slope of negative values in a LeakyRelu, from 0 to 1; None for anything else."""
    slope = op.attributes.get("alpha", _LEAKY_SLOPE)
    return slope if op.op == "LeakyRelu" and isinstance(slope, float) and 0 < slope < 1 else None
