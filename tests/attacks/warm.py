"""Runs many command lines in one process, one after the other: a fresh interpreter for each would take a second.

Not a test module: a child that ``warm_client.py`` starts. A line on stdin is a job, a line on stdout its answer.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

_SUPPORT = Path(__file__).parents[1] / "support" / "runs.py"


class TookTooLong(BaseException):
    """The alarm; no Exception, so that nothing takes it for a fault of the file."""


class _Patch:
    setattr = staticmethod(setattr)


def _ring(number: int, frame: object) -> None:
    raise TookTooLong


def _run(arguments: list[str], seconds: float) -> tuple[int | None, str, str]:
    from fewbits.cli import main

    sys.argv = ["fewbits", *arguments]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        saved = [os.dup(1), os.dup(2)]
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        code: int | None = 0
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        except TookTooLong:
            code = None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, place in zip(saved, (1, 2), strict=True):
                os.dup2(descriptor, place)
                os.close(descriptor)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "surrogateescape"))
    return code, texts[0], texts[1]


def _serve() -> None:
    spec = importlib.util.spec_from_file_location("fewbits_test_runs", _SUPPORT)
    assert spec is not None and spec.loader is not None
    runs = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = runs
    spec.loader.exec_module(runs)
    runs.hurry(_Patch())
    signal.signal(signal.SIGALRM, _ring)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job = json.loads(line)
        with contextlib.suppress(FileNotFoundError):
            os.chdir(job["folder"])
        begin = time.monotonic()
        code, out, err = _run(job["args"], job["seconds"])
        answer = {"code": code, "out": out, "err": err, "seconds": time.monotonic() - begin}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
