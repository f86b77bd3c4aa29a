"""What several verbs share: options, progress, printing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])
Progress = Callable[[str, int, int], None]

MODEL = click.Path(dir_okay=True)
# Characters: of a line, between two columns, and that the last column of a table has at least.
_PAGE = 100
_GAP = 2
_LEAST_LAST = 30
# Characters of a cell: beyond it a name of a stranger's file would make every line as long as itself.
_WIDEST = 120
# Characters of any line that is printed; --json gives names as they are.
LONGEST_LINE = 2000


def output_options(function: Function) -> Function:
    """Adds --json, -q and -v."""
    function = click.option("-v", "--verbose", is_flag=True, help="Show the trace behind an error.")(function)
    function = click.option("-q", "--quiet", is_flag=True, help="No progress.")(function)
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(function)


def job_options(function: Function) -> Function:
    """Adds the options that quantize and plan share."""
    for decorate in reversed(
        [
            click.option(
                "--data", metavar="DATA", help="Calibration, selection and verdict data: .npz or image folder."
            ),
            click.option("--eval", "evaluation", metavar="DATA", help="Verdict data of their own."),
            click.option(
                "--metric", metavar="NAME|module:function", help="Default: top-1, or agreement without labels."
            ),
            click.option("--max-drop", metavar="1%", help="Budget. Default 1%; none with --scheme or --plan."),
            click.option(
                "--confidence", metavar="95%", default="95%", show_default=True, help="Of the one-sided bound."
            ),
            click.option(
                "--target",
                metavar="NAME[:ISA]",
                default="ort-cpu",
                show_default=True,
                help="'fewbits targets' lists; auto takes the fastest.",
            ),
            click.option(
                "--scheme", metavar="NAME", help="Forced scheme, no search: w8a8, w8a8-dynamic, w8a16, w4a16-g32, fp16."
            ),
            click.option("--plan", "plan_file", metavar="FILE", help="Apply this plan as it is."),
            click.option(
                "--effort",
                metavar="fast|balanced|best",
                default="balanced",
                show_default=True,
                help="How much is tried.",
            ),
            click.option("--time-budget", metavar="10m", help="End the search after that with the best so far."),
            click.option(
                "--labels-key",
                metavar="NAME",
                default="labels",
                show_default=True,
                help="Name of the labels in an .npz.",
            ),
            click.option("--score-output", metavar="NAME", help="Output that holds the answer, if not the first."),
            click.option("--allow-slower", is_flag=True, help="Hand over a quantized file even if float is faster."),
            click.option("--max-memory", metavar="4GB", help="Memory that the run may take. Default: what is free."),
            click.option("--seed", metavar="N", type=int, default=0, show_default=True, help="Of all randomness."),
            click.option(
                "--jobs",
                metavar="N",
                type=int,
                default=1,
                show_default=True,
                help="Calibration shards in work at a time; the result is the same for any number.",
            ),
        ]
    ):
        function = decorate(function)
    return function


def parse_duration(text: str | None) -> float | None:
    """Returns seconds: ``90``, ``90s``, ``10m`` or ``1h``.

    >>> parse_duration("10m"), parse_duration("90"), parse_duration(None)
    (600.0, 90.0, None)
    """
    if text is None:
        return None
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], units[text[-1]]) if text and text[-1] in units else (text, 1.0)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise click.UsageError(f"--time-budget {text!r} is not a time; write 90s, 10m or 1h")
    return seconds


def parse_size(text: str | None) -> int | None:
    """Returns bytes: ``500MB``, ``4GB``, ``1.5GiB`` or a plain number.

    >>> parse_size("4GB"), parse_size("1GiB"), parse_size("500"), parse_size(None)
    (4000000000, 1073741824, 500, None)
    """
    if text is None:
        return None
    units = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30, "b": 1.0}
    lower = text.strip().lower()
    unit = next((name for name in units if lower.endswith(name)), "")
    try:
        count = float(lower.removesuffix(unit)) * units.get(unit, 1.0)
    except ValueError:
        count = -1.0
    if not 1 <= count < 2**63:
        raise click.UsageError(f"--max-memory {text!r} is not a size; write 500MB or 4GB")
    return int(count)


@contextmanager
def progress_line(quiet: bool) -> Iterator[Progress]:
    """Yields a progress callback that draws on stderr; silent where stderr is no terminal, or when asked to be.

    What a user's metric prints meanwhile goes to stderr too: stdout holds results and nothing else.
    """
    with redirect_stdout(sys.stderr), _drawn(quiet) as progress:
        yield progress


@contextmanager
def _drawn(quiet: bool) -> Iterator[Progress]:
    if quiet or not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    from fewbits.reporting.text import clean

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for old in tasks.values():
                    bar.remove_task(old)
                tasks.clear()
                tasks[stage] = bar.add_task(clean(stage), total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield show


def silence_stdout() -> None:
    """Lets stdout lead nowhere from now on; what is still in its buffer goes there too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def close_stdout() -> None:
    """Flushes stdout; where that fails, keeps the interpreter from failing once more when it flushes at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        silence_stdout()


def write_out(text: str) -> None:
    """Writes to stdout; a reader who has gone (``| head``) stops the printing, not the work and its exit code."""
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        silence_stdout()


def say(lines: str | list[str]) -> None:
    """Prints to stdout what its encoding can show; names of strangers are cleaned of control characters."""
    from fewbits.reporting.text import clean, fold

    for line in [lines] if isinstance(lines, str) else lines:
        indent = " " * (len(line) - len(line.lstrip(" ")))
        write_out((indent + fold(clean(line, limit=LONGEST_LINE), sys.stdout.encoding or "ascii")).rstrip() + "\n")


def note(line: str) -> None:
    """Prints a remark to stderr."""
    from fewbits.reporting.text import clean, fold

    with suppress(OSError):  # a remark that nobody reads is no reason to stop
        sys.stderr.write(fold(clean(line), sys.stderr.encoding or "ascii") + "\n")


def notices(quiet: bool) -> Callable[[str], None]:
    """Returns what prints a warning to stderr the moment it is known, before the work that it is about."""
    return (lambda warning: None) if quiet else (lambda warning: note(f"note: {warning}"))


def say_json(document: Any) -> None:
    """Prints one JSON document to stdout."""
    write_out(json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False, default=str) + "\n")


def _scaled(count: float, units: Sequence[str]) -> str:
    """Returns three digits and the unit: 999.7 of a unit is 1 of the next, never "1e+03"."""
    for unit in units[:-1]:
        if float(f"{count:.3g}") < 1000:
            return f"{count:.3g} {unit}".rstrip()
        count /= 1000
    return f"{count:.3g} {units[-1]}" if count < 1000 else f"{count:.0f} {units[-1]}"


def human_bytes(count: float) -> str:
    """Returns bytes in words.

    >>> human_bytes(1234567), human_bytes(999_999), human_bytes(12)
    ('1.23 MB', '1 MB', '12 B')
    """
    return _scaled(count, ("B", "kB", "MB", "GB"))


def human_count(count: float) -> str:
    """Returns a count in words.

    >>> human_count(12_300_000), human_count(999_999), human_count(12)
    ('12.3 million', '1 million', '12')
    """
    return _scaled(count, ("", "thousand", "million", "billion"))


def table(rows: Sequence[tuple[str, ...]], *, head: tuple[str, ...]) -> list[str]:
    """Returns aligned text columns; the last one is wrapped to the width of a page."""
    import textwrap

    from fewbits.reporting.text import clean

    cells = [
        (*(clean(cell, limit=_WIDEST) for cell in row[:-1]), clean(row[-1], limit=5 * _WIDEST)) for row in (head, *rows)
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    left = sum(widths[:-1]) + _GAP * (len(head) - 1)
    widths[-1] = min(widths[-1], max(_LEAST_LAST, _PAGE - left))
    lines = []
    for number, row in enumerate(cells):
        start = "".join(cell.ljust(widths[i] + _GAP) for i, cell in enumerate(row[:-1]))
        first, *more = textwrap.wrap(row[-1], widths[-1], break_long_words=False, break_on_hyphens=False) or [""]
        lines += [(start + first).rstrip(), *(" " * left + line for line in more)]
        if number == 0:
            lines.append((" " * _GAP).join("-" * width for width in widths))
    return lines
