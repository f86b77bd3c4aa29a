"""``fewbits formats``: number formats."""

from __future__ import annotations

import click

from fewbits.cli._common import output_options, say, say_json, table


@click.command("formats")
@output_options
def command(as_json: bool, quiet: bool, verbose: bool) -> int:
    """List the number formats that this version knows."""
    from fewbits.numerics.formats import FORMATS

    found = [(f.name, f.stored_bits, f.min_value, f.max_value) for f in FORMATS.values()]
    if as_json:
        keys = ("name", "bits", "min", "max")
        say_json({"schema_version": 1, "formats": [dict(zip(keys, row, strict=True)) for row in found]})
        return 0
    rows = [(name, str(bits), f"{low:.10g}", f"{high:.10g}") for name, bits, low, high in found]
    say(table(rows, head=("format", "bits", "smallest", "largest")))
    return 0
