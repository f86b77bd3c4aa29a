import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits._base.errors import DataError
from fewbits.calibration.statistics import NOTHING, Merger, Statistics, statistics_from_npz


def shard(seed: int, names: tuple[str, ...] = ("x", "y")) -> Statistics:
    rng = np.random.default_rng(seed)
    tensors = {n: (rng.standard_normal((4, 5)) * 2.0 ** rng.integers(-8, 8)).astype(np.float32) for n in names}
    return NOTHING.update(tensors, examples=4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40))
def test_the_merger_gives_what_one_pass_gives(count):
    merger, plain = Merger(), NOTHING
    for i in range(count):
        merger.add(shard(i))
        plain = plain.merge(shard(i))
    assert merger.result().same(plain)
    assert merger.result().examples == 4 * count


class Trace(Statistics):
    """Statistics whose merge writes down the tree."""

    def __init__(self, tree: object) -> None:
        object.__setattr__(self, "tree", tree)

    def merge(self, other: Statistics) -> "Trace":
        return self if other is NOTHING else Trace((self.tree, other.tree))


def test_the_tree_is_fixed_and_binary():
    merger = Merger()
    for i in range(7):
        merger.add(Trace(i))
    assert merger.result().tree == ((((0, 1), (2, 3)), ((4, 5), 6)))


@pytest.mark.parametrize("count", [1, 2, 3, 64, 1000, 1023])
def test_at_most_log2_of_the_shards_wait(count):
    merger, most = Merger(), 0
    for i in range(count):
        merger.add(Trace(i))
        most = max(most, len(merger._waiting))
    assert most <= np.floor(np.log2(count)) + 1


def test_a_merger_without_shards_has_seen_nothing():
    assert Merger().result().same(NOTHING)


def test_sites_that_only_some_shards_saw_are_kept():
    merged = shard(0, ("x",)).merge(shard(1, ("y",)))
    assert merged.histograms.keys() == {"x", "y"}
    assert merged.histograms["x"].same(shard(0, ("x",)).histograms["x"])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=12), unique=True, max_size=4))
def test_npz_reads_back_as_itself_and_has_the_same_bytes_each_time(names):
    statistics = shard(5, tuple(names))
    data = statistics.to_npz()
    assert statistics_from_npz(data).same(statistics)
    assert statistics_from_npz(data).to_npz() == data == statistics.to_npz()


@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\x03\x04" + b"\0" * 40])
def test_bytes_that_are_no_statistics_are_refused(data):
    with pytest.raises(DataError) as caught:
        statistics_from_npz(data)
    assert caught.value.slug == "statistics-invalid"


@pytest.mark.parametrize("fault", ["names", "counts_0", "range_0", "shape", "dtype", "negative", "object"])
def test_statistics_with_a_part_missing_or_wrong_are_refused(fault):
    import io

    with np.load(io.BytesIO(shard(0).to_npz())) as file:
        arrays = dict(file)
    if fault == "shape":
        arrays["counts_0"] = arrays["counts_0"][:-1]
    elif fault == "dtype":
        arrays["counts_0"] = arrays["counts_0"].astype(np.float64)
    elif fault == "negative":
        arrays["counts_0"] = arrays["counts_0"] - 1
    elif fault == "object":
        arrays["names"] = arrays["names"].astype(object)
    else:
        del arrays[fault]
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with pytest.raises(DataError) as caught:
        statistics_from_npz(buffer.getvalue())
    assert caught.value.slug == "statistics-invalid"
