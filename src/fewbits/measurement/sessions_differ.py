"""How far other sessions of the same file answer from the one that ships: other kernels round elsewhere.

Accuracy is always that of the session that ships. Whoever opens the file otherwise must know what that changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from fewbits._base.errors import ModelError
from fewbits.measurement.quality import Quality, QualityMeter
from fewbits.models.onnx.feeding import model_batches, real_rows
from fewbits.models.onnx.model import OnnxModel
from fewbits.planning.macs import count_macs
from fewbits.runtimes import open_session
from fewbits.runtimes._variants import Variant, open_variant, variants_of
from fewbits.runtimes.base import Options, Session, Tensors

if TYPE_CHECKING:
    from fewbits.datasets.base import Dataset

Batches = Sequence[tuple[Tensors, int]]

# Examples that are answered both ways, and the multiply-accumulates that all of them may take for one session: what a
# core does in some seconds. By the model alone, so that every run compares as many.
_EXAMPLES = 64
_MACS = 2e10


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SessionDifference:
    """One other session beside the one that ships, on the same examples.

    Args:
      variant: How it is opened.
      examples: How many were answered.
      equal: Whether every bit of the answers is.
      worst: Largest difference of an element of the answer.
      reach: Largest magnitude of an element of the answer.
      step: What one code of the answer is worth; None where the answer is written in floats.
      quality: Closeness of the other session's answers to those of the one that ships.
      refused: Why the runtime does not open the file so; empty where it does.
    """

    variant: Variant
    examples: int
    equal: bool
    worst: float
    reach: float
    step: float | None
    quality: Quality
    refused: str = ""

    @property
    def changed(self) -> int:
        """Examples whose answer is another one; 0 where there are no classes."""
        return 0 if self.quality.agreement is None else round(self.examples * (1 - self.quality.agreement))


def compare_sessions(
    file: Path,
    model: OnnxModel,
    data: Dataset,
    indices: np.ndarray,
    *,
    output: str,
    options: Options,
    variants: Iterable[Variant] | None = None,
) -> tuple[SessionDifference, ...]:
    """Returns how far other sessions of a file answer from the one that ships.

    Args:
      file: The quantized file.
      model: The float model, which knows how it is fed.
      data: Examples.
      indices: Which of them; the first are taken.
      output: Name of the output that holds the answer.
      options: Of the session that ships.
      variants: The other ways; those of the runtime where None.
    """
    others = variants_of(options) if variants is None else tuple(variants)
    if not others or not len(indices):
        return ()
    some = indices[: examples_compared(model)]
    batches = [(feeds, len(batch.index)) for feeds, batch in model_batches(model, data, some)]
    shipped = _answers(open_session(file, options), model, batches, output)
    if any(answer.dtype.kind != "f" or not np.isfinite(answer).all() for answer in shipped):
        return ()
    step = _step(file, output)
    return tuple(
        _difference(v, file, model, batches, shipped, output=output, options=options, step=step) for v in others
    )


def _difference(
    variant: Variant,
    file: Path,
    model: OnnxModel,
    batches: Batches,
    shipped: list[np.ndarray],
    *,
    output: str,
    options: Options,
    step: float | None,
) -> SessionDifference:
    refused, other = "", shipped
    try:
        other = _answers(open_variant(file, options, variant), model, batches, output)
    except ModelError as error:
        refused = error.message
    meter, worst = QualityMeter(), 0.0
    for ours, theirs in zip(shipped, other, strict=True):
        meter.add(ours, theirs)
        worst = max(worst, float(np.abs(theirs.astype(np.float64) - ours).max(initial=0.0)))
    return SessionDifference(
        variant=variant,
        examples=sum(len(answer) for answer in shipped),
        equal=all(a.tobytes() == b.tobytes() for a, b in zip(shipped, other, strict=True)),
        worst=worst,
        reach=max(float(np.abs(answer).max(initial=0.0)) for answer in shipped),
        step=step,
        quality=meter.result(),
        refused=refused,
    )


def examples_compared(model: OnnxModel) -> int:
    """Returns how many examples are answered by each session: fewer of a model that computes much."""
    macs = max(1, sum(count_macs(model.view).values()))
    return int(min(_EXAMPLES, max(1, _MACS // macs)))


def _answers(session: Session, model: OnnxModel, batches: Batches, output: str) -> list[np.ndarray]:
    return [real_rows(model, session.run(feeds), count)[output] for feeds, count in batches]


def _step(file: Path, output: str) -> float | None:
    """Returns the scale of the codes that an output is written from, None where a float operator writes it."""
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    writer = next((node for node in graph.node if output in node.output), None)
    if writer is None or writer.op_type != "DequantizeLinear":
        return None
    scale = next((t for t in graph.initializer if t.name == writer.input[1]), None)
    value = None if scale is None else onnx.numpy_helper.to_array(scale)
    return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None
