"""What a data set is: examples that are streamed, batch by batch, and whose content can be named by a hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fewbits._base import limits

Indices = NDArray[np.int64]
Keys = NDArray[np.uint64]

NUMBER_KINDS = frozenset("biuf")
"""dtype.kind of what a model input or a label may be: booleans, integers, reals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """What one example of one input is: its dtype (native byte order) and its shape without the axis of examples."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of one example."""
        return int(self.dtype.itemsize * np.prod(self.shape, dtype=object))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Some examples. All first axes agree; the arrays are read-only.

    Attributes:
      inputs: Input name -> [examples, ...].
      labels: [examples, ...], or None where the data have none.
      index: [examples] int64, each example's place in the data set.
    """

    inputs: dict[str, NDArray[Any]]
    labels: NDArray[Any] | None
    index: Indices

    def __post_init__(self) -> None:
        for array in (*self.inputs.values(), self.index, *(() if self.labels is None else (self.labels,))):
            assert len(array) == len(self.index)
            array.flags.writeable = False

    def same(self, other: Batch) -> bool:
        """Returns whether both hold the same names, dtypes, shapes and bytes."""
        mine, theirs = dict(self.arrays()), dict(other.arrays())
        return mine.keys() == theirs.keys() and all(
            array.dtype == theirs[name].dtype
            and array.shape == theirs[name].shape
            and array.tobytes() == theirs[name].tobytes()
            for name, array in mine.items()
        )

    def arrays(self) -> Iterator[tuple[tuple[str, str], NDArray[Any]]]:
        """Yields every array under (role, name), in a fixed order."""
        for name in sorted(self.inputs):
            yield ("input", name), self.inputs[name]
        if self.labels is not None:
            yield ("labels", ""), self.labels
        yield ("index", ""), self.index


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fingerprint:
    """What a data set contains: one hash of everything, and one key per example.

    Attributes:
      digest: SHA-256, hexadecimal, over inputs, labels and groups.
      keys: [count] uint64, equal where all inputs of two examples are equal to the bit; labels play no part.
    """

    digest: str
    keys: Keys


@runtime_checkable
class Dataset(Protocol):
    """A finite, ordered set of examples that can be read again and again with the same result."""

    @property
    def source(self) -> str:
        """What the user called it, for messages."""

    @property
    def count(self) -> int:
        """Number of examples."""

    @property
    def inputs(self) -> Mapping[str, ArraySpec]:
        """What one example of each input is."""

    @property
    def has_labels(self) -> bool:
        """Whether batches bear labels."""

    @property
    def groups(self) -> NDArray[Any] | None:
        """[count] integers or strings: equal for examples that depend on one another. None: all independent."""

    def digest(self) -> str:
        """Returns the SHA-256 of the content in one canonical form, whatever file or container it came from."""

    def keys(self) -> Keys:
        """Returns [count] uint64: the content hash of all inputs of each example."""

    def batches(self, indices: Indices, size: int) -> Iterator[Batch]:
        """Yields the examples at indices in batches of size, the last one perhaps shorter.

        Memory is that of one batch. The iterator may be dropped half-way.

        Args:
          indices: Strictly increasing places of examples, int64, each in [0, count).
          size: Examples of one batch, >= 1.
        """


def check_indices(indices: NDArray[Any], size: int, count: int) -> Indices:
    """Returns indices as int64; they are strictly increasing and within [0, count), and size is at least 1.

    Raises: ValueError otherwise: only a mistake of ours gets here.
    """
    places = np.asarray(indices, dtype=np.int64)
    if places.ndim != 1 or size < 1:
        raise ValueError(f"indices of shape {places.shape}, batches of {size}: expected one axis, at least 1")
    if places.size and (places[0] < 0 or places[-1] >= count or bool(np.any(np.diff(places) <= 0))):
        raise ValueError(f"indices must be strictly increasing within [0, {count})")
    return places


def all_indices(count: int) -> Indices:
    """Returns every place of a data set of count examples, in order."""
    return np.arange(count, dtype=np.int64)


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Returns the dtype in this machine's byte order."""
    return dtype.newbyteorder("=")


def fingerprint(dataset: Dataset) -> Fingerprint:
    """Returns the data set's hash and keys, reading it once, batch by batch.

    digest = SHA-256 of the JSON list of [role, name, dtype, shape, SHA-256 of the C-order little-endian bytes] of every
    array; key = the first 8 bytes, little-endian, of BLAKE2b over the names, dtypes, shapes and bytes of all inputs of
    the example. So neither compression nor file format nor batch size plays a part.
    """
    per_example = sum(spec.nbytes for spec in dataset.inputs.values())
    size = max(1, limits.SCAN_BATCH_BYTES // max(1, per_example))
    whole: dict[tuple[str, str], Any] = {}
    forms: dict[tuple[str, str], tuple[str, list[int]]] = {}
    keys = np.zeros(dataset.count, dtype=np.uint64)
    for batch in dataset.batches(all_indices(dataset.count), size):
        for role, array in batch.arrays():
            if role[0] != "index":
                data = little_endian(array)
                whole.setdefault(role, hashlib.sha256()).update(data.data)
                forms[role] = (data.dtype.str, [dataset.count, *data.shape[1:]])
        keys[batch.index] = example_keys(batch.inputs)
    if dataset.groups is not None:
        groups = little_endian(dataset.groups)
        whole["groups", ""] = hashlib.sha256(groups.data)
        forms["groups", ""] = (groups.dtype.str, list(groups.shape))
    rows = [[*role, *forms[role], whole[role].hexdigest()] for role in sorted(whole)]
    keys.flags.writeable = False
    return Fingerprint(digest=hashlib.sha256(json.dumps(rows).encode()).hexdigest(), keys=keys)


def example_keys(inputs: Mapping[str, NDArray[Any]]) -> Keys:
    """Returns [examples] uint64, the content key of each example of a batch; see ``fingerprint``."""
    arrays = [(name, little_endian(inputs[name])) for name in sorted(inputs)]
    head = json.dumps([[name, array.dtype.str, list(array.shape[1:])] for name, array in arrays]).encode()
    start = hashlib.blake2b(head, digest_size=8)
    count = len(arrays[0][1]) if arrays else 0
    keys = np.zeros(count, dtype=np.uint64)
    for place in range(count):
        state = start.copy()
        for _, array in arrays:
            state.update(array[place : place + 1].data)
        keys[place] = int.from_bytes(state.digest(), "little")
    return keys


def little_endian(array: NDArray[Any]) -> NDArray[Any]:
    """Returns the array in C order and little-endian, without a copy where it is so already."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
