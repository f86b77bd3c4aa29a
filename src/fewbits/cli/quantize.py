"""``fewbits quantize``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fewbits.cli._common import (
    MODEL,
    job_options,
    note,
    notices,
    output_options,
    parse_duration,
    parse_size,
    progress_line,
    say,
    write_out,
)


@click.command("quantize")
@click.argument("model", type=MODEL)
@click.option("-o", "--output", metavar="OUT", required=True, help="Output folder.")
@job_options
@click.option(
    "--costs",
    "costs_file",
    metavar="FILE",
    help="costs.json of an earlier run: which form each layer has, not timed anew.",
)
@click.option("--overwrite", is_flag=True, help="Replace an output folder that fewbits wrote.")
@output_options
def command(
    model: str,
    output: str,
    data: str | None,
    evaluation: str | None,
    plan_file: str | None,
    costs_file: str | None,
    time_budget: str | None,
    max_memory: str | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> int:
    """Turn MODEL (a float ONNX file) into the smallest, fastest model that keeps the budget, with the evidence.

    \b
    Example:
      fewbits quantize model.onnx --data examples.npz --max-drop 1% -o out
    """
    from fewbits._base.files import OutputFolder
    from fewbits.api import quantize

    # Held open for the whole job: a place that refuses says so before an hour of work, and two runs cannot share it.
    inputs = [path for path in (model, data, evaluation, plan_file, costs_file) if path]
    place = OutputFolder(output, overwrite=overwrite, inputs=inputs)
    try:
        with place as out, progress_line(quiet) as progress:
            result = quantize(
                model,
                data=data,
                eval=evaluation,
                plan=plan_file,
                costs=costs_file,
                time_budget=parse_duration(time_budget),
                max_memory=parse_size(max_memory),
                scratch=out.folder,
                progress=progress,
                notice=notices(quiet),
                **options,
            )
            result.write(out)
        show(result, Path(output), as_json=as_json)
    except KeyboardInterrupt:
        if not place.committed:
            raise
        note(f"interrupted at the very end; {output} is complete")
    return int(result.exit_code)


def show(result: Any, folder: Path, *, as_json: bool) -> None:
    """Prints a saved result: its report as JSON, or the summary."""
    from fewbits.reporting.schema import to_json
    from fewbits.reporting.terminal import summary_lines

    if as_json:
        write_out(to_json(result.report))
    else:
        say(summary_lines(result.report, place=str(folder / "report.html")))
