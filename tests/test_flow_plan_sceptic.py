"""A plan that the target would run slowly, wrongly or not at all is refused, whichever word of a scheme is at fault."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fewbits._base.errors import TargetError
from fewbits.numerics.granularity import Granularity, PerChannel, PerTensor
from fewbits.planning.plan import Plan
from fewbits.planning.site import Role
from fewbits.targets import resolve_target


@pytest.mark.parametrize(
    ("role", "granularity", "symmetric", "legal"),
    [
        (Role.WEIGHT, PerChannel(0), True, True),
        (Role.WEIGHT, PerTensor(), True, True),
        (Role.WEIGHT, PerChannel(1), True, False),  # the input channels
        (Role.WEIGHT, PerChannel(0), False, False),
        (Role.ACTIVATION, PerTensor(), False, True),
        (Role.ACTIVATION, PerTensor(), True, False),
        (Role.ACTIVATION, PerChannel(1), False, False),
        (Role.BIAS, PerChannel(0), True, True),
        (Role.BIAS, PerChannel(0), False, False),
    ],
)
def test_each_word_of_a_scheme_is_checked(
    net: Any, bench: Any, flow: Any, role: Role, granularity: Granularity, symmetric: bool, legal: bool
) -> None:
    n = net()
    n.output(n.relu(n.conv(n.input(("N", 4, 6, 6)), 4, 4)))
    model, target = bench.open(n), resolve_target("ort-cpu:vnni")
    plan: Plan = flow.draft_plan(model, target)
    changed = []
    for decision in plan.decisions:
        scheme = decision.scheme
        assert scheme is not None
        if decision.role is role:
            scheme = replace(scheme, granularity=granularity, symmetric=symmetric)
        changed.append(replace(decision, scheme=scheme))
    edited = replace(plan, decisions=tuple(changed))
    if legal:
        assert flow.check_plan(model, target, edited)
        return
    with pytest.raises(TargetError, match="format-not-legal") as refused:
        flow.check_plan(model, target, edited)
    assert role.value in str(refused.value)
