"""The catalog of range rules: how much of a tensor's range the codes shall cover."""

from __future__ import annotations

from fewbits._base.catalog import Catalog
from fewbits._base.errors import UsageError
from fewbits.algorithms.ranges.base import RangeRule

RANGE_RULES: Catalog[RangeRule] = Catalog(__name__, "ALGORITHM", kind="range rule")


def parse_range_rule(text: str) -> tuple[RangeRule, float | None]:
    """Returns the rule and its parameter: ``mse``, or ``percentile:99.99``.

    Raises: UsageError(slug="range-rule") for a parameter that is no number or that the rule does not take.
    """
    name, _, parameter = text.partition(":")
    rule = RANGE_RULES[name]
    if not parameter:
        return rule, rule.default
    try:
        number = float(parameter)
    except ValueError:
        number = float("nan")
    if rule.default is None or not rule.accepts(number):
        raise UsageError(f"range rule {name!r} does not take the parameter {parameter!r}", slug="range-rule")
    return rule, number
