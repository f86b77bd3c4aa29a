"""The parent's side of ``warm.py``: hands jobs to a child, and sees it die. Not a test module."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

from attacks.running import SECONDS, Ran

_CHILD = Path(__file__).with_name("warm.py")
# How long beyond its own alarm a child may be silent: a library in C that hangs lets no alarm through. The first job
# brings the imports.
_SILENT = 3 * SECONDS
_PLAIN = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TERM": "dumb"}


class Warm:
    """A child that runs command lines; replaced where one kills it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None

    def run(self, *args: str | os.PathLike[str], folder: Path) -> Ran:
        """Returns what ``fewbits ARGS`` does; no code where it does not end, a negative one where the child dies."""
        child = self._child = self._child or self._started()
        assert child.stdin is not None and child.stdout is not None
        job = {"args": [os.fspath(a) for a in args], "folder": str(folder), "seconds": SECONDS}
        child.stdin.write(json.dumps(job) + "\n")
        child.stdin.flush()
        ready, _, _ = select.select([child.stdout], [], [], SECONDS + _SILENT)
        line = child.stdout.readline() if ready else ""
        if not line:
            self.close()
            code = child.returncode if not ready or child.returncode != -9 else -9
            return Ran(verb=str(args[0]), code=None if not ready else code, out="", err="", seconds=SECONDS, peak=0)
        answer = json.loads(line)
        return Ran(verb=str(args[0]), peak=0, **answer)

    def _started(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_PLAIN},
            text=True,
        )

    def close(self) -> None:
        """Ends the child."""
        if self._child is None:
            return
        child, self._child = self._child, None
        if child.poll() is None:
            assert child.stdin is not None
            child.stdin.close()
            try:
                child.wait(2)
            except subprocess.TimeoutExpired:
                child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
