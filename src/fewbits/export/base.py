"""The protocol of exporters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewbits.numerics.qtensor import QParams, QTensor
from fewbits.planning.plan import Plan
from fewbits.planning.site import Site


class Sink(ABC):
    """Takes quantized sites one by one; ``close`` returns the finished bytes."""

    @abstractmethod
    def write(self, site: Site, value: QTensor | QParams) -> None:
        """Takes one site. Activations come before the weights that flow through them."""

    @abstractmethod
    def close(self) -> bytes:
        """Returns the finished file; the sink takes nothing after it."""


class Exporter(ABC):
    """Writes one file format."""

    @abstractmethod
    def open(
        self,
        model: Any,
        plan: Plan,
        *,
        integer: tuple[str, ...],
        metadata: Mapping[str, str],
        data_file: Path | None = None,
    ) -> Sink:
        """Returns a sink.

        Args:
          model: The model in its own kind's form.
          plan: What is being written.
          integer: Nodes that run in integers under the plan.
          metadata: Key-value pairs for the file's own metadata.
          data_file: Where large tensors go, written as they come; None where all are inside the file.
        """
