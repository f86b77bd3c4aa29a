"""What importing loads, in fresh interpreters: the package is light, heavy libraries come when they are needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "scipy", "rich", "jinja2", "pydantic", "PIL", "ml_dtypes")


def loaded(code: str) -> set[str]:
    """Returns the top-level modules that are loaded after some code has run."""
    show = "import sys; sys.stderr.write(' '.join({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def run_verb(*args: str) -> str:
    return f"""
import sys
sys.argv = ["fewbits", *{args!r}]
from fewbits.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


def test_import_loads_no_framework() -> None:
    assert loaded("import fewbits") & {*HEAVY, "numpy", "click"} == set()


def test_listing_names_loads_no_framework() -> None:
    code = "import fewbits; dir(fewbits); from fewbits.targets import TARGETS; list(TARGETS)"
    assert loaded(code) & set(HEAVY) == set()


@pytest.mark.parametrize("args", [("--help",), ("--version",), ("quantize", "--help"), ("plan", "--help")])
def test_help_loads_no_framework(args: tuple[str, ...]) -> None:
    assert loaded(run_verb(*args)) & {*HEAVY, "numpy"} == set()


def test_formats_and_evidence_load_no_model_library() -> None:
    code = "import fewbits; list(fewbits.formats); fewbits.evidence.paired_bound([1, 1, 0], [1, 0, 0])"
    assert loaded(code) & {"torch", "onnx", "onnx_ir", "onnxruntime", "rich", "jinja2", "pydantic"} == set()


def test_quantizing_loads_no_torch() -> None:
    assert "torch" not in loaded("import fewbits.api, fewbits.search.job, fewbits.reporting.html, fewbits.cli.demo")
