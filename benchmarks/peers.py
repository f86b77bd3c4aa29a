"""What other tools make of a model: onnxruntime's quantizers and NNCF, each configuration in a measured child process.

NNCF needs packages of its own, so its child runs in another Python, which the caller names.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import common

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One way to call ``quantize_static``: names of enum members, None for whatever the installed version does.

    ``extra`` are its ``extra_options``; ``preprocess`` runs ``quant_pre_process`` first (folds BatchNorm); ``dynamic``
    calls ``quantize_dynamic`` instead, which reads no data.
    """

    preprocess: bool
    dynamic: bool = False
    activation: str | None = None
    weight: str | None = None
    per_channel: bool | None = None
    method: str | None = None
    extra: dict[str, float] = field(default_factory=dict)


def _u8s8(method: str, *, per_channel: bool = True, **extra: float) -> Configuration:
    return Configuration(
        preprocess=True, activation="QUInt8", weight="QInt8", per_channel=per_channel, method=method, extra=extra
    )


DEFAULT = "ORT default"
DEFAULT_PREPROCESSED = "ORT default, pre-processed"
BEST_SPEED = "ORT U8S8 per-channel MinMax"
CONFIGURATIONS = {
    DEFAULT: Configuration(preprocess=False),
    DEFAULT_PREPROCESSED: Configuration(preprocess=True),
    "ORT U8S8 per-tensor MinMax": _u8s8("MinMax", per_channel=False),
    BEST_SPEED: _u8s8("MinMax"),
    "ORT U8S8 per-channel Percentile": _u8s8("Percentile"),
    "ORT U8S8 per-channel Percentile 99.99": _u8s8("Percentile", CalibPercentile=99.99),
    "ORT U8S8 per-channel Entropy": _u8s8("Entropy"),
}
ACCURACY_CANDIDATES = tuple(name for name in CONFIGURATIONS if name.startswith("ORT U8S8 per-channel"))
# What onnxruntime's documentation leads to for transformers; not among CONFIGURATIONS, which are all static.
DYNAMIC = "ORT dynamic"
# Weights of 4 bits, activations of 8: what the tool has that comes nearest.
W4A8 = "ORT W4A8 per-channel MinMax"
_EXTRA = {
    DYNAMIC: Configuration(preprocess=True, dynamic=True, weight="QInt8", per_channel=True),
    W4A8: Configuration(preprocess=True, activation="QUInt8", weight="QInt4", per_channel=True, method="MinMax"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A file that a peer made, and what making it cost (one core, pre-processing included)."""

    name: str
    path: Path
    seconds: float
    peak_bytes: int
    base_bytes: int


def defaults() -> str:
    """Returns what ``quantize_static`` does when it is told nothing, read from the installed package."""
    from onnxruntime.quantization import quantize_static

    asked = ("quant_format", "activation_type", "weight_type", "per_channel", "reduce_range", "calibrate_method")
    parameters = inspect.signature(quantize_static).parameters
    return ", ".join(f"{name}={getattr(parameters[name].default, 'name', parameters[name].default)}" for name in asked)


def peer(name: str, *, model: Path, data: Path, folder: Path, batch: int = 1) -> Peer:
    """Returns the file that the configuration makes of the model, calibrated on all examples of the .npz."""
    out = folder / f"{name.lower().replace(' ', '-').replace(',', '')}.onnx"
    child = common.in_child("peers:quantize", name=name, model=str(model), data=str(data), out=str(out), batch=batch)
    return Peer(name=name, path=out, seconds=child.seconds, peak_bytes=child.peak_bytes, base_bytes=child.base_bytes)


def best_accuracy(peers: dict[str, Peer], model: Path, selection: Array) -> tuple[str, dict[str, float]]:
    """Returns the candidate with the lowest mean KL to the float model on selection data, and the KL of each."""
    wanted = common.predict(model, selection)
    found = {name: common.mean_kl(wanted, common.predict(peers[name].path, selection)) for name in ACCURACY_CANDIDATES}
    return min(found, key=found.__getitem__), found


def quantize(*, name: str, model: str, data: str, out: str, batch: int) -> None:
    """Runs ``quant_pre_process`` where wanted and ``quantize_static`` (in a child process)."""
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    configuration = (CONFIGURATIONS | _EXTRA)[name]
    if configuration.preprocess:
        prepared = f"{out}.preprocessed"
        quant_pre_process(model, prepared)
        model = prepared
    if configuration.dynamic:
        assert configuration.weight is not None and configuration.per_channel is not None
        quantize_dynamic(model, out, per_channel=configuration.per_channel, weight_type=QuantType[configuration.weight])
        return
    options: dict[str, Any] = {}
    if configuration.activation is not None:
        options["activation_type"] = QuantType[configuration.activation]
    if configuration.weight is not None:
        options["weight_type"] = QuantType[configuration.weight]
    if configuration.per_channel is not None:
        options["per_channel"] = configuration.per_channel
    if configuration.method is not None:
        options["calibrate_method"] = CalibrationMethod[configuration.method]
    if configuration.extra:
        options["extra_options"] = dict(configuration.extra)
    quantize_static(model, out, _reader(data, batch), **options)


def _prepare() -> None:
    import onnxruntime.quantization
    import onnxruntime.quantization.shape_inference  # noqa: F401


quantize.prepare = _prepare  # type: ignore[attr-defined]


def _reader(data: str, batch: int) -> Any:
    """Returns a CalibrationDataReader over an .npz that holds one batch, so that the peer pays for no more."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = stream_npz(Path(data), batch)

        def get_next(self) -> dict[str, Array] | None:
            return next(self._batches, None)

    return Reader()


def stream_npz(path: Path, batch: int) -> Iterator[dict[str, Array]]:
    """Yields batches of the first array of an .npz by its name, [<= batch, ...], reading only as far as needed."""
    with zipfile.ZipFile(path) as archive:
        member = archive.namelist()[0]
        with archive.open(member) as stream:
            np.lib.format.read_magic(stream)
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            size = int(np.prod(shape[1:])) * dtype.itemsize
            for i in range(0, shape[0], batch):
                count = min(batch, shape[0] - i)
                values = np.frombuffer(stream.read(count * size), dtype).reshape(count, *shape[1:])
                yield {member.removesuffix(".npy"): values}


@dataclass(frozen=True, slots=True, kw_only=True)
class Nncf:
    """One way to call ``nncf.quantize``; None is whatever the installed version does.

    ``preprocess`` gives it the file after onnxruntime's ``quant_pre_process``, whose BatchNorms are folded: NNCF leaves
    them between a Conv and its quantizer, where onnxruntime cannot fuse them any more.
    """

    preprocess: bool
    preset: str | None = None
    fast_bias_correction: bool | None = None


NNCF_DEFAULT = "NNCF default"
NNCF = {
    NNCF_DEFAULT: Nncf(preprocess=False),
    "NNCF pre-processed PERFORMANCE": Nncf(preprocess=True, preset="PERFORMANCE"),
    "NNCF pre-processed MIXED": Nncf(preprocess=True, preset="MIXED"),
    "NNCF pre-processed MIXED, full bias correction": Nncf(preprocess=True, preset="MIXED", fast_bias_correction=False),
}


def preprocess(*, model: str, out: str) -> None:
    """Runs onnxruntime's ``quant_pre_process`` (in a child process)."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(model, out)


def nncf_peer(name: str, *, python: Path, model: Path, data: Path, folder: Path, transformer: bool = False) -> Peer:
    """Returns the file that NNCF makes of the model, calibrated on all examples of the .npz, one at a time.

    Args:
      name: Key of NNCF.
      python: Interpreter of an environment that has nncf, onnx, onnxruntime and numpy.
      model: Float model, of opset 13 or newer.
      data: Examples.
      folder: Where the file goes.
      transformer: Tell NNCF that the model is a transformer.
    Raises: RuntimeError with the end of its output where NNCF fails.
    """
    out = folder / f"{name.lower().replace(' ', '-').replace(',', '')}.onnx"
    if NNCF[name].preprocess:
        prepared = folder / "nncf-input.onnx"
        if not prepared.exists():
            common.in_child("peers:preprocess", model=str(model), out=str(prepared))
        model = prepared
    arguments = {"name": name, "model": str(model), "data": str(data), "out": str(out), "transformer": transformer}
    command = [str(python), str(common.HERE / "common.py"), "peers:nncf_quantize", json.dumps(arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=common.HERE, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed with exit code {done.returncode}:\n{done.stderr[-4000:]}")
    child = common.Child(**json.loads(done.stdout.splitlines()[-1]))
    return Peer(name=name, path=out, seconds=child.seconds, peak_bytes=child.peak_bytes, base_bytes=child.base_bytes)


def nncf_quantize(*, name: str, model: str, data: str, out: str, transformer: bool) -> str:
    """Runs ``nncf.quantize`` (in a child process of another Python) and returns NNCF's version."""
    import nncf
    import onnx

    configuration = NNCF[name]
    options: dict[str, Any] = {}
    if configuration.preset is not None:
        options["preset"] = nncf.QuantizationPreset[configuration.preset]
    if configuration.fast_bias_correction is not None:
        options["fast_bias_correction"] = configuration.fast_bias_correction
    if transformer:
        options["model_type"] = nncf.ModelType.TRANSFORMER
    examples = list(stream_npz(Path(data), 1))
    made = nncf.quantize(onnx.load(model), nncf.Dataset(examples), subset_size=len(examples), **options)
    onnx.save(made, out)
    return str(nncf.__version__)


def _prepare_nncf() -> None:
    import nncf  # noqa: F401


nncf_quantize.prepare = _prepare_nncf  # type: ignore[attr-defined]
