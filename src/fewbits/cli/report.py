"""``fewbits report``: rebuild the page."""

from __future__ import annotations

import click

from fewbits.cli._common import output_options, say, say_json


@click.command("report")
@click.argument("out", metavar="OUT", type=click.Path())
@output_options
def command(out: str, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Rebuild report.html and the model card of OUT from its report.json, without opening a model."""
    from fewbits.api import report

    page = report(out)
    if as_json:
        say_json({"schema_version": 1, "report": str(page)})
    else:
        say(f"report: {page}")
    return 0
