"""The mixed bag of tests/bag: what becomes of each model, as a Markdown table.

Every model is quantized twice with ``--effort fast --max-drop 5%``: as a user would do it, which tells
the result, and with ``--allow-slower``, which tells what integers do to it even where the float model is handed over.
Run: ``python benchmarks/bench_bag.py [--models resnet,vit]``
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import common

_BAG = common.HERE.parent / "tests" / "bag"
_HEADER = ("Model", "Structure", "Opset", "Result", "Integer / float nodes", "Size", "Speed", "KL")


def bag() -> ModuleType:
    """Returns the package of generators."""
    place = _BAG / "networks"
    spec = importlib.util.spec_from_file_location(
        "fewbits_test_bag", place / "__init__.py", submodule_search_locations=[str(place)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def quantize(case: Any, files: Any, out: Path, *more: str) -> tuple[int, str, dict[str, Any] | None]:
    """Returns exit code, stderr, and the report if there is one, of a run in a process of its own."""
    metric = ["--metric", f"bag_metrics:{case.metric}"] if case.metric else []
    command = [sys.executable, "-m", "fewbits", "quantize", files.model, "--data", files.data, "--max-drop", "5%"]
    command += ["--effort", "fast", *metric, "-o", out, "-q", "--json", *more]
    paths = [str(_BAG), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.strip(), json.loads(done.stdout) if done.stdout else None


def row(case: Any, found: ModuleType, folder: Path) -> list[str]:
    """Returns the cells of one model."""
    made = case.make()
    files = found.save(made, folder, case.name, external=case.external)
    start = [f"`{case.name}`", case.structure, str(made.model.opset_import[0].version)]
    code, error, report = quantize(case, files, folder / "default")
    if report is None:
        slug = re.search(r"\[([a-z-]+)\]$", error)
        return [*start, f"refused: {slug[1]}" if slug else f"exit code {code}", "", "", "", ""]
    result = f"{report['verdict']}, float kept" if report["float_kept"] else report["verdict"]
    _, error, forced = quantize(case, files, folder / "forced", "--allow-slower")
    if forced is None:
        raise RuntimeError(f"{case.name} with --allow-slower: {error}")
    nodes, size, latency = forced["executed"], forced["size"], forced["latency"]
    speed = f"{latency['speedup']:.2f}x [{latency['speedup_low']:.2f}, {latency['speedup_high']:.2f}]"
    kl = forced["metric"]["quality"]["kl"]
    return [
        *start,
        result,
        f"{nodes['integer_nodes']} / {nodes['float_nodes']}",
        f"1/{size['ratio']:.2f}",
        speed,
        "none" if kl is None else f"{kl:.5f}",
    ]


def main() -> None:
    found = bag()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(found.CASES))
    arguments = parser.parse_args()
    print(common.machine())
    print(common.TIMED)
    print()
    rows = []
    for name in arguments.models.split(","):
        with common.scratch() as folder:
            rows.append(row(found.CASES[name], found, folder))
    print(common.table(_HEADER, rows))


if __name__ == "__main__":
    main()
