"""From examples to what the model takes, and back: fixed batches are filled up and the surplus rows dropped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from fewbits._base.errors import ModelError
from fewbits.models.onnx.model import OnnxModel

if TYPE_CHECKING:
    from fewbits.datasets.base import Batch, Dataset

# Bytes of intermediate tensors that one shard may hold; the shard is the unit of work and of reproducibility, so it
# depends on the model alone and never on the machine.
_SHARD_BYTES = 64 * 2**20
_MAX_SHARD = 32


def fixed_batch(model: OnnxModel) -> int | None:
    """Returns the batch that the model's first axes are fixed to, None where they are dynamic.

    Raises: ModelError(slug="batch-axes") where inputs disagree, or have no axis for a batch.
    """
    firsts = {spec.name: (spec.shape[0] if spec.shape else 0) for spec in model.inputs}
    sizes = set(firsts.values())
    if len(sizes) > 1 or 0 in sizes:
        raise ModelError(
            f"{model.name}: the first axis of every input must be the batch, got {firsts}", slug="batch-axes"
        )
    return sizes.pop() if sizes else None


def shard_size(model: OnnxModel, *, per_example: int | None = None) -> int:
    """Returns how many examples make one shard: a function of the model alone.

    Args:
      model: The model.
      per_example: Bytes of intermediate tensors for one example; estimated from the inferred shapes where None.
    """
    fixed = fixed_batch(model)
    if fixed is not None:
        return fixed
    if per_example is None:
        produced = model.view.producer
        tensors = model.view.tensors
        per_example = 4 * sum(tensors[name].elements for name in produced if name in tensors)
    return int(min(_MAX_SHARD, max(1, _SHARD_BYTES // max(1, per_example))))


def feeds_of(batch: Batch, *, fixed: int | None) -> tuple[dict[str, np.ndarray], int]:
    """Returns the model's inputs and how many of their rows are real.

    A batch shorter than the model's fixed one is filled up by repeating its last example.
    """
    count = len(batch.index)
    if fixed is None or count == fixed:
        return dict(batch.inputs), count
    fill = [*range(count), *([count - 1] * (fixed - count))]
    return {name: array[fill] for name, array in batch.inputs.items()}, count


def model_batches(
    model: OnnxModel, dataset: Dataset, indices: np.ndarray, *, size: int | None = None
) -> Iterator[tuple[dict[str, np.ndarray], Batch]]:
    """Yields (feeds, batch) over the examples in index order; only the model's own inputs are fed."""
    fixed = fixed_batch(model)
    names = {spec.name for spec in model.inputs}
    for batch in dataset.batches(indices, fixed or size or shard_size(model)):
        feeds, _ = feeds_of(batch, fixed=fixed)
        yield {name: feeds[name] for name in names}, batch


def real_rows(outputs: Mapping[str, np.ndarray], count: int, *, fed: int) -> dict[str, np.ndarray]:
    """Returns the outputs without the rows that only filled up a fixed batch."""
    if count == fed:
        return dict(outputs)
    return {name: value[:count] if value.ndim and value.shape[0] == fed else value for name, value in outputs.items()}
