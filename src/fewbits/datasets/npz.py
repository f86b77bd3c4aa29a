"""An .npz as a data set: arrays that bear the model's input names, `labels`, `groups`; first axis = examples."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewbits._base import limits
from fewbits._base.catalog import nearest
from fewbits._base.errors import DataError, UsageError
from fewbits.datasets.archive import Member, StoredRows, StreamedRows, open_archive, read_members
from fewbits.datasets.base import (
    NUMBER_KINDS,
    ArraySpec,
    Batch,
    Fingerprint,
    Indices,
    Keys,
    check_indices,
    fingerprint,
    native,
)
from fewbits.datasets.checks import check_groups, first_axes_agree

GROUPS_KEY = "groups"


class NpzDataset:
    """The arrays of an .npz file, streamed: compressed members in order, stored ones from where they lie.

    Opening reads the headers and `groups` only. The file must stay as it is while the data set is in use.

    Args:
      path: The file.
      labels_key: Name of the array of labels. ``labels`` may be absent; another name must be there.
    Raises: DataError with the slugs of ``archive.read_members``, and data-missing, data-first-axis, data-labels,
      data-groups, data-empty; UsageError(slug="labels-key").
    """

    def __init__(self, path: str | os.PathLike[str], *, labels_key: str = "labels") -> None:
        self._path = os.fspath(path)
        with open_archive(self._path) as archive:
            self._stamp = _stamp(self._path)
            members = {member.name: member for member in read_members(self._path, archive)}
            self._count = first_axes_agree(self.source, _lengths(self._path, members))
            groups = members.pop(GROUPS_KEY, None) if labels_key != GROUPS_KEY else None
            self._groups = None if groups is None else self._read_groups(archive, groups)
        self._labels = members.pop(labels_key, None)
        if self._labels is None and labels_key != "labels":
            raise UsageError(
                f"{self.source} has no array {labels_key!r} for the labels; {nearest(labels_key, list(members))}",
                slug="labels-key",
            )
        if self._labels is not None and self._labels.dtype.kind not in NUMBER_KINDS:
            raise DataError(
                f"{self.source}: the labels {labels_key!r} have dtype {self._labels.dtype}; expected numbers,"
                " for classes their indices",
                slug="data-labels",
            )
        if not members:
            raise DataError(
                f"{self.source} holds no arrays but labels; expected one per model input", slug="data-empty"
            )
        self._members = members
        self._inputs = {name: self._spec(member) for name, member in members.items()}

    @property
    def source(self) -> str:
        """The file's name in quotes."""
        return repr(self._path)

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
        """Whether there is an array of labels."""
        return self._labels is not None

    @property
    def groups(self) -> NDArray[Any] | None:
        """[count], or None."""
        return self._groups

    def digest(self) -> str:
        """Returns the SHA-256 of the content: the same for a compressed and an uncompressed file."""
        return self._fingerprint.digest

    def keys(self) -> Keys:
        """Returns [count] uint64: the content hash of all inputs of each example."""
        return self._fingerprint.keys

    @cached_property
    def _fingerprint(self) -> Fingerprint:
        return fingerprint(self)

    def batches(self, indices: Indices, size: int) -> Iterator[Batch]:
        """Yields the examples at indices; see ``Dataset.batches``.

        Raises: DataError(slug="npz-broken" | "data-changed").
        """
        places = check_indices(indices, size, self._count)
        return self._batches(places, size)

    def _batches(self, places: Indices, size: int) -> Iterator[Batch]:
        with open_archive(self._path) as archive:
            if _stamp(self._path) != self._stamp:
                raise DataError(f"{self.source} was changed while it was in use; start again", slug="data-changed")
            whole = len(places) == self._count  # then stored members are streamed too, for the zip's checksum
            readers = {
                member.name: (StoredRows if member.stored and not whole else StreamedRows)(archive, member)
                for member in self._all_members()
            }
            for begin in range(0, len(places), size):
                index = places[begin : begin + size].copy()
                arrays = {name: _read_rows(reader, self._member(name), index) for name, reader in readers.items()}
                labels = None if self._labels is None else arrays.pop(self._labels.name)
                yield Batch(inputs=arrays, labels=labels, index=index)

    def _all_members(self) -> list[Member]:
        return [*self._members.values(), *([] if self._labels is None else [self._labels])]

    def _member(self, name: str) -> Member:
        found = self._members.get(name, self._labels)
        assert found is not None
        return found

    def _spec(self, member: Member) -> ArraySpec:
        if member.dtype.kind not in NUMBER_KINDS:
            raise DataError(
                f"{self.source}: {member.name!r} holds text; expected numbers, or leave it out", slug="npz-dtype"
            )
        spec = ArraySpec(dtype=native(member.dtype), shape=member.shape[1:])
        if spec.nbytes == 0:
            raise DataError(
                f"{self.source}: {member.name!r} has examples of shape {list(spec.shape)}, which hold nothing",
                slug="data-empty",
            )
        return spec

    def _read_groups(self, archive: zipfile.ZipFile, member: Member) -> NDArray[Any]:
        if member.row_bytes * self._count > limits.MAX_GROUPS_BYTES:
            raise DataError(
                f"{self.source}: 'groups' has {member.row_bytes * self._count} bytes; at most"
                f" {limits.MAX_GROUPS_BYTES} are read: use integers",
                slug="npz-too-large",
            )
        rows = _read_rows(StreamedRows(archive, member), member, np.arange(self._count, dtype=np.int64))
        return check_groups(self.source, rows)


def _stamp(path: str) -> tuple[int, int, int, int]:
    status = Path(path).stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _lengths(path: str, members: Mapping[str, Member]) -> dict[str, int]:
    for member in members.values():
        if not member.shape:
            raise DataError(
                f"{path!r}: {member.name!r} is a single value; expected an array whose first axis is that of examples",
                slug="data-first-axis",
            )
    return {name: member.shape[0] for name, member in members.items()}


def _read_rows(reader: StreamedRows | StoredRows, member: Member, index: Indices) -> NDArray[Any]:
    """Returns the rows at index, one read per run of neighbours, in this machine's byte order."""
    rows: NDArray[Any] = np.empty((len(index), *member.shape[1:]), dtype=member.dtype)
    if rows.nbytes:
        view = rows.reshape(-1).view(np.uint8).data
        cuts = [0, *(np.flatnonzero(np.diff(index) != 1) + 1).tolist(), len(index)]
        for first, last in pairwise(cuts):
            reader.read_into(int(index[first]), view[first * member.row_bytes : last * member.row_bytes])
    return rows.astype(native(member.dtype), copy=False)
