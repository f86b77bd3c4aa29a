"""``fewbits inspect``: what is in a model, and what a target would do with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from fewbits.cli._common import MODEL, human_bytes, human_count, output_options, parse_size, say, say_json, table

if TYPE_CHECKING:
    from fewbits.search.inspection import Inspection, NodeInspection

# Rows of a table, and names in a line, before the rest is only counted; --all shows every one.
_MOST_ROWS = 10
_MOST_NAMES = 3
# Characters: of a line, and in front of what stands behind the words at its left.
_PAGE, _INDENT = 100, 10
_CARRIED = {
    "absorbed": "nothing: the rounding of the node before it does it",
    "moves codes": "itself, on 8-bit numbers",
}


@click.command("inspect")
@click.argument("model", type=MODEL)
@click.option("--target", metavar="NAME[:ISA]", default="ort-cpu", show_default=True, help="'fewbits targets' lists.")
@click.option("--scheme", metavar="NAME", help="As 'fewbits quantize' would be asked: w8a16, w4a16-g32. Default: w8a8.")
@click.option("--all", "every", is_flag=True, help="List every node.")
@click.option("--node", metavar="NAME", help="All that the target says of one node.")
@click.option("--max-memory", metavar="4GB", help="Memory that one run of the model may take. Default: by its size.")
@output_options
def command(
    model: str,
    target: str,
    scheme: str | None,
    every: bool,
    node: str | None,
    max_memory: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Show what is in MODEL: sizes, operators, and what a target could do with each node."""
    if node is not None:
        if every:
            raise click.UsageError("--all and --node exclude each other; give one of them")
        if scheme is not None:
            raise click.UsageError("--node shows the rules of w8a8; leave --scheme out, or see --scheme with --all")
        return _show_node(model, node, target, as_json)
    from fewbits.api import inspect

    found = inspect(model, target=target, scheme=scheme, max_memory=parse_size(max_memory))
    if as_json:
        say_json({"schema_version": 1, **asdict(found), "states": found.states})
        return 0
    say(_head(found))
    say(_prospects(found))
    if every:
        say("")
        rows = [(n.node, n.op, n.state, human_count(n.macs) if n.macs else "", n.why) for n in found.nodes]
        say(table(rows, head=("node", "op", "state", "MACs", "why")))
        return 0
    say(_integers(found))
    say(_floats(found))
    return 0


def _head(found: Inspection) -> list[str]:
    size = human_bytes(found.file_bytes)
    lines = [f"{found.name}: opset {found.opset}, {human_count(found.parameters)} parameters, {size}"]
    for name, dtype, shape in found.inputs:
        sizes = ", ".join("?" if d is None else str(d) for d in shape)
        lines.append(f"  input   {name}: {dtype} [{sizes}] ({found.axes[name]})")
    lines.append(f"  output  {_some(found.outputs)}")
    lines.append(f"  work    {human_count(found.macs)} multiply-accumulates an example")
    if found.passes:
        lines.append(f"  changed {', '.join(found.passes)}: the same function, easier to quantize")
    lines += [f"  {what.ljust(7)} {text}" for what, text in _specials(found)]
    return [*(part for line in lines for part in _wrapped(line)), ""]


def _wrapped(line: str) -> list[str]:
    """Returns a line cut to the width of a page; a name longer than that stays whole."""
    import textwrap

    return textwrap.wrap(
        line, _PAGE, subsequent_indent=" " * _INDENT, break_long_words=False, break_on_hyphens=False
    ) or [line]


def _specials(found: Inspection) -> Iterator[tuple[str, str]]:
    """Yields what only some models have."""
    if found.data_files:
        yield "files", _some(f"{name} ({human_bytes(size)})" for name, size in found.data_files.items())
    for domain, ops in found.custom_operators.items():
        yield "domain", f"{domain}: {_counted(ops)}; unknown to the target, stay as they are"
    if found.inner_weights:
        where = dict.fromkeys(f"{w.op} {w.node!r}" for w in found.inner_weights)
        total = human_bytes(sum(w.bytes for w in found.inner_weights))
        yield (
            "inside",
            f"{len(found.inner_weights)} weights, {total}, inside {_some(where)}: stay as they are, work not counted",
        )
    if found.shared_weights:
        first = found.shared_weights[0]
        more = f", and {len(found.shared_weights) - 1} more weights" if len(found.shared_weights) > 1 else ""
        size = human_bytes(first.bytes)
        yield "shared", f"{first.tensor} ({size}) is read by {_some(first.readers)}{more}"


def _prospects(found: Inspection) -> list[str]:
    codes = "8 bits" if 4 * found.codes_bytes == found.quantizable_bytes else "codes"
    small = f"{human_bytes(found.codes_bytes)} in {codes}"
    rest = human_bytes(found.weight_bytes - found.quantizable_bytes)
    return [
        f"what {found.target} could do:",
        f"  work    {100 * found.integer_share:.1f}% of the multiply-accumulates in integers",
        f"  weights {human_bytes(found.quantizable_bytes)} -> {small}; the other {rest} keep their size",
        f"  nodes   {', '.join(f'{count} {state}' for state, count in found.states.items())}",
    ]


def _integers(found: Inspection) -> list[str]:
    kinds = Counter(
        (n.op, _CARRIED.get(n.state, n.why.removeprefix("runs as "))) for n in found.nodes if n.state != "float"
    )
    if not kinds:
        return []
    rows = [(str(count), op, runs_as) for (op, runs_as), count in kinds.most_common()]
    return ["", *_cut(rows, head=("nodes", "op", "runs as"))]


def _floats(found: Inspection) -> list[str]:
    if not found.kept_float:
        return []
    rows = [
        (
            str(sum(part.ops.values())),
            human_bytes(part.bytes) if part.bytes else "",
            f"{100 * part.macs / found.macs:.1f}%" if part.macs else "",
            f"{_counted(part.ops)}: {part.why}" if part.ops else part.why,
        )
        for part in found.kept_float
    ]
    return ["", "stays float:", *_cut(rows, head=("nodes", "weights", "work", "which, and why"))]


def _cut(rows: Sequence[tuple[str, ...]], *, head: tuple[str, ...]) -> list[str]:
    """Returns the first rows as a table, and how many more there are."""
    lines = table(rows[:_MOST_ROWS], head=head)
    left = len(rows) - _MOST_ROWS
    return lines if left <= 0 else [*lines, f"... and {left} more rows; --all lists every node"]


def _some(names: Iterator[str] | Sequence[str] | Mapping[str, object]) -> str:
    """Returns the first names, and how many more there are."""
    known = list(names)
    shown = ", ".join(known[:_MOST_NAMES])
    return shown if len(known) <= _MOST_NAMES else f"{shown} and {len(known) - _MOST_NAMES} more"


def _counted(ops: Mapping[str, int]) -> str:
    return _some([f"{count} {op}" for op, count in Counter(ops).most_common()])


def _show_node(model: str, node: str, target: str, as_json: bool) -> int:
    from fewbits.search.inspection import inspect_node

    found = inspect_node(model, node, target=target)
    if as_json:
        say_json({"schema_version": 1, **asdict(found)})
        return 0
    say([part for line in _of_node(found) for part in (_wrapped(line) if line else [""])])
    return 0


def _of_node(found: NodeInspection) -> list[str]:
    facts = found.facts
    lines = [f"{facts.node}: {facts.op}"]
    lines += [f"  reads   {text}" for text in found.reads]
    lines += [f"  writes  {text}" for text in found.writes]
    if facts.macs:
        lines.append(f"  work    {human_count(facts.macs)} multiply-accumulates an example")
    lines += ["", f"on {found.target}: {facts.state}"]
    lines.append(f"  why     {facts.why}" + (f" [{facts.rule}]" if facts.rule else ""))
    if found.kind:
        lines.append(f"  rule    {found.kind}; runs as {found.runs_as}")
    marks = {True: "yes", False: "NO", None: "not asked"}
    if found.conditions:
        lines += [
            "",
            *table([(marks[c.holds], c.rule, c.text) for c in found.conditions], head=("holds", "rule", "if")),
        ]
    return lines
