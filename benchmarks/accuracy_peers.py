"""Peers of ``bench_accuracy.py`` beyond those of ``peers.py``: NNCF in OpenVINO and with accuracy control, and
onnx-neural-compressor. Each runs in a Python of its own that the caller names, in a measured child process.

Accuracy control is given the labelled calibration examples as its validation data, and its default: at most 0.01 lost.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import common
from peers import Peer, stream_npz

Array = NDArray[Any]

NNCF_CONTROL = "NNCF accuracy control"
NNCF_OPENVINO = "NNCF default, in OpenVINO"
NNCF_CONTROL_OPENVINO = "NNCF accuracy control, in OpenVINO"
# Name -> (whether OpenVINO's model is quantized, whether accuracy is controlled).
NNCF = {NNCF_CONTROL: (False, True), NNCF_OPENVINO: (True, False), NNCF_CONTROL_OPENVINO: (True, True)}
NEURAL = "onnx-neural-compressor default"
NEURAL_SMOOTH = "onnx-neural-compressor SmoothQuant"
NEURAL_NAMES = (NEURAL, NEURAL_SMOOTH)


def in_openvino(name: str) -> bool:
    """Returns whether a peer's file is OpenVINO's, and runs there."""
    return NNCF.get(name, (False, False))[0]


def nncf_peer(
    name: str, *, python: Path, model: Path, data: Path, labels: Path, folder: Path, transformer: bool, output: str
) -> Peer:
    """Returns the file that NNCF makes of the model (.onnx, or .xml for OpenVINO).

    Args:
      name: Key of NNCF.
      python: Interpreter of an environment that has nncf, openvino, onnx and onnxruntime.
      model: Float model, of opset 13 or newer.
      data: .npz with the examples.
      labels: .npy with their labels.
      folder: Where the file goes.
      transformer: Tell NNCF that the model is a transformer.
      output: Name of the output that is judged.
    Raises: RuntimeError with the end of its output where NNCF fails.
    """
    arguments = {"labels": str(labels), "transformer": transformer, "output": output}
    suffix = "xml" if in_openvino(name) else "onnx"
    return _peer(name, "nncf_quantize", python, model, data, folder / f"{_stem(name)}.{suffix}", arguments)


def neural_peer(name: str, *, python: Path, model: Path, data: Path, folder: Path) -> Peer:
    """Returns the file that onnx-neural-compressor makes of the model, with the settings of its documentation.

    Args:
      name: One of NEURAL_NAMES.
      python: Interpreter of an environment that has onnx-neural-compressor.
      model: Float model.
      data: .npz with the examples.
      folder: Where the file goes.
    Raises: RuntimeError with the end of its output where it fails.
    """
    return _peer(name, "neural_quantize", python, model, data, folder / f"{_stem(name)}.onnx", {})


def _stem(name: str) -> str:
    return name.lower().replace(" ", "-").replace(",", "")


def _peer(name: str, function: str, python: Path, model: Path, data: Path, out: Path, more: dict[str, Any]) -> Peer:
    arguments = json.dumps({"name": name, "model": str(model), "data": str(data), "out": str(out), **more})
    command = [str(python), str(common.HERE / "common.py"), f"accuracy_peers:{function}", arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=common.HERE, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed with exit code {done.returncode}:\n{done.stderr[-4000:]}")
    # Some tools print in the middle of a line, and when their process ends.
    told = done.stdout[done.stdout.rindex('{"result"') :].splitlines()[0]
    child = common.Child(**json.loads(told))
    return Peer(name=name, path=out, seconds=child.seconds, peak_bytes=child.peak_bytes, base_bytes=child.base_bytes)


def nncf_quantize(*, name: str, model: str, data: str, out: str, labels: str, transformer: bool, output: str) -> str:
    """Runs NNCF (in a child process of another Python) and returns its version."""
    import nncf
    import onnx
    import openvino as ov

    openvino, controlled = NNCF[name]
    read = ov.Core().read_model(model) if openvino else onnx.load(model)
    examples = list(stream_npz(Path(data), 1))
    options: dict[str, Any] = {"subset_size": len(examples)}
    if transformer:
        options["model_type"] = nncf.ModelType.TRANSFORMER
    if controlled:
        wanted = np.load(labels)
        made = nncf.quantize_with_accuracy_control(
            read,
            nncf.Dataset(examples),
            nncf.Dataset(list(zip(examples, wanted.tolist(), strict=True)), lambda pair: pair[0]),
            _accuracy_openvino if openvino else lambda tried, pairs: _accuracy_onnx(tried, pairs, output),
            **options,
        )
    else:
        made = nncf.quantize(read, nncf.Dataset(examples), **options)
    if openvino:
        ov.save_model(made, out, compress_to_fp16=False)
    else:
        onnx.save(made, out)
    return str(nncf.__version__)


def _accuracy_openvino(tried: Any, pairs: Any) -> float:
    right = [int(np.asarray(tried(feed)[0]).argmax(axis=-1).reshape(-1)[0]) == label for feed, label in pairs]
    return float(np.mean(right))


def _accuracy_onnx(tried: Any, pairs: Any, output: str) -> float:
    import onnxruntime as ort

    session = ort.InferenceSession(tried.SerializeToString(), providers=["CPUExecutionProvider"])
    right = [int(session.run([output], feed)[0].argmax(axis=-1).reshape(-1)[0]) == label for feed, label in pairs]
    return float(np.mean(right))


def neural_quantize(*, name: str, model: str, data: str, out: str) -> None:
    """Runs onnx-neural-compressor (in a child process of another Python)."""
    from onnx_neural_compressor import data_reader
    from onnx_neural_compressor.quantization import QuantFormat, config
    from onnx_neural_compressor.quantization import quantize as run

    class Reader(data_reader.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rewind()

        def get_next(self) -> Any:
            return next(self._batches, None)

        def rewind(self) -> None:
            self._batches = stream_npz(Path(data), 1)

    count = sum(1 for _ in stream_npz(Path(data), 1))
    extra = {"SmoothQuant": True, "SmoothQuantAlpha": 0.5, "SmoothQuantFolding": True} if name == NEURAL_SMOOTH else {}
    settings = config.StaticQuantConfig(
        calibration_data_reader=Reader(),
        quant_format=QuantFormat.QDQ,
        calibration_sampling_size=count,
        extra_options=extra,
    )
    run(model, out, settings)


def _prepare_nncf() -> None:
    import nncf  # noqa: F401


def _prepare_neural() -> None:
    import onnx_neural_compressor.quantization  # noqa: F401


nncf_quantize.prepare = _prepare_nncf  # type: ignore[attr-defined]
neural_quantize.prepare = _prepare_neural  # type: ignore[attr-defined]
