"""What an undecided verdict asks for is more than there is."""

from __future__ import annotations

import pytest

from fewbits.evidence import decide, trinomial_bound


@pytest.mark.parametrize(("harmful", "helpful"), [(0, 0), (1, 0), (2, 2), (3, 1)])
def test_more_examples_are_asked_for_than_there_were(harmful: int, helpful: int) -> None:
    bound = trinomial_bound(harmful, helpful, 400)
    # Just outside: at the observed rates, half the repetitions with as many examples would have come out inside.
    verdict = decide(bound, bound.bound - 1e-9, power=0.01)
    assert verdict.status == "undecided"
    assert verdict.examples_needed is not None and verdict.examples_needed > 400
