"""``fewbits targets``: what the targets accept."""

from __future__ import annotations

import click

from fewbits.cli._common import output_options, say, say_json, table

# What a kind of rule means for a stranger.
_IN_INTEGERS = {
    "weighted": "yes",
    "light": "between integers",
    "clips": "at no cost",
    "moves": "between integers",
    "moves-codes": "between integers",
    "float": "no",
}


@click.command("targets")
@click.argument("name", required=False)
@output_options
def command(name: str | None, as_json: bool, quiet: bool, verbose: bool) -> int:
    """List the targets, or show the rules of one (NAME[:INSTRUCTION_SET])."""
    from fewbits.targets import TARGETS, resolve_target

    if name is None:
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
        say("'fewbits targets NAME' shows its rules")
        return 0
    target = resolve_target(name)
    rows = []
    for op, rule in target.rules.items():
        conditions = "; ".join(c.text for c in rule.conditions if c.slug != "not-float32")
        rows.append((op, rule.kind.value, rule.runs_as, conditions))
    rows += [(op, "float", "", why) for op, why in target.float_reasons.items()]
    if as_json:
        keys = ("op", "kind", "runs_as", "note")
        rules = [dict(zip(keys, row, strict=True)) for row in rows]
        say_json({"schema_version": 1, "target": target.full_name, "rules": rules})
        return 0
    say(f"{target.full_name}: {target.summary}")
    say(f"{target.variant.activation.name} activations, {target.variant.weight.name} weights; {target.variant.note}")
    say("")
    kernels = ("weighted", "light")  # the others compute nothing of their own
    shown = [(op, _IN_INTEGERS[kind], runs_as if kind in kernels else "", note) for op, kind, runs_as, note in rows]
    say(table(shown, head=("operator", "in integers", "runs as", "if (or why not)")))
    return 0
