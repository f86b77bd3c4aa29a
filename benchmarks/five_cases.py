"""The five real models of ``bench_five.py`` with their data: what calibrates, what is judged, and what is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import common

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A model with its data.

    Args:
      name: Heading of the table.
      model: The float file, as it comes.
      calibration: Examples for calibration and all choices.
      calibration_labels: Their labels; None where there are none.
      judged: Examples that the table is about.
      labels: Their labels; None where agreement with float is judged.
      budget: Asked of fewbits.
      output: Name of the judged output.
      batch: Examples per call while judging; 1 for a fixed batch.
      transformer: Tell the peers that can be told so.
      convert: The peers get the file converted to opset 13.
    """

    name: str
    model: Path
    calibration: Array
    calibration_labels: Array | None
    judged: Array
    labels: Array | None
    budget: str
    output: str
    batch: int = 50
    transformer: bool = False
    convert: bool = False


def _absent(path: Path) -> str | None:
    return (
        None
        if path.exists()
        else f"../shared/data/{path.relative_to(common.DATA)} (beside the repository) is not there"
    )


def _resnet20(images: Path | None) -> Case | str:
    model = common.DATA / "cifar10" / "resnet20.onnx"
    if (absent := _absent(model)) is not None:
        return absent
    calibration, calibration_labels = common.cifar("calib")
    judged, labels = common.cifar("test")
    return Case(
        name="ResNet-20 (CIFAR-10)",
        model=model,
        calibration=calibration[:500],
        calibration_labels=calibration_labels[:500],
        judged=judged,
        labels=labels,
        budget="1%",
        output="logits",
    )


def _imagenet(
    name: str, file: str, *, side: int, scale: Callable[[Array], Array]
) -> Callable[[Path | None], Case | str]:
    """Returns what opens a classifier of ImageNet pictures: index % 5 == 0 calibrates, the others are judged."""

    def opened(images: Path | None) -> Case | str:
        model = common.DATA / "imagenet_sample" / file
        if (absent := _absent(model) or _no_pictures(images)) is not None:
            return absent
        assert images is not None
        pictures, labels = _pictures(images, (side, side), scale)
        first = np.arange(len(labels)) % 5 == 0
        return Case(
            name=name,
            model=model,
            calibration=pictures[first],
            calibration_labels=labels[first],
            judged=pictures[~first],
            labels=labels[~first],
            budget="2%",
            output="logits",
        )

    return opened


def _ultraface(images: Path | None) -> Case | str:
    model = common.DATA / "onnx_face" / "ultraface_slim_320.onnx"
    if (absent := _absent(model) or _no_pictures(images)) is not None:
        return absent
    assert images is not None
    pictures, _ = _pictures(images, (320, 240), lambda values: (values - 127) / 128)
    first = np.arange(len(pictures)) % 5 == 0
    return Case(
        name="UltraFace slim-320 (opset 9, fixed batch, no labels)",
        model=model,
        calibration=pictures[first],
        calibration_labels=None,
        judged=pictures[~first],
        labels=None,
        budget="1%",
        output="scores",
        batch=1,
        convert=True,
    )


def _kwt1(images: Path | None) -> Case | str:
    model = common.DATA / "speech_commands" / "kwt1.onnx"
    if (absent := _absent(model)) is not None:
        return absent
    with np.load(common.DATA / "speech_commands" / "features_labels.npz") as stored:
        features, labels = stored["features"].astype(np.float32), stored["label"].astype(np.int64)
    return Case(
        name="KWT-1 (Speech Commands)",
        model=model,
        calibration=features[:100],
        calibration_labels=labels[:100],
        judged=features[100:],
        labels=labels[100:],
        budget="2%",
        output="logits",
        transformer=True,
    )


def _no_pictures(images: Path | None) -> str | None:
    if images is None:
        return "its pictures need --images DIR (../shared/data/README.md tells how to make them)"
    return None if any(images.glob("*.jpg")) else f"there are no pictures in {images}"


def _pictures(images: Path, size: tuple[int, int], scale: Callable[[Array], Array]) -> tuple[Array, Array]:
    """Returns the pictures as [n, 3, height, width] float32, resized to (width, height), and their labels."""
    from PIL import Image

    files = sorted(images.glob("*.jpg"))
    values = []
    for file in files:
        with Image.open(file) as picture:
            resized = picture.convert("RGB").resize(size, Image.Resampling.BILINEAR)
        values.append(scale(np.asarray(resized, np.float32)).transpose(2, 0, 1))
    return np.ascontiguousarray(np.stack(values), dtype=np.float32), np.array([int(f.stem) for f in files], np.int64)


CASES: dict[str, Callable[[Path | None], Case | str]] = {
    "resnet20": _resnet20,
    "tiny_darknet": _imagenet("Tiny Darknet (ImageNet)", "tiny_darknet.onnx", side=224, scale=lambda v: v / 255),
    "mobilenet_v1": _imagenet(
        "MobileNet-V1 0.5/160 (ImageNet; its weights come from an 8-bit file)",
        "mobilenet_v1_0.5_160_dequant.onnx",
        side=160,
        scale=lambda v: v / 127.5 - 1,
    ),
    "kwt1": _kwt1,
    "ultraface": _ultraface,
}
