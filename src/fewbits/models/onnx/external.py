"""External data: weights in files beside the model. Contained by our own rules, because the common loaders disagree.

onnx and onnx-ir refuse every link, and with them each large model in a Hugging Face cache; ONNX Runtime follows hard
links to anywhere. Here a data file must be a regular file with one name, reached without leaving the model's folder,
or, where that folder is a snapshot of a Hugging Face cache, the ``blobs`` folder of the same repository.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, final

from fewbits._base.errors import ModelError, SecurityError
from fewbits._base.limits import MIB

_HASH_BYTES = 4 * MIB


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class External:
    """Where the values of one tensor lie.

    Args:
      tensor: Its name.
      location: The file as the model names it.
      offset: First byte.
      length: Bytes; None where the file does not say and the shape decides.
    """

    tensor: str
    location: str
    offset: int
    length: int | None


def external_tensors(tensors: Iterator[Any], file: Path) -> list[External]:
    """Returns the tensors whose values lie in other files, every one of them checked.

    Raises: SecurityError(slug="external-data-escape"); ModelError(slug="external-data-missing" | "model-broken").
    """
    found = []
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if tensor.data_location != 1:
            continue
        entry = {pair.key: pair.value for pair in tensor.external_data}
        location = entry.get("location", "")
        if location not in sizes:
            sizes[location] = real_path(file, tensor.name, location).stat().st_size
        found.append(_whole(file, tensor, entry, sizes[location]))
    return found


def real_path(file: Path, tensor: str, location: str) -> Path:
    """Returns where a data file really lies, which is where it may: beside the model, or beside what links to it.

    Raises: SecurityError(slug="external-data-escape"); ModelError(slug="external-data-missing").
    """
    folder = file.parent.resolve()
    if file.is_symlink() and not os.path.lexists(folder / location):
        folder = file.resolve().parent
    return _contained(file, folder, tensor, location)


def _contained(file: Path, folder: Path, tensor: str, location: str) -> Path:
    parts = Path(location).parts
    written = not parts or Path(location).is_absolute() or ".." in parts or "\x00" in location or "\\" in location
    try:
        real = None if written else (folder / location).resolve()
    except (OSError, RuntimeError):  # a link that leads to itself
        real = None
    homes = (folder, *_blobs(folder))
    if real is None or not any(real.is_relative_to(home) for home in homes):
        raise SecurityError(
            f"{file.name}: tensor {tensor!r} points outside the model's folder ({location!r}); "
            "put its data file, not a link to it, beside the model",
            slug="external-data-escape",
        )
    try:
        there = real.exists()
    except OSError:  # a name that no file system takes
        there = False
    if not there:
        raise ModelError(
            f"{file.name} misses its data file {location[:200]!r} (tensor {tensor!r}); put it beside the model",
            slug="external-data-missing",
        )
    if not real.is_file():
        raise SecurityError(
            f"{file.name}: tensor {tensor!r} reads {location!r}, which is no regular file; put the data file there",
            slug="external-data-escape",
        )
    if real.stat().st_nlink > 1:  # its other name may lie anywhere, and be anybody's
        raise SecurityError(
            f"{file.name}: the data file {location!r} is a hard link, a second name of a file elsewhere; copy it",
            slug="external-data-escape",
        )
    return real


def _blobs(folder: Path) -> list[Path]:
    """Returns the folder in which a Hugging Face cache keeps the files of the snapshot that ``folder`` belongs to.

    The layout is REPOSITORY/snapshots/REVISION/... with links into REPOSITORY/blobs.
    """
    for place in folder.parents:
        if place.name == "snapshots" and folder != place:
            blobs = place.parent / "blobs"
            return [blobs.resolve()] if blobs.is_dir() and not blobs.is_symlink() else []
    return []


def _whole(file: Path, tensor: Any, entry: dict[str, str], size: int) -> External:
    """Returns the place of a tensor whose bytes all lie inside its file."""
    location = entry.get("location", "")

    def broken(what: str) -> ModelError:
        return ModelError(f"{file.name}: tensor {tensor.name!r} {what}; copy or export it again", slug="model-broken")

    try:
        offset = int(entry.get("offset") or 0)
        length = int(entry["length"]) if entry.get("length") else None
    except ValueError:
        raise broken(f"has no number as offset or length in {location!r}") from None
    if offset < 0 or (length is not None and length < 0):
        raise broken(f"has a negative offset or length in {location!r}")
    needed = stored_bytes(tensor)
    if needed is not None and length is not None and length != needed:
        raise broken(f"of shape {list(tensor.dims)} needs {needed} bytes, the file gives it {length}")
    end = offset + (length if length is not None else needed or 0)
    if end > size:
        raise broken(f"should end at byte {end} of {location!r}, which has {size}")
    return External(tensor=tensor.name, location=location, offset=offset, length=length)


def stored_bytes(tensor: Any) -> int | None:
    """Returns the bytes that a TensorProto's shape and type need; None for text and types that are not known."""
    import onnx_ir as ir

    try:
        kind = ir.DataType(tensor.data_type)
        bits = int(kind.itemsize * 8)
    except (ValueError, TypeError):
        return None
    if bits <= 0 or any(d < 0 for d in tensor.dims):
        return None
    return int(prod(tensor.dims) * bits + 7) // 8


def hash_model(data: bytes, external: list[External], file: Path) -> str:
    """Returns the SHA-256 of a model: of the file alone, or where there are data files, of the hashes of all.

    Raises: ModelError(slug="external-data-missing") where a data file cannot be read.
    """
    own = hashlib.sha256(data).hexdigest()
    locations = sorted({entry.location for entry in external})
    if not locations:
        return own
    whole = hashlib.sha256(own.encode())
    for location in locations:
        whole.update(_hash_file(real_path(file, "", location)).encode())
    return whole.hexdigest()


def _hash_file(path: Path) -> str:
    made = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_HASH_BYTES):
                made.update(block)
    except OSError as error:
        raise ModelError(
            f"cannot read the data file {path.name!r}: {error.strerror}; put it beside the model",
            slug="external-data-missing",
        ) from error
    return made.hexdigest()
