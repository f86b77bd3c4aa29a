"""Data that do not fit the model are refused with what was expected, what was got, and the next step."""

from __future__ import annotations

import numpy as np
import pytest

from fewbits._base.errors import DataError, Exit
from fewbits.datasets import open_dataset
from fewbits.datasets.base import Batch, all_indices
from fewbits.datasets.checks import check_against_model, check_values

F32 = np.dtype(np.float32)
IMAGE = {"image": (F32, (None, 3, 8, 6))}


def refused(arrays, specs) -> str:
    with pytest.raises(DataError) as error:
        check_against_model(open_dataset(arrays), specs)
    assert error.value.exit_code == Exit.INPUT
    return str(error.value)


def test_data_that_fit_pass_whatever_the_batch_and_the_dynamic_axes():
    data = open_dataset({"image": np.zeros((5, 3, 8, 6), np.float32), "labels": np.zeros(5)})
    check_against_model(data, IMAGE)
    check_against_model(data, {"image": (F32, (1, 3, 8, 6))})
    check_against_model(data, {"image": (F32, (None, 3, None, None))})


@pytest.mark.parametrize(
    ("arrays", "specs", "words"),
    [
        ({"imgae": np.zeros((2, 3, 8, 6), "f4")}, IMAGE, ["'image'", "did you mean 'imgae'?", "[data-input-missing]"]),
        (
            {"image": np.zeros((2, 3, 8, 6), "f4"), "y": np.zeros(2)},
            IMAGE,
            ["'y' that is no input", "--labels-key", "[data-input-unknown]"],
        ),
        (
            {"image": np.zeros((2, 3, 8, 6))},
            IMAGE,
            ["expected float32, got float64", ".astype('float32')", "[data-dtype]"],
        ),
        ({"image": np.zeros((2, 3, 8, 6), "u1")}, IMAGE, ["expected float32, got uint8", "scale it as in training"]),
        (
            {"image": np.zeros((2, 3), "f4")},
            {"image": (np.dtype("int64"), (None, 3))},
            ["expected int64, got float32", "round"],
        ),
        ({"image": np.zeros((2, 8, 6, 3), "f4")}, IMAGE, ["[3, 8, 6], got [8, 6, 3]", "(0, 3, 1, 2)", "[data-shape]"]),
        (
            {"image": np.zeros((2, 3, 8, 6), "f4")},
            {"image": (F32, (None, 8, 6, 3))},
            ["NHWC", "(0, 2, 3, 1)", "[data-shape]"],
        ),
        ({"image": np.zeros((2, 8, 6), "f4")}, {"image": (F32, (None, 1, 8, 6))}, ["axis of size 1 is missing"]),
        ({"image": np.zeros((2, 1, 3, 8, 6), "f4")}, IMAGE, ["one axis too many"]),
        ({"image": np.zeros((2, 3, 8, 7), "f4")}, {"image": (F32, (1, 3, 8, None))}, []),
        ({"image": np.zeros((2, 3, 9, 6), "f4")}, {"image": (F32, (1, 3, 8, None))}, ["[3, 8, ?], got [3, 9, 6]"]),
        ({"image": np.zeros((2, 3), "f4")}, {"image": (F32, ())}, ["no axis of examples"]),
        ({"image": np.zeros((0, 3, 8, 6), "f4")}, IMAGE, ["no examples", "[data-empty]"]),
    ],
)
def test_names_dtypes_and_shapes(arrays, specs, words):
    if not words:
        check_against_model(open_dataset(arrays), specs)
        return
    message = refused(arrays, specs)
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named_with_its_example_and_place(value):
    x = np.zeros((10, 2, 3), np.float32)
    x[7, 1, 2] = value
    x[7, 1, 0] = value
    x[9, 0, 0] = value
    batches = list(open_dataset({"x": x}).batches(np.array([2, 7, 9]), 2))
    with pytest.raises(DataError) as error:
        check_values(batches[0])
    assert error.value.slug == "data-nonfinite"
    assert f"'x' holds {value} in example 7 at [1, 0] (2 such values in that example)" in str(error.value)
    with pytest.raises(DataError, match=r"example 9 at \[0, 0\] \(1 such value in"):
        check_values(batches[1])


def test_labels_that_are_not_finite_are_named():
    data = open_dataset({"x": np.zeros((3, 1), np.float32), "labels": np.array([0, np.nan, 1])})
    with pytest.raises(DataError, match="'labels' holds nan in example 1 "):
        check_values(next(data.batches(all_indices(3), 3)))


def test_finite_values_and_integers_pass():
    batch = Batch(
        inputs={"x": np.full((2, 3), np.finfo(np.float32).max), "n": np.zeros((2, 1), np.int64)},
        labels=None,
        index=np.arange(2),
    )
    check_values(batch)
