import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits._base.errors import DataError, UsageError
from fewbits.evidence import FRACTIONS, find_overlap, split_by_hash

PARTS = ("calibration", "selection", "verdict")


def _keys(n, seed=0):
    return np.random.default_rng(seed).integers(0, 2**64, n, dtype=np.uint64)


def _members(split, keys):
    return {name: set(keys[getattr(split, name)].tolist()) for name in PARTS}


def test_every_example_has_one_place_and_the_shares_are_the_fractions():
    keys = _keys(20_000)
    split = split_by_hash(keys)
    places = np.concatenate([split.calibration, split.selection, split.verdict, split.unused])
    assert sorted(places.tolist()) == list(range(20_000))
    for name, share in FRACTIONS.items():
        # Binomial: four standard errors.
        assert abs(getattr(split, name).size / 20_000 - share) < 4 * math.sqrt(share * (1 - share) / 20_000)


@given(seed=st.integers(0, 5), copies=st.integers(1, 3))
def test_order_and_copies_move_no_content(seed, copies):
    keys = _keys(80, seed)
    expected = _members(split_by_hash(keys, seed=seed), keys)
    many = np.random.default_rng(seed).permutation(np.tile(keys, copies))
    split = split_by_hash(many, seed=seed)
    assert _members(split, many) == expected
    assert split.duplicates == 80 * (copies - 1)


def test_more_data_moves_no_example_to_another_part():
    keys = _keys(300)
    few, many = split_by_hash(keys[:150], calibration_cap=20), split_by_hash(keys, calibration_cap=20)
    before, after = _members(few, keys), _members(many, keys)
    for name in PARTS:
        for other in PARTS:
            assert name == other or not before[name] & after[other]


def test_another_seed_is_another_split_and_the_same_seed_the_same():
    keys = _keys(200)
    assert split_by_hash(keys, seed=1).same(split_by_hash(keys, seed=1))
    assert not split_by_hash(keys, seed=1).same(split_by_hash(keys, seed=2))


def test_the_split_of_a_version_is_the_split_of_the_next():
    """Gold: a changed hash would silently move examples that an earlier report called verdict data."""
    split = split_by_hash(np.arange(12, dtype=np.uint64), seed=0)
    places = [split.calibration.tolist(), split.selection.tolist(), split.verdict.tolist()]
    assert places == [[0, 1, 4, 9], [2, 3, 8], [5, 6, 7, 10, 11]]


def test_a_group_stays_together_and_no_content_is_in_two_parts():
    rng = np.random.default_rng(1)
    keys = rng.integers(0, 400, 1000).astype(np.uint64)  # many contents occur in several groups
    groups = rng.integers(0, 120, 1000)
    split = split_by_hash(keys, groups=groups)
    sets = _members(split, keys)
    labels = {name: set(groups[getattr(split, name)].tolist()) for name in PARTS}
    for one, other in (("calibration", "selection"), ("calibration", "verdict"), ("selection", "verdict")):
        assert not sets[one] & sets[other]
        assert not labels[one] & labels[other]
    assert split.unused.size > 0


def test_groups_of_any_label_type_split_alike():
    keys = _keys(100)
    numbers = np.arange(100) // 4
    names = np.array([f"speaker {i}" for i in numbers])
    for groups in (numbers, names, names.astype(object), names.astype("S")):
        split = split_by_hash(keys, groups=groups)
        for name in PARTS:
            assert {tuple(np.flatnonzero(numbers == g)) for g in set(numbers[getattr(split, name)])} == {
                tuple(i for i in getattr(split, name) if numbers[i] == g) for g in set(numbers[getattr(split, name)])
            }


def test_bytes_are_keys_too():
    digests = np.array([bytes([i, 255 - i, 7, 1]) for i in range(200)])
    split = split_by_hash(digests)
    assert split.same(split_by_hash(list(digests)))
    assert split.calibration.size + split.selection.size + split.verdict.size == 200


def test_the_cap_keeps_the_same_examples_in_any_order_and_moves_none():
    keys = _keys(400)
    free, capped = split_by_hash(keys), split_by_hash(keys, calibration_cap=30)
    assert capped.calibration.size == 30
    assert np.array_equal(capped.verdict, free.verdict)
    assert np.array_equal(capped.selection, free.selection)
    assert set(capped.calibration) | set(capped.unused) == set(free.calibration)
    back = split_by_hash(keys[::-1], calibration_cap=30)
    assert _members(back, keys[::-1])["calibration"] == _members(capped, keys)["calibration"]


def test_parts_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        split_by_hash(_keys(100)).verdict[0] = 1


def test_an_empty_part_is_refused_with_the_number_that_is_needed():
    with pytest.raises(DataError, match=r"part is empty.*at least 36 distinct examples.*split-empty-part"):
        split_by_hash(_keys(2))
    # The named number leaves a part of a fifth empty with probability 0.8^36 = 0.0003.
    assert all(split_by_hash(_keys(36, seed), seed=seed).calibration.size for seed in range(200))


def test_copies_do_not_fill_a_part():
    with pytest.raises(DataError, match="1 distinct examples are too few"):
        split_by_hash(np.zeros(1000, np.uint64))


def test_overlap_names_the_examples_that_the_evaluation_data_hold():
    keys, evaluation = _keys(50), _keys(20, seed=9)
    evaluation[[3, 4]] = keys[[11, 40]]
    assert find_overlap(keys, evaluation).tolist() == [11, 40]
    assert find_overlap(keys, _keys(20, seed=9)).tolist() == []


@pytest.mark.parametrize(
    ("keys", "options", "error", "slug"),
    [
        (np.ones(5), {}, DataError, "split-keys"),
        (np.ones((5, 2), np.uint64), {}, DataError, "split-keys"),
        (np.arange(50, dtype=np.uint64), {"groups": [1, 2]}, DataError, "split-keys"),
        (np.array([None] * 5, object), {}, DataError, "split-keys"),
        (np.arange(50, dtype=np.uint64), {"fractions": {"verdict": 1.0}}, UsageError, "split-fractions"),
        (
            np.arange(50, dtype=np.uint64),
            {"fractions": {"calibration": 0.5, "selection": 0.5, "verdict": 0.5}},
            UsageError,
            "split-fractions",
        ),
        (np.arange(50, dtype=np.uint64), {"calibration_cap": 0}, UsageError, "split-fractions"),
    ],
)
def test_bad_splits_are_refused_with_their_slug(keys, options, error, slug):
    with pytest.raises(error) as caught:
        split_by_hash(keys, **options)
    assert caught.value.slug == slug


def test_importing_evidence_loads_no_scipy():
    code = "import sys, fewbits.evidence; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
