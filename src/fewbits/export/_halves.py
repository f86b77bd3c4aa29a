"""Weights as 16-bit floats behind a Cast to float32, which runtimes fold when they load the file."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from fewbits._base.arrays import to_numpy
from fewbits.numerics.qtensor import QTensor

# The types by which ONNX files name codes of these formats; a code is the bit pattern.
_TYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def half_array(value: QTensor) -> np.ndarray:
    """Returns the codes of a tensor without scales as an array of float16 or bfloat16, bit for bit.

    Raises: KeyError for another format.
    """
    return np.ascontiguousarray(to_numpy(value.codes)).view(_TYPES[value.scheme.format.name])
