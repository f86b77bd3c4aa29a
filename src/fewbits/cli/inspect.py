"""``fewbits inspect``: what is in a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import click

from fewbits.cli._common import MODEL, human_bytes, human_count, output_options, say, say_json, table


@click.command("inspect")
@click.argument("model", type=MODEL)
@click.option("--target", default="ort-cpu", show_default=True, help="NAME[:INSTRUCTION_SET].")
@click.option("--all", "every", is_flag=True, help="List every node.")
@output_options
def command(model: str, target: str, every: bool, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Show what is in MODEL: sizes, operators, and what a target could do with each node."""
    from fewbits.api import inspect

    found = inspect(model, target=target)
    if as_json:
        say_json({"schema_version": 1, **asdict(found), "states": found.states})
        return 0
    share = 100 * found.integer_macs / found.macs if found.macs else 0.0
    say(
        f"{found.name}: opset {found.opset}, {human_count(found.parameters)} parameters, "
        f"{human_bytes(found.file_bytes)}"
    )
    for name, dtype, shape in found.inputs:
        say(f"  input   {name}: {dtype} [{', '.join('?' if d is None else str(d) for d in shape)}]")
    say(f"  outputs {', '.join(found.outputs)}")
    say(f"  {human_count(found.macs)} multiply-accumulates an example")
    if found.passes:
        say(f"  opened with: {', '.join(found.passes)}")
    say("")
    states = ", ".join(f"{count} {state}" for state, count in found.states.items())
    say(f"{found.target}: {states}; {share:.1f} % of the multiply-accumulates in integers")
    say(
        f"  {human_bytes(found.quantizable_bytes)} of weights would take "
        f"{human_bytes(found.quantizable_bytes / 4)} in 8 bits"
    )
    say("")
    if every:
        rows = [(n.node, n.op, n.state, human_count(n.macs) if n.macs else "", n.why) for n in found.nodes]
        say(table(rows, head=("node", "op", "state", "MACs", "why")))
        return 0
    kinds = Counter((n.op, n.state, n.rule, n.why if n.state == "float" else "") for n in found.nodes)
    few = [(str(count), op, state, why or rule) for (op, state, rule, why), count in kinds.most_common()]
    say(table(few, head=("nodes", "op", "state", "why not integer")))
    return 0
