"""``fewbits targets``: the rule of one operator, with what it rests on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fewbits.targets import resolve_target


@pytest.mark.parametrize("op", ["Conv", "Add", "Clip", "MaxPool", "Pad", "LayerNormalization"])
def test_the_rule_of_one_operator_is_the_targets(cli: Callable[..., Any], op: str) -> None:
    target = resolve_target("ort-cpu:vnni")
    rule = target.rules.get(op)
    said = cli("targets", "ort-cpu:vnni", "--op", op, "--json").json
    assert (said["schema_version"], said["target"], said["op"]) == (1, "ort-cpu:vnni", op)
    assert said["sources"] == list(target.sources)
    if rule is None:
        assert (said["kind"], said["why_float"], said["conditions"]) == ("float", target.float_reasons[op], [])
    else:
        assert (said["kind"], said["runs_as"], said["why_float"]) == (rule.kind.value, rule.runs_as, None)
        assert [c["rule"] for c in said["conditions"]] == [c.slug for c in rule.conditions]


def test_every_operator_of_the_target_can_be_asked_for_on_a_page(cli: Callable[..., Any]) -> None:
    target = resolve_target("ort-cpu")
    for op in (*target.rules, *target.float_reasons):
        done = cli("targets", "ort-cpu", "--op", op)
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith(f"{op} on {target.full_name}\n")
        assert max(map(len, done.out.splitlines())) <= 100
        assert "source: " in done.out


def test_signed_activations_are_told_of_arm(cli: Callable[..., Any]) -> None:
    assert "int8 activations" in cli("targets", "ort-cpu:arm", "--op", "Conv").out
    assert "uint8 activations" in cli("targets", "ort-cpu:vnni", "--op", "Conv").out


@pytest.mark.parametrize(
    ("op", "words"),
    [
        ("conv", "did you mean 'Conv'?"),
        ("LayerNormalisation", "did you mean 'LayerNormalization'?"),
        ("QAttention", "stays float"),
    ],
)
def test_an_operator_without_a_rule_stays_float_and_the_nearest_is_named(
    cli: Callable[..., Any], op: str, words: str
) -> None:
    cli("targets", "ort-cpu", "--op", op).refused(2, f"no rule for {op!r}", words, "[unknown-name]")
