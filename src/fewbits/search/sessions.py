"""Where and how the files of a target run here, and what opening them otherwise changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fewbits.measurement.benchmark import ModelFiles
from fewbits.measurement.sessions_differ import SessionDifference, compare_sessions
from fewbits.models.onnx.model import OnnxModel
from fewbits.runtimes.base import Options
from fewbits.targets.base import Target

if TYPE_CHECKING:
    from fewbits.datasets.base import Dataset

# One 8-bit rounding of a normal tensor costs about 40 dB: below this, two sessions lie ten of them apart.
_LEAST_SQNR_DB = 30.0


def session_options(target: Target, *, threads: int = 1) -> Options:
    """Returns the options of every session that measures a file for a target."""
    return Options(runtime=target.runtime, threads=threads, precision=target.variant.precision)


def told_of_sessions(
    file: ModelFiles, model: OnnxModel, data: Dataset, indices: np.ndarray, *, output: str, options: Options
) -> tuple[str, ...]:
    """Returns a warning for each other way to open a quantized file by which its answers change.

    Args:
      file: The file that is handed over.
      model: The float model, which knows how it is fed.
      data: Examples.
      indices: Which of them; some of the first are taken.
      output: Name of the output that holds the answer.
      options: Of the session that ships.
    """
    found = compare_sessions(file.model, model, data, indices, output=output, options=options)
    return tuple(_told(one, output) for one in found if changes_answers(one))


def changes_answers(found: SessionDifference) -> bool:
    """Returns whether a session answers otherwise than the one that ships by more than rounding here and there."""
    return bool(found.changed) or found.quality.sqnr_db < _LEAST_SQNR_DB


def _told(found: SessionDifference, output: str) -> str:
    far = f"{found.worst:.3g} of {found.reach:.3g}"
    far += "" if found.step is None else f" ({round(found.worst / found.step)} codes)"
    return (
        f"a session {found.variant.words} answers otherwise than the one that ships: {found.changed} of "
        f"{found.examples} answers change, {output!r} by up to {far}; the figures are those of the one that ships "
        "[sessions-differ]"
    )
