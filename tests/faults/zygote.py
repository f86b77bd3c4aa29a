"""Runs command lines in forked processes, each with the faults that its job asks for. Not a test module.

A fresh interpreter takes a second to import the libraries; a fork of one that has them takes none. A line on stdin is a
job, answered by the process's id at once and by how it ended later.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import json
import os
import resource
import signal
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SUPPORT = Path(__file__).parents[1] / "support" / "runs.py"


class _Patch:
    setattr = staticmethod(setattr)


def _load() -> None:
    """Imports what a run imports, but for the runtime, which has a thread; makes the measurement of speed short."""
    spec = importlib.util.spec_from_file_location("fewbits_test_runs", _SUPPORT)
    assert spec is not None and spec.loader is not None
    runs = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = runs
    spec.loader.exec_module(runs)
    runs.hurry(_Patch())
    for name in ("cli.quantize", "cli.verify", "cli.plan", "reporting.html", "reporting.model_card", "runtimes.ort"):
        importlib.import_module(f"fewbits.{name}")
    for name in ("onnx.checker", "onnx.shape_inference", "scipy.optimize", "scipy.stats", "onnx_ir"):
        importlib.import_module(name)


def _at(point: str, number: int, act: Callable[[], None]) -> None:
    """Lets the n-th call of ``module:name`` act first."""
    module, _, path = point.partition(":")
    place: Any = importlib.import_module(module)
    *owners, name = path.split(".")
    for owner in owners:
        place = getattr(place, owner)
    whole, calls = getattr(place, name), [0]

    def wrapped(*args: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            act()
        return whole(*args, **more)

    setattr(place, name, wrapped)


def _any_of(points: list[str], number: int, act: Callable[[], None]) -> None:
    """Lets the n-th call of any of these act first; they are counted together."""
    calls = [0]

    def count() -> None:
        calls[0] += 1
        if calls[0] == number:
            act()

    for point in points:
        module, _, name = point.partition(":")
        place: Any = importlib.import_module(module)

        setattr(place, name, _counted(getattr(place, name), count))


def _counted(whole: Callable[..., Any], count: Callable[[], None]) -> Callable[..., Any]:
    def wrapped(*args: Any) -> Any:
        if not isinstance(args[0], int) or _on_disk(args[0]):
            count()
        return whole(*args)

    return wrapped


def _on_disk(descriptor: int) -> bool:
    """Tells files and folders from pipes and terminals."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _act(what: str) -> Callable[[], None]:
    if what.startswith("child "):
        return lambda: _to_child(getattr(signal, what.removeprefix("child ")))
    if what.startswith("SIG"):
        return lambda: os.kill(os.getpid(), getattr(signal, what))
    code = getattr(errno, what)

    def fail() -> None:
        raise OSError(code, os.strerror(code))

    return fail


def _to_child(number: int) -> None:
    from fewbits.runtimes.bounded import RUNNER

    assert RUNNER._child is not None
    os.kill(RUNNER._child.pid, number)


def _become(job: dict[str, Any]) -> None:
    """Makes this process the one that a job asks for."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(job["folder"])
    os.environ.update(job["env"])
    for descriptor, path in ((1, job["out"]), (2, job["err"])):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, descriptor)
        os.close(file)
    tempfile.tempdir = None  # the folder for temporary files is chosen anew
    if job["lazy"]:
        from fewbits.models.onnx import opening

        opening._LAZY_BYTES = 0
        opening._LEAST_LAZY_BYTES = 16
    for name, value in job["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    for points, number, what in job["faults"]:
        if isinstance(points, str):
            _at(points, number, _act(what))
        else:
            _any_of(points, number, _act(what))
    sys.argv = ["fewbits", *job["args"]]


def _serve() -> None:
    _load()
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads does not fork well"  # noqa: PTH208
    answers = os.dup(1)
    os.write(answers, b"0\n")
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            os.close(answers)
            _become(json.loads(line))
            from fewbits.cli import main

            main()
        os.write(answers, f"{child}\n".encode())
        _, status = os.waitpid(child, 0)
        os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    _serve()
