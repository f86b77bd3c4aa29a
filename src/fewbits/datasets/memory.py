"""Data from Python: a dict of arrays, a list of dicts, an iterable, or a callable that returns one.

Every dict is a batch: input name -> array whose first axis is that of examples, `labels` and `groups` among them.
A list is used as it is. Other iterables and callables are read once to learn their form and content; they are then read
again for every pass, and refused if an example has changed since (a shuffling loader, random augmentation): parts that
were split by content would mix. What can be read only once (a generator) is kept on disk meanwhile.
"""

from __future__ import annotations

import errno
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fewbits._base import limits
from fewbits._base.catalog import nearest
from fewbits._base.errors import DataError, ResourceError, UsageError
from fewbits.datasets.archive import read_at
from fewbits.datasets.base import (
    NUMBER_KINDS,
    ArraySpec,
    Batch,
    Fingerprint,
    Indices,
    Keys,
    check_indices,
    example_keys,
    fingerprint,
    native,
)
from fewbits.datasets.checks import check_groups, first_axes_agree

GROUPS_KEY = "groups"
Arrays = dict[str, NDArray[Any]]
Dicts = Iterable[Mapping[str, Any]]


class Rows(Protocol):
    """Where the rows of a MemoryDataset come from."""

    def read(self, index: Indices) -> Iterator[Arrays]:
        """Yields the rows at index, strictly increasing, in pieces of any length; names are those of the source."""


class MemoryDataset:
    """A data set over rows that Python handed over. Use ``from_arrays`` or ``from_dicts``.

    Args:
      rows: Gives the rows of every array but `groups`.
      specs: Name -> what one row is, the labels included.
      count: Number of examples.
      groups: [count], or None.
      labels_key: Name of the array of labels.
    """

    def __init__(
        self, rows: Rows, specs: Mapping[str, ArraySpec], *, count: int, groups: NDArray[Any] | None, labels_key: str
    ) -> None:
        self._rows = rows
        self._count = count
        self._groups = None if groups is None else check_groups(self.source, groups)
        self._labels_key = labels_key if labels_key in specs else None
        self._inputs = {name: spec for name, spec in specs.items() if name != labels_key}
        if labels_key != "labels" and self._labels_key is None:
            raise UsageError(
                f"{self.source} has no array {labels_key!r} for the labels; {nearest(labels_key, list(specs))}",
                slug="labels-key",
            )
        if not self._inputs:
            raise DataError(f"{self.source} has no arrays but labels; expected one per model input", slug="data-empty")

    @property
    def source(self) -> str:
        """How messages call it."""
        return "the data"

    @property
    def count(self) -> int:
        """Number of examples."""
        return self._count

    @property
    def inputs(self) -> Mapping[str, ArraySpec]:
        """What one example of each input is."""
        return MappingProxyType(self._inputs)

    @property
    def has_labels(self) -> bool:
        """Whether there are labels."""
        return self._labels_key is not None

    @property
    def groups(self) -> NDArray[Any] | None:
        """[count], or None."""
        return self._groups

    def digest(self) -> str:
        """Returns the SHA-256 of the content."""
        return self._fingerprint.digest

    def keys(self) -> Keys:
        """Returns [count] uint64: the content hash of all inputs of each example."""
        return self._fingerprint.keys

    @cached_property
    def _fingerprint(self) -> Fingerprint:
        return fingerprint(self)

    def batches(self, indices: Indices, size: int) -> Iterator[Batch]:
        """Yields the examples at indices; see ``Dataset.batches``. Raises: DataError(slug="data-unstable")."""
        places = check_indices(indices, size, self._count)
        return self._batches(places, size)

    def _batches(self, places: Indices, size: int) -> Iterator[Batch]:
        done = 0
        for arrays in _rebatched(self._rows.read(places), size):
            labels = None if self._labels_key is None else arrays.pop(self._labels_key)
            length = len(next(iter(arrays.values())))
            yield Batch(inputs=arrays, labels=labels, index=places[done : done + length].copy())
            done += length


# --- where rows come from ------------------------------------------------------------------------------------------


def from_arrays(arrays: Mapping[str, Any], *, labels_key: str = "labels") -> MemoryDataset:
    """Returns the data set over a dict of arrays, which are not copied and must not be changed meanwhile.

    Raises: DataError(slug="data-dtype" | "data-first-axis" | "data-groups" | "data-empty").
    """
    checked = _checked(arrays, 0)
    count = first_axes_agree("the data", {name: len(array) for name, array in checked.items()})
    groups = checked.pop(GROUPS_KEY, None) if labels_key != GROUPS_KEY else None
    specs = {name: _spec(array) for name, array in checked.items()}
    groups = None if groups is None else groups.copy()
    return MemoryDataset(_ArrayRows(checked), specs, count=count, groups=groups, labels_key=labels_key)


def from_dicts(
    source: Dicts | Callable[[], Dicts],
    *,
    labels_key: str = "labels",
    spool_bytes: int = limits.MAX_SPOOL_BYTES,
) -> MemoryDataset:
    """Returns the data set over an iterable of dicts, or over a callable that returns one.

    Args:
      source: See the module. Reads it once, at once.
      labels_key: Name of the array of labels.
      spool_bytes: Most bytes of disk that a one-shot iterator may take; the space is free again when the data set is.
    Raises: DataError(slug="data-dtype" | "data-first-axis" | "data-shape" | "data-input-missing" | "data-empty" |
      "data-groups"); ResourceError(slug="spool-full" | "disk-full").
    """
    start = source if callable(source) else source.__iter__
    first = iter(start())
    spool = _Spool(spool_bytes) if not callable(source) and first is source else None
    stable = isinstance(source, Sequence)
    specs: dict[str, ArraySpec] = {}
    groups: list[NDArray[Any]] = []
    keys: list[Keys] = []
    lengths: list[int] = []
    for place, item in enumerate(first):
        arrays = _checked(item, place)
        lengths.append(
            first_axes_agree(f"dict {place} of the data", {name: len(array) for name, array in arrays.items()})
        )
        if labels_key != GROUPS_KEY and GROUPS_KEY in arrays:
            groups.append(arrays.pop(GROUPS_KEY))
        specs = specs or {name: _spec(array) for name, array in arrays.items()}
        _check_alike(arrays, specs, place)
        if spool is not None:
            spool.append(arrays)
        elif not stable:
            keys.append(example_keys(arrays))
    count = sum(lengths)
    if not count:
        raise DataError("the data hold no examples; expected at least one", slug="data-empty")
    if groups and sum(map(len, groups)) != count:
        raise DataError("'groups' is in some dicts of the data only; give it in all or in none", slug="data-groups")
    rows: Rows = spool or _DictRows(start, specs, np.array(lengths, dtype=np.int64), None if stable else keys)
    if spool is not None:
        spool.freeze(specs)
    joined = np.concatenate(groups) if groups else None
    return MemoryDataset(rows, specs, count=count, groups=joined, labels_key=labels_key)


class _ArrayRows:
    """Rows of arrays in memory."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays

    def read(self, index: Indices) -> Iterator[Arrays]:
        step = _piece(sum(_spec(array).nbytes for array in self._arrays.values()))
        for begin in range(0, len(index), step):
            part = index[begin : begin + step]
            yield {name: _native(array[part]) for name, array in self._arrays.items()}


class _DictRows:
    """Rows of dicts that are read again for every pass, and compared with the keys of the first where there are any."""

    def __init__(
        self, start: Callable[[], Dicts], specs: Mapping[str, ArraySpec], lengths: Indices, keys: list[Keys] | None
    ) -> None:
        self._start = start
        self._specs = specs
        self._ends = np.cumsum(lengths)
        self._keys = keys

    def read(self, index: Indices) -> Iterator[Arrays]:
        if not len(index):
            return
        begin, number = 0, 0
        for number, item in enumerate(self._start()):
            end = int(self._ends[number])
            first, last = np.searchsorted(index, [begin, end])
            if first < last:
                arrays = self._take(item, number)
                yield {name: _native(array[index[first:last] - begin]) for name, array in arrays.items()}
            begin = end
            if begin > index[-1]:
                return
        raise self._unstable(number + 1)

    def _take(self, item: Mapping[str, Any], number: int) -> Arrays:
        arrays = {name: array for name, array in _checked(item, number).items() if name in self._specs}
        _check_alike(arrays, self._specs, number)
        if self._keys is not None and not np.array_equal(example_keys(arrays), self._keys[number]):
            raise self._unstable(number)
        return arrays

    def _unstable(self, number: int) -> DataError:
        return DataError(
            f"dict {number} of the data was not the same when read again; turn off shuffling and random augmentation,"
            " or pass list(data)",
            slug="data-unstable",
        )


class _Spool:
    """Rows in unnamed files, one per array, which the system frees when they are closed, whatever happens."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._limit = limit
        self._files: dict[str, int] = {}
        self._specs: Mapping[str, ArraySpec] = {}

    def append(self, arrays: Arrays) -> None:
        for name, array in arrays.items():
            data = np.ascontiguousarray(_native(array))
            self._left -= data.nbytes
            if self._left < 0:
                raise ResourceError(
                    f"the data come from an iterator that can be read only once and exceed the {self._limit} bytes of"
                    " disk that may hold them; pass a list, a callable or an .npz",
                    slug="spool-full",
                )
            if name not in self._files:
                self._files[name] = self._open()
            _write_all(self._files[name], data.reshape(-1).view(np.uint8).data)

    def freeze(self, specs: Mapping[str, ArraySpec]) -> None:
        self._specs = specs

    def read(self, index: Indices) -> Iterator[Arrays]:
        step = _piece(sum(spec.nbytes for spec in self._specs.values()))
        for begin in range(0, len(index), step):
            part = index[begin : begin + step]
            yield {name: self._read_rows(name, spec, part) for name, spec in self._specs.items()}

    def _read_rows(self, name: str, spec: ArraySpec, index: Indices) -> NDArray[Any]:
        rows: NDArray[Any] = np.empty((len(index), *spec.shape), dtype=spec.dtype)
        view = rows.reshape(-1).view(np.uint8).data
        for place, row in enumerate(index):
            part = view[place * spec.nbytes : (place + 1) * spec.nbytes]
            read_at(self._files[name], part, int(row) * spec.nbytes)
        return rows

    def _open(self) -> int:
        try:
            descriptor, path = tempfile.mkstemp(prefix="fewbits-")
        except OSError as error:
            raise ResourceError(
                f"cannot make a temporary file ({error.strerror}); set TMPDIR to a place that can be written",
                slug="output-unwritable",
            ) from error
        weakref.finalize(self, os.close, descriptor)
        Path(path).unlink()
        return descriptor


def _write_all(descriptor: int, view: memoryview) -> None:
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        slug = "disk-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "output-unwritable"
        raise ResourceError(
            f"cannot keep the data in a temporary file ({error.strerror}); set TMPDIR to a place with more room,"
            " or pass a list, a callable or an .npz",
            slug=slug,
        ) from error


# --- small parts ---------------------------------------------------------------------------------------------------


def _checked(item: object, place: int) -> Arrays:
    if not isinstance(item, Mapping):
        raise DataError(
            f"item {place} of the data is a {type(item).__name__}; expected a dict of input name -> array with the axis"
            " of examples first",
            slug="data-item",
        )
    arrays: Arrays = {}
    for name, value in item.items():
        try:
            array = np.asarray(value)
        except ValueError as error:  # nested lists of unequal lengths
            raise DataError(
                f"array {name!r} of the data is ragged; all examples must have one shape", slug="data-shape"
            ) from error
        text = array.dtype.kind in "SU" and name == GROUPS_KEY
        if array.dtype.kind not in NUMBER_KINDS and not text:
            raise DataError(
                f"array {name!r} of the data has dtype {array.dtype}; expected numbers, all examples of one shape",
                slug="data-dtype",
            )
        if array.ndim == 0:
            raise DataError(
                f"array {name!r} of the data is a single value; expected the axis of examples first, for one example"
                " an axis of length 1",
                slug="data-first-axis",
            )
        arrays[str(name)] = array
    return arrays


def _check_alike(arrays: Arrays, specs: Mapping[str, ArraySpec], place: int) -> None:
    for name in sorted(arrays.keys() ^ specs.keys()):
        word = "lacks" if name in specs else "alone has"
        raise DataError(
            f"dict {place} of the data {word} {name!r}; every dict must have the same names", slug="data-input-missing"
        )
    for name, spec in specs.items():
        got = _spec(arrays[name])
        if got != spec:
            raise DataError(
                f"array {name!r} in dict {place} of the data has examples of {got.dtype} {list(got.shape)}, the first"
                f" dict {spec.dtype} {list(spec.shape)}; all must agree",
                slug="data-shape",
            )


def _spec(array: NDArray[Any]) -> ArraySpec:
    return ArraySpec(dtype=native(array.dtype), shape=array.shape[1:])


def _native(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(native(array.dtype), copy=False)


def _piece(row_bytes: int) -> int:
    return max(1, limits.SCAN_BATCH_BYTES // max(1, row_bytes))


def _rebatched(pieces: Iterator[Arrays], size: int) -> Iterator[Arrays]:
    """Yields the same rows in batches of size, the last one perhaps shorter; always new arrays in C order."""
    held: list[Arrays] = []
    length = 0
    for piece in pieces:
        rest = piece
        while rows := len(next(iter(rest.values()))):
            taken = min(size - length, rows)
            held.append({name: array[:taken] for name, array in rest.items()})
            rest = {name: array[taken:] for name, array in rest.items()}
            length += taken
            if length == size:
                yield _joined(held)
                held, length = [], 0
    if held:
        yield _joined(held)


def _joined(parts: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
