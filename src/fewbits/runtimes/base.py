"""The protocol of runtimes, and the value in which the executed graph comes back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import final

import numpy as np

# Runs of a profile that is there to tell what ran, and only about how long; the first allocates and is dropped.
PROFILED_RUNS = 4

Tensors = Mapping[str, np.ndarray]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a session is opened, and where; written into the report, because it changes numbers and speed.

    Args:
      runtime: Name in the catalog of runtimes.
      threads: Threads inside one operator.
      optimize: All graph optimizations if true, none if false.
      data_folder: Where the external data of a model lie that is given as bytes.
      seconds: After which one run is ended; None for no limit, as where a clock watches.
      precision: In which numbers a runtime may compute what is float in the file: ``f32``, or ``bf16`` where it can.
    """

    runtime: str = "ort"
    threads: int = 1
    optimize: bool = True
    data_folder: Path | None = None
    seconds: float | None = None
    precision: str = "f32"


class Numbers(StrEnum):
    """In which numbers a node ran."""

    INTEGER = "integer"
    FLOAT = "float"
    CONVERSION = "conversion"  # quantize, dequantize, cast, reorder
    MOVES = "moves"  # moves elements, whatever they are: no arithmetic
    NEUTRAL = "neutral"  # shapes and indices


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutedNode:
    """One node as the runtime executed it.

    Args:
      name: The runtime's name for it.
      op: Kernel family, with the domain where it is not the standard one.
      numbers: In which numbers it ran.
      inputs: Element type and shape of each input.
      outputs: Element type and shape of each output.
      microseconds: Time that it took, median of the profiled runs.
      origins: Names of the model's nodes whose work it does, where the runtime tells.
    """

    name: str
    op: str
    numbers: Numbers
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, tuple[int, ...]], ...]
    microseconds: float
    origins: tuple[str, ...] = ()


class Session(ABC):
    """A model that is ready to run."""

    @abstractmethod
    def run(self, feeds: Tensors) -> dict[str, np.ndarray]:
        """Returns all outputs by name."""


class Runtime(ABC):
    """One runtime on this machine."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name with version, e.g. ``onnxruntime 1.31.1``."""

    @abstractmethod
    def describe(self, options: Options) -> dict[str, str]:
        """Returns in words how sessions are opened: what changes numbers or speed."""

    @abstractmethod
    def open(self, model: bytes | Path, options: Options) -> Session:
        """Returns a session; raises ModelError(slug="runtime-refuses") where the runtime does not take the model."""

    @abstractmethod
    def executed(
        self, model: Path, options: Options, feeds: Tensors, *, runs: int = PROFILED_RUNS
    ) -> tuple[ExecutedNode, ...]:
        """Returns the nodes that the runtime really executes for these inputs, in order, timed over some runs."""
