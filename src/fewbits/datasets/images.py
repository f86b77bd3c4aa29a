"""A folder of pictures as a data set: labels.csv or one sub-folder a class, and preprocess.json. See docs/data.md."""

from __future__ import annotations

import csv
import os
import stat
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fewbits._base import limits
from fewbits._base.errors import DataError, SecurityError, UsageError
from fewbits.datasets.base import ArraySpec, Batch, Fingerprint, Indices, Keys, check_indices, fingerprint
from fewbits.datasets.checks import check_groups
from fewbits.datasets.preprocess import PREPROCESS_NAME, Preprocess, read_preprocess

LABELS_NAME: Final = "labels.csv"
_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_FORMATS: Final = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")  # no EPS and the like, which start other programs
_MODES: Final = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
"""Pillow's modes of 8-bit pictures. Its others (I;16, I, F, LAB) lose range or meaning when made RGB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One line of labels.csv, or one file of a class folder."""

    file: str
    label: int
    group: str | None = None


class ImageDataset:
    """The pictures of a folder, decoded batch by batch.

    Args:
      folder: Holds preprocess.json and either labels.csv or one sub-folder a class.
      input_name: Name of the input where preprocess.json has none; else "image".
    Raises: UsageError(slug="extra-missing") without pillow; DataError(slug="images-layout" | "labels-file" |
      "image-missing" | "image-broken" | "image-mode" | "image-too-large" | "image-shape" | "data-empty" and those of
      preprocess.py); SecurityError(slug="image-path").
    """

    def __init__(self, folder: str | os.PathLike[str], *, input_name: str | None = None) -> None:
        _need_pillow()
        self._folder = Path(folder)
        self._preprocess = read_preprocess(self._folder)
        labels = self._folder / LABELS_NAME
        self._pictures = read_labels(labels) if labels.is_file() else list_classes(self._folder)
        if not self._pictures:
            raise DataError(f"{self.source} holds no pictures; expected at least one", slug="data-empty")
        self._labels = np.array([picture.label for picture in self._pictures], dtype=np.int64)
        first = self._example(0)
        self._name = self._preprocess.input or input_name or "image"
        self._spec = ArraySpec(dtype=first.dtype, shape=first.shape)

    @property
    def source(self) -> str:
        """The folder's name in quotes."""
        return repr(str(self._folder))

    @property
    def count(self) -> int:
        """Number of pictures."""
        return len(self._pictures)

    @property
    def inputs(self) -> Mapping[str, ArraySpec]:
        """What one picture is after preprocessing."""
        return MappingProxyType({self._name: self._spec})

    @property
    def has_labels(self) -> bool:
        """True: every picture has its class."""
        return True

    @cached_property
    def _groups(self) -> NDArray[Any] | None:
        groups = [picture.group for picture in self._pictures]
        if all(group is None for group in groups):
            return None
        return check_groups(self.source, np.array(groups, dtype=np.str_))

    @property
    def groups(self) -> NDArray[Any] | None:
        """[count] strings of the column `group` of labels.csv, or None."""
        return self._groups

    def digest(self) -> str:
        """Returns the SHA-256 over the preprocessed pictures, labels and groups."""
        return self._fingerprint.digest

    def keys(self) -> Keys:
        """Returns [count] uint64: the hash of each preprocessed picture, so that copies in two formats are one."""
        return self._fingerprint.keys

    @cached_property
    def _fingerprint(self) -> Fingerprint:
        return fingerprint(self)

    def batches(self, indices: Indices, size: int) -> Iterator[Batch]:
        """Yields the pictures at indices; see ``Dataset.batches``. Raises: DataError that names the file."""
        places = check_indices(indices, size, self.count)
        return self._batches(places, size)

    def _batches(self, places: Indices, size: int) -> Iterator[Batch]:
        for begin in range(0, len(places), size):
            index = places[begin : begin + size].copy()
            pictures: NDArray[Any] = np.empty((len(index), *self._spec.shape), dtype=self._spec.dtype)
            for row, place in enumerate(index):
                example = self._example(int(place))
                if example.shape != self._spec.shape:
                    raise DataError(
                        f"{self._path(int(place))!r} becomes {list(example.shape)} after preprocessing, the first"
                        f" picture {list(self._spec.shape)}; set size or crop in preprocess.json so that all agree",
                        slug="image-shape",
                    )
                pictures[row] = example
            yield Batch(inputs={self._name: pictures}, labels=self._labels[index], index=index)

    def _path(self, place: int) -> str:
        return str(self._folder / self._pictures[place].file)

    def _example(self, place: int) -> NDArray[Any]:
        path = self._path(place)
        _check_place(self._folder, path)
        return self._preprocess.values(decode(path, self._preprocess))


# --- the listing ---------------------------------------------------------------------------------------------------


def read_labels(path: Path) -> list[Picture]:
    """Returns the lines of a labels.csv: a header with `file` and `label`, perhaps `group`; other columns are unused.

    Raises: DataError(slug="labels-file"); SecurityError(slug="image-path").
    """
    if path.stat().st_size > limits.MAX_LABELS_BYTES:
        raise DataError(f"{str(path)!r} has more than {limits.MAX_LABELS_BYTES} bytes", slug="labels-file")
    pictures: list[Picture] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            if not {"file", "label"} <= set(lines.fieldnames or ()):
                raise DataError(
                    f"{str(path)!r} has the header {lines.fieldnames}; expected columns file and label",
                    slug="labels-file",
                )
            for line in lines:
                pictures.append(_picture(path, lines.line_num, line))
                if len(pictures) > limits.MAX_IMAGE_FILES:
                    raise DataError(f"{str(path)!r} has more than {limits.MAX_IMAGE_FILES} lines", slug="labels-file")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{str(path)!r} is not a readable CSV file in UTF-8 ({error})", slug="labels-file") from error
    return pictures


def _picture(path: Path, number: int, line: Mapping[str, str | None]) -> Picture:
    file, label = line["file"] or "", (line["label"] or "").strip()
    if not (label.isascii() and label.isdecimal() and len(label) < 10):
        raise DataError(
            f"{str(path)!r}, line {number}: label {label[:80]!r}; expected the class's index, a whole number from 0",
            slug="labels-file",
        )
    parts = PurePosixPath(file).parts
    if not file or "\0" in file or file.startswith("/") or ".." in parts or "\\" in file:
        raise SecurityError(
            f"{str(path)!r}, line {number}: file {file[:200]!r} is empty or reaches outside the folder;"
            " name files relative to it",
            slug="image-path",
        )
    return Picture(file=file, label=int(label), group=(line["group"] or "") if "group" in line else None)


def list_classes(folder: Path) -> list[Picture]:
    """Returns the pictures of one sub-folder a class, by class and name.

    Sub-folders that all bear whole numbers are those classes; other names are numbered in sorted order from 0.
    Names that begin with a dot are passed over.

    Raises: DataError(slug="images-layout") for anything else than sub-folders of pictures.
    """
    classes = [place for place in _visible(folder) if place.name != PREPROCESS_NAME]
    loose = [place.name for place in classes if not place.is_dir()]
    if loose or not classes:
        what = f"{loose[0]!r} lies beside preprocess.json" if loose else "there are no sub-folders"
        raise DataError(
            f"{str(folder)!r} has no labels.csv and {what}; expected labels.csv (file,label) or one sub-folder a class",
            slug="images-layout",
        )
    numbered = all(place.name.isascii() and place.name.isdecimal() and len(place.name) < 10 for place in classes)
    pictures = []
    for position, place in enumerate(classes):
        for file in _visible(place):
            if file.suffix.lower() not in _SUFFIXES or not file.is_file():
                raise DataError(
                    f"{str(file)!r} is not a picture ({', '.join(sorted(_SUFFIXES))}); move it away",
                    slug="images-layout",
                )
            pictures.append(Picture(file=f"{place.name}/{file.name}", label=int(place.name) if numbered else position))
            if len(pictures) > limits.MAX_IMAGE_FILES:
                raise DataError(f"{str(folder)!r} has more than {limits.MAX_IMAGE_FILES} files", slug="images-layout")
    return pictures


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted((place for place in folder.iterdir() if not place.name.startswith(".")), key=lambda p: p.name)
    except OSError as error:
        raise DataError(f"cannot read the folder {str(folder)!r}: {error.strerror}", slug="images-layout") from error


def _check_place(folder: Path, path: str) -> None:
    """Refuses what is not a plain file inside the folder, links followed."""
    if Path(os.path.realpath(folder)) not in Path(os.path.realpath(path)).parents:
        raise SecurityError(
            f"{path!r} is a link to a place outside the folder; copy the picture into it", slug="image-path"
        )
    try:
        if stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
            return
        why = "it is not a plain file"
    except OSError as error:
        why = error.strerror or "unreadable"
    raise DataError(f"cannot read the picture {path!r}: {why}; mend the list or the file", slug="image-missing")


# --- one picture ---------------------------------------------------------------------------------------------------


def _need_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "reading pictures needs pillow, which is not installed; pip install fewbits[images]", slug="extra-missing"
        ) from error


def decode(path: str, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Returns the pixels of a picture, turned as its EXIF says, resized and cut: [height, width, channels].

    Alpha is dropped, CMYK is converted without its colour profile (both as torchvision does). The short side is resized
    to size, the long side rounded down; the cut is from the centre, at round-half-even of half the rest (torchvision's
    Resize and CenterCrop, so that a model sees what it was trained on).

    Raises: DataError(slug="image-broken" | "image-mode" | "image-too-large" | "image-shape").
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                _check_header(path, image)
                turned = ImageOps.exif_transpose(image)
                plain = turned.convert("L" if preprocess.color == "L" else "RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _too_large(path) from error
    except DataError:
        raise
    except Exception as error:  # decoders raise whatever a broken file leads them to
        why = "empty file" if Path(path).stat().st_size == 0 else str(error) or type(error).__name__
        raise DataError(
            f"cannot decode the picture {path!r} ({why}); replace or remove it", slug="image-broken"
        ) from error
    pixels = np.asarray(_fit(path, plain, preprocess), dtype=np.uint8)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return pixels[:, :, ::-1] if preprocess.color == "BGR" else pixels


def _check_header(path: str, image: Any) -> None:
    if image.width * image.height > limits.MAX_IMAGE_PIXELS:
        raise _too_large(path)
    if image.mode not in _MODES:
        raise DataError(
            f"{path!r} has pixels of mode {image.mode!r}; expected 8 bits per channel (gray, RGB, palette, CMYK)",
            slug="image-mode",
        )
    if getattr(image, "n_frames", 1) > 1:
        raise DataError(f"{path!r} has {image.n_frames} frames; save one of them as a picture", slug="image-mode")


def _too_large(path: str) -> DataError:
    return DataError(
        f"{path!r} claims more than {limits.MAX_IMAGE_PIXELS} pixels; make it smaller first", slug="image-too-large"
    )


def _fit(path: str, image: Any, preprocess: Preprocess) -> Any:
    """Returns the PIL image resized and cut as preprocess says."""
    from PIL import Image

    if preprocess.size is not None:
        width, height = image.size
        if isinstance(preprocess.size, int):
            short = preprocess.size
            size = (short, short * height // width) if width <= height else (short * width // height, short)
        else:
            size = preprocess.size[1], preprocess.size[0]
        if size[0] * size[1] > limits.MAX_IMAGE_PIXELS:
            raise _too_large(path)
        if size != image.size:
            image = image.resize(size, Image.Resampling[preprocess.interpolation.upper()])
    if preprocess.crop is None:
        return image
    height, width = preprocess.crop
    if image.width < width or image.height < height:
        raise DataError(
            f"{path!r} is {image.height} x {image.width} before the crop of {height} x {width};"
            " set size in preprocess.json so that the crop fits",
            slug="image-shape",
        )
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
