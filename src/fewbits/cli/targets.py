"""``fewbits targets``: what the targets accept."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import click

from fewbits.cli._common import output_options, say, say_json, table

if TYPE_CHECKING:
    from fewbits.targets.base import Target

# Characters of a line.
_PAGE = 100
# What a kind of rule means for a stranger.
_IN_INTEGERS = {
    "weighted": "yes",
    "light": "between integers",
    "paired": "where a search says so",
    "clips": "at no cost",
    "fused": "no, at no cost",
    "moves": "between integers",
    "moves-codes": "between integers",
    "float": "no",
}
# The same in a sentence, for one operator.
_MEANING = {
    "weighted": "has a fixed weight: runs in integers for its own sake",
    "light": "runs in integers between integer operators, for an unbroken chain; else float",
    "clips": "costs nothing right behind an integer operator, whose saturation does it; else float",
    "fused": "float, without a kernel of its own: part of the integer operator before it, or of the Q behind it",
    "moves": "moves elements: passes 8-bit codes on between integer operators, else float",
    "moves-codes": "moves elements: written into the file on the codes themselves between integer operators",
    "float": "stays float",
}


@click.command("targets")
@click.argument("name", required=False)
@click.option("--op", "op", metavar="OPERATOR", help="The rule of one operator, with its conditions: Conv.")
@output_options
def command(name: str | None, op: str | None, as_json: bool, quiet: bool, verbose: bool) -> int:
    """List the targets, or show the rules of one (NAME[:INSTRUCTION_SET])."""
    from fewbits.targets import resolve_target

    if op is not None:
        return _show_operator(resolve_target(name or "ort-cpu"), op, as_json)
    if name is None:
        return _show_targets(as_json)
    target = resolve_target(name)
    rows = []
    for known, rule in (*target.rules.items(), *target.paired.items()):
        conditions = "; ".join(c.text for c in rule.conditions if c.slug != "not-float32")
        rows.append((known, rule.kind.value, rule.runs_as, conditions))
    rows += [(known, "float", "", why) for known, why in target.float_reasons.items()]
    if as_json:
        keys = ("op", "kind", "runs_as", "note")
        rules = [dict(zip(keys, row, strict=True)) for row in rows]
        say_json({"schema_version": 1, "target": target.full_name, "rules": rules, "sources": list(target.sources)})
        return 0
    say(f"{target.full_name}: {target.summary}")
    say(f"{target.variant.activation.name} activations, {target.variant.weight.name} weights; {target.variant.note}")
    say("")
    kernels = ("weighted", "light", "paired")  # the others compute nothing of their own
    shown = [(o, _IN_INTEGERS[kind], runs_as if kind in kernels else "", note) for o, kind, runs_as, note in rows]
    say(table(shown, head=("operator", "in integers", "runs as", "if (or why not)")))
    return 0


def _show_targets(as_json: bool) -> int:
    from fewbits.targets import TARGETS, resolve_target

    found = [(target, TARGETS[target]) for target in TARGETS]
    if as_json:
        say_json(
            {
                "schema_version": 1,
                "targets": {n: {"summary": t.summary, "variants": list(t.variants)} for n, t in found},
            }
        )
        return 0
    here = {n: resolve_target(n).isa for n, _ in found}
    for n, target in found:
        say(f"{n}: {target.summary}")
        for isa, variant in target.variants.items():
            mark = "  (this machine)" if isa == here[n] else ""
            say(f"  {n}:{isa}  {variant.activation.name} activations, {variant.weight.name} weights{mark}")
            say(f"      {variant.note}")
    say("")
    say("'fewbits targets NAME' shows its rules, with --op OPERATOR the rule of one operator")
    return 0


def _show_operator(target: Target, op: str, as_json: bool) -> int:
    from fewbits._base.catalog import nearest
    from fewbits._base.errors import UnknownNameError

    rule, why = target.rules.get(op), target.float_reasons.get(op, "")
    if rule is None and not why:
        known = sorted({*target.rules, *target.float_reasons})
        by_lower = {name.lower(): name for name in known}
        hint = f"did you mean {by_lower[op.lower()]!r}?" if op.lower() in by_lower else nearest(op, known)
        raise UnknownNameError(f"{target.name} has no rule for {op!r}, so it stays float; {hint}", slug="unknown-name")
    kind = "float" if rule is None else rule.kind.value
    conditions = [] if rule is None else [(c.slug, c.text) for c in rule.conditions]
    if as_json:
        say_json(
            {
                "schema_version": 1,
                "target": target.full_name,
                "op": op,
                "kind": kind,
                "meaning": _MEANING[kind],
                "runs_as": None if rule is None else rule.runs_as,
                "output": None if rule is None else rule.output.value,
                "why_float": why or None,
                "conditions": [{"rule": slug, "text": text} for slug, text in conditions],
                "sources": list(target.sources),
            }
        )
        return 0
    variant = target.variant
    say(f"{op} on {target.full_name}")
    say(f"  kind    {_MEANING[kind]}")
    if rule is None:
        say(textwrap.wrap(f"  why     {why}", _PAGE, subsequent_indent=" " * 10))
    else:
        say(f"  runs as {rule.runs_as}")
        if kind in ("weighted", "light"):
            weights = f", {variant.weight.name} weights with a scale a channel" if kind == "weighted" else ""
            say(f"  numbers {variant.activation.name} activations{weights}")
            end = "must be quantized" if rule.output.value == "required" else "may be quantized, or float"
            say(f"  output  {end}")
    if conditions:
        say("")
        say(table(conditions, head=("rule", "in integers only if")))
    say("")
    for source in target.sources:
        say(f"source: {source}")
    return 0
