"""Every entry of the catalog of formats, ours and third parties', is judged here by being in it."""

import numpy as np
import pytest

from fewbits.numerics.conformance import FORMAT_CHECKS, check_format
from fewbits.numerics.formats import FORMATS

each_format = pytest.mark.parametrize("name", list(FORMATS))


@each_format
def test_a_format_bears_the_name_under_which_it_is_found(name):
    assert FORMATS[name].name == name


@each_format
@pytest.mark.parametrize("check", FORMAT_CHECKS, ids=lambda check: check.__name__)
def test_a_format_keeps_the_law(name, check):
    check(FORMATS[name])


@each_format
def test_codes_and_values_are_the_same_on_array_api_strict(name):
    import array_api_strict as strict

    fmt = FORMATS[name]
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(500) * min(fmt.max_value, 1e30) / 3).astype(np.float32)
    ours, theirs = fmt.encode(values), fmt.encode(strict.asarray(values))
    assert np.array_equal(ours, np.asarray(theirs))
    assert np.array_equal(fmt.decode(ours), np.asarray(fmt.decode(theirs)))


# --- the battery itself can fail ------------------------------------------------------------------------------------


class Wrong:
    """A format with one thing broken: whatever is given as a keyword stands in for the true one."""

    def __init__(self, **broken):
        self.__dict__.update(broken)

    def __getattr__(self, name):
        return getattr(FORMATS["fp8_e4m3"], name)


TRUE = FORMATS["fp8_e4m3"]
BROKEN = {
    "wraps": {"encode": lambda v, seed=None: TRUE.encode(np.where(np.abs(v) > 448, -v, v), seed=seed)},
    "ties up": {"encode": lambda v, seed=None: TRUE.encode(np.nextafter(v, np.float32(np.inf)), seed=seed)},
    "truncates": {"encode": lambda v, seed=None: TRUE.encode(np.asarray(v * np.float32(0.99)), seed=seed)},
    "loses NaN": {"encode": lambda v, seed=None: TRUE.encode(np.nan_to_num(v), seed=seed)},
    "another end": {"max_value": 480.0},
    "no source": {"source": ""},
    "a code twice": {"codes": lambda: np.zeros(256, np.uint8)},
}


@pytest.mark.parametrize("kind", BROKEN)
def test_the_battery_sees_a_broken_format(kind):
    with pytest.raises(AssertionError):
        check_format(Wrong(**BROKEN[kind]))
