"""Start-up: seconds of ``fewbits --help`` (median of 20), and what ``import fewbits`` loads.

Run: ``python benchmarks/bench_startup.py [--runs 20]``
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import common

HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "scipy", "numpy", "ml_dtypes", "pydantic", "jinja2", "rich", "PIL")
FORBIDDEN = ("torch", "onnx", "scipy")
LISTING = "import json, sys; import fewbits; print(json.dumps(sorted(sys.modules)))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    arguments = parser.parse_args()
    print(common.machine())

    command = [str(Path(sys.executable).with_name("fewbits")), "--help"]
    rows = [
        timed("python -c pass", [sys.executable, "-c", "pass"], arguments.runs),
        timed("python -c 'import fewbits'", [sys.executable, "-c", "import fewbits"], arguments.runs),
        timed("fewbits --help", command, arguments.runs),
    ]
    print(f"\nmedian of {arguments.runs} runs, seconds (promised for fewbits --help: under 0.3)\n")
    print(common.table(("", "median", "fastest", "slowest", "exit code"), rows))

    bare = listing("import json, sys; print(json.dumps(sorted(sys.modules)))")
    loaded = listing(LISTING)
    heavy = [name for name in HEAVY if name in loaded]
    wrong = [name for name in FORBIDDEN if name in loaded]
    print(f"\nimport fewbits loads {len(loaded - bare)} modules, {len(own(loaded))} of them fewbits's own")
    print(f"heavy libraries among them: {', '.join(heavy) or 'none'} (promised: no {', '.join(FORBIDDEN)})")
    if wrong:
        raise SystemExit(f"the promise is broken: import fewbits loads {', '.join(wrong)}")


def timed(label: str, command: list[str], runs: int) -> list[str]:
    """Returns the row of one command, after one run that warms the file cache and is not counted."""
    seconds, code = [], 0
    for _ in range(runs + 1):
        start = time.perf_counter()
        code = subprocess.run(command, capture_output=True, check=False).returncode
        seconds.append(time.perf_counter() - start)
    counted = seconds[1:]
    figures = [f"{value:.3f}" for value in (statistics.median(counted), min(counted), max(counted))]
    return [label, *figures, str(code)] if code == 0 else [label, common.NOT_RUN, "", "", f"{code} (it failed)"]


def listing(code: str) -> set[str]:
    return set(json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout))


def own(modules: set[str]) -> set[str]:
    return {name for name in modules if name.split(".")[0] == "fewbits"}


if __name__ == "__main__":
    main()
