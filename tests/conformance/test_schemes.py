"""Every entry of the catalog of named schemes, ours and third parties', is judged here by being in it."""

import numpy as np
import pytest

import fewbits
from fewbits.numerics.conformance import SCHEME_CHECKS
from fewbits.numerics.schemes import SCHEMES

each_scheme = pytest.mark.parametrize("name", list(SCHEMES))


@each_scheme
def test_a_scheme_bears_the_name_under_which_it_is_found(name):
    assert SCHEMES[name].name == name
    assert SCHEMES.of_array(name) == SCHEMES[name].weight


@each_scheme
@pytest.mark.parametrize("check", SCHEME_CHECKS, ids=lambda check: check.__name__)
def test_a_scheme_keeps_the_law(name, check):
    check(SCHEMES[name])


@each_scheme
def test_bits_per_weight_are_those_of_the_arrays(name):
    # Counted again from the arrays themselves: codes, and recursively scales and offsets, at their formats' widths.
    q = fewbits.quantize_array(np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32), name)

    def bits(t):
        scheme, total = t.scheme, np.asarray(t.codes).size * t.scheme.format.stored_bits
        if not scheme.scaled:
            return total
        for part, how in ((t.scale, scheme.scale), (t.offset, scheme.minimum)):
            if part is None:
                continue
            total += bits(part) if hasattr(part, "codes") else np.asarray(part).size * getattr(how, "stored_bits", 32)
        if not scheme.symmetric and scheme.minimum is None:
            total += np.asarray(t.zero_point).size * (scheme.zero_point or scheme.format).stored_bits
        return total

    assert q.bits_per_weight == bits(q) / (64 * 512)
