"""Data from Python are the same data however they are handed over, and are refused where they do not stay the same."""

from __future__ import annotations

import errno
import gc
import os
import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits._base.errors import DataError, Exit, FewbitsError, ResourceError, UsageError
from fewbits.datasets import open_dataset
from fewbits.datasets.base import all_indices
from fewbits.datasets.memory import from_dicts

RNG = np.random.default_rng(1)
ARRAYS = {
    "x": RNG.standard_normal((17, 2, 3)).astype(np.float32),
    "ids": RNG.integers(0, 100, (17, 4)),
    "labels": np.arange(17) % 5,
    "groups": np.arange(17) // 3,
}


def dicts(cuts=(3, 4, 10)):
    edges = [0, *cuts, 17]
    return [{name: array[a:b] for name, array in ARRAYS.items()} for a, b in pairwise(edges)]


class Loader:
    """A re-iterable that is no sequence, as torch's DataLoader."""

    def __init__(self, items, shuffle=False):
        self.items = list(items)
        self.shuffle = shuffle
        self.rng = random.Random(3)

    def __iter__(self):
        if self.shuffle:
            self.rng.shuffle(self.items)
        yield from self.items


SOURCES = {
    "arrays": lambda: ARRAYS,
    "list": dicts,
    "list, other cuts": lambda: dicts((1, 2, 16)),
    "loader": lambda: Loader(dicts()),
    "generator": lambda: (item for item in dicts()),
    "callable": lambda: lambda: iter(dicts()),
    "fortran order": lambda: {name: np.asfortranarray(array) for name, array in ARRAYS.items()},
    "big-endian": lambda: {name: array.astype(array.dtype.newbyteorder(">")) for name, array in ARRAYS.items()},
}


def refused(source, **options) -> FewbitsError:
    with pytest.raises(FewbitsError) as error:
        open_dataset(source, **options)
    assert "\n" not in error.value.message
    return error.value


@pytest.mark.parametrize("kind", SOURCES)
def test_every_way_of_handing_over_gives_the_same_data(tmp_path, kind):
    np.savez(tmp_path / "d.npz", **ARRAYS)
    reference = open_dataset(tmp_path / "d.npz")
    data = open_dataset(SOURCES[kind]())
    assert data.count == 17
    assert dict(data.inputs) == dict(reference.inputs)
    assert data.groups.tolist() == ARRAYS["groups"].tolist()
    assert data.digest() == reference.digest()
    assert np.array_equal(data.keys(), reference.keys())
    for indices in ([], [0], [16], [2, 3, 4, 9, 10, 15], range(17)):
        places = np.array(list(indices), dtype=np.int64)
        for size in (1, 4, 100):
            pairs = zip(data.batches(places, size), reference.batches(places, size), strict=True)
            assert all(mine.same(theirs) for mine, theirs in pairs)


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 17), max_size=5).map(sorted),
    chosen=st.sets(st.integers(0, 16)),
    size=st.integers(1, 20),
    kind=st.sampled_from([list, Loader, iter]),
)
def test_how_the_dicts_are_cut_plays_no_part(cuts, chosen, size, kind):
    data = open_dataset(kind(dicts(cuts)))
    places = np.array(sorted(chosen), dtype=np.int64)
    batches = list(data.batches(places, size))
    assert [len(batch.index) for batch in batches] == [min(size, len(places) - b) for b in range(0, len(places), size)]
    if chosen:
        assert np.array_equal(np.concatenate([batch.inputs["x"] for batch in batches]), ARRAYS["x"][places])
        assert np.array_equal(np.concatenate([batch.labels for batch in batches]), ARRAYS["labels"][places])
        assert np.array_equal(np.concatenate([batch.index for batch in batches]), places)


def test_the_caller_s_arrays_stay_writable_and_unchanged():
    x, groups = np.zeros((4, 2), np.float32), np.arange(4)
    data = open_dataset({"x": x, "groups": groups})
    batch = next(data.batches(all_indices(4), 4))
    assert not batch.inputs["x"].flags.writeable
    assert x.flags.writeable
    assert groups.flags.writeable
    x[:] = 7
    assert batch.inputs["x"].max() == 0


def test_labels_under_another_name():
    data = open_dataset({"x": np.zeros((2, 1)), "target": np.arange(2)}, labels_key="target")
    assert data.has_labels
    assert list(data.inputs) == ["x"]
    error = refused({"x": np.zeros((2, 1)), "target": np.arange(2)}, labels_key="tagret")
    assert isinstance(error, UsageError)
    assert "did you mean 'target'?" in error.message


@pytest.mark.parametrize("shuffled", ["loader", "callable"])
def test_a_source_that_changes_its_order_is_refused(shuffled):
    loader = Loader(dicts(range(1, 17)), shuffle=True)
    data = open_dataset(loader if shuffled == "loader" else lambda: iter(loader))
    with pytest.raises(DataError) as error:
        data.digest()
    assert error.value.slug == "data-unstable"
    assert error.value.exit_code == Exit.INPUT


def test_a_source_that_ends_early_the_second_time_is_refused():
    lengths = iter([4, 2])
    data = open_dataset(lambda: iter(dicts()[: next(lengths)]))
    with pytest.raises(DataError) as error:
        list(data.batches(all_indices(17), 4))
    assert error.value.slug == "data-unstable"


# --- the spool -----------------------------------------------------------------------------------------------------


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_the_spool_leaves_nothing_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gc.collect()
    before = open_descriptors()
    data = open_dataset(iter(dicts()))
    assert open_descriptors() > before
    assert list(tmp_path.iterdir()) == []
    assert len(data.keys()) == 17
    del data
    gc.collect()
    assert open_descriptors() == before


def test_the_spool_is_bounded():
    with pytest.raises(ResourceError) as error:
        from_dicts(iter(dicts()), spool_bytes=500)
    assert (error.value.slug, error.value.exit_code) == ("spool-full", Exit.RESOURCE)


def test_a_full_disk_under_the_spool_is_a_resource_error(monkeypatch):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ResourceError) as error:
        from_dicts(iter(dicts()))
    assert error.value.slug == "disk-full"


# --- refusals ------------------------------------------------------------------------------------------------------


X = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("source", "slug", "words"),
    [
        ({"x": np.array([{}, {}])}, "data-dtype", "'x'"),
        ({"x": np.array(["a", "b"])}, "data-dtype", "'x'"),
        ({"x": np.float32(1)}, "data-first-axis", "'x'"),
        ({"x": [[1, 2], [3]]}, "data-shape", "ragged"),
        ({"x": X, "labels": np.zeros(3)}, "data-first-axis", "has"),
        ({}, "data-empty", "no arrays"),
        ({"labels": np.arange(3)}, "data-empty", "labels"),
        ({"x": X, "groups": np.array([0.5, 1])}, "data-groups", "groups"),
        ([], "data-empty", "no examples"),
        ([{"x": X[:0]}], "data-empty", "no examples"),
        ([X, X], "data-item", "item 0"),
        ([(X, 1)], "data-item", "tuple"),
        ([{"x": X}, {"y": X}], "data-input-missing", "dict 1"),
        ([{"x": X}, {"x": X, "y": X}], "data-input-missing", "alone has 'y'"),
        ([{"x": X}, {"x": X[:, :2]}], "data-shape", "[2]"),
        ([{"x": X}, {"x": X.astype(np.float64)}], "data-shape", "float64"),
        ([{"x": X, "groups": np.arange(2)}, {"x": X}], "data-groups", "some dicts"),
        (3, "data-kind", "int"),
        (None, "data-kind", "NoneType"),
    ],
    ids=str,
)
def test_what_cannot_be_examples_is_refused(source, slug, words):
    error = refused(source)
    assert error.slug == slug
    assert words in error.message
    assert error.exit_code == (Exit.USAGE if slug == "data-kind" else Exit.INPUT)


@pytest.mark.parametrize(
    ("name", "slug", "code"),
    [
        ("d.jsonl", "data-text", Exit.INPUT),
        ("d.txt", "data-text", Exit.INPUT),
        ("d.npy", "data-kind", Exit.INPUT),
        ("d.pkl", "data-pickle", Exit.SECURITY),
        ("d.pt", "data-pickle", Exit.SECURITY),
        ("none.npz", "data-missing", Exit.INPUT),
    ],
)
def test_files_of_other_kinds_are_refused(tmp_path, name, slug, code):
    if not name.startswith("none"):
        (tmp_path / name).write_bytes(b"\x80\x04K\x01.")
    error = refused(tmp_path / name)
    assert (error.slug, error.exit_code) == (slug, code)
    if slug == "data-text":
        assert "language models are not supported yet" in error.message


def test_a_data_set_is_itself():
    data = open_dataset(ARRAYS)
    assert open_dataset(data) is data


def test_a_long_source_is_streamed_and_not_held():
    """300 dicts of 1 MB: the peak may be a few of them, for the piece, the joined batch and the one being made."""
    import tracemalloc

    def make():
        for place in range(300):
            yield {"x": np.full((1, 250_000), place, np.float32)}

    data = open_dataset(make)
    tracemalloc.start()
    total = sum(float(batch.inputs["x"][0, 0]) for batch in data.batches(all_indices(300), 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == sum(range(300))
    assert peak < 6_000_000
