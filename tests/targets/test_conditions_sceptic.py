"""Conditions whose breach would give a file that runs and is wrong, or slow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fewbits.planning.site import Role
from fewbits.targets import integer_nodes, resolve_target


def _gemm(net: Any, bias: tuple[int, ...]) -> Any:
    n = net()
    x = n.input((8, 4))
    n.output(n.op("Gemm", x, n.weight(6, 4), n.const(np.arange(1, 1 + np.prod(bias)).reshape(bias)), transB=1))
    return n


def test_a_bias_that_differs_by_row_keeps_its_gemm_float(net: Any, bench: Any) -> None:
    case = bench.run(_gemm(net, (8, 1)), count=8)
    assert case.placement.integer == ()
    assert case.slugs["Gemm"] == "bias-not-constant"


@pytest.mark.parametrize("shape", [(1,), (1, 6), (6,)], ids=str)
def test_a_bias_that_broadcasts_is_added_to_every_channel(net: Any, bench: Any, shape: tuple[int, ...]) -> None:
    case = bench.run(_gemm(net, shape), count=8)
    assert len(case.placement.integer) == 1
    # 8-bit weights and inputs: 40 dB and more; a bias of 1 to 6 in the wrong place costs nearly all of it.
    assert min(case.sqnr.values()) > 35


def test_a_gemm_that_transposes_its_input_stays_float(net: Any, bench: Any) -> None:
    n = net()
    x = n.input((4, 4))
    n.output(n.op("Gemm", x, n.weight(6, 4), transA=1, transB=1, name="turned"))
    case = bench.run(n, count=4)
    assert case.placement.integer == ()
    assert case.slugs["Gemm"] == "gemm-factors"


def test_a_plan_may_not_quantize_behind_a_clip_that_is_not_the_only_reader(net: Any, bench: Any, flow: Any) -> None:
    """The clip cannot vanish: another node reads what is before it, so the convolution has no quantized output."""
    n = net()
    x = n.input(("N", 4, 6, 6))
    c = n.op("Conv", x, n.weight(4, 4, 3, 3), name="conv", pads=[1] * 4)
    r = n.relu(c)
    n.output(n.op("Tanh", c), n.conv(r, 4, 4))
    model = bench.open(n)
    target = resolve_target("ort-cpu:vnni")
    plan = flow.draft_plan(model, target)
    sites = {d.site for d in plan.quantized}
    assert c in sites, "the convolution's own output is what is quantized"
    assert "conv" in integer_nodes(model.view, target, sites)
    without = (sites - {c}) | {r}
    assert "conv" not in integer_nodes(model.view, target, without)
    assert all(d.role is Role.ACTIVATION for d in plan.quantized if d.site in (c, r))
