import json

from hypothesis import given
from hypothesis import strategies as st

from fewbits.planning.record import Record

FACTS = st.builds(
    Record,
    metric=st.text(max_size=10),
    subject=st.sampled_from(["float", "quantized", "difference"]),
    value=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    unit=st.text(max_size=5),
    bound=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    n=st.none() | st.integers(0, 10**9),
    seed=st.none() | st.integers(0, 2**32),
    conditions=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)


@given(FACTS)
def test_a_record_is_one_line_of_json_and_reads_back_as_itself(record):
    line = record.to_json()
    assert "\n" not in line
    assert Record(**json.loads(line)) == record


def test_a_value_that_could_not_be_measured_is_null_and_nan_never_stands_in_json():
    # NaN is no JSON: other readers refuse the whole line.
    text = Record(metric="top-1", subject="float", value=float("nan"), unit="", bound=float("inf")).to_json()
    assert json.loads(text)["value"] is None
    assert json.loads(text)["bound"] is None
    assert "NaN" not in text
    assert "Infinity" not in text
