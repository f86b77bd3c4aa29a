import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits._base.errors import UsageError
from fewbits.planning.budget import parse_confidence, parse_max_drop


@given(st.floats(0, 100))
def test_percentages_read_as_hundredths(percent):
    assert parse_max_drop(f"{percent!r}%") == percent / 100


@given(st.floats(0, 0.2, exclude_max=True))
def test_fractions_below_a_fifth_read_as_they_are(fraction):
    assert parse_max_drop(fraction) == parse_max_drop(repr(fraction)) == fraction


@pytest.mark.parametrize(
    "text",
    ["", "%", "1%%", "one", "1", "0.2", "5", "-1%", "-0.01", "101%", "nan", "nan%", "inf%", "1e400%", "1 2%", "1_0%",
     True],
)  # fmt: skip
def test_what_is_no_loss_that_can_be_meant_is_refused(text):
    with pytest.raises(UsageError) as caught:
        parse_max_drop(text)
    assert caught.value.slug == "max-drop"
    assert "\n" not in str(caught.value)


@given(st.floats(50, 100, exclude_min=True, exclude_max=True).filter(lambda p: 0.5 < p / 100 < 1))
def test_a_confidence_reads_in_percent_or_as_a_fraction(percent):
    assert parse_confidence(f"{percent!r}%") == parse_confidence(percent / 100) == percent / 100


@pytest.mark.parametrize("text", ["", "%", "95", "0.5", "50%", "100%", "1", "nan", "inf", "95%%", "-0.9", True])
def test_what_is_no_confidence_is_refused(text):
    with pytest.raises(UsageError) as caught:
        parse_confidence(text)
    assert caught.value.slug == "confidence"
