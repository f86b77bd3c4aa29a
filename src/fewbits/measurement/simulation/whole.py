"""The executed graph from its inputs to its outputs, every node on codes simulated, each fed by the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import numpy as np

from fewbits._base.errors import ModelError
from fewbits.measurement.simulation.truth import answer
from fewbits.runtimes import open_session
from fewbits.runtimes._ort_told import ToldGraph
from fewbits.runtimes.base import Options, Session, Tensors


@final
class SimulatedGraph:
    """What a file would answer if every kernel on codes were exact; float nodes run alone, in the runtime's kernels.

    Args:
      model: The quantized file.
      options: Of the session that ships.
    Raises: ModelError(slug="runtime-refuses") as when it is opened.
    """

    def __init__(self, model: bytes | Path, options: Options | None = None) -> None:
        from onnx import numpy_helper

        self._proto = ToldGraph(model, options or Options()).proto
        self._constants = {t.name: numpy_helper.to_array(t) for t in self._proto.graph.initializer}
        self._opset = next(o.version for o in self._proto.opset_import if o.domain in ("", "ai.onnx"))
        self._float: dict[tuple[int, tuple[str, ...]], Session] = {}

    def run(self, feeds: Tensors) -> dict[str, np.ndarray]:
        """Returns all outputs by name."""
        values: dict[str, np.ndarray] = {**self._constants, **feeds}
        for number, node in enumerate(self._proto.graph.node):
            inputs = [values[name] if name else None for name in node.input]
            made = answer(node, inputs, self._opset)
            if made is None:
                values.update(self._run_float(number, node, inputs))
                continue
            for name, one in zip(node.output, made, strict=False):
                values[name] = one.values.astype(_dtype(node, inputs, codes=one.tolerance is None))
        return {output.name: values[output.name] for output in self._proto.graph.output}

    def _run_float(self, number: int, node: Any, inputs: list[np.ndarray | None]) -> dict[str, np.ndarray]:
        """Returns the outputs of one node, run alone."""
        from onnx import helper

        given = {name: value for name, value in zip(node.input, inputs, strict=True) if value is not None}
        key = number, tuple(value.dtype.name for value in given.values())
        if key not in self._float:
            typed = [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
                for name, value in given.items()
            ]
            made = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
            graph = helper.make_graph([node], "one", typed, made)
            imports = list(self._proto.opset_import)
            alone = helper.make_model(graph, opset_imports=imports, ir_version=self._proto.ir_version)
            try:
                self._float[key] = open_session(alone.SerializeToString(), Options(optimize=False))
            except ModelError as error:
                raise ModelError(
                    f"{node.op_type} {node.name!r} cannot be run alone: {error.message}", slug="runtime-refuses"
                ) from error
        return self._float[key].run(given)


def _dtype(node: Any, inputs: list[np.ndarray | None], *, codes: bool) -> np.dtype:
    """Returns the element type of a simulated output: that of its zero point, else of what it read."""
    if not codes:
        return np.dtype(np.float32)
    if node.op_type == "MatMulInteger":
        return np.dtype(np.int32)
    place = {"QuantizeLinear": 2, "QLinearConcat": 1}.get(node.op_type)
    source = inputs[place] if place is not None and place < len(inputs) else None
    if source is None and node.op_type == "QuantizeLinear":
        return np.dtype(np.uint8)
    if source is None:
        source = next(value for value in inputs if value is not None and value.dtype.kind in "iu")
    return source.dtype
