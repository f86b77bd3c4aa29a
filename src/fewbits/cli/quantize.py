"""``fewbits quantize``: the main job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from fewbits.cli._common import MODEL, job_options, note, output_options, parse_duration, progress_line, say


@click.command("quantize")
@click.argument("model", type=MODEL)
@click.option("-o", "--output", metavar="OUT", required=True, help="Output folder.")
@job_options
@click.option("--overwrite", is_flag=True, help="Replace an output folder that fewbits wrote.")
@output_options
def command(
    model: str,
    output: str,
    data: str | None,
    evaluation: str | None,
    plan_file: str | None,
    time_budget: str | None,
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
    inputs = [path for path in (model, data, evaluation, plan_file) if path]
    with OutputFolder(output, overwrite=overwrite, inputs=inputs) as out, progress_line(quiet) as progress:
        result = quantize(
            model,
            data=data,
            eval=evaluation,
            plan=plan_file,
            time_budget=parse_duration(time_budget),
            progress=progress,
            **options,
        )
        result.write(out)
    show(result, Path(output), as_json=as_json, quiet=quiet)
    return int(result.exit_code)


def show(result: Any, folder: Path, *, as_json: bool, quiet: bool) -> None:
    """Prints a saved result: its report as JSON, or the summary."""
    from fewbits.reporting.schema import to_json
    from fewbits.reporting.terminal import summary_lines

    if as_json:
        sys.stdout.write(to_json(result.report))
        return
    encoding = sys.stdout.encoding or "ascii"
    say(summary_lines(result.report, place=str(folder / "report.html"), encoding=encoding))
    if not quiet:
        for warning in result.report.warnings:
            note(f"note: {warning}")
