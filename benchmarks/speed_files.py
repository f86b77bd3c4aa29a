"""The files that the speed tables compare: what each tool makes of one network, each in a measured child process.

NNCF and onnx-neural-compressor need packages of their own, so their children run in another Python, which the caller
names. What a tool refuses to do comes back as its own words.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

import common
import peers

Array = NDArray[Any]
FLOAT = "float"
FORCED = "fewbits w8a8"
PICKED = "fewbits, its own pick"
OWN = (FORCED, PICKED)
INC_STATIC, INC_SMOOTH = "onnx-neural-compressor static", "onnx-neural-compressor SmoothQuant"
DYNAMIC_TENSOR = "ORT dynamic per-tensor"
DYNAMIC = {peers.DYNAMIC: True, DYNAMIC_TENSOR: False}  # Per channel?
STATIC = (peers.DEFAULT, "ORT U8S8 per-tensor MinMax", peers.BEST_SPEED)
NNCF_OPENVINO = "NNCF int8 in OpenVINO"
TRANSFORMERS = ("vit_tiny", "minilm")
CONVOLUTIONAL = ("resnet18", "mobilenetv2", "mobilenetv3", "efficientnet_b0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is given to every tool.

    Args:
      name: Of the network.
      model: The float file.
      calibration: .npz with the inputs by name, and ``labels``: the float model's own answers.
      evaluation: The same of other examples, for fewbits' verdict.
      folder: Where files go.
      pythons: Interpreters of other environments, by the word ``nncf`` or ``inc``.
      budget: Loss that a trained network may have; empty for random weights, whose answers are all as good.
      without: Files whose names have one of these words are left out.
    """

    name: str
    model: Path
    calibration: Path
    evaluation: Path
    folder: Path
    pythons: Mapping[str, Path]
    budget: str = ""
    without: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A file and what making it cost; ``path`` is None where the tool refused, and ``note`` says why."""

    name: str
    path: Path | None
    seconds: float = 0.0
    peak_bytes: int = 0
    base_bytes: int = 0
    note: str = ""
    told: Any = None


def names(work: Work) -> list[str]:
    """Returns the files of the table of ONNX Runtime, without float, in its order."""
    found = list(STATIC)
    if work.name not in CONVOLUTIONAL:
        found += DYNAMIC
    if "nncf" in work.pythons:
        found += [peers.NNCF_DEFAULT, "NNCF pre-processed MIXED"]
    if "inc" in work.pythons:
        found += [INC_STATIC, INC_SMOOTH]
    return [name for name in (*found, *OWN) if not any(word in name for word in work.without)]


def make(name: str, work: Work) -> Made:
    """Returns the file that a tool makes; a refusal is a result too."""
    stem = name.lower().replace(" ", "-").replace(",", "")
    out = work.folder / f"{stem}{'.xml' if name == NNCF_OPENVINO else '.onnx'}"
    python = Path(sys.executable)
    arguments: dict[str, Any] = {"model": str(work.model), "data": str(work.calibration), "out": str(out)}
    if name in OWN or name.startswith("fewbits"):
        function = "speed_files:fewbits_file"
        arguments |= {"evaluation": str(work.evaluation), "options": fewbits_options(name, work.budget)}
    elif name in DYNAMIC:
        function, arguments = "speed_files:ort_dynamic", {**arguments, "per_channel": DYNAMIC[name]}
        del arguments["data"]
    elif name.startswith("ORT"):
        function, arguments["name"] = "speed_files:ort_static", name
    elif name.startswith("NNCF"):
        function, python = "speed_files:nncf_file", work.pythons["nncf"]
        arguments |= {"name": name, "transformer": work.name in TRANSFORMERS}
    else:
        function, python = "speed_files:inc_file", work.pythons["inc"]
        arguments["smooth"] = name == INC_SMOOTH
    if name.startswith("NNCF pre-processed"):
        arguments["model"] = str(work.folder / "nncf-input.onnx")
        common.in_child("peers:preprocess", model=str(work.model), out=arguments["model"])
    child = _child(python, function, arguments)
    if isinstance(child, str):
        return Made(name=name, path=None, note=child)
    return Made(
        name=name,
        path=out,
        seconds=child.seconds,
        peak_bytes=child.peak_bytes,
        base_bytes=child.base_bytes,
        told=child.result,
    )


def fewbits_options(name: str, budget: str = "") -> dict[str, Any]:
    """Returns what ``fewbits.quantize`` is told for a row; a word after "fewbits to" is the target."""
    if name == FORCED:
        return {"scheme": "w8a8", "allow_slower": True, "effort": "fast"}
    target = name.removeprefix("fewbits to ") if name.startswith("fewbits to ") else "ort-cpu"
    if budget:
        return {"max_drop": budget, "target": target}
    return {"max_drop": "19%", "metric": "speed_files:any_answer", "target": target, "effort": "fast"}


def any_answer(outputs: Mapping[str, Array], labels: Array | None) -> Array:
    """Returns 1 for every example: the answers of random weights are all as good."""
    return np.ones(len(next(iter(outputs.values()))))


any_answer.bounds = (0.0, 1.0)  # type: ignore[attr-defined]


def _child(python: Path, function: str, arguments: dict[str, Any]) -> common.Child | str:
    """Returns what a child did, in whatever Python; or the last line of what it complained of."""
    command = [str(python), str(common.HERE / "common.py"), function, json.dumps(arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=common.HERE, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return lines[-1][:300]
    told = done.stdout[done.stdout.rindex('{"result"') :]  # Tools write there too, some without a line's end.
    return common.Child(**json.JSONDecoder().raw_decode(told)[0])


# ---- in the children ----


def fewbits_file(*, model: str, data: str, evaluation: str, out: str, options: dict[str, Any]) -> dict[str, Any]:
    """Runs fewbits, writes its file, and returns its headline, target and verdict."""
    import fewbits

    result = fewbits.quantize(model, data=data, eval=evaluation, seed=common.SEED, **options)
    Path(out).write_bytes(result.model_bytes)
    report = result.report
    stages = {name: round(took, 1) for name, took in result.run.seconds.items()}
    islands = sorted({f"{island.op}: {island.rule}" for island in report.executed.islands or ()})
    return {
        "headline": report.headline,
        "verdict": report.verdict,
        "float_kept": report.float_kept,
        "target": result.plan.target,
        "stages": stages,
        "repairs": list(result.run.repairs.kept),
        "islands": islands,
    }


def ort_static(*, name: str, model: str, data: str, out: str) -> None:
    """Runs ``quant_pre_process`` where wanted, and ``quantize_static``."""
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    wanted = peers.CONFIGURATIONS[name]
    if wanted.preprocess:
        quant_pre_process(model, f"{out}.preprocessed")
        model = f"{out}.preprocessed"
    options: dict[str, Any] = {"extra_options": dict(wanted.extra)} if wanted.extra else {}
    if wanted.activation is not None and wanted.weight is not None and wanted.method is not None:
        options |= {
            "activation_type": QuantType[wanted.activation],
            "weight_type": QuantType[wanted.weight],
            "per_channel": wanted.per_channel,
            "calibrate_method": CalibrationMethod[wanted.method],
        }
    quantize_static(model, out, _reader(data), **options)


def ort_dynamic(*, model: str, out: str, per_channel: bool) -> None:
    """Runs ``quant_pre_process`` and ``quantize_dynamic`` with signed 8-bit weights."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(model, f"{out}.preprocessed")
    quantize_dynamic(f"{out}.preprocessed", out, per_channel=per_channel, weight_type=QuantType.QInt8)


def nncf_file(*, name: str, model: str, data: str, out: str, transformer: bool) -> str:
    """Runs ``nncf.quantize`` on the ONNX model, or on OpenVINO's reading of it; returns NNCF's version."""
    import nncf
    import onnx

    options: dict[str, Any] = {"model_type": nncf.ModelType.TRANSFORMER} if transformer else {}
    if name in peers.NNCF and peers.NNCF[name].preset is not None:
        options["preset"] = nncf.QuantizationPreset[peers.NNCF[name].preset]
    examples = list(stream(Path(data)))
    if name == NNCF_OPENVINO:
        import openvino

        read = openvino.Core().read_model(model)
        made = nncf.quantize(read, nncf.Dataset(examples), subset_size=len(examples), **options)
        openvino.save_model(made, out, compress_to_fp16=False)
    else:
        made = nncf.quantize(onnx.load(model), nncf.Dataset(examples), subset_size=len(examples), **options)
        onnx.save(made, out)
    return str(nncf.__version__)


def inc_file(*, model: str, data: str, out: str, smooth: bool) -> None:
    """Runs onnx-neural-compressor's static quantization with its defaults, smoothed or not."""
    from onnx_neural_compressor.quantization import config, quantize

    extra = {"SmoothQuant": True} if smooth else None
    quantize(model, out, config.StaticQuantConfig(calibration_data_reader=_reader(data, inc=True), extra_options=extra))


def _prepare_ort() -> None:
    import onnxruntime.quantization
    import onnxruntime.quantization.shape_inference  # noqa: F401


def _prepare_nncf() -> None:
    import nncf  # noqa: F401


def _prepare_inc() -> None:
    import onnx_neural_compressor.quantization  # noqa: F401


# Imports of the tools, so that they count neither as seconds nor as growth.
ort_static.prepare = ort_dynamic.prepare = _prepare_ort  # type: ignore[attr-defined]
nncf_file.prepare = _prepare_nncf  # type: ignore[attr-defined]
inc_file.prepare = _prepare_inc  # type: ignore[attr-defined]


def _reader(data: str, *, inc: bool = False) -> Any:
    """Returns a calibration reader over an .npz that holds one example at a time."""
    if inc:
        from onnx_neural_compressor.data_reader import CalibrationDataReader
    else:
        from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            self.rewind()

        def get_next(self) -> dict[str, Array] | None:
            return next(self._examples, None)

        def rewind(self) -> None:
            self._examples = stream(Path(data))

    return Reader()


def stream(path: Path) -> Iterator[dict[str, Array]]:
    """Yields the examples of an .npz one by one, [1, ...] by input name, without ``labels``; holds one at a time."""
    with zipfile.ZipFile(path) as archive, ExitStack() as opened:
        members = [name for name in archive.namelist() if name != "labels.npy"]
        streams = {name.removesuffix(".npy"): opened.enter_context(archive.open(name)) for name in members}
        headers = {name: _header(stream) for name, stream in streams.items()}
        for _ in range(min(shape[0] for shape, _ in headers.values())):
            yield {name: _row(stream, *headers[name]) for name, stream in streams.items()}


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    return shape, dtype


def _row(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    size = int(np.prod(shape[1:])) * dtype.itemsize
    return np.frombuffer(stream.read(size), dtype).reshape(1, *shape[1:])
