"""``fewbits plan``: the forecast, or the plan that a search ends with."""

from __future__ import annotations

from typing import Any

import click

from fewbits.cli._common import (
    MODEL,
    human_bytes,
    job_options,
    note,
    notices,
    output_options,
    parse_duration,
    parse_size,
    progress_line,
    say,
    say_json,
)


@click.command("plan")
@click.argument("model", type=MODEL)
@click.option("-o", "--output", metavar="FILE", help="Write the plan there.")
@click.option("--search", is_flag=True, help="Run the search and write the final plan.")
@job_options
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@output_options
def command(
    model: str,
    output: str | None,
    search: bool,
    data: str | None,
    evaluation: str | None,
    plan_file: str | None,
    time_budget: str | None,
    max_drop: str | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> int:
    """Forecast what quantizing MODEL would do and take: memory, disk, time, and the examples that the budget needs."""
    from fewbits._base.errors import UsageError
    from fewbits._base.files import write_atomic
    from fewbits.api import DEFAULT_MAX_DROP, plan, quantize

    place = output or ("plan.json" if search else None)
    if place is not None:
        _refuse_place(place, inputs=(model, data, evaluation, plan_file), overwrite=overwrite)
    if search:
        with progress_line(quiet) as progress:
            result = quantize(
                model,
                data=data,
                eval=evaluation,
                plan=plan_file,
                max_drop=max_drop,
                time_budget=parse_duration(time_budget),
                progress=progress,
                notice=notices(quiet),
                **{**options, "max_memory": parse_size(options["max_memory"])},
            )
        assert place is not None
        write_atomic(place, result.plan.to_json().encode())
        if as_json:
            say_json(
                {
                    "schema_version": 1,
                    "plan": place,
                    "verdict": result.verdict,
                    "headline": result.report.headline,
                    "sites": len(result.plan.quantized),
                    "warnings": result.report.warnings,
                }
            )
        else:
            say(result.report.headline)
            say(f"plan: {place}")
        return int(result.exit_code)
    if plan_file is not None:
        raise UsageError("a forecast needs no --plan; leave it out", slug="options")
    unused = ("jobs", "allow_slower", "max_memory")  # they change how a run works, not what it takes
    found = plan(
        model,
        data=data,
        eval=evaluation,
        max_drop=max_drop or DEFAULT_MAX_DROP,
        time_budget=parse_duration(time_budget),
        max_memory=parse_size(options["max_memory"]),
        **{key: value for key, value in options.items() if key not in unused},
    )
    if place is not None:
        write_atomic(place, found.plan.to_json().encode())
    if as_json:
        fields = {k: getattr(found, k) for k in found.__dataclass_fields__ if k != "plan"}
        say_json({"schema_version": 1, **fields, "sites": len(found.plan.quantized)})
        return 0
    say(f"{len(found.plan.quantized)} tensors would be quantized for {found.plan.target}")
    say(f"  size    {human_bytes(found.model_bytes)} -> about {human_bytes(found.quantized_bytes)}")
    say(f"  memory  about {human_bytes(found.memory_bytes)} at the peak")
    say(f"  disk    about {human_bytes(found.disk_bytes)}")
    say(f"  time    {'unknown without --data' if found.seconds is None else f'about {found.seconds:.0f} s'}")
    needed = "no number of" if found.examples_needed is None else f"at least {found.examples_needed}"
    say(f"  budget  {100 * found.max_drop:g}% needs {needed} verdict examples, more if answers change")
    if found.verdict_examples is not None:
        say(
            f"  data    {found.calibration_examples} calibration, {found.selection_examples} selection, "
            f"{found.verdict_examples} verdict: losses down to {100 * (found.smallest_budget or 0):.2g}% can be shown"
        )
    for warning in found.warnings:
        note(f"note: {warning}")
    return 0


def _refuse_place(place: str, *, inputs: tuple[str | None, ...], overwrite: bool) -> None:
    """Refuses, before any work, a place for the plan that is an input, or holds something that was not given up."""
    from pathlib import Path

    from fewbits._base.errors import UsageError

    path = Path(place)
    for name in filter(None, inputs):
        if path.resolve() == Path(name).resolve():
            raise UsageError(f"the plan would replace the input {name!r}; choose another -o", slug="output-is-input")
    if path.is_dir():
        raise UsageError(f"{place!r} is a folder; name a file, such as {place}/plan.json", slug="output-foreign")
    if path.exists() and not overwrite:
        raise UsageError(f"{place!r} exists; choose another -o or pass --overwrite", slug="output-exists")
