"""Splitting examples into calibration, selection and verdict by what they contain, never by where they stand."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbits._base.errors import DataError, UsageError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Indices = NDArray[np.int64]
    Words = NDArray[np.uint64]

PARTS = ("calibration", "selection", "verdict")

# The verdict's margin shrinks with the root of its examples, and below 598 of them not even 0.5 points can be met: it
# gets half. Selection compares candidates on the same examples (paired, so fewer do); calibration saturates early.
FRACTIONS: Mapping[str, float] = MappingProxyType({"calibration": 0.2, "selection": 0.3, "verdict": 0.5})

_EMPTY_CHANCE = 0.001  # of a part staying empty at the number of examples that the refusal names


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """Which example plays which part: ascending indices, read-only, no index and no content in two parts.

    ``unused``: over the calibration cap, outside the fractions' sum, or content that another part holds (groups only).
    ``duplicates``: examples whose content already stood at a smaller index; they follow it into its part, and a bound
    counts them as independent, so many of them call for ``groups``.
    """

    calibration: Indices
    selection: Indices
    verdict: Indices
    unused: Indices
    duplicates: int
    seed: int

    def same(self, other: Split) -> bool:
        """Returns whether both splits place the same indices in the same parts."""
        mine, theirs = self._arrays(), other._arrays()
        return all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))

    def _arrays(self) -> tuple[Indices, ...]:
        return self.calibration, self.selection, self.verdict, self.unused


def split_by_hash(
    keys: ArrayLike,
    *,
    fractions: Mapping[str, float] = FRACTIONS,
    seed: int = 0,
    groups: ArrayLike | None = None,
    calibration_cap: int | None = None,
) -> Split:
    """Returns the parts of each example, a function of its content (or its group) and the seed only.

    hash(content or group, seed) / 2^64 falls into one of the intervals that the fractions cut from [0, 1), calibration
    first. So order plays no part, equal contents share a part, and more data moves no example into another part.
    With groups, a group stays together; a content that occurs in groups of different parts is kept in the last of
    these (verdict over selection over calibration) and unused in the others. With a cap, the calibration examples of
    the smallest hashes are used, the rest of that part is unused: it never becomes verdict data.

    Args:
      keys: Content digest per example, [n], uint64 or bytes of one length.
      fractions: Share of each part, by the names of ``PARTS``, adding up to at most 1; 0 for a part that is not needed.
      groups: [n] labels (integers or strings); a group is never divided.
      calibration_cap: Most calibration examples, >= 1.
    Raises: DataError(slug="split-empty-part"), which names how many examples are needed; DataError(slug="split-keys");
      UsageError(slug="split-fractions").
    """
    shares = _check_fractions(fractions, calibration_cap)
    contents = _words(keys, "content keys")
    units = contents
    if groups is not None:
        units = _words(groups, "group labels")
        if units.size != contents.size:
            raise DataError(
                f"got {units.size} group labels for {contents.size} examples; expected one label per example",
                slug="split-keys",
            )
    hashes = _mix(units, seed)
    edges = np.cumsum(shares)
    # 53 bits are exact in a float; the boundary cases that rounding moves are moved for every data set alike.
    part = np.searchsorted(edges, (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53, side="right")
    if math.isclose(edges[-1], 1.0):
        part = np.minimum(part, len(PARTS) - 1)
    if groups is not None:
        part = _keep_last(contents, part)
    if calibration_cap is not None:
        candidates = np.flatnonzero(part == 0)
        order = np.lexsort((_mix(contents[candidates], seed), hashes[candidates]))
        part[candidates[order[calibration_cap:]]] = len(PARTS)
    _check_parts(part, units, shares, groups is not None)
    places = [np.flatnonzero(part == number).astype(np.int64) for number in range(len(PARTS) + 1)]
    for array in places:
        array.flags.writeable = False
    return Split(
        calibration=places[0],
        selection=places[1],
        verdict=places[2],
        unused=places[3],
        duplicates=int(contents.size - np.unique(contents).size),
        seed=seed,
    )


def find_overlap(keys: ArrayLike, evaluation_keys: ArrayLike) -> Indices:
    """Returns the indices of calibration or selection examples whose content also occurs in the evaluation data.

    They must be left out of choosing: a verdict on data that took part in choosing is no evidence.

    >>> find_overlap([3, 5, 7], [7, 8, 3]).tolist()
    [0, 2]

    Args:
      keys, evaluation_keys: Content digests made in the same way, [n] and [m].
    Raises: DataError(slug="split-keys").
    """
    shared = np.isin(_words(keys, "content keys"), _words(evaluation_keys, "content keys of the evaluation data"))
    return np.flatnonzero(shared).astype(np.int64)


def _check_fractions(fractions: Mapping[str, float], calibration_cap: int | None) -> NDArray[np.float64]:
    shares = np.array([float(fractions.get(name, 0.0)) for name in PARTS])
    if set(fractions) != set(PARTS) or not np.all(shares >= 0.0) or not 0.0 < shares.sum() <= 1.0 + 1e-9:
        raise UsageError(
            f"fractions {dict(fractions)!r} are not shares of {', '.join(PARTS)} that add up to at most 1",
            slug="split-fractions",
        )
    if calibration_cap is not None and calibration_cap < 1:
        raise UsageError(
            f"calibration_cap {calibration_cap} leaves nothing to calibrate on; use at least 1, or None",
            slug="split-fractions",
        )
    return shares


def _words(labels: ArrayLike, what: str) -> Words:
    """Returns one 64-bit word per label: unsigned integers as they are, all else by BLAKE2b of a tagged encoding."""
    array: NDArray[Any] = np.asarray(labels)
    if array.ndim != 1 or array.dtype.kind not in "uibSUO":
        raise DataError(
            f"{what} have shape {list(array.shape)} and type {array.dtype}; expected [n] integers, strings or bytes",
            slug="split-keys",
        )
    if array.dtype.kind in "uib":
        return array.astype(np.uint64)  # two's complement: distinct integers stay distinct
    known: dict[bytes | str | int, int] = {}
    words = np.empty(array.size, np.uint64)
    for place, label in enumerate(array.tolist()):
        if not isinstance(label, (bytes, str, int)):
            raise DataError(
                f"{what} hold a {type(label).__name__} at index {place}; expected integers, strings or bytes",
                slug="split-keys",
            )
        if label not in known:
            data = label if isinstance(label, bytes) else f"{type(label).__name__}:{label}".encode()
            known[label] = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        words[place] = known[label]
    return words


def _mix(words: Words, seed: int) -> Words:
    """Returns a hash of each word that depends on the seed; a bijection for every seed, so it adds no collision.

    Source: SplitMix64's finaliser, Steele, Lea and Flood, Fast splittable pseudorandom number generators (2014).
    """
    start = hashlib.blake2b(f"fewbits split {seed}".encode(), digest_size=8).digest()
    mixed = words + np.uint64(int.from_bytes(start, "little"))  # arrays wrap modulo 2^64
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def _keep_last(contents: Words, part: NDArray[np.intp]) -> NDArray[np.intp]:
    """Returns the parts with each content kept in the last of its parts only (the verdict's, where it occurs there)."""
    distinct, index = np.unique(contents, return_inverse=True)
    last = np.full(distinct.size, -1, np.intp)
    used = np.where(part < len(PARTS), part, -1)
    np.maximum.at(last, index.reshape(-1), used)
    return np.where(used == last[index.reshape(-1)], part, len(PARTS))


def _check_parts(part: NDArray[np.intp], units: Words, shares: NDArray[np.float64], grouped: bool) -> None:
    for number, name in enumerate(PARTS):
        if np.any(part == number) or shares[number] == 0.0:
            continue
        what = "groups" if grouped else "distinct examples"
        needed = math.ceil(math.log(_EMPTY_CHANCE / len(PARTS)) / math.log1p(-float(shares[shares > 0].min())))
        raise DataError(
            f"the {name} part is empty: {np.unique(units).size} {what} are too few to split into {', '.join(PARTS)}; "
            f"give at least {needed} {what}, or verdict data of their own",
            slug="split-empty-part",
        )
