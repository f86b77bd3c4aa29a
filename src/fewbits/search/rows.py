"""Whether a file answers an example alone as it answers it among others: accuracy is measured in batches."""

from __future__ import annotations

import numpy as np

from fewbits.datasets.base import Dataset
from fewbits.measurement.benchmark import ModelFiles
from fewbits.measurement.quality import QualityMeter
from fewbits.models.onnx.feeding import fixed_batch, model_batches, shard_size
from fewbits.models.onnx.model import OnnxModel
from fewbits.runtimes import open_session
from fewbits.runtimes.base import Options

# Examples that are answered both ways.
_ROWS = 4
# Sums in another order cost a code here and there; a kernel of its own for few rows that is wrong, far more.
_LEAST_SQNR_DB = 20.0


def rows_differ(
    file: ModelFiles, model: OnnxModel, data: Dataset, indices: np.ndarray, *, output: str, options: Options
) -> str | None:
    """Returns in words how far answers to one example are from those to a batch; None where they agree.

    Runtimes choose other kernels for other shapes. The figures of a file are those of batches, and hold for single
    examples only if it answers them alike.

    Args:
      file: The file.
      model: The float model, which knows how it is fed.
      data: Examples.
      indices: Which of them, ascending; a few are taken.
      output: Name of the output that holds the answer.
      options: Session options.
    """
    whole = min(shard_size(model), len(indices))
    if fixed_batch(model) is not None or whole < 2:
        return None
    session = open_session(file.model, options)
    feeds, _ = next(iter(model_batches(model, data, indices[:whole], size=whole)))
    together = session.run(feeds)[output]
    if together.dtype.kind != "f" or together.ndim == 0 or len(together) != whole:
        return None
    meter = QualityMeter()
    for number, (one, _) in enumerate(model_batches(model, data, indices[: min(_ROWS, whole)], size=1)):
        meter.add(together[number : number + 1], session.run(one)[output])
    sqnr = meter.result().sqnr_db
    if sqnr >= _LEAST_SQNR_DB:
        return None
    return f"it answers an example alone otherwise than among {whole} (SQNR {sqnr:.0f} dB): the runtime errs on one"
