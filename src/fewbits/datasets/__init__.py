"""Data as users have them, opened as one kind of thing: examples that are streamed and hashed. Never unpickles."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fewbits._base.errors import DataError, SecurityError, UsageError
from fewbits.datasets.base import ArraySpec, Batch, Dataset

__all__ = ["ArraySpec", "Batch", "Dataset", "Source", "open_dataset"]

Source = str | os.PathLike[str] | Mapping[str, Any] | Iterable[Mapping[str, Any]] | Callable[[], Any] | Dataset

_TEXT = frozenset({".jsonl", ".json", ".txt", ".parquet", ".csv", ".md"})
_PICKLES = frozenset({".pkl", ".pickle", ".pt", ".pth", ".joblib"})


def open_dataset(source: Source, *, labels_key: str = "labels", input_name: str | None = None) -> Dataset:
    """Returns the data set that source stands for.

    Args:
      source: Path of an .npz, or of a folder of images with its preprocess.json; or, from Python, a dict of arrays, an
        iterable of dicts (each a batch), a callable that returns such an iterable, or a data set.
      labels_key: Name of the array that holds the labels.
      input_name: Name of the model input that an image folder feeds, where its preprocess.json names none.
    Raises: DataError(slug="data-missing" | "data-text" | "data-kind" and those of the kinds);
      SecurityError(slug="data-pickle"); UsageError(slug="labels-key" | "data-kind").
    """
    if isinstance(source, str | os.PathLike):
        return _open_path(os.fspath(source), labels_key, input_name)
    if isinstance(source, Dataset):
        return source
    from fewbits.datasets import memory

    if isinstance(source, Mapping):
        return memory.from_arrays(source, labels_key=labels_key)
    if callable(source) or isinstance(source, Iterable):
        return memory.from_dicts(source, labels_key=labels_key)
    raise UsageError(
        f"data of type {type(source).__name__} cannot be read; pass a path, a dict of arrays, an iterable of dicts"
        " or a callable",
        slug="data-kind",
    )


def _open_path(path: str, labels_key: str, input_name: str | None) -> Dataset:
    suffix = Path(path).suffix.lower()
    if suffix in _PICKLES:
        raise SecurityError(
            f"{path!r} is a pickle, which could run code when loaded; save the arrays with numpy.savez",
            slug="data-pickle",
        )
    if not os.path.lexists(path):
        raise DataError(f"there are no data at {path!r}; check the path", slug="data-missing")
    if Path(path).is_dir():
        from fewbits.datasets.images import ImageDataset

        return ImageDataset(path, input_name=input_name)
    if suffix in _TEXT:
        raise DataError(
            f"{path!r} is text: language models are not supported yet; pass an .npz of the model's inputs",
            slug="data-text",
        )
    if suffix == ".npy":
        raise DataError(
            f"{path!r} is one array without a name; save it with numpy.savez(file, INPUT_NAME=x)", slug="data-kind"
        )
    from fewbits.datasets.npz import NpzDataset

    return NpzDataset(path, labels_key=labels_key)
