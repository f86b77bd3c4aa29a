"""Weights piece by piece: one that lies in a file is read as it is needed and never whole in memory."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbits._base.limits import MIB

_SLAB_BYTES = 16 * MIB


def slabs(tensor: Any) -> Iterator[np.ndarray]:
    """Yields a tensor's values in slabs along the first axis, [rows, ...]; a tensor in memory is one slab.

    Raises: ValueError where a data file ends before its tensor does; OSError where it cannot be read.
    """
    if not isinstance(tensor, ir.ExternalTensor) or not len(tensor.shape):
        yield np.asarray(tensor.numpy())
        return
    first, *rest = (int(d) for d in tensor.shape)  # type: ignore[arg-type]
    dtype = np.dtype(tensor.dtype.numpy()).newbyteorder("<")
    each = max(1, prod(rest))
    most = max(1, _SLAB_BYTES // (each * dtype.itemsize))
    with open(tensor.path, "rb") as file:  # noqa: PTH123 - a path of onnx-ir's
        file.seek(tensor.offset or 0)
        for start in range(0, first, most):
            rows = min(most, first - start)
            slab = np.fromfile(file, dtype=dtype, count=rows * each)
            if slab.size != rows * each:
                raise ValueError("the file ends before the tensor does")
            yield slab.reshape(rows, *rest)
