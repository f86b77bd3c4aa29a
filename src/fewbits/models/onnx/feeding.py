"""From examples to what the model takes, and back: fixed batches are filled up and the surplus rows dropped.

An input without an axis of examples (one picture as a matrix, a threshold as a number) gets one example at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fewbits._base.errors import ModelError
from fewbits.models.onnx.model import OnnxModel
from fewbits.models.onnx.probing import seconds_of
from fewbits.runtimes.base import Options

if TYPE_CHECKING:
    from fewbits.datasets.base import Batch, Dataset
    from fewbits.datasets.checks import InputSpecs

# Bytes of intermediate tensors that one shard may hold; the shard is the unit of work and of reproducibility, so it
# depends on the model alone and never on the machine.
_SHARD_BYTES = 64 * 2**20
_MAX_SHARD = 32


def fed_by(model: OnnxModel, dataset: Dataset) -> OnnxModel:
    """Returns the model with those inputs named that have no axis of examples, told by the rank of the data.

    An input of shape [40, 98] takes data of shape [examples, 40, 98] one example at a time; data of shape
    [examples, 98] make its first axis the batch.
    """
    single = set()
    for spec in model.inputs:
        data = dataset.inputs.get(spec.name)
        if data is not None and len(data.shape) == len(spec.shape) and _fits(spec.shape, data.shape):
            single.add(spec.name)
    return replace(model, single=frozenset(single))


def _fits(wanted: tuple[int | None, ...], got: tuple[int, ...]) -> bool:
    return all(want in (None, have) for want, have in zip(wanted, got, strict=True))


def expected(model: OnnxModel) -> InputSpecs:
    """Returns what the model's inputs are, with an axis of examples in front of each."""
    return {
        spec.name: (np.dtype(spec.dtype), (None, *spec.shape) if spec.name in model.single else spec.shape)
        for spec in model.inputs
    }


def fixed_batch(model: OnnxModel) -> int | None:
    """Returns the batch that the model's first axes are fixed to, None where they are dynamic.

    Raises: ModelError(slug="batch-axes") where inputs disagree, or one has no axis for a batch and is not fed singly.
    """
    firsts = {spec.name: (spec.shape[0] if spec.shape else 0) for spec in model.inputs if spec.name not in model.single}
    sizes = set(firsts.values())
    if model.single and sizes <= {1, None}:
        return 1
    if len(sizes) > 1 or 0 in sizes or model.single:
        raise ModelError(
            f"{model.name}: the first axis of every input must be the batch, got {firsts}; export it with a batch axis "
            "that all inputs share",
            slug="batch-axes",
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


def _feeds(model: OnnxModel, batch: Batch, *, fixed: int | None) -> dict[str, np.ndarray]:
    """Returns the model's inputs; a batch shorter than the fixed one is filled up by repeating its last example."""
    count = len(batch.index)
    fill = slice(None) if fixed is None or count == fixed else [*range(count), *([count - 1] * (fixed - count))]
    return {
        spec.name: np.asarray(batch.inputs[spec.name][0])
        if spec.name in model.single
        else batch.inputs[spec.name][fill]
        for spec in model.inputs
    }


def model_batches(
    model: OnnxModel, dataset: Dataset, indices: np.ndarray, *, size: int | None = None
) -> Iterator[tuple[dict[str, np.ndarray], Batch]]:
    """Yields (feeds, batch) over the examples in index order; only the model's own inputs are fed."""
    fixed = fixed_batch(model)
    for batch in dataset.batches(indices, fixed or size or shard_size(model)):
        yield _feeds(model, batch, fixed=fixed), batch


def real_rows(model: OnnxModel, outputs: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Returns the outputs with one row an example: without those that only filled up a fixed batch.

    Where no input has an axis of examples, neither have the outputs, and they get one.
    """
    if model.single and len(model.single) == len(model.inputs):
        return {name: np.asarray(value)[None] for name, value in outputs.items()}
    fixed = fixed_batch(model)
    if fixed is None or count == fixed:
        return dict(outputs)
    return {name: value[:count] if value.ndim and value.shape[0] == fixed else value for name, value in outputs.items()}


def run_options(model: OnnxModel, options: Options, *, rows: int | None = None) -> Options:
    """Returns session options for runs of the float model on data: where its weights lie, and when a batch is ended.

    Args:
      model: The model.
      options: What else is wanted.
      rows: Examples of one batch; those of a shard where None.
    """
    count = shard_size(model) if rows is None else rows
    return replace(options, data_folder=model.folder, seconds=seconds_of(model.view, model.file_bytes, rows=count))


def rows_fed(model: OnnxModel, feeds: Mapping[str, np.ndarray]) -> int:
    """Returns how many examples one run of these feeds takes."""
    return next((array.shape[0] for name, array in feeds.items() if name not in model.single), 1)
