"""Paired evaluation: float and quantized model on the same examples, score by score.

The float model's outputs are needed for every candidate, so they are kept in a store on disk, never all in memory.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, final

import numpy as np

from fewbits._base.errors import ModelError, UsageError
from fewbits.datasets.checks import check_values
from fewbits.measurement.metrics.base import Metric
from fewbits.measurement.quality import Quality, QualityMeter
from fewbits.models.onnx.feeding import fixed_batch, model_batches, real_rows, run_options
from fewbits.models.onnx.model import OnnxModel
from fewbits.models.onnx.protobuf import quantizes_batches
from fewbits.runtimes import open_session
from fewbits.runtimes.base import Options, Session

if TYPE_CHECKING:
    from fewbits.datasets.base import Dataset

Progress = Callable[[str, int, int], None]


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What two models scored on the same examples.

    Args:
      float_scores: [n] float64, in the order of the examples.
      scores: [n] float64, of the other model.
      quality: How close the outputs are.
    """

    float_scores: np.ndarray
    scores: np.ndarray
    quality: Quality


def score_output(model: OnnxModel, wanted: str | None) -> str:
    """Returns the name of the output that holds the answer: the wanted one, else the first.

    Raises: UsageError(slug="score-output") if there is no such output.
    """
    outputs = model.view.outputs
    if wanted is not None and wanted not in outputs:
        raise UsageError(f"{model.name} has no output {wanted!r}; it has: {', '.join(outputs)}", slug="score-output")
    return wanted or outputs[0]


@final
class Reference:
    """The float model's outputs on some examples, on disk; a context manager that removes them.

    Args:
      model: The float model.
      dataset: Examples.
      indices: Which of them, ascending.
      metric: How they are scored.
      output: Name of the output that holds the answer.
      options: Session options of every model that is compared; the float model itself runs in ONNX Runtime.
    """

    def __init__(
        self,
        model: OnnxModel,
        dataset: Dataset,
        indices: np.ndarray,
        *,
        metric: Metric,
        output: str,
        options: Options,
    ) -> None:
        self._model = model
        self._dataset = dataset
        self._indices = indices
        self._metric = metric
        self._output = output
        self._options = options
        self._stored: Path | None = None
        self._scores: np.ndarray | None = None

    def __enter__(self) -> Self:
        self._stored = Path(tempfile.mkdtemp(prefix="fewbits-reference-"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _folder(self) -> Path:
        assert self._stored is not None, "a Reference is used within its with block"
        return self._stored

    @property
    def examples(self) -> int:
        """How many examples are compared."""
        return len(self._indices)

    def prepare(self, progress: Progress, *, stage: str) -> np.ndarray:
        """Returns the float model's scores, [n]; runs it once and keeps its outputs."""
        if self._scores is None:
            # What float means does not depend on the runtime that is measured.
            options = run_options(self._model, Options(threads=self._options.threads))
            session = open_session(self._model.original, options)
            scores, done = [], 0
            for number, (feeds, batch) in enumerate(model_batches(self._model, self._dataset, self._indices)):
                check_values(batch)
                outputs = self._run(session, feeds, len(batch.index))
                self._refuse_nan(outputs, batch.index)
                np.savez(self._folder / f"{number}.npz", **outputs)  # type: ignore[arg-type]
                scores.append(self._metric.score(outputs, outputs, batch.labels, output=self._output))
                done += len(batch.index)
                progress(stage, done, self.examples)
            self._scores = np.concatenate(scores)
        return self._scores

    def compare(
        self,
        candidate: bytes | Path,
        progress: Progress,
        *,
        stage: str,
        limit: int | None = None,
        data_folder: Path | None = None,
    ) -> Outcome:
        """Returns the paired outcome of a candidate.

        A file that quantizes inputs by the range of each run answers an example otherwise in other company: it is given
        one at a time, as it is when its latency is measured.

        Args:
          candidate: The file, or its bytes.
          progress: Told of each batch.
          stage: Name for the progress.
          data_folder: Where its external data lie; if not given beside a file, and for bytes with the float model.
          limit: Only about the first so many examples (whole batches); all where None.
        """
        float_scores = self.prepare(progress, stage="float model")
        if data_folder is None and isinstance(candidate, bytes):
            data_folder = self._model.folder
        session = open_session(candidate, replace(self._options, data_folder=data_folder))
        run = self._run_alone if quantizes_batches(candidate) else self._run
        meter, scores, done = QualityMeter(), [], 0
        for number, (feeds, batch) in enumerate(model_batches(self._model, self._dataset, self._indices)):
            if limit is not None and done >= limit:
                break
            with np.load(self._folder / f"{number}.npz", allow_pickle=False) as kept:
                reference = {name: kept[name] for name in kept.files}
            outputs = run(session, feeds, len(batch.index))
            self._same_shape(outputs, reference)
            meter.add(reference[self._output], outputs[self._output])
            scores.append(self._metric.score(outputs, reference, batch.labels, output=self._output))
            done += len(batch.index)
            progress(stage, done, min(self.examples, limit or self.examples))
        return Outcome(float_scores=float_scores[:done], scores=np.concatenate(scores), quality=meter.result())

    def _run_alone(self, session: Session, feeds: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
        """Returns the outputs of examples that were run one by one, where the model takes one at a time."""
        if fixed_batch(self._model) is not None or count < 2:
            return self._run(session, feeds, count)
        rows = [
            self._run(
                session,
                {name: value if name in self._model.single else value[i : i + 1] for name, value in feeds.items()},
                1,
            )
            for i in range(count)
        ]
        return {
            name: np.concatenate([row[name] for row in rows]) if rows[0][name].ndim else rows[0][name]
            for name in rows[0]
        }

    def _run(self, session: Session, feeds: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
        outputs = real_rows(self._model, session.run(feeds), count)
        answer = outputs.get(self._output)
        if answer is not None and (answer.ndim == 0 or answer.shape[0] != count):
            raise ModelError(
                f"output {self._output!r} has shape {list(answer.shape)} for {count} examples: its first axis is not "
                "the batch; name another one with --score-output",
                slug="output-no-batch",
            )
        return outputs

    def _refuse_nan(self, outputs: dict[str, np.ndarray], index: np.ndarray) -> None:
        answer = outputs[self._output]
        if answer.dtype.kind != "f" or not np.isnan(answer).any():
            return
        first = int(np.flatnonzero(np.isnan(answer).reshape(len(answer), -1).any(axis=1))[0])
        raise ModelError(
            f"{self._model.name} gives NaN in output {self._output!r} for example {int(index[first])}, before any "
            "quantization; mend the model, or remove the example",
            slug="output-nan",
        )

    def _same_shape(self, outputs: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> None:
        if self._output not in outputs:
            raise ModelError(
                f"the second model has no output {self._output!r}; it has: {', '.join(outputs)}", slug="outputs-differ"
            )
        if outputs[self._output].shape != reference[self._output].shape:
            raise ModelError(
                f"output {self._output!r} has shape {list(outputs[self._output].shape)} in one model and "
                f"{list(reference[self._output].shape)} in the other; they cannot be compared",
                slug="outputs-differ",
            )
