"""How much memory a run will take, before any of it is taken."""

from __future__ import annotations

from collections.abc import Sequence

from fewbits._base.errors import ResourceError
from fewbits.models.onnx.feeding import shard_size
from fewbits.models.onnx.model import OnnxModel
from fewbits.numerics.granularity import PerGroup
from fewbits.planning.plan import Decision

# What Python and the libraries hold before any model, bytes; measured on ONNX Runtime 1.31.1 with onnx-ir 1.1.
_BASE_BYTES = 160 * 2**20
# Bytes of the pieces in which a weight outside is read, with their float copies and codes.
_SLABS_BYTES = 96 * 2**20


def memory_needed(model: OnnxModel, quantized: Sequence[Decision]) -> int:
    """Returns the estimated peak memory of a run: copies of a model, or pieces of one that lies in files.

    Args:
      model: The model.
      quantized: The decisions that do not keep float.
    """
    inner = 4 * shard_size(model) * sum(model.view.tensors[n].elements for n in model.view.producer)
    if model.folder is None:
        return _BASE_BYTES + 4 * model.file_bytes + 2 * inner
    stored = [d for d in quantized if d.stored]
    largest = max((_bytes_of(d, model.view.tensors[d.site].elements) for d in stored), default=0)
    if len(stored) == len(quantized):  # one weight at a time
        return _BASE_BYTES + 4 * len(model.original) + largest + _SLABS_BYTES
    return _BASE_BYTES + 4 * model.file_bytes + 2 * inner


def _bytes_of(decision: Decision, elements: int) -> int:
    """Returns the bytes of one stored weight while it is quantized."""
    assert decision.scheme is not None
    if isinstance(decision.scheme.granularity, PerGroup):  # whole: values, turned, and back again; codes, twice
        return 16 * elements
    return 2 * elements  # codes, a second time where they are turned


def room_beside(model: OnnxModel, quantized: Sequence[Decision], allowed: int | None) -> int | None:
    """Returns the bytes that are left for what only saves time; None where nothing says how many may be taken."""
    return None if allowed is None else max(0, allowed - memory_needed(model, quantized))


def refuse_too_little(model: OnnxModel, quantized: Sequence[Decision], allowed: int | None, *, beside: int = 0) -> None:
    """Raises ResourceError(slug="memory-too-small") where a run would take more than it may; ``beside`` is added."""
    needed = memory_needed(model, quantized) + beside
    if allowed is not None and needed > allowed:
        raise ResourceError(
            f"quantizing {model.name} takes about {needed / 1e6:.0f} MB, and --max-memory allows {allowed / 1e6:.0f}; "
            "allow more",
            slug="memory-too-small",
        )
