"""What ONNX Runtime's kernels read and wrote: the graph that it executes, run with its inner tensors as outputs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np

from fewbits.runtimes.base import Options, Tensors
from fewbits.runtimes.ort import OrtSession, inference_session, ort_options


@final
class ToldGraph:
    """The graph that a session of these options executes, after every rewrite of the runtime's optimizer.

    Args:
      model: The file.
      options: Of the session that ships.
    Raises: ModelError(slug="runtime-refuses") as when it is opened.
    """

    def __init__(self, model: bytes | Path, options: Options) -> None:
        import onnx

        with tempfile.TemporaryDirectory(prefix="fewbits-told-") as folder:
            path = Path(folder) / "executed.onnx"
            made = ort_options(options)
            made.optimized_model_filepath = str(path)
            self._shipped = OrtSession(inference_session(model, options, made))
            self.proto: Any = onnx.load(path)
        self._options = options

    def answers(self, feeds: Tensors) -> dict[str, np.ndarray]:
        """Returns what the session that ships answers."""
        return self._shipped.run(feeds)

    def telling(self, names: Iterable[str]) -> OrtSession:
        """Returns a session of the same nodes, none rewritten any more, that also gives these inner tensors."""
        from onnx import ModelProto, helper

        copy = ModelProto()
        copy.CopyFrom(self.proto)
        present = {output.name for output in copy.graph.output}
        for name in dict.fromkeys(names):
            if name not in present:
                copy.graph.output.append(helper.make_empty_tensor_value_info(name))
        return OrtSession(inference_session(copy.SerializeToString(), replace(self._options, optimize=False)))
