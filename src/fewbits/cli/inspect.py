"""``fewbits inspect``: what is in a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import click

from fewbits.cli._common import MODEL, human_bytes, human_count, output_options, say, say_json, table

# The one reason for all nodes of a state.
_MEANING = {"absorbed": "done by the rounding of the node before it", "moves codes": "moves 8-bit numbers as they are"}


@click.command("inspect")
@click.argument("model", type=MODEL)
@click.option("--target", metavar="NAME[:ISA]", default="ort-cpu", show_default=True, help="'fewbits targets' lists.")
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
    say(f"  output  {', '.join(found.outputs)}")
    say(f"  work    {human_count(found.macs)} multiply-accumulates an example")
    if found.passes:
        say(f"  changed {', '.join(found.passes)}: the same function, easier to quantize")
    say("")
    say(f"what {found.target} could do:")
    say(f"  work    {share:.1f}% of the multiply-accumulates in integers")
    say(f"  weights {human_bytes(found.quantizable_bytes)} -> {human_bytes(found.quantizable_bytes / 4)} in 8 bits")
    say(f"  nodes   {', '.join(f'{count} {state}' for state, count in found.states.items())}")
    say("")
    if every:
        rows = [(n.node, n.op, n.state, human_count(n.macs) if n.macs else "", n.why) for n in found.nodes]
        say(table(rows, head=("node", "op", "state", "MACs", "why")))
        return 0
    kinds = Counter((n.op, n.state, _MEANING.get(n.state, n.why)) for n in found.nodes)
    few = [(str(count), op, state, why) for (op, state, why), count in kinds.most_common()]
    say(table(few, head=("nodes", "op", "state", "why")))
    return 0
