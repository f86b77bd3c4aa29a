"""The command line: each verb parses, calls ``fewbits.api`` and prints. Results on stdout, the rest on stderr."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import NoReturn

import click

from fewbits._base.errors import Exit, FewbitsError, ModelError, ResourceError
from fewbits._base.memory import address_space, is_lack_of_memory
from fewbits._version import VERSION
from fewbits.cli._common import LONGEST_LINE, close_stdout, silence_stdout
from fewbits.cli._interrupt import obey_once
from fewbits.reporting.text import clean, fold

# Verb -> what the list of verbs says of it; the module of the same name is imported when the verb is run.
_VERBS = {
    "inspect": "What is in a model, and what a target could do with it.",
    "plan": "Forecast: what would be done, memory, disk, time, examples needed.",
    "quantize": "The main job: the smallest, fastest model inside the budget.",
    "measure": "Paired comparison of any two models.",
    "report": "Rebuild report.html of an output folder.",
    "verify": "Check every hash and the golden outputs of an output folder.",
    "targets": "What the targets accept.",
    "formats": "Number formats.",
    "doctor": "What this machine is, and what is installed.",
    "demo": "The whole story on an embedded real model, offline.",
}

# Bytes of address space that Python and the libraries take before any model (423 MiB measured, one thread each).
# With less some of them end the process in words of their own, before anything here could.
_LEAST_ADDRESS_SPACE = 512 * 2**20
_OUT_OF_MEMORY = "out of memory; use fewer --jobs, or a machine with more [out-of-memory]"


class _PassedOn(Exception):  # noqa: N818 - no error of its own: it carries one past click
    """Carries an exception that click would judge for itself; the cause is the exception."""


class _Verbs(click.Group):
    """A group whose verbs are imported when they are run, so that ``--help`` answers at once."""

    def invoke(self, ctx: click.Context) -> object:
        # Click takes an EOFError (a file that ends too soon) for Ctrl-C, and prints an empty line for the latter.
        try:
            _refuse_little_memory()
            return super().invoke(ctx)
        except (KeyboardInterrupt, EOFError) as error:
            raise _PassedOn from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        command: click.Command = importlib.import_module(f"fewbits.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(_VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in _VERBS:
            from fewbits._base.catalog import nearest

            raise click.UsageError(f"unknown verb {name!r}; {nearest(name, list(_VERBS))}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 met or no budget, 2 usage, 3 not met or undecided, 4 input refused, 5 target, "
    "6 resources, 7 security, 8 verification, 130 interrupted.",
)
@click.version_option(VERSION, prog_name="fewbits", message="%(prog)s %(version)s")
def group() -> None:
    """Name the accuracy you can afford to lose; get the smallest, fastest model that keeps it, with the evidence."""


def _refuse(message: str, code: Exit) -> NoReturn:
    close_stdout()
    # The slug at the end stays; what a stranger's file calls itself may be longer than any screen.
    line = fold(clean(f"fewbits: {message}", limit=LONGEST_LINE), sys.stderr.encoding or "ascii")
    with contextlib.suppress(OSError):  # nobody is listening; the exit code says it all
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    sys.exit(int(code))


def main() -> None:
    """Runs the command line; every refusal is one line on stderr and an exit code of the contract."""
    verbose = any(argument in ("-v", "--verbose") for argument in sys.argv[1:])
    _open_missing_streams()
    obey_once()
    try:
        try:
            code = group.main(prog_name="fewbits", standalone_mode=False)
        except _PassedOn as carrier:
            raise carrier.__cause__ or carrier from None
        _finish(int(code) if isinstance(code, int) else 0)
    except FewbitsError as error:
        if verbose:
            _traceback()
        if isinstance(error, ModelError) and is_lack_of_memory(error):  # the runtime says bad_alloc of a good model too
            _refuse(_OUT_OF_MEMORY, Exit.RESOURCE)
        _refuse(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stderr.write(error.format_message() + "\n")
        sys.exit(int(Exit.USAGE))
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        verb = f" {context.info_name}" if context is not None and context.parent is not None else ""
        text = " ".join(error.format_message().split()).rstrip(".")
        _refuse(f"{text}; see 'fewbits{verb} --help' [usage]", Exit.USAGE)
    except (KeyboardInterrupt, click.Abort):
        _refuse("interrupted; nothing was written [interrupted]", Exit.INTERRUPTED)
    except OSError as error:
        if verbose:
            _traceback()
        if is_lack_of_memory(error):
            _refuse(_OUT_OF_MEMORY, Exit.RESOURCE)
        _refuse(f"{error.strerror or error} ({error.filename or 'no file'}) [system]", Exit.RESOURCE)
    except Exception as error:  # the last net: a stranger sees a line, -v shows the trace
        if verbose:
            _traceback()
        if is_lack_of_memory(error):
            _refuse(_OUT_OF_MEMORY, Exit.RESOURCE)
        name = type(error).__name__
        _refuse(f"internal error: {name}: {error}; run again with -v and report it [internal]", Exit.INTERNAL)


def _refuse_little_memory() -> None:
    """Refuses to start where the libraries alone would not fit: not each of them can tell."""
    limit = address_space()
    if limit is not None and limit < _LEAST_ADDRESS_SPACE:
        raise ResourceError(
            f"out of memory: this process may take {limit / 2**20:.0f} MB of address space (ulimit -v), and the "
            f"libraries alone take up to {_LEAST_ADDRESS_SPACE / 2**20:.0f}; raise the limit",
            slug="out-of-memory",
        )


def _open_missing_streams() -> None:
    """Gives a process that was started with closed streams (``>&-``) streams that swallow what is written."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            setattr(sys, name, open(nowhere, "w", encoding="utf-8", closefd=False))  # noqa: SIM115 - to the end


def _finish(code: int) -> NoReturn:
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has gone; the work is done, and its code still counts
        silence_stdout()
    sys.exit(code)


def _traceback() -> None:
    import traceback

    traceback.print_exc()
