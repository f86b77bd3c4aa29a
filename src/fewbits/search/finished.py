"""What a run ends in: a candidate, the files, and everything that was measured of them."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from fewbits.evidence import PairedBound
from fewbits.evidence.verdict import Verdict
from fewbits.measurement.benchmark import Performance
from fewbits.measurement.executed import ExecutedGraph
from fewbits.measurement.quality import Quality
from fewbits.planning.site import GraphView
from fewbits.search.auto import Offer
from fewbits.search.building import Candidate
from fewbits.search.loop import Trial
from fewbits.search.preparing import Prepared
from fewbits.search.repairing import Repairs

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"


@final
class Scratch:
    """A temporary folder that lasts until ``close``, or until nobody holds it any more."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fewbits-run-"))
        self.close = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """What the verdict data say.

    Args:
      bound: Bound on the loss.
      verdict: None where no budget was asked for.
      quality: Closeness of the outputs.
      float_figure: The metric of the float model.
      figure: The same of the handed-over model.
    """

    bound: PairedBound
    verdict: Verdict | None
    quality: Quality
    float_figure: float
    figure: float


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Ran:
    """What running the two files on one example showed.

    Args:
      performance: Latency and memory.
      executed: The executed graph of the handed-over model.
      float_executed: The same of the float model.
      golden: Seeded inputs' outputs, by which the file can be verified later.
      integers: Latency and memory of the integers that were given up for 16-bit weights; None where there are none.
    """

    performance: Performance
    executed: ExecutedGraph
    float_executed: ExecutedGraph
    golden: bytes
    integers: Performance | None = None


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """A result, and what was measured of it.

    Args:
      prepared: What was asked and opened.
      candidate: What is handed over; where that is the float model, the best candidate.
      data: The file that is handed over.
      data_file: Its large tensors; None where they are inside.
      float_reason: Why no integers are handed over, in words; None where they are.
      trail: What the search tried.
      repairs: What was changed so that fewer nodes compute in float, and what it brought.
      ran: None where the models were not run; ``unmeasured`` says why.
      judged: None where there were no data; ``unmeasured`` says why.
      unmeasured: Why something was not measured; empty where all was.
      graph: View of the model.
      seconds: How long each stage took.
      warnings: What the reader must know.
      offers: What each target would give, where the fastest was to be taken; empty where one was named.
      halved: Whether the float model is handed over with 16-bit weights.
      scratch: Holds the folder of the data file until the result is forgotten.
    """

    prepared: Prepared
    candidate: Candidate
    data: bytes
    data_file: Path | None
    float_reason: str | None
    trail: tuple[Trial, ...]
    repairs: Repairs
    ran: Ran | None
    judged: Judged | None
    unmeasured: str
    graph: GraphView
    seconds: Mapping[str, float]
    warnings: tuple[str, ...] = field(default=())
    offers: tuple[Offer, ...] = ()
    halved: bool = False
    scratch: Scratch | None = None

    @property
    def float_kept(self) -> bool:
        """Whether the float model itself is handed over, its weights in 32 bits."""
        return self.float_reason is not None and not self.halved

    @property
    def verdict(self) -> Verdict | None:
        """None where no budget was asked for, or nothing was judged."""
        return None if self.judged is None else self.judged.verdict

    @property
    def file_bytes(self) -> int:
        """Bytes of what is handed over, external data included."""
        return len(self.data) + (0 if self.data_file is None else self.data_file.stat().st_size)
