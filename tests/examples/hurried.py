"""Runs a script with a short measurement of latency and none of memory: ``python hurried.py SCRIPT [ARGUMENT ...]``.

Not a test module: the tests of the examples and of the pages run it in a process of its own.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

_SUPPORT = Path(__file__).parents[1] / "support" / "runs.py"


def main() -> None:
    """Shortens what takes time and proves nothing here, then runs the script as itself."""
    spec = importlib.util.spec_from_file_location("fewbits_test_runs", _SUPPORT)
    assert spec is not None and spec.loader is not None
    runs = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = runs
    spec.loader.exec_module(runs)
    runs.hurry(SimpleNamespace(setattr=setattr))
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)  # as python SCRIPT does
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
