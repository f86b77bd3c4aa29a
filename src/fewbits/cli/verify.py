"""``fewbits verify``: does an output folder still hold what it says?"""

from __future__ import annotations

from dataclasses import asdict

import click

from fewbits.cli._common import output_options, progress_line, say, say_json


@click.command("verify")
@click.argument("out", metavar="OUT", type=click.Path())
@click.option("--model", metavar="FLOAT", help="The float model, to measure again.")
@click.option("--data", metavar="DATA", help="The --eval data of the run, or its --data, to measure again.")
@click.option("--labels-key", metavar="NAME", default="labels", show_default=True, help="As in the run.")
@click.option("--score-output", metavar="NAME", help="As in the run.")
@output_options
def command(
    out: str,
    model: str | None,
    data: str | None,
    labels_key: str,
    score_output: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Check every hash and the golden outputs of OUT; with FLOAT and DATA, measure its figure again."""
    from fewbits.api import verify

    with progress_line(quiet) as progress:
        found = verify(out, model=model, data=data, labels_key=labels_key, score_output=score_output, progress=progress)
    if as_json:
        say_json({"schema_version": 1, **asdict(found)})
        return 0
    say(f"{found.files} files are as they were written")
    if found.golden_equal is None:
        say("golden outputs were not kept: the run did not run the model")
    elif found.golden_equal:
        say("golden outputs equal to the bit")
    else:
        say("golden outputs equal but for rounding (another runtime or CPU than the one recorded)")
    if found.figure is not None:
        say(f"figure measured again: {found.figure:.4f}, as reported")
    return 0
