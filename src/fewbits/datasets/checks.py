"""Do these data fit this model? Names, dtypes, shapes, values: refused with what was expected and what was got."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewbits._base.catalog import nearest
from fewbits._base.errors import DataError
from fewbits.datasets.base import ArraySpec, Batch, Dataset

InputSpecs = Mapping[str, tuple[np.dtype[Any], tuple[int | None, ...]]]
"""Model input name -> (dtype, shape); the first axis is that of examples, None is a dynamic dimension."""


def check_against_model(dataset: Dataset, specs: InputSpecs) -> None:
    """Refuses data that the model cannot be fed with; looks at names, dtypes and shapes only, reads nothing.

    Args:
      dataset: The data.
      specs: What the model's inputs are. The first axis (examples) is not compared: it is the caller's batching.
        An input of rank 0 has no axis of examples and cannot be fed from a data set.
    Raises: DataError(slug="data-empty" | "data-input-missing" | "data-input-unknown" | "data-dtype" | "data-shape").
    """
    if dataset.count == 0:
        raise DataError(f"{dataset.source} holds no examples; expected at least one", slug="data-empty")
    missing = [name for name in specs if name not in dataset.inputs]
    extra = [name for name in dataset.inputs if name not in specs]
    if missing:
        hint = f"; {nearest(missing[0], extra)}" if extra else ""
        raise DataError(
            f"{dataset.source} has no array {missing[0]!r} for that input of the model; it has"
            f" {_listed(list(dataset.inputs))}{hint}",
            slug="data-input-missing",
        )
    if extra:
        raise DataError(
            f"{dataset.source} has an array {extra[0]!r} that is no input of the model ({_listed(list(specs))});"
            " remove it, or name the labels with --labels-key",
            slug="data-input-unknown",
        )
    for name, (dtype, shape) in specs.items():
        _check_dtype(name, dtype, dataset.inputs[name].dtype)
        _check_shape(name, shape, dataset.inputs[name])


def check_values(batch: Batch) -> None:
    """Refuses NaN and infinite values in inputs and labels.

    Raises: DataError(slug="data-nonfinite"), which names the input, the example and the first position in it.
    """
    arrays = dict(batch.inputs)
    if batch.labels is not None:
        arrays.setdefault("labels", batch.labels)
    for name, array in arrays.items():
        if array.dtype.kind != "f" or np.isfinite(array).all():
            continue
        first = tuple(int(place) for place in np.argwhere(~np.isfinite(array))[0])
        bad = int(np.count_nonzero(~np.isfinite(array[first[0]])))
        where = f" at {list(first[1:])}" if len(first) > 1 else ""
        raise DataError(
            f"{name!r} holds {array[first]} in example {int(batch.index[first[0]])}{where}"
            f" ({bad} such {'value' if bad == 1 else 'values'} in that example); remove or mend the example",
            slug="data-nonfinite",
        )


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def _check_dtype(name: str, expected: np.dtype[Any], got: np.dtype[Any]) -> None:
    if expected == got:
        return
    step = f"save it with .astype('{expected.name}')"
    if expected.kind == "f" and got.kind in "iub":
        step = f"scale it as in training, then {step}"
    elif expected.kind in "iub" and got.kind == "f":
        step = f"round or scale it as in training, then {step}"
    raise DataError(f"input {name!r}: expected {expected.name}, got {got.name}; {step}", slug="data-dtype")


def _check_shape(name: str, expected: tuple[int | None, ...], spec: ArraySpec) -> None:
    wanted, got = expected[1:], spec.shape
    if expected and _fits(wanted, got):
        return
    shown = ", ".join("?" if want is None else str(want) for want in wanted)
    if not expected:
        hint = "the model's input has no axis of examples, so no data set can feed it"
    elif len(wanted) == len(got) + 1 and _fits(wanted[1:], got):
        hint = f"an axis of size {wanted[0]} is missing: save x[:, None]"
    elif len(wanted) + 1 == len(got) and _fits(wanted, got[1:]):
        hint = "there is one axis too many; the first axis is that of examples"
    elif len(got) == 3 and _fits(wanted, (got[2], got[0], got[1])):
        hint = "it looks like NHWC and the model takes NCHW: save x.transpose(0, 3, 1, 2)"
    elif len(got) == 3 and _fits(wanted, (got[1], got[2], got[0])):
        hint = "it looks like NCHW and the model takes NHWC: save x.transpose(0, 2, 3, 1)"
    else:
        hint = "prepare the data as in training"
    raise DataError(f"input {name!r}: expected examples of shape [{shown}], got {list(got)}; {hint}", slug="data-shape")


def _fits(wanted: tuple[int | None, ...], got: tuple[int, ...]) -> bool:
    return len(wanted) == len(got) and all(want in (None, have) for want, have in zip(wanted, got, strict=True))


def first_axes_agree(source: str, lengths: Mapping[str, int]) -> int:
    """Returns the common length of all first axes.

    Raises: DataError(slug="data-first-axis"), which names the arrays that differ from the most frequent length.
    """
    if not lengths:
        raise DataError(f"{source} holds no arrays; expected one per model input", slug="data-empty")
    values = list(lengths.values())
    common = max(values, key=values.count)
    odd = {name: length for name, length in lengths.items() if length != common}
    if odd:
        listed = ", ".join(f"{name!r} has {length}" for name, length in odd.items())
        raise DataError(
            f"{source}: the first axis is that of examples; {listed} where the others have {common};"
            " save arrays of one length and leave the rest out",
            slug="data-first-axis",
        )
    return common


def check_groups(source: str, groups: NDArray[Any]) -> NDArray[Any]:
    """Returns groups, read-only: [count] integers or strings.

    Raises: DataError(slug="data-groups").
    """
    if groups.ndim != 1 or groups.dtype.kind not in "iubUS":
        raise DataError(
            f"{source}: 'groups' has dtype {groups.dtype} and shape {list(groups.shape)}; expected one integer or"
            " string per example",
            slug="data-groups",
        )
    groups.flags.writeable = False
    return groups
