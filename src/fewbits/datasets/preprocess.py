"""preprocess.json: how a picture becomes a model input. The keys are documented in docs/data.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from fewbits._base import limits
from fewbits._base.catalog import nearest
from fewbits._base.errors import DataError

PREPROCESS_NAME: Final = "preprocess.json"
_EXAMPLE: Final = '{"size": 256, "crop": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}'
_MIN_STD: Final = 1e-6  # in units of the scaled pixels; a slip of the pen, not a spread
_MAX_SIDE: Final = 16_384  # pixels; the largest picture of such a side is above limits.MAX_IMAGE_PIXELS anyway


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """How pixels become values: value = (pixel * numerator / denominator - mean) / std, per channel, in float32.

    Attributes:
      size: Short side after resizing, or (height, width); None: not resized.
      crop: (height, width) cut from the centre; None: not cut.
      layout, color, interpolation, dtype: As in docs/data.md.
      scale: (numerator, denominator); (1, 255) by default.
      mean, std: One per channel.
      input: The model input that the pictures feed; None: the caller says.
    """

    size: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    color: Literal["RGB", "BGR", "L"] = "RGB"
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    dtype: Literal["float32", "uint8"] = "float32"
    scale: tuple[float, float] = (1.0, 255.0)
    mean: tuple[float, ...] = field(default=(0.0,))
    std: tuple[float, ...] = field(default=(1.0,))
    input: str | None = None

    def values(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Returns the example of a picture, in this layout. pixels: [height, width, channels] in the order of color."""
        if self.dtype == "uint8":
            values: NDArray[Any] = pixels
        else:
            numerator, denominator = (np.float32(part) for part in self.scale)
            scaled = pixels.astype(np.float32) * numerator / denominator
            values = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(values if self.layout == "NHWC" else values.transpose(2, 0, 1))


_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "layout": ("NCHW", "NHWC"),
    "color": ("RGB", "BGR", "L"),
    "interpolation": ("nearest", "bilinear", "bicubic", "lanczos"),
    "dtype": ("float32", "uint8"),
}
_KEYS: Final = ("size", "crop", *_CHOICES, "scale", "mean", "std", "input")


def read_preprocess(folder: str | Path) -> Preprocess:
    """Returns the preprocess.json of a folder.

    Raises: DataError(slug="preprocess-missing" | "preprocess-key" | "preprocess-value").
    """
    path = Path(folder) / PREPROCESS_NAME
    if not path.is_file():
        raise DataError(
            f"{str(folder)!r} has no preprocess.json; say how the model was trained to see pictures, as in {_EXAMPLE}",
            slug="preprocess-missing",
        )
    try:
        if path.stat().st_size > limits.MAX_CONFIG_BYTES:
            raise ValueError(f"more than {limits.MAX_CONFIG_BYTES} bytes")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is not readable JSON ({error})", slug="preprocess-value") from error
    if not isinstance(content, dict):
        raise _bad(path, "the whole", content, "an object such as " + _EXAMPLE)
    return parse_preprocess(content, path)


def parse_preprocess(content: Mapping[str, Any], path: str | Path = PREPROCESS_NAME) -> Preprocess:
    """Returns the checked values of a preprocess.json; path is for messages. Raises: as read_preprocess."""
    for key in content:
        if key not in _KEYS:
            raise DataError(
                f"{str(path)!r} has an unknown key {key!r}; {nearest(key, list(_KEYS))}", slug="preprocess-key"
            )
    for key, choices in _CHOICES.items():
        if key in content and content[key] not in choices:
            raise _bad(path, key, content[key], "one of " + ", ".join(choices))
    for key in ("scale", "mean", "std"):
        if key in content and content.get("dtype") == "uint8":
            raise _bad(path, key, content[key], "no such key beside dtype uint8, which keeps the pixels as they are")
    if "input" in content and not (isinstance(content["input"], str) and content["input"]):
        raise _bad(path, "input", content["input"], "the name of a model input")
    channels = 1 if content.get("color") == "L" else 3
    std = _per_channel(path, "std", content.get("std", 1.0), channels)
    if any(value < _MIN_STD for value in std):
        raise _bad(path, "std", content["std"], f"numbers of at least {_MIN_STD}")
    size = content.get("size")
    crop = content.get("crop")
    return Preprocess(
        size=None if size is None else (size if _is_side(size) else _pair(path, "size", size)),
        crop=None if crop is None else ((crop, crop) if _is_side(crop) else _pair(path, "crop", crop)),
        scale=_ratio(path, content.get("scale", "1/255")),
        mean=_per_channel(path, "mean", content.get("mean", 0.0), channels),
        std=std,
        **{key: content[key] for key in (*_CHOICES, "input") if key in content},
    )


def _bad(path: str | Path, key: str, got: object, expected: str) -> DataError:
    return DataError(f"{str(path)!r}: {key} is {str(got)[:80]!r}; expected {expected}", slug="preprocess-value")


def _is_side(value: object) -> bool:
    return type(value) is int and 1 <= value <= _MAX_SIDE


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(cast(float, value)) < 1e30  # which NaN is not


def _pair(path: str | Path, key: str, value: object) -> tuple[int, int]:
    if isinstance(value, list) and len(value) == 2 and all(map(_is_side, value)):
        return value[0], value[1]
    raise _bad(path, key, value, f"a whole number of pixels or [height, width], each 1 to {_MAX_SIDE}")


def _per_channel(path: str | Path, key: str, value: object, channels: int) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value] * channels
    if len(values) == channels and all(map(_is_number, values)):
        return tuple(map(float, values))
    raise _bad(path, key, value, f"a number, or a list of {channels}")


def _ratio(path: str | Path, value: object) -> tuple[float, float]:
    if _is_number(value):
        return float(cast(float, value)), 1.0
    if isinstance(value, str):
        above, _, below = value.partition("/")
        if above.strip().isdecimal() and below.strip().isdecimal() and int(below[:20]) > 0 and len(value) < 40:
            return float(above), float(below)
    raise _bad(path, "scale", value, 'a number or a fraction such as "1/255"')
