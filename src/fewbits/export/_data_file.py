"""The file beside a model that holds its large tensors: written as they come, so that none waits in memory."""

from __future__ import annotations

from pathlib import Path
from typing import IO, final

import numpy as np
import onnx_ir as ir

from fewbits.models.onnx.weights import slabs

# Smaller tensors stay inside the model: shapes and scales are wanted there by those who read it.
LEAST_OUTSIDE_BYTES = 1024
# Runtimes map the file; a tensor that begins on a page needs no copy.
_PAGE = 4096


@final
class DataFile:
    """Appends tensors to a file.

    Args:
      path: The file; it is made, or added to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()

    def append(self, array: np.ndarray, name: str) -> ir.ExternalTensor:
        """Returns the tensor as it lies in the file now."""
        with self._path.open("ab") as file:
            offset = self._pad(file)
            file.write(array.reshape(-1).view(np.uint8).data)
        return self._tensor(offset, array.nbytes, ir.DataType.from_numpy(array.dtype), array.shape, name)

    def take_over(self, graph: ir.Graph) -> None:
        """Copies the tensors of a graph that lie in other files, piece by piece."""
        for value in graph.initializers.values():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor) or Path(tensor.path) == self._path:
                continue
            with self._path.open("ab") as file:
                offset = self._pad(file)
                for slab in slabs(tensor):
                    file.write(np.ascontiguousarray(slab).reshape(-1).view(np.uint8).data)
            shape = tuple(int(d) for d in tensor.shape)  # type: ignore[arg-type]
            value.const_value = self._tensor(offset, tensor.nbytes, tensor.dtype, shape, value.name or "")

    def _pad(self, file: IO[bytes]) -> int:
        """Fills the page that the file ends in; returns where the next one begins."""
        end = file.tell()
        file.write(b"\0" * (-end % _PAGE))
        return end + -end % _PAGE

    def _tensor(
        self, offset: int, length: int, kind: ir.DataType, shape: tuple[int, ...], name: str
    ) -> ir.ExternalTensor:
        place, folder = self._path.name, self._path.parent
        return ir.ExternalTensor(place, offset, length, kind, shape=ir.Shape(shape), name=name, base_dir=folder)
